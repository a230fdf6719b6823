//! Rules on the ports that this node itself gives out: local ports of sockets, and those of its own masquerading.

use super::percent;
use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::flow::{Destination, Protocol};
use crate::model::View;
use crate::model::demand::{LocalUse, Masqueraded};
use crate::observe::SourceId;
use crate::ports::PortRange;
use crate::report::{LocalReport, Report};

/// From this share of its ports on, in percent, the kernel's own search for a port fails now and then: it tries 248 ports at
/// most, and those it tries lie next to each other (`nf_nat_l4proto_unique_tuple`; measured on 6.18 with 4,096 ports: first
/// failure at 93.5 %, one in ten at 97 %, more than half at 99 %).
pub(super) const SEARCH_FAILS_PERCENT: u64 = 93;
/// Findings of one kind at most.
const MAX_FINDINGS: usize = 10;

/// Local ports that are used up, or nearly so.
pub(super) fn ephemeral_ports(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let low = u64::from(view.policy.low_percent);
    let mut findings: Vec<Finding> = Vec::new();
    for account in view.accounts.iter().filter(|account| account.tcp().no_local_port_lately > 0).take(MAX_FINDINGS) {
        let failed = account.tcp().no_local_port_lately;
        let used = view.demand.local.iter().find(|used| Destination::tcp(used.destination) == account.destination);
        let mut evidence = vec![Evidence::seen(SourceId::Tcp, "connect failed before a source port was chosen")];
        evidence.extend(used.map(numbers));
        findings.push(Finding {
            id: FindingId::EphemeralPortsLow,
            severity: Severity::Warning,
            title: format!("{failed} connects to {} found no local port in the last minute", account.destination),
            subject: account.destination.to_string(),
            evidence,
            remedy: remedy(used, view.policy.node_ports),
        });
    }
    let told: Vec<String> = findings.iter().map(|finding| finding.subject.clone()).collect();
    // The report has the same rows in the same order, with names.
    for (used, row) in view.demand.local.iter().zip(&report.nat.local) {
        let subject = Destination::tcp(used.destination).to_string();
        if percent(used.possible(), used.usable) < low || told.contains(&subject) || findings.len() >= MAX_FINDINGS {
            continue;
        }
        let proven = percent(used.proven(), used.usable) >= low;
        findings.push(Finding {
            id: FindingId::EphemeralPortsLow,
            // Those in TIME_WAIT are counted at most, not for certain.
            severity: if proven { Severity::Warning } else { Severity::Info },
            title: title(used, row, proven),
            subject,
            evidence: vec![numbers(used)],
            remedy: remedy(Some(used), view.policy.node_ports),
        });
    }
    findings
}

fn title(used: &LocalUse, row: &LocalReport, proven: bool) -> String {
    let (what, count) = if proven { ("uses", used.proven()) } else { ("may use", used.possible()) };
    format!(
        "{} {what} {count} of {} local ports towards {}/tcp ({} %)",
        row.subject,
        used.usable,
        used.destination,
        percent(count, used.usable)
    )
}

fn numbers(used: &LocalUse) -> Evidence {
    let reserved = if used.exact { "" } else { "; which of them are reserved is not known, so fewer may be usable" };
    let listening = match used.listening {
        0 => String::new(),
        count => format!(" ({count} more are listened on)"),
    };
    Evidence::seen(
        SourceId::Tcp,
        format!(
            "{} to {}: {} open or being opened, {} in TIME_WAIT when the sockets were read last, {} closed in the last minute; \
             ip_local_port_range {} has {} usable ports{listening}, enough for {:.1} connections a second that this side closes \
             first{reserved}",
            used.source,
            used.destination,
            used.open,
            used.time_wait,
            used.closed,
            used.range,
            used.usable,
            used.sustained_per_sec()
        ),
    )
}

/// The widest range that leaves the usual ports of servers alone.
const WIDE: (u16, u16) = (10_240, 65_535);

fn remedy(used: Option<&LocalUse>, node_ports: PortRange) -> String {
    let (first, last) = WIDE;
    if used.is_some_and(|used| used.range.first() <= first && used.range.last() == last) {
        return "reuse connections, let the server close first (its side waits then), or use more source or destination \
                addresses: the range is as wide as it can be"
            .to_owned();
    }
    format!(
        "reuse connections, or widen the range where the client runs: net.ipv4.ip_local_port_range=\"{first} {last}\" and \
         net.ipv4.ip_local_reserved_ports={node_ports} (sysctl -w on the node, spec.securityContext.sysctls in a pod)"
    )
}

/// The node's own masquerading has given out most of its ports towards one destination.
pub(super) fn masquerade_ports(view: &View<'_>, _report: &Report) -> Vec<Finding> {
    let low = u64::from(view.policy.low_percent);
    let full = view.demand.masqueraded.iter().filter(|taken| percent(taken.taken, taken.ports) >= low);
    full.take(MAX_FINDINGS).map(masquerade_ports_of).collect()
}

fn masquerade_ports_of(taken: &Masqueraded) -> Finding {
    let share = percent(taken.taken, taken.ports);
    let fails = share >= SEARCH_FAILS_PERCENT;
    let protocol = if taken.destination.protocol == Protocol::TCP { "a SYN is" } else { "packets are" };
    Finding {
        id: if fails { FindingId::NatPortsExhausted } else { FindingId::NatPortsLow },
        severity: if fails { Severity::Critical } else { Severity::Warning },
        title: format!(
            "this node's own masquerading has given out {} of {} ports towards {} ({share} %)",
            taken.taken, taken.ports, taken.destination
        ),
        subject: format!("{} from {}", taken.destination, taken.translated),
        evidence: vec![
            Evidence::seen(
                SourceId::Conntrack,
                format!("{} entries to {} leave as {}", taken.taken, taken.destination, taken.translated),
            ),
            Evidence::given(format!(
                "the kernel tries at most 248 ports for a new connection: from some {SEARCH_FAILS_PERCENT} % on it finds none \
                 now and then, and {protocol} dropped without a word (insert_failed of conntrack)"
            )),
        ],
        remedy: format!(
            "reuse connections, spread them over more addresses of the destination, {}or give the node more addresses to \
             translate to; what ended early is freed sooner with a shorter nf_conntrack_tcp_timeout_time_wait",
            if taken.limited() { "widen `--to-ports` of the masquerade rule, " } else { "" }
        ),
    }
}
