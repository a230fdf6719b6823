//! Rules on pod addresses.

use std::time::Duration;

use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::model::View;
use crate::model::leak::{Verdict, whole};
use crate::observe::{Ipam, SourceId};
use crate::report::{NetworkReport, PoolReport, RangeSetReport, Report};

/// Reserved share of a range set from which it is called low, in percent.
const IPAM_LOW_PERCENT: u64 = 90;
/// A range set that will be used up within this time is low, however much of it is left.
const IPAM_LOW_WITHIN: Duration = Duration::from_secs(3600);
/// Idle addresses of a node from which they are called wasted, if they are more than half of what it holds.
const WARM_WASTE: u64 = 16;
/// A node's range is called stranded if its pods would fit into a range this many times smaller.
const STRANDED_TIMES: u64 = 4;

pub(super) fn ipam(_view: &View<'_>, report: &Report) -> Vec<Finding> {
    report.ipam.networks.iter().flat_map(ipam_of).collect()
}

fn ipam_of(network: &NetworkReport) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend((network.counts.leaked > 0).then(|| leaked(network)));
    findings.extend((network.counts.undetermined > 0).then(|| undetermined(network)));
    findings.extend(network.range_sets.iter().filter_map(|set| low(network, set)));
    findings.extend(low_pool(network));
    findings.extend(network.pool.as_ref().and_then(|pool| wasted(network, pool)));
    findings.extend(stranded(network));
    findings
}

/// Whether no pod can get an address any more.
fn is_full(network: &NetworkReport) -> bool {
    network.range_sets.iter().any(|set| set.exhausted)
        || (fixed_pool(network) && network.pool.as_ref().is_some_and(|pool| pool.idle == 0))
}

fn leaked(network: &NetworkReport) -> Finding {
    let reserved = network.counts.total();
    let of = network.usable.map_or_else(String::new, |usable| format!(" of {usable}"));
    let entries = network.entries.iter().filter(|entry| entry.verdict == Verdict::Leaked);
    let said = format!("{reserved}{of} addresses reserved in {}", network.store);
    let mut evidence = vec![Evidence::seen(network.ipam.source(), said)];
    evidence.extend(
        entries
            .take(3)
            .map(|entry| Evidence::seen(SourceId::Cri, format!("{}: {}", entry.address, entry.evidence.join("; ")))),
    );
    let remedy = match network.ipam {
        Ipam::HostLocal => {
            "`headroom ipam clean` shows what would be given back, with --apply it does it; upgrade the runtime that leaked them"
        }
        Ipam::AwsVpcCni => {
            "restart aws-node on this node: ipamd drops rows whose pod has no interface; headroom does not write its file"
        }
        Ipam::AzureCni => {
            "restart azure-cns on this node, or drain and reimage it; headroom does not write Azure's state files"
        }
        Ipam::Cilium => {
            "restart the Cilium agent of this node: it drops endpoints whose interface is gone; headroom does not write its state"
        }
    };
    Finding {
        id: FindingId::IpamLeaked,
        severity: if is_full(network) { Severity::Critical } else { Severity::Warning },
        title: format!(
            "{} pod addresses of {} are leaked ({reserved}{of} reserved)",
            network.counts.leaked, network.network
        ),
        subject: network.network.clone(),
        evidence,
        remedy: remedy.to_owned(),
    }
}

/// A range set of host-local that is used up, or soon will be.
fn low(network: &NetworkReport, set: &RangeSetReport) -> Option<Finding> {
    let soon = set.exhausted_in_secs.map(Duration::from_secs).filter(|within| *within <= IPAM_LOW_WITHIN);
    let share = set.used.saturating_mul(100) >= set.usable.saturating_mul(IPAM_LOW_PERCENT);
    if !share && soon.is_none() {
        return None;
    }
    let (left, ranges) = (set.usable.saturating_sub(set.used), set.name());
    let (most, least) = if network.complete || left == 0 { ("", "") } else { ("at most ", "at least ") };
    // Every pod takes an address of each set: one that is full is not helped by the others.
    let which = if network.range_sets.len() > 1 { format!(" in {ranges}") } else { String::new() };
    let when =
        set.exhausted_in_secs.map(|secs| format!("; none will be left in about {}", whole(Duration::from_secs(secs))));
    let mut evidence = vec![counted(network)];
    evidence.push(Evidence::seen(
        network.ipam.source(),
        format!("{least}{} of {} in {ranges} reserved", set.used, set.usable),
    ));
    let said = "the next pod fails with \"no IP addresses available in range set\"";
    evidence.extend(set.exhausted.then(|| Evidence::seen(network.ipam.source(), said)));
    evidence.extend(set.exhausted_basis.as_ref().map(|basis| Evidence::seen(network.ipam.source(), basis.as_str())));
    Some(Finding {
        id: FindingId::IpamLow,
        severity: if set.exhausted { Severity::Critical } else { Severity::Warning },
        title: format!(
            "{} has {most}{left} of {} pod addresses left{which}{}",
            network.network,
            set.usable,
            when.unwrap_or_default()
        ),
        subject: network.network.clone(),
        evidence,
        remedy: "free leaked addresses; otherwise lower the node's maximum of pods or give nodes a larger range"
            .to_owned(),
    })
}

/// Whether the addresses attached to the node are all it will get. ipamd attaches more as it needs them.
fn fixed_pool(network: &NetworkReport) -> bool {
    network.ipam == Ipam::AzureCni && network.range_sets.is_empty()
}

/// A pool of fixed size that is nearly used up.
fn low_pool(network: &NetworkReport) -> Option<Finding> {
    let pool = network.pool.as_ref().filter(|pool| fixed_pool(network) && pool.total > 0)?;
    (pool.assigned.saturating_mul(100) >= pool.total.saturating_mul(IPAM_LOW_PERCENT)).then(|| Finding {
        id: FindingId::IpamLow,
        severity: if pool.idle == 0 { Severity::Critical } else { Severity::Warning },
        title: format!("{} has {} of {} pod addresses left", network.network, pool.idle, pool.total),
        subject: network.network.clone(),
        evidence: vec![counted(network)],
        remedy: "free leaked addresses; otherwise give the node pool a larger maximum of pods".to_owned(),
    })
}

fn counted(network: &NetworkReport) -> Evidence {
    let counts = network.counts;
    let said = format!(
        "{} in use, {} settling, {} leaked, {} undetermined",
        counts.in_use, counts.settling, counts.leaked, counts.undetermined
    );
    Evidence::seen(network.ipam.source(), said)
}

/// Addresses of the subnet that lie idle on this node.
fn wasted(network: &NetworkReport, pool: &PoolReport) -> Option<Finding> {
    let beyond = pool.beyond_target.filter(|beyond| *beyond >= WARM_WASTE);
    let most = pool.idle >= WARM_WASTE && pool.idle.saturating_mul(2) > pool.total;
    if network.ipam != Ipam::AwsVpcCni || (!most && beyond.is_none()) {
        return None;
    }
    let mut evidence = vec![Evidence::seen(
        network.ipam.source(),
        format!(
            "{} attached to {} interfaces, {} held by pods, {} cooling",
            pool.total, pool.interfaces, pool.assigned, pool.cooling
        ),
    )];
    evidence.push(Evidence::seen(network.ipam.source(), pool.targets.as_str()));
    evidence.extend(beyond.map(|beyond| {
        let said = format!(
            "{beyond} more than these settings ask for at {} pods; {} interfaces are without a pod",
            pool.assigned, pool.interfaces_empty
        );
        Evidence::seen(network.ipam.source(), said)
    }));
    Some(Finding {
        id: FindingId::EniWarmWaste,
        severity: Severity::Warning,
        title: format!("{} of {} addresses attached to this node are used by no pod", pool.idle, pool.total),
        subject: network.network.clone(),
        evidence,
        remedy: format!(
            "set WARM_IP_TARGET=2 and MINIMUM_IP_TARGET to the usual number of pods on aws-node; `headroom plan eni --pods {} --warm-ip-target 2 --minimum-ip-target {}` says what it takes then",
            pool.assigned, pool.assigned
        ),
    })
}

/// A node's range that its pods leave empty.
fn stranded(network: &NetworkReport) -> Option<Finding> {
    let report = network.stranded.as_ref()?;
    let held = report.addresses.saturating_sub(report.stranded);
    (report.addresses >= held.saturating_mul(STRANDED_TIMES)).then(|| Finding {
        id: FindingId::IpamRangeStranded,
        // One node at one moment: a pool of nodes is judged by all of them.
        severity: Severity::Info,
        title: format!(
            "{} of the {} addresses of this node's range are of no use to anybody: {} pods have one",
            report.stranded, report.addresses, report.pods
        ),
        subject: network.network.clone(),
        evidence: vec![Evidence::seen(
            network.ipam.source(),
            format!("a /{} would hold these pods and as many again", report.prefix_needed),
        )],
        remedy: format!(
            "if nodes stay like this, make a node pool with a smaller maximum of pods; `headroom plan pods --pods-per-node {}` tells what it saves",
            report.pods.max(1)
        ),
    })
}

/// Reservations without a verdict are an answer that is missing, whatever the reason.
fn undetermined(network: &NetworkReport) -> Finding {
    let open = network.entries.iter().filter(|entry| entry.verdict == Verdict::Undetermined);
    let mut whys: Vec<&str> = open.flat_map(|entry| entry.evidence.iter().map(String::as_str)).collect();
    whys.sort_unstable();
    whys.dedup();
    Finding {
        id: FindingId::SourceDegraded,
        severity: Severity::Unknown,
        title: format!("{} reservations of {} could not be judged", network.counts.undetermined, network.network),
        subject: network.network.clone(),
        evidence: whys.into_iter().take(3).map(|why| Evidence::seen(network.ipam.source(), why)).collect(),
        remedy: "`headroom ipam scan` lists them; a runtime's socket elsewhere is named with --cri-socket".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::VerdictCounts;

    fn set(ranges: &[&str], used: u64, usable: u64) -> RangeSetReport {
        RangeSetReport {
            ranges: ranges.iter().map(ToString::to_string).collect(),
            usable,
            used,
            next: None,
            exhausted: used >= usable,
            exhausted_in_secs: None,
            exhausted_basis: None,
        }
    }

    fn low_sets(range_sets: Vec<RangeSetReport>) -> Vec<Finding> {
        let network = NetworkReport {
            store: "/var/lib/cni/networks/kindnet".to_owned(),
            ipam: Ipam::HostLocal,
            network: "kindnet".to_owned(),
            usable: range_sets.iter().map(|set| set.usable).min(),
            usable_why: None,
            range_sets,
            outside_ranges: None,
            pool: None,
            pool_why: None,
            stranded: None,
            complete: true,
            counts: VerdictCounts::default(),
            entries: Vec::new(),
            entries_omitted: 0,
            ignored: Vec::new(),
        };
        ipam_of(&network)
    }

    /// Exercises a node with two families. If this fails, nobody learns which of the ranges keeps pods from starting.
    #[test]
    fn each_range_set_is_low_for_itself_and_is_named_where_there_are_several() {
        let v6 = || set(&["fd00::2-fd00::ffff"], 13, 65_534);
        let found = low_sets(vec![set(&["10.64.0.2-10.64.0.14"], 13, 13), v6()]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].title, "kindnet has 0 of 13 pod addresses left in 10.64.0.2-10.64.0.14");
        assert_eq!((found[0].id, found[0].severity), (FindingId::IpamLow, Severity::Critical));
        let said: Vec<&str> = found[0].evidence.iter().map(|evidence| evidence.said.as_str()).collect();
        assert!(said.contains(&"13 of 13 in 10.64.0.2-10.64.0.14 reserved"), "{said:?}");
        assert!(said.iter().any(|said| said.contains("no IP addresses available in range set")), "{said:?}");

        let found = low_sets(vec![set(&["10.64.0.2-10.64.0.14"], 12, 13), set(&["a", "b", "c", "d"], 9, 10), v6()]);
        let titles: Vec<(&str, Severity)> = found.iter().map(|low| (low.title.as_str(), low.severity)).collect();
        let warning = |title| (title, Severity::Warning);
        assert_eq!(
            titles,
            [
                warning("kindnet has 1 of 13 pod addresses left in 10.64.0.2-10.64.0.14"),
                warning("kindnet has 1 of 10 pod addresses left in a, b and 2 more")
            ]
        );
        let found = low_sets(vec![set(&["10.64.0.2-10.64.0.14"], 13, 13)]);
        assert_eq!(found[0].title, "kindnet has 0 of 13 pod addresses left", "the only one needs no name");
    }
}
