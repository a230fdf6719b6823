//! Rules on the conntrack table.

use std::time::Duration;

use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::model::View;
use crate::model::demand::Behind;
use crate::model::leak::whole;
use crate::observe::{ConntrackStats, SourceId};
use crate::report::{CensusReport, CensusSource, ConntrackReport, Report};

/// From this share on, in percent, a table is as good as full. Once a packet was dropped, the kernel's garbage collection evicts
/// down to it (`gc_worker`, `net/netfilter/nf_conntrack_core.c`, since 4.12).
pub(super) const NEARLY_FULL_PERCENT: u64 = 95;
/// A table that will be full within this time is worth a warning whatever it holds now.
const SOON_SECS: u64 = 1800;
/// Below this share a rise is only a beginning.
const SOON_PERCENT: u64 = 25;
/// A state that has this share of the entries, in percent, is worth its own advice.
const MOSTLY_PERCENT: u64 = 50;

pub(super) fn conntrack(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let lately = view.ledger.conntrack_lately();
    let mut findings: Vec<Finding> = low(view, &report.conntrack, lately).into_iter().collect();
    let no_port = no_port(view);
    let explained = no_port.as_ref().is_some_and(|finding| finding.severity == Severity::Critical);
    findings.extend(no_port);
    findings.extend(if explained { None } else { insert_failed(report, lately) });
    findings
}

/// The table is nearly full, will be soon, or was full.
fn low(view: &View<'_>, table: &ConntrackReport, lately: Option<ConntrackStats>) -> Option<Finding> {
    let (entries, max) = table.entries.zip(table.max).filter(|(_, max)| *max > 0)?;
    let share = entries.saturating_mul(100) / max;
    let refused = lately.map_or(0, |lately| lately.table_full());
    let evicted = lately.map_or(0, |lately| lately.early_drop);
    let soon = table.full_in_secs.filter(|secs| share >= SOON_PERCENT && *secs <= SOON_SECS);
    if share < u64::from(view.policy.low_percent) && refused == 0 && evicted == 0 && soon.is_none() {
        return None;
    }
    let first = table.census.as_ref().and_then(|census| Some((census, census.sources.first()?)));
    let most = first.map_or_else(String::new, |(census, source)| {
        let of = if census.complete { "them".to_owned() } else { format!("the {} that were read", census.entries) };
        format!(", {} % of {of} by {}", percent(source.entries, census.entries), name(source))
    });
    let when = soon.map_or_else(String::new, |secs| format!("; full in about {}", span(secs)));
    let title = if refused > 0 {
        format!("conntrack was full: {refused} packets of new connections dropped; {entries} of {max} entries{most}")
    } else {
        format!("conntrack holds {entries} of {max} entries ({share} %){most}{when}")
    };
    let critical = share >= NEARLY_FULL_PERCENT || refused > 0;
    Some(Finding {
        id: FindingId::ConntrackLow,
        severity: if critical { Severity::Critical } else { Severity::Warning },
        title,
        subject: "conntrack".to_owned(),
        evidence: evidence(table, lately, entries, max),
        remedy: remedy(table, max),
    })
}

fn evidence(table: &ConntrackReport, lately: Option<ConntrackStats>, entries: u64, max: u64) -> Vec<Evidence> {
    let used = |said: String| Evidence::seen(SourceId::ConntrackUse, said);
    let dumped = |said: String| Evidence::seen(SourceId::Conntrack, said);
    let buckets = table.buckets.map_or_else(String::new, |buckets| format!(", nf_conntrack_buckets {buckets}"));
    let mut evidence = vec![used(format!("nf_conntrack_count {entries}, nf_conntrack_max {max}{buckets}"))];
    if let Some(census) = &table.census {
        let listed = |what: &str, rows: Vec<String>| format!("{what}: {}", rows.join(", "));
        let sources = census.sources.iter().take(4).map(|source| format!("{} {}", name(source), source.entries));
        evidence.push(dumped(listed("opened by", sources.collect()) + &rest(census)));
        let destinations = census.destinations.iter().take(3).map(|to| {
            let endpoint = crate::flow::Endpoint::new(to.address, to.port);
            format!("{endpoint}/{} {}", to.protocol, to.entries)
        });
        evidence.push(dumped(listed("towards", destinations.collect())));
        evidence.push(dumped(doing(census)));
        let refused = table.refused_when_full_ratio.map_or_else(String::new, |ratio| {
            format!(": about {} of new connections if it were full now", share_of(ratio))
        });
        evidence.push(dumped(format!(
            "when full, a new connection takes the place of an entry that is not assured ({} now), if there is one in eight hash \
             buckets (early_drop), or is dropped{refused}; {} entries end within a minute by themselves",
            census.unassured, census.ending_within_minute,
        )));
    }
    if let Some((secs, basis)) = table.full_in_secs.zip(table.full_basis.as_ref()) {
        evidence.push(used(format!("full in about {}: {basis}", span(secs))));
    }
    if let Some(lately) = lately.filter(|lately| lately.drop > 0 || lately.early_drop > 0) {
        evidence.push(used(format!(
            "since headroom watches: {} dropped because the table was full, {} evicted (early_drop)",
            lately.table_full(),
            lately.early_drop
        )));
    }
    evidence
}

/// A share in whole percent.
fn share_of(ratio: f64) -> String {
    match ratio * 100.0 {
        all if all >= 99.5 => "all".to_owned(),
        percent if percent < 1.0 => "less than 1 %".to_owned(),
        percent => format!("{percent:.0} %"),
    }
}

/// States and silence of the entries, the largest first.
fn doing(census: &CensusReport) -> String {
    let mut states: Vec<_> = census.states.iter().collect();
    states.sort_by_key(|state| std::cmp::Reverse(state.entries));
    let states: Vec<String> = states
        .iter()
        .take(3)
        .map(|state| {
            let timeout =
                state.timeout_secs.map_or_else(String::new, |secs| format!(" (time-out {})", span(secs.into())));
            format!("{} {}{timeout}", state.entries, state.state)
        })
        .collect();
    let silent = census.silent.iter().filter(|span| span.from_secs >= 600).map(|span| span.entries).sum::<u64>();
    format!("{}; {silent} had no packet for 10 min or more", states.join(", "))
}

/// What the list of sources leaves out.
fn rest(census: &CensusReport) -> String {
    let listed: u64 = census.sources.iter().take(4).map(|source| source.entries).sum();
    let others = census.entries.saturating_sub(listed);
    match census.sources_total {
        _ if others == 0 => String::new(),
        Some(total) => format!(", {} others {others}", total.saturating_sub(4)),
        None => format!(", too many others to count {others}"),
    }
}

/// The exact settings.
fn remedy(table: &ConntrackReport, max: u64) -> String {
    let wanted = max.saturating_mul(2);
    let buckets = wanted / 4;
    let hash = match table.buckets {
        Some(now) if now >= buckets => String::new(),
        _ => format!(" and `echo {buckets} > /sys/module/nf_conntrack/parameters/hashsize`"),
    };
    let room = format!(
        "`sysctl -w net.netfilter.nf_conntrack_max={wanted}`{hash} (some {} MiB more); with kube-proxy, which sets both at its \
         start, conntrack.min: {wanted} or more conntrack.maxPerCore",
        // struct nf_conn with its extensions takes 256 to 320 bytes.
        max.saturating_mul(320) >> 20
    );
    let mostly = |wanted: &str| {
        let census = table.census.as_ref()?;
        let state = census.states.iter().find(|state| state.state == wanted)?;
        (percent(state.entries, census.entries) >= MOSTLY_PERCENT).then_some(state)
    };
    let shorter = if let Some(state) = mostly("tcp_established").filter(|state| state.timeout_secs > Some(7200)) {
        format!(
            "; {} established connections wait up to {} for a packet: `sysctl -w \
             net.netfilter.nf_conntrack_tcp_timeout_established=7200` (kube-proxy: conntrack.tcpEstablishedTimeout: 2h)",
            state.entries,
            state.timeout_secs.map_or_else(String::new, |secs| span(secs.into()))
        )
    } else if mostly("udp_unanswered").is_some() {
        "; most is UDP that nobody answers: find out in the pods named above what it is for".to_owned()
    } else if mostly("tcp_syn_sent").is_some() {
        "; most are connects that nobody answers: look at where they go".to_owned()
    } else if mostly("tcp_time_wait").is_some() {
        "; most are connections that have closed: reuse them (keep-alive)".to_owned()
    } else {
        String::new()
    };
    format!("reuse connections in the pods named above, or make room: {room}{shorter}")
}

/// Connections of the last minute that were dropped behind the translation of their source: this node found no port for them, or a
/// rule in a hook between the translation and conntrack's last one dropped them. The kernel gives one reason for both; how many
/// inserts failed is the most that found no port.
fn no_port(view: &View<'_>) -> Option<Finding> {
    let no_port: Vec<_> = view.accounts.iter().filter(|account| account.no_port.0 > 0).collect();
    let worst = no_port.iter().max_by_key(|account| account.no_port.0)?;
    let Behind { dropped, failed } = view.demand.behind;
    // What came since the statistics were read is judged when they are read again.
    if dropped == 0 {
        return None;
    }
    let to = worst.destination;
    let (severity, title, since, remedy) = match failed {
        Some(failed) if failed.saturating_mul(2) >= dropped => (
            Severity::Critical,
            format!("this node itself finds no port for new connections to {to}"),
            "since no source port was free",
            "let connections to it be reused, spread them over more addresses of the destination, or widen \
             `--to-ports` of the masquerade rule",
        ),
        Some(0) => (
            Severity::Info,
            format!("a rule behind the translation of sources drops new connections to {to}"),
            "behind the translation of their source",
            "none, if that is meant; `nft list ruleset` shows the chains: those of `hook postrouting` or `hook input` with a \
             priority above 100 see packets after their source was translated",
        ),
        Some(_) | None => (
            Severity::Warning,
            format!("new connections to {to} are dropped behind the translation of their source: no port, or a rule"),
            "behind the translation of their source",
            "look at `conntrack -S`: if insert_failed grows with them, no port was free, and connections to it have to be \
             reused; if not, a chain of `hook postrouting` or `hook input` with a priority above 100 drops them \
             (`nft list ruleset`)",
        ),
    };
    let mut evidence: Vec<_> = no_port
        .iter()
        .take(5)
        .map(|account| {
            let (to, packets) = (account.destination, account.no_port.0);
            let said = format!("{to}: {packets} packets of new connections dropped in the last minute, {since}");
            Evidence::seen(SourceId::Conntrack, said)
        })
        .collect();
    let bound = match failed {
        Some(failed) if failed >= dropped => None,
        Some(failed) => Some(format!(
            "conntrack failed to insert {failed} entries in that time: of {dropped} packets {} at least were dropped by a rule \
             behind the translation of their source",
            dropped - failed
        )),
        None => Some(
            "conntrack's statistics could not be read: whether no port was free or a rule behind the translation dropped them is \
             not known"
                .to_owned(),
        ),
    };
    evidence.extend(bound.map(|said| Evidence::seen(SourceId::ConntrackUse, said)));
    Some(Finding {
        id: FindingId::ConntrackInsertFailed,
        severity,
        title,
        subject: to.to_string(),
        evidence,
        remedy: remedy.to_owned(),
    })
}

fn insert_failed(report: &Report, lately: Option<ConntrackStats>) -> Option<Finding> {
    let lately = lately.filter(|lately| lately.insert_failed > 0)?;
    let table = &report.conntrack;
    let optional = |name: &str, count: Option<u64>| count.map_or_else(String::new, |count| format!(", {name} {count}"));
    let mut evidence = vec![Evidence::seen(
        SourceId::ConntrackUse,
        format!(
            "since headroom watches: insert_failed {}, drop {}{}{}; since boot: insert_failed {}, drop {}",
            lately.insert_failed,
            lately.drop,
            optional("chain_toolong", lately.chain_toolong),
            optional("clash_resolve", lately.clash_resolve),
            table.insert_failed.unwrap_or_default(),
            table.drop.unwrap_or_default(),
        ),
    )];
    let mut cpus: Vec<_> = table.cpus.iter().filter(|cpu| cpu.stats.insert_failed > 0).collect();
    cpus.sort_by_key(|cpu| std::cmp::Reverse(cpu.stats.insert_failed));
    if !cpus.is_empty() {
        let said: Vec<String> =
            cpus.iter().take(4).map(|cpu| format!("cpu {} {}", cpu.cpu, cpu.stats.insert_failed)).collect();
        evidence.push(Evidence::seen(SourceId::ConntrackUse, format!("insert_failed since boot: {}", said.join(", "))));
    }
    let chains = lately.chain_toolong.is_some_and(|chains| chains.saturating_mul(2) >= lately.insert_failed);
    let remedy = if chains {
        let buckets = table.max.unwrap_or_default().max(table.buckets.unwrap_or_default().saturating_mul(2));
        format!(
            "the hash table is too small for its entries: `echo {buckets} > /sys/module/nf_conntrack/parameters/hashsize`"
        )
    } else {
        "look for a destination that takes most of this node's own masquerade ports; racing UDP packets (DNS over one \
         socket) fail the same way"
            .to_owned()
    };
    Some(Finding {
        id: FindingId::ConntrackInsertFailed,
        severity: Severity::Warning,
        title: format!("conntrack failed to insert {} entries since headroom watches", lately.insert_failed),
        subject: "conntrack".to_owned(),
        evidence,
        remedy,
    })
}

fn name(source: &CensusSource) -> String {
    match (&source.namespace, &source.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ if source.host => "the node itself".to_owned(),
        _ => source.address.to_string(),
    }
}

fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100) / whole.max(1)
}

fn span(secs: u64) -> String {
    whole(Duration::from_secs(secs))
}
