//! Rules on the conntrack table.

use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::model::View;
use crate::observe::SourceId;
use crate::report::Report;

pub(super) fn conntrack(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let (Some(entries), Some(max)) = (report.conntrack.entries, report.conntrack.max)
        && max > 0
        && entries.saturating_mul(100) / max >= u64::from(view.policy.low_percent)
    {
        let share = entries.saturating_mul(100) / max;
        findings.push(Finding {
            id: FindingId::ConntrackLow,
            severity: if share >= 95 { Severity::Critical } else { Severity::Warning },
            title: format!("conntrack holds {entries} of {max} entries ({share} %)"),
            subject: "conntrack".to_owned(),
            evidence: vec![Evidence::seen(
                SourceId::ConntrackUse,
                format!("nf_conntrack_count {entries}, nf_conntrack_max {max}"),
            )],
            remedy: format!(
                "raise net.netfilter.nf_conntrack_max above {}, or find who fills it",
                max.saturating_mul(2)
            ),
        });
    }
    let no_port: Vec<_> = view.accounts.iter().filter(|account| account.no_port.0 > 0).collect();
    if let Some(worst) = no_port.iter().max_by_key(|account| account.no_port.0) {
        findings.push(Finding {
            id: FindingId::ConntrackInsertFailed,
            severity: Severity::Critical,
            title: format!("this node itself finds no port for new connections to {}", worst.destination),
            subject: worst.destination.to_string(),
            evidence: no_port
                .iter()
                .take(5)
                .map(|account| {
                    let said = format!(
                        "{}: {} packets of new connections dropped in the last minute, since no source port was free",
                        account.destination, account.no_port.0
                    );
                    Evidence::seen(SourceId::Conntrack, said)
                })
                .collect(),
            remedy: "let connections to it be reused, spread them over more addresses of the destination, or widen \
                     `--to-ports` of the masquerade rule"
                .to_owned(),
        });
        return findings;
    }
    let now = view.ledger.conntrack_use().and_then(|used| used.stats.present());
    if let (Some(then), Some(now)) = (view.conntrack_at_start, now) {
        let failed = now.insert_failed.saturating_sub(then.insert_failed);
        if failed > 0 {
            findings.push(Finding {
                id: FindingId::ConntrackInsertFailed,
                severity: Severity::Warning,
                title: format!("conntrack failed to insert {failed} entries since headroom watches"),
                subject: "conntrack".to_owned(),
                evidence: vec![Evidence::seen(
                    SourceId::ConntrackUse,
                    format!("insert_failed {} (was {}), drop {}", now.insert_failed, then.insert_failed, now.drop),
                )],
                remedy: "look for a destination that takes most of this node's own masquerade ports".to_owned(),
            });
        }
    }
    findings
}
