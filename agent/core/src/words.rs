//! How numbers are said in sentences.

use std::fmt::Display;

/// A number of things: `1 node`, `2 nodes`, `2 NAT IPs`. Only for nouns whose plural ends in a mere `s`.
pub fn counted<N: Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let plural = if count == N::from(1) { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_not_plural() {
        assert_eq!([0_u32, 1, 2].map(|count| counted(count, "NAT IP")), ["0 NAT IPs", "1 NAT IP", "2 NAT IPs"]);
    }
}
