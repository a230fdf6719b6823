//! host-local's arithmetic: what a range set can hand out, what of it is taken, which address comes next.
//!
//! Every pod takes one address of each set. Inside a set host-local goes on after the address it gave last, from range to
//! range and round to the beginning, and tries that address itself last
//! (<https://github.com/containernetworking/plugins/blob/v1.9.1/plugins/ipam/host-local/backend/allocator/allocator.go>).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::observe::AddressRange;
use crate::report::RangeSetReport;

/// A range with everything filled in that the configuration may leave out; addresses as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u128,
    last: u128,
    gateway: u128,
    v4: bool,
}

impl Range {
    /// `None`: host-local hands nothing out of it.
    fn of(range: &AddressRange) -> Option<Self> {
        let v4 = range.subnet.addr().is_ipv4();
        let (network, broadcast) = (number(range.subnet.network()), number(range.subnet.broadcast()));
        // host-local refuses IPv4 /31 and /32 and their IPv6 likes.
        if broadcast - network < 2 {
            return None;
        }
        let last_default = if v4 { broadcast - 1 } else { broadcast };
        // What is given in the other family is an error of the configuration, and not followed.
        let given = |address: Option<IpAddr>| address.filter(|address| address.is_ipv4() == v4).map(number);
        let first = given(range.first).unwrap_or(network + 1).clamp(network, broadcast);
        let last = given(range.last).unwrap_or(last_default).clamp(network, broadcast);
        let gateway = range.gateway.map_or(network + 1, number);
        (first <= last).then_some(Self { first, last, gateway, v4 })
    }

    fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.v4 && (self.first..=self.last).contains(&number(address))
    }

    fn hands_out(self, address: IpAddr) -> bool {
        self.contains(address) && number(address) != self.gateway
    }

    fn size(self) -> u128 {
        let all = (self.last - self.first).saturating_add(1);
        all - u128::from((self.first..=self.last).contains(&self.gateway))
    }

    fn address(self, number: u128) -> IpAddr {
        match u32::try_from(number) {
            Ok(number) if self.v4 => IpAddr::V4(Ipv4Addr::from(number)),
            _ => IpAddr::V6(Ipv6Addr::from(number)),
        }
    }
}

/// One range set, and what is reserved from it.
pub(super) fn report(set: &[AddressRange], taken: &BTreeSet<IpAddr>, last_reserved: Option<IpAddr>) -> RangeSetReport {
    let ranges: Vec<Range> = set.iter().filter_map(Range::of).collect();
    let usable = ranges.iter().map(|range| range.size()).fold(0, u128::saturating_add);
    let mine = |address: &&IpAddr| ranges.iter().any(|range| range.hands_out(**address));
    let used = taken.iter().filter(mine).count();
    RangeSetReport {
        ranges: ranges
            .iter()
            .map(|range| format!("{}-{}", range.address(range.first), range.address(range.last)))
            .collect(),
        usable: u64::try_from(usable).unwrap_or(u64::MAX),
        used: u64::try_from(used).unwrap_or(u64::MAX),
        next: next(&ranges, taken, last_reserved),
        exhausted: u128::try_from(used).is_ok_and(|used| used >= usable),
        exhausted_in_secs: None,
        exhausted_basis: None,
    }
}

/// Whether a range set can hand out an address.
pub(super) fn hands_out(set: &[AddressRange], address: IpAddr) -> bool {
    set.iter().filter_map(Range::of).any(|range| range.hands_out(address))
}

/// The address host-local would give next. It takes at most as many steps as addresses are taken.
fn next(ranges: &[Range], taken: &BTreeSet<IpAddr>, last: Option<IpAddr>) -> Option<IpAddr> {
    let started =
        last.and_then(|last| ranges.iter().position(|range| range.contains(last)).map(|at| (at, number(last))));
    let (mut at, begin) = match started {
        Some((at, last)) => (at, last.saturating_add(1)),
        None => (0, ranges.first()?.first),
    };
    let first_range = *ranges.get(at)?;
    // From where it goes on to the range's end, then every other range, then the beginning of the first one.
    let mut from = begin;
    for _range in 0..ranges.len() {
        let range = *ranges.get(at)?;
        if let Some(free) = free_from(range, from, range.last, taken) {
            return Some(free);
        }
        at = (at + 1) % ranges.len();
        from = ranges.get(at)?.first;
    }
    free_from(first_range, first_range.first, begin.saturating_sub(1), taken)
}

fn free_from(range: Range, from: u128, to: u128, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let to = to.min(range.last);
    let mut number = from;
    while number <= to {
        let address = range.address(number);
        if number != range.gateway && !taken.contains(&address) {
            return Some(address);
        }
        number = number.checked_add(1)?;
    }
    None
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str) -> AddressRange {
        AddressRange { subnet: subnet.parse().unwrap(), first: None, last: None, gateway: None }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn taken(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|text| address(text)).collect()
    }

    fn next_of(set: &[AddressRange], taken_now: &[&str], last: Option<&str>) -> Option<String> {
        report(set, &taken(taken_now), last.map(address)).next.map(|next| next.to_string())
    }

    /// Exercises host-local's arithmetic. If this fails, a node is called full too late or too early.
    #[test]
    fn usable_addresses_are_those_host_local_hands_out() {
        for (subnet, expected) in [
            ("10.0.0.0/28", 13),
            ("10.0.0.0/27", 29),
            ("10.0.0.0/26", 61),
            ("10.0.0.0/25", 125),
            ("10.0.0.0/24", 253),
            ("10.0.0.0/23", 509),
            ("10.0.0.0/31", 0),
            ("10.0.0.0/32", 0),
            ("fd00::/126", 2),
            ("fd00::/64", u64::MAX - 1),
        ] {
            assert_eq!(report(&[range(subnet)], &BTreeSet::new(), None).usable, expected, "{subnet}");
        }
        let outside = AddressRange { gateway: Some(address("192.0.2.1")), ..range("10.0.0.0/28") };
        assert_eq!(report(&[outside], &BTreeSet::new(), None).usable, 14);
        let part = AddressRange {
            first: Some(address("10.0.0.10")),
            last: Some(address("10.0.0.20")),
            ..range("10.0.0.0/24")
        };
        assert_eq!(report(&[part.clone(), range("10.1.0.0/28")], &BTreeSet::new(), None).usable, 24);
        let backwards = AddressRange { first: part.last, last: part.first, ..part };
        assert_eq!(report(&[backwards], &BTreeSet::new(), None).usable, 0);
    }

    /// The message of the leak that seeds the project: 10.48.131.1-10.48.131.62 is a /26.
    #[test]
    fn the_range_of_a_gke_node_is_named_as_host_local_names_it() {
        let report = report(&[range("10.48.131.0/26")], &taken(&["10.48.131.2", "10.48.131.1", "10.9.9.9"]), None);
        assert_eq!(report.ranges, ["10.48.131.1-10.48.131.62"]);
        // The gateway's own file, were there one, takes nothing away.
        assert_eq!((report.usable, report.used, report.exhausted), (61, 1, false));
    }

    #[test]
    fn the_next_address_follows_the_last_one_and_wraps() {
        let set = [range("10.0.0.0/29")];
        assert_eq!(next_of(&set, &[], None).unwrap(), "10.0.0.2", "the gateway is skipped");
        assert_eq!(next_of(&set, &["10.0.0.2"], Some("10.0.0.2")).unwrap(), "10.0.0.3");
        assert_eq!(next_of(&set, &["10.0.0.3"], Some("10.0.0.2")).unwrap(), "10.0.0.4");
        assert_eq!(next_of(&set, &["10.0.0.6"], Some("10.0.0.6")).unwrap(), "10.0.0.2", "round to the beginning");
        assert_eq!(next_of(&set, &[], Some("192.0.2.9")).unwrap(), "10.0.0.2", "a last address of another range");
        let others = ["10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.0.6"];
        assert_eq!(next_of(&set, &others, Some("10.0.0.4")).unwrap(), "10.0.0.4", "the last itself comes last");
        let full = ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"];
        assert_eq!(next_of(&set, &full, Some("10.0.0.4")), None);
        assert!(report(&set, &taken(&full), None).exhausted);
    }

    #[test]
    fn the_ranges_of_a_set_are_used_one_after_the_other() {
        let set = [range("10.0.0.0/30"), range("10.1.0.0/30")];
        assert_eq!(next_of(&set, &["10.0.0.2"], Some("10.0.0.2")).unwrap(), "10.1.0.2");
        assert_eq!(next_of(&set, &["10.1.0.2"], Some("10.1.0.2")).unwrap(), "10.0.0.2");
        assert_eq!(next_of(&set, &["10.0.0.2", "10.1.0.2"], Some("10.1.0.2")), None);
    }

    #[test]
    fn the_end_of_the_address_space_is_an_end() {
        let set = [range("255.255.255.252/30"), range("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126")];
        let all =
            ["255.255.255.254", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"];
        assert_eq!(next_of(&set, &all, Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")), None);
        assert_eq!(next_of(&set[1..], &all[1..2], Some(all[2])).unwrap(), all[2]);
    }
}
