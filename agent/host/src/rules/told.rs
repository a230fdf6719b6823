//! What is known of the packets that come to a rule, in words.

use std::rc::Rc;

use super::packets::{Gone, Here, How, Left, Packets};
use super::questions::{Answer, Questions};

/// Exceptions told of one rule at most.
pub(super) const EXCEPTIONS_LIMIT: usize = 16;
/// Words about one exception at most.
const MAX_WORDS: usize = 8;
/// What has no words.
const SOME: &str = "some packets";

/// What packets are, in the words of the conditions that somebody has read, or of those that nobody has.
pub(super) fn conditions(questions: &Questions, packets: &Packets, understood: bool) -> Vec<String> {
    let asked = packets.asked.iter().copied();
    // Where others were taken out by not being something, it is told what is left.
    let left = packets.left.iter().map(|left| left.answer).filter(|answer| questions.is_positive(*answer));
    let mut told: Vec<String> = Vec::new();
    for answer in asked.chain(left).filter(|answer| questions.is_understood(*answer) == Some(understood)) {
        if let Some(said) = questions.said(answer).filter(|said| !told.contains(said)) {
            told.push(said);
        }
    }
    told
}

/// Something that was taken out.
enum Taken<'a> {
    /// All with this answer.
    Answer(Answer),
    Packets(&'a Gone),
}

/// What was taken out before, but for what was translated: that is told of the rules that did it.
pub(super) fn exceptions(questions: &Questions, packets: &Packets, here: &Here) -> Vec<String> {
    let taken = |left: &&Left| {
        let told = questions.is_positive(left.answer) || packets.asked.contains(&left.answer);
        left.how != How::Translated && !told
    };
    let left = packets.left.iter().filter(taken).map(|left| Taken::Answer(left.answer.other()));
    let others = here.gone.iter().filter(|gone| gone.how != How::Translated && !packets.are_apart_from(gone));
    let mut told: Vec<String> = Vec::new();
    let mut more = here.forgotten;
    for one in left.chain(others.map(|gone| Taken::Packets(gone))) {
        // There may be thousands of them: words are made of those that are told.
        if told.len() >= EXCEPTIONS_LIMIT {
            more += 1;
            continue;
        }
        let said = match one {
            Taken::Answer(answer) => Some(questions.said(answer).unwrap_or_else(|| SOME.to_owned())),
            Taken::Packets(gone) => Some(sentence(questions, packets, gone)),
        };
        told.extend(said.filter(|said| !told.contains(said)));
    }
    if more > 0 {
        told.push(format!("{more} more"));
    }
    told
}

/// What was taken out of packets, without what all of them are.
fn sentence(questions: &Questions, packets: &Packets, gone: &Gone) -> String {
    let protocols = (!packets.protocols.is_within(gone.protocols)).then(|| gone.protocols.asked()).flatten();
    let open: Vec<Answer> = gone.answers.iter().copied().filter(|answer| !packets.know(*answer)).collect();
    let answers = open.iter().filter_map(|answer| questions.said(*answer));
    let mut words: Vec<String> = protocols.into_iter().chain(answers).collect();
    if let more @ 1.. = words.len().saturating_sub(MAX_WORDS) {
        words.truncate(MAX_WORDS);
        words.push(format!("and {more} more conditions"));
    }
    // Those that a map leads elsewhere and that come back from there, or that lack an option.
    let not_all = open.iter().any(|answer| questions.is_untold(*answer));
    match (words.first_mut(), not_all) {
        (Some(first), true) => first.insert_str(0, "some of "),
        (None, true) => words.push(SOME.to_owned()),
        (None, false) => words.push("everything".to_owned()),
        (Some(_), false) => {}
    }
    let but: Vec<&Rc<Gone>> = gone.but.iter().filter(|but| !packets.are_apart_from(but)).collect();
    if let Some(first) = but.first() {
        let more = match but.len() - 1 {
            _ if gone.but_more => " and others".to_owned(),
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        words.push(format!("(without {}{more})", sentence(questions, packets, first)));
    }
    words.join(" ")
}
