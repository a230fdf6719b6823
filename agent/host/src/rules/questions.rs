//! The questions that rules ask of packets, each with a number, so that equal ones are recognised.
//!
//! A lasting condition is one question, whoever asks it. Any other is a new one each time a packet is asked on its way: all
//! that is certain of it is that a packet gave one answer there and then.

use std::collections::BTreeMap;

use super::{Condition, Lasts};

/// What a packet answered to a question: two numbers for each question, yes and no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Answer(u32);

impl Answer {
    /// The other answer to the same question.
    pub(super) fn other(self) -> Self {
        Self(self.0 ^ 1)
    }
}

/// What a question is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Question {
    /// What a packet is, in words, and whether somebody has read it.
    Condition { said: String, understood: bool },
    /// Chance: the part that it takes.
    Chance(String),
    /// Something that nobody tells.
    Untold,
}

/// All that were asked.
#[derive(Debug, Default)]
pub(super) struct Questions {
    asked: Vec<Question>,
    /// Those whose answers last, by their words and what these leave out.
    lasting: BTreeMap<(String, Vec<u8>), Answer>,
    /// By their words, what conditions ask beyond them.
    worded: BTreeMap<String, BTreeMap<Vec<u8>, usize>>,
}

/// An IPv6 packet is one that is not an IPv4 one.
const IPV4: &str = "IPv4";
const IPV6: &str = "IPv6";

/// A question without what turns it round, and whether it was turned round.
fn upright(said: &str) -> (&str, bool) {
    match said.strip_prefix("! ") {
        Some(IPV6) => (IPV4, false),
        Some(rest) => (rest, true),
        None if said == IPV6 => (IPV4, true),
        None => (said, false),
    }
}

impl Questions {
    fn ask(&mut self, question: Question) -> Answer {
        // A walk asks fewer than its steps, each of a rule of at most 64 KiB.
        let number = u32::try_from(self.asked.len()).unwrap_or(u32::MAX >> 1);
        self.asked.push(question);
        Answer(number << 1)
    }

    /// The answer that fulfils a condition of the rule in that chain and place.
    pub(super) fn fulfilling(&mut self, condition: &Condition, chain: &str, position: u32) -> Answer {
        let (said, turned) = upright(&condition.said);
        let understood = condition.understood;
        let yes = if condition.lasts == Lasts::Always {
            let key = (said.to_owned(), condition.rest.clone());
            match self.lasting.get(&key) {
                Some(known) => *known,
                None => {
                    let said = self.worded(condition, said, chain, position);
                    let yes = self.ask(Question::Condition { said, understood });
                    self.lasting.insert(key, yes);
                    yes
                }
            }
        } else {
            let said = self.worded(condition, said, chain, position);
            self.ask(Question::Condition { said, understood })
        };
        if turned { yes.other() } else { yes }
    }

    /// The words of a condition, with a number where the same words ask something else.
    fn worded(&mut self, condition: &Condition, said: &str, chain: &str, position: u32) -> String {
        let mut rest = condition.rest.clone();
        if condition.lasts == Lasts::Once {
            rest.extend(chain.bytes().chain(position.to_ne_bytes()));
        }
        let all = self.worded.entry(said.to_owned()).or_default();
        let next = all.len() + 1;
        match *all.entry(rest).or_insert(next) {
            1 => said.to_owned(),
            number => format!("{said} (no. {number})"),
        }
    }

    /// A packet is taken by this chance.
    pub(super) fn chance(&mut self, part: f64) -> Answer {
        self.ask(Question::Chance(format!("{part:.4} of all by chance")))
    }

    /// A packet is taken for a reason that nobody tells.
    pub(super) fn untold(&mut self) -> Answer {
        self.ask(Question::Untold)
    }

    /// A packet ends somewhere that was not read.
    pub(super) fn unread(&mut self, said: String) -> Answer {
        self.ask(Question::Condition { said, understood: true })
    }

    fn of(&self, answer: Answer) -> &Question {
        let index = usize::try_from(answer.0 >> 1).unwrap_or(usize::MAX);
        self.asked.get(index).unwrap_or(&Question::Untold)
    }

    /// An answer in words, unless it is one that nobody tells.
    pub(super) fn said(&self, answer: Answer) -> Option<String> {
        let turned = answer.0 & 1 == 1;
        match self.of(answer) {
            Question::Condition { said, .. } if said == IPV4 && turned => Some(IPV6.to_owned()),
            Question::Condition { said, .. } | Question::Chance(said) if turned => Some(format!("! {said}")),
            Question::Condition { said, .. } | Question::Chance(said) => Some(said.clone()),
            Question::Untold => None,
        }
    }

    /// Whether nobody tells what it is about.
    pub(super) fn is_untold(&self, answer: Answer) -> bool {
        *self.of(answer) == Question::Untold
    }

    /// Whether it says what a packet is, rather than what it is not.
    pub(super) fn is_positive(&self, answer: Answer) -> bool {
        let is = |question: &Question| matches!(question, Question::Condition { said, .. } if said == IPV4);
        answer.0 & 1 == 0 || is(self.of(answer))
    }

    /// Whether it is a condition that somebody has read, or one that nobody has; neither, if it is none.
    pub(super) fn is_understood(&self, answer: Answer) -> Option<bool> {
        match self.of(answer) {
            Question::Condition { understood, .. } => Some(*understood),
            Question::Chance(_) | Question::Untold => None,
        }
    }
}
