//! The share of translated connections that land on NodePorts, rule by rule, and for rules that divide them among themselves.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::landing::{favoured, landing, unlimited};
use super::node_ports::AllocatedNodePorts;
use super::owner::owner;
use crate::flow::Protocol;
use crate::known::Known;
use crate::ledger::Ledger;
use crate::observe::{PortChoice, RuleFamily, SourceNat, SourceNatKind, SourceNatRule};
use crate::ports::{PortRange, PortSettings};
use crate::report::{MasqueradeReport, OverlapReport, ShareReport};

/// Rules listed in a report at most, and shares: a node with 250 pods has as many rules of ptp and bridge each.
const MAX_LISTED: usize = 512;
/// The protocols that shares are told for: those with NodePorts, and with ports that the kernel translates
/// (`nf_nat_l4proto_unique_tuple`).
pub(in crate::model) const WITH_NODE_PORTS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

/// Everything a share depends on besides the rule.
struct Judge<'a> {
    allocated: &'a AllocatedNodePorts<'a>,
    range: PortRange,
    /// From where pods draw their ports, each setting once; without a pod, the node itself.
    own: Vec<PortSettings>,
    /// Some namespaces' ranges are not known.
    own_missing: bool,
    /// From where the node itself does, if there are pods.
    node: Vec<PortSettings>,
    /// The shares of rules that choose alike: there may be thousands of both rules and NodePorts.
    judged: BTreeMap<(Known<PortRange>, PortChoice, RuleFamily, Protocol, bool), Shares>,
}

/// A share of the NodePort range, one of the allocated NodePorts, and why.
#[derive(Clone)]
struct Shares {
    range: Option<f64>,
    allocated: Option<f64>,
    why: String,
}

/// Every rule, and every share, the most important first.
pub(super) fn report(
    ledger: &Ledger,
    allocated: &AllocatedNodePorts<'_>,
    range: PortRange,
) -> (Vec<MasqueradeReport>, Vec<ShareReport>) {
    let mut judge = Judge::new(ledger, allocated, range);
    let rules: Vec<&SourceNatRule> = ledger.rules().source_nat().collect();
    let rows = rules.iter().map(|rule| judge.row(rule)).collect();
    let mut shares: Vec<ShareReport> = groups(&rules).iter().flat_map(|group| judge.group(group)).collect();
    shares.sort_by(|a, b| {
        let larger = |of: fn(&ShareReport) -> Option<f64>| of(b).unwrap_or(0.0).total_cmp(&of(a).unwrap_or(0.0));
        let larger = larger(|row| row.share_allocated).then(larger(|row| row.share));
        let before = Weight::of(a.share).cmp(&Weight::of(b.share)).then(larger);
        before.then_with(|| (&a.place, a.protocol).cmp(&(&b.place, b.protocol)))
    });
    (rows, shares)
}

/// How much a share matters, most first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    Some,
    Unknown,
    Nothing,
}

impl Weight {
    fn of(share: Option<f64>) -> Self {
        match share {
            Some(share) if share > 0.0 => Self::Some,
            Some(_) => Self::Nothing,
            None => Self::Unknown,
        }
    }
}

/// Leaves out what is more than anybody reads, the least important first, and counts it.
pub(in crate::model) fn shorten(overlap: &mut OverlapReport) {
    let omitted = |before: usize, after: usize| u64::try_from(before.saturating_sub(after)).unwrap_or(u64::MAX);
    let all = overlap.masquerade.len();
    if all > MAX_LISTED {
        let mut order: Vec<(usize, &MasqueradeReport)> = overlap.masquerade.iter().enumerate().collect();
        order.sort_by_key(|(_, row)| (row.unreached.is_some(), Weight::of(row.share), Reverse(row.unclear.len())));
        let kept: BTreeSet<usize> = order.into_iter().take(MAX_LISTED).map(|(index, _)| index).collect();
        let mut index = 0..;
        overlap.masquerade.retain(|_| index.next().is_some_and(|index| kept.contains(&index)));
    }
    overlap.masquerade_omitted = omitted(all, overlap.masquerade.len());

    let all = overlap.shares.len();
    // The largest of each maker and protocol stays: metrics tell it.
    let mut seen = BTreeSet::new();
    let largest: Vec<bool> = overlap.shares.iter().map(|row| seen.insert((row.owner, row.protocol))).collect();
    let mut room = MAX_LISTED.saturating_sub(seen.len());
    let mut largest = largest.into_iter();
    overlap.shares.retain(|_| {
        let stays = largest.next().unwrap_or(false);
        let fits = stays || room > 0;
        room -= usize::from(fits && !stays);
        fits
    });
    overlap.shares_omitted = omitted(all, overlap.shares.len());
}

/// From where pods draw their ports, each setting once, whether some are not known, and from where the node itself does.
fn settings(ledger: &Ledger) -> (BTreeSet<PortSettings>, bool, BTreeSet<PortSettings>) {
    let namespaces = ledger.occupants().namespaces();
    let pods = || namespaces.iter().filter(|namespace| !namespace.host);
    let mut missing = false;
    let mut all = BTreeSet::new();
    for namespace in pods() {
        let dialled = ledger.occupants().dialled_range_of(namespace.inode);
        match (&namespace.ports, dialled) {
            (Known::Present(settings), _) => {
                all.insert(settings.clone());
            }
            (_, Some(ephemeral)) => {
                all.insert(PortSettings { ephemeral, reserved: Vec::new() });
            }
            _ => missing = true,
        }
    }
    let hosts = namespaces.iter().filter(|namespace| namespace.host);
    (all, missing, hosts.filter_map(|namespace| namespace.ports.present()).cloned().collect())
}

/// Whether connections of the node itself may come to a rule: not to one that asks for a source, or where packets came in.
fn may_take_the_nodes_own(rule: &SourceNatRule) -> bool {
    let foreign = ["-s ", "-i ", "--src-range ", "! --src-type LOCAL"];
    !rule.conditions.iter().any(|condition| foreign.iter().any(|asked| condition.starts_with(asked)))
}

/// Rules of one chain that the same packets come to, in order.
fn groups<'a>(rules: &[&'a SourceNatRule]) -> Vec<Vec<&'a SourceNatRule>> {
    let mut groups: Vec<Vec<&SourceNatRule>> = Vec::new();
    let same_chain = |a: &SourceNatRule, b: &SourceNatRule| {
        let (a, b) = (&a.place, &b.place);
        (a.backend, a.family, &a.table, &a.chain) == (b.backend, b.family, &b.table, &b.chain)
    };
    // What a rule of the group has left over falls to the next one, so that later ones know more exceptions than earlier ones.
    // What is not understood is the same where its words are: words that ask different things are told apart.
    let same = |a: &SourceNatRule, b: &SourceNatRule| {
        same_chain(a, b) && !a.selective && !b.selective && a.conditions == b.conditions && a.unclear == b.unclear
    };
    for rule in rules.iter().filter(|rule| !rule.path.is_empty()) {
        match groups.last_mut() {
            Some(group) if group.first().is_some_and(|first| same(first, rule)) => group.push(rule),
            _ => groups.push(vec![rule]),
        }
    }
    groups
}

/// Whose packets a rule translates: one of a table for both may ask for those of one.
fn family(rule: &SourceNatRule) -> RuleFamily {
    let asks = |family: &str| rule.conditions.iter().any(|condition| condition == family);
    match rule.place.family {
        RuleFamily::Inet if asks("IPv4") => RuleFamily::Ip,
        RuleFamily::Inet if asks("IPv6") => RuleFamily::Ip6,
        family => family,
    }
}

/// Why no packet comes to a rule, if that is so.
fn unreached(rule: &SourceNatRule) -> Option<String> {
    let nothing = || rule.path.is_empty().then(|| "never reached: nothing leads to it".to_owned());
    rule.unreached.clone().or_else(nothing)
}

impl<'a> Judge<'a> {
    fn new(ledger: &Ledger, allocated: &'a AllocatedNodePorts<'a>, range: PortRange) -> Self {
        let (pods, own_missing, node) = settings(ledger);
        let alone = pods.is_empty() && !own_missing;
        let (own, node) = if alone { (node, BTreeSet::new()) } else { (pods, node) };
        let (own, node) = (own.into_iter().collect(), node.into_iter().collect());
        Self { allocated, range, own, own_missing, node, judged: BTreeMap::new() }
    }

    fn row(&mut self, rule: &SourceNatRule) -> MasqueradeReport {
        let protocol = WITH_NODE_PORTS.into_iter().find(|protocol| rule.protocols.contains(*protocol));
        let unreached = unreached(rule);
        // No connection, so none that lands anywhere.
        let nothing = |why: String| Shares { range: Some(0.0), allocated: Some(0.0), why };
        let shares = match (&unreached, protocol) {
            (Some(why), _) => nothing(why.clone()),
            (None, Some(protocol)) => self.shares(rule, protocol),
            (None, None) => nothing("it translates no protocol that has NodePorts".to_owned()),
        };
        MasqueradeReport {
            place: rule.place.clone(),
            path: rule.path.clone(),
            owner: owner(rule),
            action: action(&rule.target),
            addresses: rule.target.addresses.clone(),
            kind: rule.target.kind,
            protocol: rule.protocols.single(),
            protocols: rule.protocols,
            conditions: rule.conditions.clone(),
            exceptions: rule.exceptions.clone(),
            ports: rule.target.ports.present().copied(),
            choice: rule.target.choice,
            probability: rule.probability,
            share: shares.range,
            share_allocated: shares.allocated,
            share_why: shares.why,
            comments: rule.comments.clone(),
            unclear: rule.unclear.clone(),
            unreached,
        }
    }

    /// Of the connections that a target translates, the shares that land on NodePorts.
    fn shares(&mut self, rule: &SourceNatRule, protocol: Protocol) -> Shares {
        let (target, family) = (&rule.target, family(rule));
        let nodes_own = may_take_the_nodes_own(rule);
        let key = (target.ports.clone(), target.choice, family, protocol, nodes_own);
        if let Some(judged) = self.judged.get(&key) {
            return judged.clone();
        }
        let judged = self.judge(target, family, protocol, nodes_own);
        self.judged.insert(key, judged.clone());
        judged
    }

    fn judge(&self, target: &SourceNat, family: RuleFamily, protocol: Protocol, nodes_own: bool) -> Shares {
        if let Known::Unknown(why) = &target.ports {
            return Shares { range: None, allocated: None, why: why.to_string() };
        }
        // Of a rule for both, nobody knows how many connections are of which.
        let allocated = |share: &dyn Fn(&[PortRange]) -> f64| {
            let each = family.each().iter().map(|family| {
                let ports: Vec<PortRange> = self.allocated.of_protocol(*family, protocol).collect();
                share(&ports)
            });
            each.fold(0.0, f64::max)
        };
        let worst_of = |all: &[PortSettings], ports: &[PortRange]| {
            let shares = all.iter().map(|own| landing(target, own, protocol, ports));
            shares.fold(0.0, f64::max)
        };
        let worst = |ports: &[PortRange]| worst_of(&self.own, ports);
        let limit = target.ports.present().copied();
        let range = limit.unwrap_or_else(unlimited);
        let node_ports = range.intersect(self.range).map_or(0, PortRange::count);
        if target.choice == PortChoice::Keep {
            if self.own.is_empty() || self.own_missing && worst(&[self.range]) <= 0.0 {
                let why = "the source port is kept, and from where pods draw theirs is not known".to_owned();
                return Shares { range: None, allocated: None, why };
            }
            let ranges = drawn_from(&self.own, protocol);
            let mut why = match limit {
                None => format!(
                    "source ports are kept (pods draw from {ranges}); one that is taken is drawn anew from {range}"
                ),
                Some(limit) => {
                    format!("source ports inside {limit} are kept, others drawn from it (pods draw from {ranges})")
                }
            };
            let of_the_node = worst_of(&self.node, &[self.range]);
            if nodes_own && of_the_node > worst(&[self.range]) {
                why.push_str(&format!(
                    "; this share is that of pods, of the node's own connections that come here it is {:.2} % (they draw from {})",
                    of_the_node * 100.0,
                    drawn_from(&self.node, protocol)
                ));
            }
            return self.known(worst(&[self.range]), allocated(&worst), why);
        }
        // What is drawn anew does not depend on the connection's own port.
        let any = PortSettings { ephemeral: unlimited(), reserved: Vec::new() };
        let favoured = favoured(range);
        let unevenly =
            if favoured > 0 { format!(" (the kernel draws its first {favoured} more often)") } else { String::new() };
        let why =
            format!("{node_ports} of the {} ports {range} that are drawn from are NodePorts{unevenly}", range.count());
        let drawn = |ports: &[PortRange]| landing(target, &any, protocol, ports);
        self.known(drawn(&[self.range]), allocated(&drawn), why)
    }

    fn known(&self, range: f64, allocated: f64, why: String) -> Shares {
        // A connection that cannot land in the range cannot land on what is allocated in it.
        let allocated = (self.allocated.is_known() || range <= 0.0).then_some(allocated);
        Shares { range: Some(range), allocated, why }
    }

    /// A row for each protocol that the rules of a group translate, and one more behind each place where nobody can tell how many
    /// are left of what the rules in front of it let pass.
    fn group(&mut self, group: &[&SourceNatRule]) -> Vec<ShareReport> {
        let mut rows: Vec<ShareReport> = Vec::new();
        for protocol in WITH_NODE_PORTS {
            let (mut row, mut left) = (Row::default(), 1.0);
            for rule in group {
                // Of nothing, nothing is left.
                if rule.between.is_unsure_of(protocol) && left > 0.0 {
                    let apart = row.apart || !row.parts.is_empty();
                    rows.extend(row.told(protocol));
                    (row, left) = (Row { apart, ..Row::default() }, 1.0);
                }
                left *= rule.between.left_of(protocol);
                if !rule.protocols.contains(protocol) {
                    continue;
                }
                let part = left * rule.probability;
                left *= 1.0 - rule.probability;
                if part > 0.0 {
                    row.parts.push((rule, part, self.shares(rule, protocol)));
                }
            }
            rows.extend(row.told(protocol));
        }
        rows
    }
}

/// Rules that divide connections among themselves, with the part that each takes.
#[derive(Default)]
struct Row<'a> {
    parts: Vec<(&'a SourceNatRule, f64, Shares)>,
    /// There are others in front of them, and nobody can tell how many connections those take against these.
    apart: bool,
}

impl Row<'_> {
    fn told(self, protocol: Protocol) -> Option<ShareReport> {
        let (first, ..) = self.parts.first()?;
        let taken: f64 = self.parts.iter().map(|(_, part, _)| part).sum();
        let sum = |of: fn(&Shares) -> Option<f64>| {
            let mut shares = self.parts.iter().map(|(_, part, shares)| of(shares).map(|share| part / taken * share));
            shares.try_fold(0.0, |sum, share| share.map(|share| sum + share))
        };
        let mut why: Vec<String> = Vec::new();
        if self.apart {
            why.push(
                "how many come here is not known against the rules in front, so these are told by themselves"
                    .to_owned(),
            );
        }
        why.extend(self.parts.iter().map(|(_, part, shares)| match part / taken {
            part if part < 1.0 => format!("{:.1} %: {}", part * 100.0, shares.why),
            _all => shares.why.clone(),
        }));
        Some(ShareReport {
            place: first.place.clone(),
            owner: owner(first),
            protocol,
            rules: u32::try_from(self.parts.len()).unwrap_or(u32::MAX),
            share: sum(|shares| shares.range),
            share_allocated: sum(|shares| shares.allocated),
            why: why.join("; "),
        })
    }
}

/// Some ranges of ports, and which of them connect() hands out first.
fn drawn_from(all: &[PortSettings], protocol: Protocol) -> String {
    let ranges: BTreeSet<String> = all.iter().map(|own| own.ephemeral.to_string()).collect();
    let ranges = ranges.into_iter().take(4).collect::<Vec<_>>().join(", ");
    if protocol != Protocol::TCP {
        return ranges;
    }
    let even: BTreeSet<bool> = all.iter().map(|own| own.ephemeral.first() % 2 == 0).collect();
    let which = match (even.first(), even.len()) {
        (Some(true), 1) => "even ports",
        (Some(false), 1) => "odd ports",
        _ => "every second port",
    };
    format!("{ranges}, connect() {which} before others")
}

/// The target as `iptables` writes it.
fn action(target: &SourceNat) -> String {
    let SourceNat { kind, addresses, ports, choice, persistent } = target;
    let mut words = Vec::new();
    let ports = match ports {
        Known::Present(ports) => Some(ports.to_string()),
        Known::Absent => None,
        Known::Unknown(_) => Some("?".to_owned()),
    };
    match kind {
        SourceNatKind::Masquerade => {
            words.push("MASQUERADE".to_owned());
            words.extend(ports.map(|ports| format!("--to-ports {ports}")));
        }
        SourceNatKind::Snat => {
            let to = addresses.as_deref().unwrap_or("?");
            words.push(match ports {
                // Or nobody could tell where an IPv6 address ends.
                Some(ports) if to.contains(':') => format!("SNAT --to-source [{to}]:{ports}"),
                Some(ports) => format!("SNAT --to-source {to}:{ports}"),
                None => format!("SNAT --to-source {to}"),
            });
        }
        SourceNatKind::Netmap => words.push(format!("NETMAP --to {}", addresses.as_deref().unwrap_or("?"))),
    }
    words.extend(match choice {
        PortChoice::Keep => None,
        PortChoice::Random => Some("--random".to_owned()),
        PortChoice::RandomFully => Some("--random-fully".to_owned()),
    });
    words.extend(persistent.then(|| "--persistent".to_owned()));
    words.join(" ")
}
