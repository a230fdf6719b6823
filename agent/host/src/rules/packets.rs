//! Sets of packets: those that come to a rule, by their protocols and by what they have answered to rules on their way.
//!
//! Two things happen to such a set. A rule asks, and those are left that answer as it wants. And a rule takes packets out, and
//! of those left it is known that they are none of these: of another protocol, or, where all other answers are theirs, with
//! the other answer to the one that remains. What is taken out is never told to be more than it is: a set may hold
//! packets that never come, and lacks none that does.

use std::rc::Rc;

use headroom_core::protocols::Protocols;

use super::questions::Answer;

/// Answers that are known at most because packets with others were taken out, and answers of those of which that does not tell
/// any yet: some 250 pods have rules of their own.
pub(super) const GONE_LIMIT: usize = 1024;
/// Of packets that were taken out, so many sets at most that were not taken with them, having gone back before.
const BUT_LIMIT: usize = 16;
/// How often what was learnt is made use of to learn more.
const MAX_TURNS: usize = 4;

/// Why packets do not come to the rules behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// They went back to where their chain was called.
    Returned,
    /// They left the hook as they were.
    Ended,
    /// They were translated.
    Translated,
}

/// Packets that were taken out.
#[derive(Debug)]
pub(super) struct Gone {
    /// The when of it: a later one has a higher number.
    number: usize,
    pub(super) protocols: Protocols,
    /// What all of them had answered.
    pub(super) answers: Vec<Answer>,
    /// Some that had gone back before, and so were not taken.
    pub(super) but: Vec<Rc<Gone>>,
    /// There are more of these.
    pub(super) but_more: bool,
    pub(super) how: How,
}

/// An answer that is known because others were taken out by the opposite one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left {
    pub(super) answer: Answer,
    pub(super) how: How,
}

/// Packets that come to a place.
#[derive(Debug, Clone, Default)]
pub(super) struct Packets {
    pub(super) protocols: Protocols,
    /// What they were asked for, in that order.
    pub(super) asked: Vec<Answer>,
    /// What is left, in the order in which others were taken out.
    pub(super) left: Vec<Left>,
    /// All of these answers, by number.
    known: Vec<Answer>,
}

/// Packets that come to a place, with all that was taken out before it.
#[derive(Debug, Clone, Default)]
pub(super) struct Here {
    pub(super) packets: Packets,
    /// What was taken out and is not told by what the packets are, in order.
    pub(super) gone: Vec<Rc<Gone>>,
    /// Answers in it.
    pub(super) answers: usize,
    /// Stands for what is not known of those that went back and are forgotten.
    pub(super) doubt: Option<Answer>,
    /// How many more sets were taken out.
    pub(super) forgotten: usize,
}

impl Packets {
    pub(super) fn is_empty(&self) -> bool {
        self.protocols.is_empty()
    }

    pub(super) fn know(&self, answer: Answer) -> bool {
        self.known.binary_search(&answer).is_ok()
    }

    /// None of them is one of those.
    pub(super) fn are_apart_from(&self, gone: &Gone) -> bool {
        self.protocols.and(gone.protocols).is_empty() || gone.answers.iter().any(|answer| self.know(answer.other()))
    }

    fn learn(&mut self, answer: Answer) {
        if self.know(answer.other()) {
            self.protocols = Protocols::NONE;
        }
        if let Err(place) = self.known.binary_search(&answer) {
            self.known.insert(place, answer);
        }
    }

    /// Those that are left if they are asked for this.
    pub(super) fn ask(&mut self, answer: Answer) {
        if !self.asked.contains(&answer) {
            self.asked.push(answer);
        }
        self.learn(answer);
    }

    /// As if they had not been asked for this.
    fn unask(&mut self, answer: Answer) {
        self.asked.retain(|asked| *asked != answer);
        self.known.retain(|known| *known != answer);
    }

    /// Whether none of these have gone back before the others were taken out, or they are gone, too.
    fn is_told(&self, gone: &Gone, others: &[Rc<Gone>]) -> bool {
        let is_gone = |one: &Gone| others.binary_search_by_key(&one.number, |other| other.number).is_ok();
        !gone.but_more && gone.but.iter().all(|but| self.are_apart_from(but) || is_gone(but))
    }

    /// Takes these out, if what is left then can be told by protocols and answers.
    fn lose(&mut self, gone: &Gone, others: &[Rc<Gone>]) -> bool {
        if !self.is_told(gone, others) {
            return false;
        }
        let mut open = gone.answers.iter().filter(|answer| !self.know(**answer));
        match (open.next(), open.next()) {
            (None, _) => self.protocols = self.protocols.without(gone.protocols),
            (Some(one), None) if self.protocols.is_within(gone.protocols) && self.left.len() < GONE_LIMIT => {
                let answer = one.other();
                self.left.push(Left { answer, how: gone.how });
                self.learn(answer);
            }
            _ => return false,
        }
        true
    }

    /// The only answer that those have had and that is not known of these.
    fn differ_in(&self, gone: &Gone, others: &[Rc<Gone>]) -> Option<Answer> {
        if !self.is_told(gone, others) {
            return None;
        }
        let mut open = gone.answers.iter().filter(|answer| !self.know(**answer));
        open.next().copied().filter(|_| open.next().is_none())
    }

    /// Takes out the protocols of which all with one answer are gone, and all with the other.
    fn lose_both(&mut self, mut halves: Vec<(Answer, Protocols)>) -> bool {
        halves.sort_unstable_by_key(|(answer, _)| *answer);
        let mut left = self.protocols;
        for question in halves.chunk_by(|(one, _), (next, _)| one == next || one.other() == *next) {
            let of = |answer: Answer| {
                let same = question.iter().filter(move |(one, _)| *one == answer);
                same.fold(Protocols::NONE, |all, (_, these)| all.or(*these))
            };
            if let [(answer, _), _, ..] = question {
                left = left.without(of(*answer).and(of(answer.other())));
            }
        }
        std::mem::replace(&mut self.protocols, left) != left
    }

    /// Makes use of all that was taken out.
    pub(super) fn settle(&mut self, gone: &[Rc<Gone>]) {
        for _ in 0..MAX_TURNS {
            let mut learnt = false;
            let mut halves: Vec<(Answer, Protocols)> = Vec::new();
            for one in gone.iter().map(Rc::as_ref) {
                if self.are_apart_from(one) {
                    continue;
                }
                if self.lose(one, gone) {
                    learnt = true;
                } else if let Some(answer) = self.differ_in(one, gone) {
                    halves.push((answer, one.protocols));
                }
            }
            learnt |= self.lose_both(halves);
            if !learnt {
                break;
            }
        }
    }

    /// These, when they are taken out, for the rules behind in the same chain: what had been taken out there does not come to these
    /// either. `number` is higher than any before.
    pub(super) fn taken(&self, how: How, number: usize) -> Rc<Gone> {
        let (but, answers) = (Vec::new(), self.asked.clone());
        Rc::new(Gone { number, protocols: self.protocols, answers, but, but_more: false, how })
    }

    /// The same for the rules behind the one that called the chain: what had gone back before was not taken with them. What had
    /// ended does not come there, and may as well be counted among these.
    pub(super) fn taken_for_good(&self, how: How, before: &[Rc<Gone>], number: usize) -> Rc<Gone> {
        let returned = self.left.iter().filter(|left| left.how == How::Returned).map(|left| left.answer);
        let open = returned.filter(|answer| !self.asked.contains(answer));
        let answers: Vec<Answer> = self.asked.iter().copied().chain(open).collect();
        // What else is known of these is so because others ended, and of those some may have gone back before.
        let apart = |one: &Gone| {
            self.protocols.and(one.protocols).is_empty() || one.answers.iter().any(|one| answers.contains(&one.other()))
        };
        let mut returned = before.iter().filter(|one| one.how == How::Returned && !apart(one));
        let but = returned.by_ref().take(BUT_LIMIT).cloned().collect();
        let but_more = returned.next().is_some();
        Rc::new(Gone { number, protocols: self.protocols, answers, but, but_more, how })
    }
}

impl Here {
    /// Takes packets out. Where there is no room to remember them, `untold` stands for what is not known of the rest.
    pub(super) fn lose(&mut self, gone: &Rc<Gone>, untold: impl FnOnce() -> Answer) {
        if self.packets.are_apart_from(gone) {
            return;
        }
        if self.packets.lose(gone, &self.gone) {
            self.packets.settle(&self.gone);
        } else if self.answers + gone.answers.len() <= GONE_LIMIT {
            self.answers += gone.answers.len();
            self.gone.push(Rc::clone(gone));
        } else {
            self.forgotten += usize::from(gone.how != How::Translated);
            // Some of what is taken out from now on may have gone back already.
            if gone.how == How::Returned {
                let doubt = untold();
                self.doubt.replace(doubt).into_iter().for_each(|old| self.packets.unask(old));
                self.packets.ask(doubt);
            }
        }
    }
}
