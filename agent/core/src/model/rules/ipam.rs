//! Rules on pod addresses.

use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::model::View;
use crate::model::leak::Verdict;
use crate::observe::SourceId;
use crate::report::{NetworkReport, Report};

/// Reserved share of a pod network from which it is called low, in percent.
const IPAM_LOW_PERCENT: u64 = 90;

pub(super) fn ipam(_view: &View<'_>, report: &Report) -> Vec<Finding> {
    report.ipam.networks.iter().flat_map(ipam_of).collect()
}

fn ipam_of(network: &NetworkReport) -> Vec<Finding> {
    let mut findings = Vec::new();
    let counts = network.counts;
    let reserved = counts.total();
    let of = network.usable.map_or_else(String::new, |usable| format!(" of {usable}"));
    let full = network.usable.is_some_and(|usable| reserved >= usable);
    if counts.leaked > 0 {
        let leaked = network.entries.iter().filter(|entry| entry.verdict == Verdict::Leaked);
        let mut evidence = vec![Evidence::seen(
            SourceId::HostLocal,
            format!("{reserved}{of} addresses reserved in {}", network.store),
        )];
        evidence.extend(
            leaked.take(3).map(|entry| {
                Evidence::seen(SourceId::Cri, format!("{}: {}", entry.address, entry.evidence.join("; ")))
            }),
        );
        findings.push(Finding {
            id: FindingId::IpamLeaked,
            severity: if full { Severity::Critical } else { Severity::Warning },
            title: format!(
                "{} pod addresses of {} are leaked ({reserved}{of} reserved)",
                counts.leaked, network.network
            ),
            subject: network.network.clone(),
            evidence,
            remedy: "look at them with `headroom ipam scan`, then give them back; upgrade the runtime that leaked them"
                .to_owned(),
        });
    }
    if counts.undetermined > 0 {
        findings.push(undetermined(network));
    }
    if let Some(usable) =
        network.usable.filter(|usable| reserved.saturating_mul(100) >= usable.saturating_mul(IPAM_LOW_PERCENT))
    {
        findings.push(Finding {
            id: FindingId::IpamLow,
            severity: if full { Severity::Critical } else { Severity::Warning },
            title: format!(
                "{} has {} of {usable} pod addresses left",
                network.network,
                usable.saturating_sub(reserved)
            ),
            subject: network.network.clone(),
            evidence: vec![Evidence::seen(
                SourceId::HostLocal,
                format!(
                    "{} in use, {} settling, {} leaked, {} undetermined",
                    counts.in_use, counts.settling, counts.leaked, counts.undetermined
                ),
            )],
            remedy: "free leaked addresses; otherwise lower the node's maximum of pods or give nodes a larger range"
                .to_owned(),
        });
    }
    findings
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
        evidence: whys.into_iter().take(3).map(|why| Evidence::seen(SourceId::HostLocal, why)).collect(),
        remedy: "`headroom ipam scan` lists them; a runtime's socket elsewhere is named with --cri-socket".to_owned(),
    }
}
