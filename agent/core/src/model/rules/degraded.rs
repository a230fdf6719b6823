//! Rules on what could not be observed, and what that leaves open.

use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::known::Known;
use crate::model::View;
use crate::observe::{Loss, Outcome, Snapshot, SourceId};
use crate::report::Report;

/// What could not be observed, and what that leaves open.
pub(super) fn degraded(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let works = |source| view.ledger.works(source);
    let harmful = report.overlap.proxies.iter().find(|proxy| proxy.harmful);
    let has_flows = report.nat.demand.tcp.ports.is_some();
    let mut findings: Vec<Finding> = Vec::new();
    for (source, coverage) in view.coverage {
        let (why, works_partly) = match coverage {
            Known::Unknown(why) => (why.to_string(), false),
            Known::Present(detail) => match &detail.degraded {
                Some(missing) => (missing.to_string(), true),
                None => continue,
            },
            Known::Absent => continue,
        };
        let (open, severity) = match source {
            SourceId::HostLocal if works_partly && cut_short(view, *source) && !has_networks(view, *source) => {
                ("which pod addresses are reserved stays unknown".to_owned(), Severity::Unknown)
            }
            // What is missing may be just what was asked for.
            SourceId::HostLocal | SourceId::AwsVpcCni | SourceId::AzureCni | SourceId::Cilium | SourceId::Cri
                if works_partly && cut_short(view, *source) =>
            {
                (
                    "what it shows is true, but not all there is: verdicts stay undetermined".to_owned(),
                    Severity::Unknown,
                )
            }
            SourceId::Namespaces
                if works_partly && cut_short(view, *source) && !view.ledger.reservations().is_empty() =>
            {
                ("not every namespace was seen: verdicts stay undetermined".to_owned(), Severity::Unknown)
            }
            // They are read again and again; what is in force is what they said before somebody spoilt them.
            SourceId::NatFiles => ("the NAT is judged by what the files said before".to_owned(), Severity::Warning),
            // Those that are missing may be the ones that matter.
            SourceId::Rules if works_partly && harmful.is_some() => (
                format!(
                    "rules that were not read may put connections on NodePorts; with {}, a collision does harm",
                    harmful.map_or("", |proxy| proxy.proxy.title())
                ),
                Severity::Unknown,
            ),
            _ if works_partly => ("what it shows is true, but not all there is".to_owned(), Severity::Info),
            SourceId::Tcp if works(SourceId::Conntrack) => {
                ("conntrack stands in: held ports are known, failed connects are not".to_owned(), Severity::Info)
            }
            SourceId::Tcp if works(SourceId::Sockets) => {
                ("socket tables stand in: short connections between two readings are missed".to_owned(), Severity::Info)
            }
            SourceId::Conntrack if works(SourceId::Tcp) => {
                ("TCP counters stand in: UDP and forwarded flows are not seen".to_owned(), Severity::Unknown)
            }
            SourceId::Conntrack if works(SourceId::Sockets) => {
                ("socket tables stand in: UDP and forwarded flows are not seen".to_owned(), Severity::Unknown)
            }
            SourceId::Tcp | SourceId::Conntrack | SourceId::Sockets if !has_flows => {
                ("no source tells of connections: the demand for NAT ports is unknown".to_owned(), Severity::Unknown)
            }
            SourceId::Tcp | SourceId::Conntrack | SourceId::Sockets => {
                ("other sources stand in".to_owned(), Severity::Info)
            }
            SourceId::ConntrackUse => ("how full the conntrack table is stays unknown".to_owned(), Severity::Unknown),
            SourceId::CiliumConntrack => {
                ("whether Cilium's conntrack maps fill or leak stays unknown".to_owned(), Severity::Info)
            }
            SourceId::Namespaces => (
                "port ranges and addresses of network namespaces stay unknown, verdicts undetermined".to_owned(),
                Severity::Unknown,
            ),
            SourceId::CniCache => {
                ("for which pods leaked addresses were reserved is not told".to_owned(), Severity::Info)
            }
            SourceId::HostLocal | SourceId::AwsVpcCni | SourceId::AzureCni | SourceId::Cilium => {
                ("which pod addresses are reserved stays unknown".to_owned(), Severity::Unknown)
            }
            SourceId::Cri if view.ledger.reservations().is_empty() => {
                ("pods have no names here".to_owned(), Severity::Info)
            }
            SourceId::Cri => {
                ("pods have no names here and verdicts on reservations stay undetermined".to_owned(), Severity::Unknown)
            }
            SourceId::Rules => {
                ("which share of translated connections lands on NodePorts stays unknown".to_owned(), Severity::Unknown)
            }
            SourceId::Services => (
                "which NodePorts are allocated, and whether a collision does harm, stays unknown".to_owned(),
                Severity::Unknown,
            ),
            SourceId::Platform => ("the cloud is not recognised".to_owned(), Severity::Info),
        };
        findings.push(Finding {
            id: FindingId::SourceDegraded,
            severity,
            title: format!("{source}: {why}"),
            subject: source.to_string(),
            evidence: vec![Evidence::seen(*source, open)],
            remedy: match source {
                SourceId::NatFiles => "mend the file: it is read again as soon as it has changed".to_owned(),
                _ => "`headroom doctor` says what each source needs".to_owned(),
            },
        });
    }
    if !report.lost.is_empty() {
        let lost: Vec<String> = report
            .lost
            .iter()
            .filter(|(_, total)| **total > 0)
            .map(|(what, total)| format!("{what} {total}"))
            .collect();
        if !lost.is_empty() {
            findings.push(Finding {
                id: FindingId::SourceDegraded,
                severity: if view.lost_lately { Severity::Warning } else { Severity::Info },
                title: format!("some events were lost since start: {}", lost.join(", ")),
                subject: "losses".to_owned(),
                evidence: what_becomes_of(report).into_iter().map(Evidence::given).collect(),
                remedy: "if a map was full, raise its size in the configuration".to_owned(),
            });
        }
    }
    findings
}

/// What is done about each kind of loss, and what is not.
fn what_becomes_of(report: &Report) -> Vec<&'static str> {
    use Loss::{
        ConntrackMalformed, ConntrackMapFull, ConntrackMapFullEnds, ConntrackMissed, ConntrackOverrun,
        ConntrackReadFailed, LedgerFlowsFull, TcpMapFull, TcpMissed, TcpReadFailed,
    };
    const SENTENCES: [(&[Loss], &str); 6] = [
        (&[ConntrackOverrun, ConntrackMissed, ConntrackReadFailed], "conntrack losses are repaired by the next dump"),
        (&[ConntrackMalformed], "an entry that cannot be understood is missing wherever it should be counted"),
        (
            &[ConntrackMapFull, ConntrackMapFullEnds],
            "conntrack entries that found no room in the map are attributed by the next comparison with the table",
        ),
        (&[TcpMissed], "TCP events that a program missed are repaired by the next socket table"),
        (&[TcpMapFull, TcpReadFailed], "connects that found no room in a map, or could not be read, are not counted"),
        (
            &[LedgerFlowsFull],
            "conntrack entries beyond what the ledger tells apart are missing in every dump: where the kernel counts them they \
             are counted, but nothing corrects the counts downwards; elsewhere they are not counted",
        ),
    ];
    let lost = |what: &Loss| report.lost.get(what.name()).is_some_and(|total| *total > 0);
    SENTENCES.iter().filter(|(losses, _)| losses.iter().any(lost)).map(|(_, sentence)| *sentence).collect()
}

/// Whether the source shows any network.
fn has_networks(view: &View<'_>, source: SourceId) -> bool {
    view.ledger.reservations().networks().iter().any(|network| network.ipam.source() == source)
}

/// Whether the source's last reading was not complete.
fn cut_short(view: &View<'_>, source: SourceId) -> bool {
    let snapshot = match source {
        SourceId::HostLocal | SourceId::AwsVpcCni | SourceId::AzureCni | SourceId::Cilium => Snapshot::Reservations,
        SourceId::CniCache => Snapshot::Attachments,
        SourceId::Cri => Snapshot::Runtime,
        SourceId::Namespaces => Snapshot::Namespaces,
        SourceId::Tcp => Snapshot::TcpCounters,
        SourceId::Conntrack => Snapshot::Conntrack,
        SourceId::Sockets => Snapshot::Sockets,
        SourceId::Rules => Snapshot::Rules,
        SourceId::Services => Snapshot::Services,
        SourceId::ConntrackUse | SourceId::CiliumConntrack | SourceId::Platform | SourceId::NatFiles => return false,
    };
    view.ledger.bracket_of(source, snapshot).is_some_and(|bracket| bracket.outcome != Outcome::Complete)
}
