//! Rules on entries that pods leave behind which talk to themselves through a Service.

use std::net::IpAddr;
use std::time::Duration;

use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::flow::Endpoint;
use crate::model::View;
use crate::model::hairpin::half_closed_lasts;
use crate::model::leak::whole;
use crate::observe::{ConntrackTimeouts, SourceId};
use crate::report::{CiliumReport, HairpinReport, Report};

/// Entries without a socket that are worth a warning: fewer may be connections that are just being made or closed.
const LEFT_BEHIND: u64 = 10;
/// The same for Cilium, whose sockets are not asked: readings of its map are not of one moment.
const CILIUM_LEFT_BEHIND: u64 = 100;
/// So many more than when headroom began to watch are a leak, however few there are.
const CILIUM_GROWN: u64 = 20;

/// Where GKE has mended it.
const FIXED: &str = "fixed in GKE 1.28.3-gke.1090000 and 1.27.11-gke.1097000";

pub(super) fn hairpin(_view: &View<'_>, report: &Report) -> Vec<Finding> {
    let own = report.conntrack.hairpins.iter().filter(|row| row.left_behind >= Some(LEFT_BEHIND));
    let mut findings: Vec<Finding> = own.take(10).map(|row| left_behind(row, report)).collect();
    findings.extend(report.conntrack.cilium.as_ref().and_then(cilium));
    findings
}

fn left_behind(row: &HairpinReport, report: &Report) -> Finding {
    let name = name(row.namespace.as_ref(), row.name.as_ref(), row.address);
    let service = Endpoint::new(row.service_address, row.service_port);
    let count = row.left_behind.unwrap_or_default();
    let ends = report.conntrack.timeouts.map_or_else(String::new, |timeouts| ends(row, &timeouts));
    Finding {
        id: FindingId::ConntrackHairpinLeak,
        severity: Severity::Warning,
        title: format!("{name} talks to itself through {service}/{} and left {count} entries behind", row.protocol),
        subject: name.clone(),
        evidence: [
            Evidence::seen(
                SourceId::Conntrack,
                format!(
                    "{} entries from {} to {service} that come back to {}; {} open{}, {} of them silent for 10 s or more (up to {})",
                    row.entries,
                    row.address,
                    row.address,
                    row.open,
                    half_closed(row),
                    row.silent,
                    whole(Duration::from_secs(row.longest_silence_secs.into()))
                ),
            ),
            Evidence::seen(
                SourceId::Tcp,
                format!("{} sockets from {} to {service}", row.sockets.unwrap_or_default(), row.address),
            ),
        ]
        .into_iter()
        .chain(untold(report.conntrack.hairpin_entries_untold))
        .collect(),
        remedy: format!(
            "let {name} dial localhost, or keep its connections open; entries left behind go{ends}, or at once with \
             `conntrack -D -p {} -s {} -d {} --dport {}` (live ones too)",
            row.protocol, row.address, row.service_address, row.service_port
        ),
    }
}

/// How many of the open ones only one side keeps.
fn half_closed(row: &HairpinReport) -> String {
    match row.half_closed {
        0 => String::new(),
        some => format!(" ({some} closed by one side)"),
    }
}

/// After what time those end that are left behind: each state has a time-out of its own.
fn ends(row: &HairpinReport, timeouts: &ConntrackTimeouts) -> String {
    let after = |secs: u32| whole(Duration::from_secs(secs.into()));
    let (established, half_closed) = (after(timeouts.tcp_established), after(timeouts.tcp_close_wait));
    let some_half_closed = row.half_closed > 0 && half_closed_lasts(timeouts);
    match (row.open > row.half_closed, some_half_closed) {
        (true, false) => format!(" after {established}"),
        (false, _) => format!(" after {half_closed}"),
        (true, true) => format!(" after {established}, those that one side has closed after {half_closed}"),
    }
}

/// More pods may leave entries behind where there are too many to tell apart.
fn untold(entries: u64) -> Option<Evidence> {
    let said = || format!("{entries} more entries of pods that talk to themselves were not told apart");
    (entries > 0).then(|| Evidence::seen(SourceId::Conntrack, said()))
}

fn cilium(map: &CiliumReport) -> Option<Finding> {
    let grown = map.left_behind_at_start.map_or(0, |start| map.left_behind.saturating_sub(start));
    if map.left_behind < CILIUM_LEFT_BEHIND && grown < CILIUM_GROWN && map.broken == 0 {
        return None;
    }
    let worst = map.hairpins.first()?;
    let worst = name(worst.namespace.as_ref(), worst.name.as_ref(), worst.counts.address);
    let others = u64::try_from(map.hairpins.len()).unwrap_or(u64::MAX).saturating_add(map.hairpins_omitted) - 1;
    let more = if others > 0 { format!(" and {others} others") } else { String::new() };
    let now = match map.broken {
        0 => String::new(),
        1 => "; 1 connection gets no answer now".to_owned(),
        many => format!("; {many} connections get no answer now"),
    };
    let entries = if map.left_behind == 1 { "entry" } else { "entries" };
    let mut evidence = vec![Evidence::seen(
        SourceId::CiliumConntrack,
        format!(
            "{}; {}{} OUT entries left behind{}",
            map.maps.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            if map.complete { "" } else { "at least " },
            map.left_behind,
            map.left_behind_at_start
                .map_or_else(String::new, |start| format!(", {start} when headroom began to watch"))
        ),
    )];
    evidence.extend(map.hairpins.iter().filter(|row| row.counts.left_behind() > 0).take(4).map(|row| {
        let counts = row.counts;
        let said = format!(
            "{} ({}): {} OUT entries without IN, {} with an IN that has closed, {} with a blank IN (RevNAT=0), {} open",
            name(row.namespace.as_ref(), row.name.as_ref(), counts.address),
            Endpoint::new(counts.address, counts.port),
            counts.alone,
            counts.half_closed,
            counts.broken,
            counts.open
        );
        Evidence::seen(SourceId::CiliumConntrack, said)
    }));
    evidence.push(Evidence::given(
        "such an entry lives for six hours; a connection from the same source port meanwhile times out (cilium issue 23913)",
    ));
    Some(Finding {
        id: FindingId::ConntrackHairpinLeak,
        severity: if map.broken > 0 { Severity::Critical } else { Severity::Warning },
        title: format!(
            "{worst}{more} left {} {entries} in Cilium's conntrack by talking to {} through a Service{now}",
            map.left_behind,
            if others > 0 { "themselves" } else { "itself" }
        ),
        subject: worst,
        evidence,
        remedy: format!(
            "upgrade: {FIXED} (Cilium: pull request 27602); until then let the pods named keep their connections open (keep-alive), or dial localhost"
        ),
    })
}

fn name(namespace: Option<&String>, name: Option<&String>, address: IpAddr) -> String {
    match (namespace, name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => address.to_string(),
    }
}
