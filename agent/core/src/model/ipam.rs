//! Pod addresses of this node: per network, how many there are, who has them, which are leaked.

use std::net::IpAddr;

use crate::known::Known;
use crate::ledger::Ledger;
use crate::model::leak::{self, Verdict};
use crate::model::policy::Policy;
use crate::observe::AddressRange;
use crate::report::{EntryReport, NetworkReport, VerdictCounts};
use crate::time::Now;

/// Every network with a verdict per reservation, complete.
pub fn networks(ledger: &Ledger, policy: &Policy, now: Now) -> Vec<NetworkReport> {
    let pods = ledger.occupants().pods();
    ledger
        .reservations()
        .networks()
        .iter()
        .map(|network| {
            let mut counts = VerdictCounts::default();
            let entries = ledger.reservations().of(&network.store).map(|held| {
                let judgement = leak::judge(held, ledger.occupants(), policy.leak_grace, now);
                counts.add(&judgement.verdict);
                let reservation = &held.reservation;
                let holder = reservation.holder.present();
                EntryReport {
                    address: reservation.address,
                    container_id: holder.map(|holder| holder.container.0.clone()),
                    ifname: holder.and_then(|holder| holder.ifname.clone()),
                    age_secs: reservation
                        .modified
                        .present()
                        .and_then(|at| now.wall.since(*at))
                        .map(|age| age.as_secs()),
                    pod: pods.get(&reservation.address).map(|pod| (*pod).clone()),
                    verdict: judgement.verdict,
                    evidence: judgement.evidence,
                }
            });
            let entries: Vec<EntryReport> = entries.collect();
            let (usable, usable_why) = match &network.range_sets {
                Known::Present(sets) => (usable(sets), None),
                Known::Absent => (None, Some("no CNI configuration names this network".to_owned())),
                Known::Unknown(why) => (None, Some(why.to_string())),
            };
            NetworkReport {
                store: network.store.clone(),
                network: network.name.clone(),
                usable,
                usable_why,
                complete: network.complete,
                counts,
                entries,
                entries_omitted: 0,
                ignored: network.ignored.clone(),
            }
        })
        .collect()
}

/// How many addresses pods can get at most: each pod takes one of every range set, so the smallest set counts.
fn usable(sets: &[Vec<AddressRange>]) -> Option<u64> {
    sets.iter().map(|set| set.iter().map(range_size).fold(0_u64, u64::saturating_add)).min()
}

/// Addresses host-local hands out of one range: by default the second to the last but one, never the gateway.
fn range_size(range: &AddressRange) -> u64 {
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    };
    let (network, broadcast) = (number(range.subnet.network()), number(range.subnet.broadcast()));
    // host-local refuses IPv4 /31 and /32 and their IPv6 likes: nothing to hand out.
    if broadcast - network < 2 {
        return 0;
    }
    let last_default = if range.subnet.addr().is_ipv4() { broadcast - 1 } else { broadcast };
    let first = range.first.map_or(network + 1, number).clamp(network, broadcast);
    let last = range.last.map_or(last_default, number).clamp(network, broadcast);
    let gateway = range.gateway.map_or(network + 1, number);
    let all = last.checked_sub(first).map_or(0, |more| more + 1);
    let without_gateway = all - u128::from(all > 0 && (first..=last).contains(&gateway));
    u64::try_from(without_gateway).unwrap_or(u64::MAX)
}

/// Keeps a report small: what is in use is only counted, of the rest at most `max` are listed, leaked ones first.
pub fn shorten(network: &mut NetworkReport, max: usize) {
    let all = network.entries.len();
    let rank = |verdict: &Verdict| match verdict {
        Verdict::Leaked => 0,
        Verdict::Undetermined => 1,
        Verdict::Settling => 2,
        Verdict::InUse => 3,
    };
    network.entries.retain(|entry| entry.verdict != Verdict::InUse);
    network.entries.sort_by_key(|entry| (rank(&entry.verdict), entry.address));
    network.entries.truncate(max);
    network.entries_omitted = u64::try_from(all - network.entries.len()).unwrap_or(u64::MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str) -> AddressRange {
        AddressRange { subnet: subnet.parse().unwrap(), first: None, last: None, gateway: None }
    }

    /// Exercises host-local's arithmetic. If this fails, a node is called full too late or too early.
    #[test]
    fn usable_addresses_are_those_host_local_hands_out() {
        for (subnet, expected) in
            [("10.0.0.0/28", 13), ("10.0.0.0/27", 29), ("10.0.0.0/26", 61), ("10.0.0.0/24", 253), ("10.0.0.0/31", 0)]
        {
            assert_eq!(usable(&[vec![range(subnet)]]), Some(expected), "{subnet}");
        }
        let outside = AddressRange { gateway: Some("192.0.2.1".parse().unwrap()), ..range("10.0.0.0/28") };
        assert_eq!(usable(&[vec![outside]]), Some(14));
        let part = AddressRange {
            first: Some("10.0.0.10".parse().unwrap()),
            last: Some("10.0.0.19".parse().unwrap()),
            ..range("10.0.0.0/24")
        };
        assert_eq!(usable(&[vec![part.clone()], vec![range("10.1.0.0/28")]]), Some(10));
        assert_eq!(usable(&[vec![part, range("10.1.0.0/28")]]), Some(23));
        assert_eq!(usable(&[vec![range("2001:db8::/64")]]), Some(u64::MAX - 1));
    }
}
