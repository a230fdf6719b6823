//! A node's own range of pod addresses against the pods that are there.

use crate::model::leak::Verdict;
use crate::observe::AddressRange;
use crate::report::{EntryReport, StrandedReport};
use crate::sizing::pods::{addresses, node_prefix};

/// What the node's range holds back from other nodes; `None` where the network has no single IPv4 range, or one that a node
/// with so many pods would get anyway.
pub(super) fn report(sets: &[Vec<AddressRange>], entries: &[EntryReport]) -> Option<StrandedReport> {
    let mut ranges = sets.iter().flatten().filter(|range| range.subnet.addr().is_ipv4());
    let (range, None) = (ranges.next()?, ranges.next()) else { return None };
    // What cannot be judged may be a pod's.
    let used = entries.iter().filter(|entry| entry.verdict != Verdict::Leaked && range.subnet.contains(&entry.address));
    let pods = u32::try_from(used.count()).ok()?;
    let (prefix, prefix_needed) = (range.subnet.prefix_len(), node_prefix(pods));
    (prefix < prefix_needed).then(|| StrandedReport {
        addresses: addresses(prefix),
        pods: u64::from(pods),
        stranded: addresses(prefix) - addresses(prefix_needed),
        prefix_needed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(subnets: &[&str], pods: u8) -> Option<StrandedReport> {
        let range =
            |subnet: &&str| AddressRange { subnet: subnet.parse().unwrap(), first: None, last: None, gateway: None };
        let entries: Vec<EntryReport> = (0..pods)
            .map(|pod| EntryReport {
                address: [10, 0, 0, 2 + pod].into(),
                container_id: None,
                ifname: None,
                age_secs: None,
                pod: None,
                reserved_for: None,
                verdict: Verdict::InUse,
                evidence: vec![],
            })
            .collect();
        report(&[subnets.iter().map(range).collect()], &entries)
    }

    #[test]
    fn one_pod_on_a_24_strands_all_that_a_28_would_not_hold() {
        let one = with(&["10.0.0.0/24"], 1).unwrap();
        assert_eq!((one.addresses, one.pods, one.stranded, one.prefix_needed), (256, 1, 240, 28));
        assert_eq!(with(&["10.0.0.0/24"], 60).unwrap().stranded, 128);
        assert_eq!(with(&["10.0.0.0/24"], 100), None);
        assert_eq!(with(&["10.0.0.0/28"], 0), None, "GKE gives no smaller range");
    }

    #[test]
    fn what_cannot_be_judged_counts_as_a_pod_and_what_leaked_does_not() {
        let range = AddressRange { subnet: "10.0.0.0/24".parse().unwrap(), first: None, last: None, gateway: None };
        let with = |verdict: Verdict| {
            let entry = |pod: u8| EntryReport {
                address: [10, 0, 0, 2 + pod].into(),
                container_id: None,
                ifname: None,
                age_secs: None,
                pod: None,
                reserved_for: None,
                verdict: verdict.clone(),
                evidence: vec![],
            };
            report(&[vec![range.clone()]], &(0..60).map(entry).collect::<Vec<_>>()).unwrap().pods
        };
        assert_eq!((with(Verdict::Undetermined), with(Verdict::Leaked)), (60, 0));
    }

    #[test]
    fn other_shapes_of_networks_strand_nothing() {
        assert_eq!(with(&["fd00::/64"], 1), None);
        assert_eq!(with(&["10.0.0.0/24", "10.1.0.0/24"], 1), None);
        assert_eq!(with(&[], 1), None);
    }
}
