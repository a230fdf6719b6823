//! Source ports and NodePorts.

use std::collections::BTreeSet;

use headroom_core::flow::Protocol;
use headroom_core::observe::{RuleBackend, RuleFamily};
use headroom_core::report::{AllocatedBasis, MasqueradeReport, NodePortBasis, OverlapReport, Report, ShareReport};
use headroom_core::words::counted;

use super::{Width, heading};

/// Rows about translating rules at most.
const MAX_RULES: usize = 8;
/// Rules at most that are not understood, and as many that are not in force.
const MAX_NOTES: usize = 3;
/// NodePorts named at most.
const MAX_NODE_PORTS: usize = 6;
/// From which share of its ports on somebody is named, in percent.
const WORTH_PERCENT: u64 = 10;

/// Whether a part is large enough to be named.
fn is_worth(part: u32, whole: u32) -> bool {
    u64::from(part) * 100 >= u64::from(whole.max(1)) * WORTH_PERCENT
}

pub(super) fn ports(out: &mut String, report: &Report, width: Width) {
    heading(out, "Source ports and NodePorts", width);
    let overlap = &report.overlap;
    if overlap.ephemeral.is_empty() {
        width.wrap(out, "  ", "  ", "no network namespace could be read");
    }
    for row in overlap.ephemeral.iter().take(8) {
        let what = match (row.range, row.overlap_ports) {
            (Some(range), Some(0)) => format!("{range}, apart from the NodePorts {}", overlap.node_port_range),
            (Some(range), Some(ports)) => format!("{range}, {ports} of them NodePorts ({})", overlap.node_port_range),
            (Some(range), None) => {
                let why = row.why.as_deref().unwrap_or("not read");
                format!("{range}, which are reserved is unknown: {why}")
            }
            _ => format!("unknown: {}", row.why.as_deref().unwrap_or("not read")),
        };
        let subject = if row.namespaces > 1 {
            format!("{} namespaces ({})", row.namespaces, row.subject)
        } else {
            row.subject.clone()
        };
        width.wrap(out, "  ", "    ", &format!("{subject}: {what}"));
    }
    if overlap.ephemeral.len() > 8 {
        width.wrap(out, "  ", "    ", &format!("and {} more settings", overlap.ephemeral.len() - 8));
    }
    for row in report.nat.local.iter().filter(|row| is_worth(row.used_at_most, row.usable)).take(2) {
        let towards = headroom_core::flow::Endpoint::new(row.address, row.port);
        let at_most =
            if row.used_at_most > row.used { format!(" (at most {})", row.used_at_most) } else { String::new() };
        let text = format!("{} uses {}{at_most} of {} towards {towards}/tcp", row.subject, row.used, row.usable);
        width.wrap(out, "  in use: ", "    ", &text);
    }
    for row in report.nat.masqueraded.iter().filter(|row| is_worth(row.held, row.ports)).take(2) {
        let towards = headroom_core::flow::Endpoint::new(row.address, row.port);
        let text = format!("{} of {} given out towards {towards}/{}", row.held, row.ports, row.protocol);
        width.wrap(out, "  masquerading: ", "    ", &text);
    }
    rules(out, overlap, width);
    node_ports(out, overlap, width);
    if let (Some(translated), Some(inside)) = (overlap.live.translated, overlap.live.in_node_port_range) {
        let own = match overlap.live.own_in_node_port_range {
            Some(0) => String::new(),
            Some(own) => format!(", and {own} of the node itself that are not translated"),
            None if overlap.proxies.iter().any(|row| row.harmful) => {
                " (of the node's own that are not translated it is not known)".to_owned()
            }
            None => String::new(),
        };
        let text =
            format!("{inside} of {translated} translated flows leave the node with a NodePort as source port{own}");
        let collide = overlap.live.colliding.map_or_else(String::new, |colliding| {
            format!("; {colliding} with an allocated one, {} of them unanswered", overlap.live.unanswered.unwrap_or(0))
        });
        width.wrap(out, "  live: ", "    ", &(text + &collide));
    }
    for missing in &overlap.not_observed {
        width.wrap(out, "  not observed: ", "    ", missing);
    }
}

/// Rules of one maker that give away the same shares.
struct Row {
    maker: String,
    to_range: String,
    to_allocated: String,
    protocols: BTreeSet<Protocol>,
    families: BTreeSet<&'static str>,
    rules: u32,
}

/// Who translates, and how much of it lands on NodePorts: rows that say the same about a maker's rules are one.
fn rules(out: &mut String, overlap: &OverlapReport, width: Width) {
    let mut rows: Vec<Row> = Vec::new();
    for share in &overlap.shares {
        let of = |share: Option<f64>| share.map_or_else(|| "?".to_owned(), percent);
        let (maker, to_range, to_allocated) = (maker(share), of(share.share), of(share.share_allocated));
        let same =
            |row: &&mut Row| (&row.maker, &row.to_range, &row.to_allocated) == (&maker, &to_range, &to_allocated);
        if let Some(row) = rows.iter_mut().find(same) {
            row.protocols.insert(share.protocol);
            row.families.insert(share.place.family.name());
            row.rules = row.rules.max(share.rules);
        } else {
            let protocols = BTreeSet::from([share.protocol]);
            let families = BTreeSet::from([share.place.family.name()]);
            rows.push(Row { maker, to_range, to_allocated, protocols, families, rules: share.rules });
        }
    }
    if !rows.is_empty() {
        grid(out, rows, overlap.shares_omitted, width);
    }
    let noted = notes(out, overlap, width);
    if noted || !overlap.shares.is_empty() {
        out.push('\n');
    }
}

fn grid(out: &mut String, rows: Vec<Row>, omitted: u64, width: Width) {
    let more = rows.len().saturating_sub(MAX_RULES);
    let cells = rows.into_iter().take(MAX_RULES).map(|row| {
        let families = row.families.into_iter().collect::<Vec<_>>().join(",");
        let protocols = row.protocols.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        vec![row.maker, format!("{families} {protocols}"), row.rules.to_string(), row.to_range, row.to_allocated]
    });
    out.push('\n');
    out.push_str(&width.grid(&["TRANSLATED BY", "FOR", "RULES", "TO THE RANGE", "TO ALLOCATED"], &[2, 3, 4], cells));
    if more > 0 {
        let all = if omitted > 0 { "more of them" } else { "all" };
        width.wrap(out, "  ", "    ", &format!("and {more} more (-o json has {all})"));
    }
    if omitted > 0 {
        let text =
            format!("{} of further rules left out; the largest of each maker is listed", counted(omitted, "share"));
        width.wrap(out, "  ", "    ", &text);
    }
}

/// Rules that are not understood, and those that do nothing; whether there are any.
fn notes(out: &mut String, overlap: &OverlapReport, width: Width) -> bool {
    let place = |row: &MasqueradeReport| {
        let place = &row.place;
        let table = if place.backend == RuleBackend::Nftables { format!("{} ", place.table) } else { String::new() };
        format!("{} {} {table}{} rule {}", place.backend.name(), place.family.name(), place.chain, place.position)
    };
    let unclear = overlap.masquerade.iter().filter(|row| !row.unclear.is_empty());
    let unreached = overlap.masquerade.iter().filter_map(|row| Some((row, row.unreached.clone()?)));
    let noted: [(_, Vec<(&MasqueradeReport, String)>); 2] = [
        ("  not understood: ", unclear.map(|row| (row, row.unclear.join("; "))).collect()),
        ("  not in force: ", unreached.collect()),
    ];
    // Of rules that are not listed nobody can say here which they are.
    let (all, at_least) =
        if overlap.masquerade_omitted > 0 { ("has more of them", "at least ") } else { ("has all", "") };
    for (head, rows) in &noted {
        for (row, why) in rows.iter().take(MAX_NOTES) {
            width.wrap(out, head, "    ", &format!("{}: {why}", place(row)));
        }
        if let more @ 1.. = rows.len().saturating_sub(MAX_NOTES) {
            let text = format!("and {at_least}{} (-o json {all})", counted(more, "more rule"));
            width.wrap(out, head, "    ", &text);
        }
    }
    noted.iter().any(|(_, rows)| !rows.is_empty())
}

fn maker(share: &ShareReport) -> String {
    // Plugins make chains with names of their own for each pod.
    let chain = if share.place.chain.starts_with("CNI-") { "CNI-…" } else { share.place.chain.as_str() };
    format!("{} ({chain})", share.owner.name())
}

fn node_ports(out: &mut String, overlap: &OverlapReport, width: Width) {
    let proxies: Vec<&str> = overlap.proxies.iter().map(|row| row.proxy.title()).collect();
    let by = if proxies.is_empty() { "no proxy for Services seen".to_owned() } else { proxies.join(", ") };
    let basis = match overlap.node_port_basis {
        NodePortBasis::Configured => "",
        NodePortBasis::Proxy => " (as Cilium is configured)",
        NodePortBasis::Default => " (assumed: Kubernetes' default; --node-port-range if it is another)",
        NodePortBasis::Observed => " (assumed: Kubernetes' default, widened to those seen)",
    };
    let range = format!("in {}{basis}", overlap.node_port_range);
    // The family is told where it makes a difference.
    let alike =
        overlap.nodeports.windows(2).all(|two| two.first().map(|row| row.family) == two.last().map(|row| row.family));
    let named: Vec<String> = overlap
        .nodeports
        .iter()
        .take(MAX_NODE_PORTS)
        .map(|row| {
            let service = row.service.as_ref().map(|service| format!(" {service}")).unwrap_or_default();
            let family = match row.family {
                RuleFamily::Ip if !alike => " (IPv4)",
                RuleFamily::Ip6 if !alike => " (IPv6)",
                _ => "",
            };
            format!("{}/{}{family}{service}", row.port, row.protocol)
        })
        .collect();
    let text = match overlap.nodeports_total {
        Some(0) => format!("none allocated {range}; {by}"),
        Some(total) => {
            let more = if overlap.nodeports.len() > MAX_NODE_PORTS { ", …" } else { "" };
            let given = overlap.nodeports_basis == Some(AllocatedBasis::Given);
            let given = if given { ", as given with --node-ports" } else { "" };
            format!("{total} allocated {range} by {by}{given}: {}{more}", named.join(", "))
        }
        None if named.is_empty() => format!("which are allocated {range} is not known; {by}"),
        None => format!("not all are known that are allocated {range}; {by}: {}", named.join(", ")),
    };
    width.wrap(out, "  NodePorts: ", "    ", &text);
    if overlap.nodeports_not_given > 0 {
        let lacking = overlap.nodeports.iter().filter(|row| !row.given).take(MAX_NODE_PORTS);
        let lacking: Vec<String> = lacking.map(|row| format!("{}/{}", row.port, row.protocol)).collect();
        let text = format!("{} that are served here, the first: {}", overlap.nodeports_not_given, lacking.join(", "));
        width.wrap(out, "  --node-ports lacks: ", "    ", &text);
    }
}

/// With as many digits as it takes to see it.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent >= 0.1 || percent <= 0.0 { format!("{percent:.2} %") } else { format!("{percent:.4} %") }
}
