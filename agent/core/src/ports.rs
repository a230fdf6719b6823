//! Port ranges and what the kernel may hand out.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An inclusive range of ports; `first <= last` always holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// What is wrong with the text of a port range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPortRange {
    /// Not `N` or `N-M`.
    #[error("`{0}` is not a port or a range like `30000-32767`")]
    Shape(String),
    /// The first port is above the last.
    #[error("port range `{0}` starts above its end")]
    Reversed(String),
}

impl PortRange {
    /// The NodePort range Kubernetes uses unless told otherwise: 30000-32767.
    pub const NODE_PORTS: Self = Self { first: 30_000, last: 32_767 };

    /// The range, or `None` if `first > last`.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// First port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// Last port.
    pub fn last(self) -> u16 {
        self.last
    }

    /// How many ports: 1 to 65,536.
    pub fn count(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    /// Whether the port is inside.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// From the first of either to the last of either.
    pub fn hull(self, other: Self) -> Self {
        Self { first: self.first.min(other.first), last: self.last.max(other.last) }
    }

    /// The same ports in order, each once; ranges that touch are one.
    pub fn joined(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable();
        let mut joined: Vec<Self> = Vec::new();
        for range in ranges {
            match joined.last_mut() {
                Some(last) if u32::from(range.first) <= u32::from(last.last) + 1 => *last = last.hull(range),
                _ => joined.push(range),
            }
        }
        joined
    }

    /// The ports in both.
    pub fn intersect(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl std::str::FromStr for PortRange {
    type Err = BadPortRange;

    fn from_str(text: &str) -> Result<Self, BadPortRange> {
        let shape = || BadPortRange::Shape(text.chars().take(64).collect());
        let port = |part: &str| part.trim().parse::<u16>().map_err(|_not_a_port| shape());
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(text)?, port(text)?),
        };
        Self::new(first, last).ok_or_else(|| BadPortRange::Reversed(text.to_owned()))
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

impl TryFrom<String> for PortRange {
    type Error = BadPortRange;

    fn try_from(text: String) -> Result<Self, BadPortRange> {
        text.parse()
    }
}

/// From where one network namespace draws source ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortSettings {
    /// `net.ipv4.ip_local_port_range`.
    pub ephemeral: PortRange,
    /// `net.ipv4.ip_local_reserved_ports`: never handed out automatically. Sorted, without overlaps.
    pub reserved: Vec<PortRange>,
}

impl PortSettings {
    /// The ports of `range` that the kernel may hand out as source ports: inside the ephemeral range and not reserved.
    pub fn open_in(&self, range: PortRange) -> Vec<PortRange> {
        let Some(both) = self.ephemeral.intersect(range) else { return Vec::new() };
        let mut open = Vec::new();
        let mut next = u32::from(both.first);
        for taken in self.reserved.iter().filter_map(|reserved| reserved.intersect(both)) {
            if let Some(gap) = range_below(next, u32::from(taken.first)) {
                open.push(gap);
            }
            next = next.max(u32::from(taken.last) + 1);
        }
        open.extend(range_below(next, u32::from(both.last) + 1));
        open
    }

    /// `ip_local_reserved_ports` with `range` reserved too: what the sysctl takes, without ports listed twice.
    pub fn reserved_with(&self, range: PortRange) -> String {
        let mut ranges = self.reserved.clone();
        ranges.push(range);
        PortRange::joined(ranges).iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// How many ports connect() can choose from (an upper bound: bound sockets are not known here). It walks first the ports
    /// of one parity and then those of the other, and leaves out the last of an odd number (`__inet_hash_connect` in
    /// net/ipv4/inet_hashtables.c).
    pub fn usable(&self) -> u32 {
        self.open_in(self.walked()).into_iter().map(PortRange::count).sum()
    }

    /// How many ports of `range` are among those that connect() hands out before all others: every second one from the first port
    /// on, which suffice for some 14,000 connections to one destination with the default range. bind() without a port hands out
    /// the others first (`inet_csk_find_open_port` in net/ipv4/inet_connection_sock.c). UDP and SCTP know no such order.
    pub fn handed_out_first(&self, range: PortRange) -> u32 {
        let walked = |parity| self.of_parity(self.ephemeral, parity);
        // Where all of these are reserved, it takes the others.
        let parity = u32::from(walked(0) == 0);
        self.of_parity(range, parity)
    }

    /// How many ports of `range` that connect() may hand out are so far from the first port of all: 0 even, 1 odd.
    fn of_parity(&self, range: PortRange, parity: u32) -> u32 {
        let Some(walked) = self.walked().intersect(range) else { return 0 };
        let offset = |port: u16| u32::from(port) - u32::from(self.ephemeral.first);
        // Of 0 to n so many: (n + 2 - parity) / 2.
        let of = |open: PortRange| (offset(open.last) + 2 - parity) / 2 - (offset(open.first) + 1 - parity) / 2;
        self.open_in(walked).into_iter().map(of).sum()
    }

    /// The ports that connect() walks: of an odd number without the last.
    fn walked(&self) -> PortRange {
        let last = self.ephemeral.last - u16::from(self.ephemeral.count() % 2 == 1 && self.ephemeral.count() > 1);
        PortRange { first: self.ephemeral.first, last }
    }
}

/// The range from `first` up to but without `end`.
fn range_below(first: u32, end: u32) -> Option<PortRange> {
    let last = end.checked_sub(1)?;
    PortRange::new(u16::try_from(first).ok()?, u16::try_from(last).ok()?)
}

/// Reads the text of `ip_local_reserved_ports`: `8080,9148,30000-32767`, an empty line meaning none.
///
/// # Errors
/// The first part that is not a port or a range.
pub fn parse_reserved_ports(text: &str) -> Result<Vec<PortRange>, BadPortRange> {
    let mut ranges = text
        .trim()
        .split(',')
        .filter(|part| !part.trim().is_empty())
        .map(str::parse)
        .collect::<Result<Vec<PortRange>, _>>()?;
    ranges.sort_unstable();
    Ok(ranges)
}

/// Reads the text of `ip_local_port_range`: two numbers apart by white space.
///
/// # Errors
/// Anything but two ports, the first not above the second.
pub fn parse_port_range(text: &str) -> Result<PortRange, BadPortRange> {
    let mut words = text.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(first), Some(last), None) => format!("{first}-{last}").parse(),
        _ => Err(BadPortRange::Shape(text.chars().take(64).collect())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> PortRange {
        text.parse().unwrap()
    }

    #[test]
    fn the_default_ephemeral_range_leaves_node_ports_alone() {
        let settings = PortSettings { ephemeral: parse_port_range("32768\t60999\n").unwrap(), reserved: vec![] };
        assert!(settings.open_in(PortRange::NODE_PORTS).is_empty());
        assert_eq!(settings.usable(), 28_232);
    }

    /// Exercises the kernel's arithmetic. If this fails, the last port of an odd range is taken for usable.
    #[test]
    fn an_odd_range_loses_its_last_port() {
        let usable = |ephemeral: &str, reserved: &str| {
            PortSettings { ephemeral: range(ephemeral), reserved: parse_reserved_ports(reserved).unwrap() }.usable()
        };
        assert_eq!(usable("32768-60998", ""), 28_230);
        assert_eq!(usable("32768-60999", "32768-32800"), 28_199);
        assert_eq!(usable("40000-40000", ""), 1);
        assert_eq!(usable("40000-40001", "40000-40001"), 0);
    }

    /// Exercises the order of connect(), measured on 6.18: with 29000-31999 of 3,000 connections each had an even port. If this fails,
    /// NodePorts that TCP keeps are told to be hit half as often as they are, or although they are not.
    #[test]
    fn connect_hands_out_every_second_port_before_the_others() {
        let first = |ephemeral: &str, reserved: &str, asked: &str| {
            let reserved = parse_reserved_ports(reserved).unwrap();
            PortSettings { ephemeral: range(ephemeral), reserved }.handed_out_first(range(asked))
        };
        assert_eq!(first("29000-31999", "", "29000-31999"), 1500);
        assert_eq!(first("29000-31999", "", "30080-30080"), 1);
        assert_eq!(first("29000-31999", "", "30081-30081"), 0);
        assert_eq!(first("29001-32000", "", "30080-30080"), 0);
        assert_eq!(first("29001-32000", "", "30081-30085"), 3);
        assert_eq!(first("29000-31999", "29000-29999,30002", "29990-30005"), 2);
        // The last of an odd number is never walked.
        assert_eq!(first("30000-30002", "", "30000-30002"), 1);
        assert_eq!(first("30000-30000", "", "30000-30000"), 1);
        // Reserved are all that would come first.
        assert_eq!(first("30000-30003", "30000,30002", "30000-30003"), 2);
        assert_eq!(first("30000-30001", "30000-30001", "30000-30001"), 0);
    }

    #[test]
    fn reserved_ports_close_the_overlap() {
        let mut settings = PortSettings { ephemeral: range("1024-65535"), reserved: vec![] };
        assert_eq!(settings.open_in(PortRange::NODE_PORTS), [PortRange::NODE_PORTS]);
        settings.reserved = parse_reserved_ports("8080,30000-32000\n").unwrap();
        assert_eq!(settings.open_in(PortRange::NODE_PORTS), [range("32001-32767")]);
        settings.reserved = parse_reserved_ports("30000-32767").unwrap();
        assert!(settings.open_in(PortRange::NODE_PORTS).is_empty());
        assert_eq!(settings.usable(), 61_744);
    }

    #[test]
    fn a_reservation_more_keeps_what_is_reserved_and_joins_what_touches() {
        let reserved = |text: &str| {
            let settings =
                PortSettings { ephemeral: range("1024-65535"), reserved: parse_reserved_ports(text).unwrap() };
            settings.reserved_with(PortRange::NODE_PORTS)
        };
        assert_eq!(reserved(""), "30000-32767");
        assert_eq!(reserved("8080,9148"), "8080,9148,30000-32767");
        assert_eq!(reserved("65535,29000-29999,30100,32768,8080"), "8080,29000-32768,65535");
    }

    proptest! {
        /// Exercises the interval arithmetic. If this fails, overlaps are over- or under-reported.
        #[test]
        fn open_ports_are_exactly_those_in_range_and_not_reserved(
            first in 0u16..400, len in 0u16..400, reserved in proptest::collection::vec((0u16..500, 0u16..50), 0..8)
        ) {
            let mut reserved: Vec<_> =
                reserved.into_iter().map(|(first, len)| PortRange::new(first, first + len).unwrap()).collect();
            reserved.sort_unstable();
            let settings = PortSettings { ephemeral: PortRange::new(first, first + len).unwrap(), reserved };
            let asked = range("100-300");
            let open = settings.open_in(asked);
            for port in 0..1000 {
                let expected = asked.contains(port)
                    && settings.ephemeral.contains(port)
                    && !settings.reserved.iter().any(|taken| taken.contains(port));
                prop_assert_eq!(open.iter().any(|range| range.contains(port)), expected, "port {}", port);
            }
        }

        /// Exercises the text parsers with anything. If this fails, a hostile /proc file brings the agent down.
        #[test]
        fn port_texts_never_panic(text in ".{0,80}") {
            let _parsed = (parse_reserved_ports(&text), parse_port_range(&text));
        }
    }
}
