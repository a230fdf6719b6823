//! The share of translated connections that land on NodePorts, rule by rule, and for rules that divide them among themselves.

use std::collections::BTreeSet;

use super::landing::{favoured, landing, unlimited};
use super::node_ports::AllocatedNodePorts;
use super::owner::owner;
use crate::flow::Protocol;
use crate::known::Known;
use crate::ledger::Ledger;
use crate::observe::{PortChoice, SourceNat, SourceNatKind, SourceNatRule};
use crate::ports::{PortRange, PortSettings};
use crate::report::{MasqueradeReport, ShareReport};

/// Rules listed in a report at most: a node with 250 pods has as many of ptp and bridge each.
const MAX_LISTED: usize = 512;
/// The protocols that shares are told for: those with NodePorts, and with ports that the kernel translates
/// (`nf_nat_l4proto_unique_tuple`).
const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

/// What the report says about rules.
pub(super) struct Masquerade {
    pub(super) listed: Vec<MasqueradeReport>,
    pub(super) omitted: u64,
    pub(super) shares: Vec<ShareReport>,
}

/// Everything a share depends on besides the rule.
struct Judge<'a> {
    allocated: &'a AllocatedNodePorts<'a>,
    range: PortRange,
    own: Vec<PortSettings>,
    /// Some namespaces' ranges are not known.
    own_missing: bool,
}

/// A share of the NodePort range, one of the allocated NodePorts, and why.
#[derive(Clone)]
struct Shares {
    range: Option<f64>,
    allocated: Option<f64>,
    why: String,
}

pub(super) fn report(ledger: &Ledger, allocated: &AllocatedNodePorts<'_>, range: PortRange) -> Masquerade {
    let (own, own_missing) = settings(ledger);
    let judge = Judge { allocated, range, own, own_missing };
    let rules: Vec<&SourceNatRule> = ledger.rules().source_nat().collect();
    let listed: Vec<MasqueradeReport> = rules.iter().take(MAX_LISTED).map(|rule| judge.row(rule)).collect();
    let mut shares: Vec<ShareReport> = groups(&rules).iter().flat_map(|group| judge.group(group)).collect();
    // The largest first; what is not known may be the largest.
    let key = |row: &ShareReport| row.share_allocated.or(row.share).unwrap_or(f64::INFINITY);
    shares.sort_by(|a, b| {
        key(b).total_cmp(&key(a)).then_with(|| a.place.cmp(&b.place)).then(a.protocol.cmp(&b.protocol))
    });
    shares.truncate(MAX_LISTED);
    let omitted = u64::try_from(rules.len().saturating_sub(listed.len())).unwrap_or(u64::MAX);
    Masquerade { listed, omitted, shares }
}

/// From where pods draw their ports, each setting once; without a pod, the node itself.
fn settings(ledger: &Ledger) -> (Vec<PortSettings>, bool) {
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
    if all.is_empty() && !missing {
        let hosts = namespaces.iter().filter(|namespace| namespace.host);
        all.extend(hosts.filter_map(|namespace| namespace.ports.present()).cloned());
    }
    (all.into_iter().collect(), missing)
}

/// Rules of one chain that the same packets come to, in order.
fn groups<'a>(rules: &[&'a SourceNatRule]) -> Vec<Vec<&'a SourceNatRule>> {
    let mut groups: Vec<Vec<&SourceNatRule>> = Vec::new();
    let same_chain = |a: &SourceNatRule, b: &SourceNatRule| {
        let (a, b) = (&a.place, &b.place);
        (a.backend, a.family, &a.table, &a.chain) == (b.backend, b.family, &b.table, &b.chain)
    };
    // What a rule of the group has left over falls to the next one, so that later ones know more exceptions than earlier ones.
    let same = |a: &SourceNatRule, b: &SourceNatRule| {
        same_chain(a, b) && a.conditions == b.conditions && a.unclear.is_empty() && b.unclear.is_empty()
    };
    for rule in rules.iter().filter(|rule| !rule.path.is_empty()) {
        match groups.last_mut() {
            Some(group) if group.first().is_some_and(|first| same(first, rule)) => group.push(rule),
            _ => groups.push(vec![rule]),
        }
    }
    groups
}

/// Why no packet comes to a rule, if that is so.
fn unreached(rule: &SourceNatRule) -> Option<String> {
    let nothing = || rule.path.is_empty().then(|| "never reached: nothing leads to it".to_owned());
    rule.unreached.clone().or_else(nothing)
}

impl Judge<'_> {
    fn row(&self, rule: &SourceNatRule) -> MasqueradeReport {
        let protocol = rule.protocol.unwrap_or(Protocol::TCP);
        let unreached = unreached(rule);
        // No connection, so none that lands anywhere.
        let shares = match &unreached {
            Some(why) => Shares { range: Some(0.0), allocated: Some(0.0), why: why.clone() },
            None => self.shares(&rule.target, protocol),
        };
        MasqueradeReport {
            place: rule.place.clone(),
            path: rule.path.clone(),
            owner: owner(rule),
            action: action(&rule.target),
            addresses: rule.target.addresses.clone(),
            kind: rule.target.kind,
            protocol: rule.protocol,
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
    fn shares(&self, target: &SourceNat, protocol: Protocol) -> Shares {
        if let Known::Unknown(why) = &target.ports {
            return Shares { range: None, allocated: None, why: why.to_string() };
        }
        let allocated: Vec<PortRange> = self.allocated.of_protocol(protocol).collect();
        let worst = |ports: &[PortRange]| {
            let shares = self.own.iter().map(|own| landing(target, own, ports));
            shares.fold(0.0, f64::max)
        };
        let limit = target.ports.present().copied();
        let range = limit.unwrap_or_else(unlimited);
        let node_ports = range.intersect(self.range).map_or(0, PortRange::count);
        if target.choice == PortChoice::Keep {
            if self.own.is_empty() || self.own_missing && worst(&[self.range]) <= 0.0 {
                let why = "the source port is kept, and from where pods draw theirs is not known".to_owned();
                return Shares { range: None, allocated: None, why };
            }
            let ranges: BTreeSet<String> = self.own.iter().map(|own| own.ephemeral.to_string()).collect();
            let ranges = ranges.into_iter().take(4).collect::<Vec<_>>().join(", ");
            let why = match limit {
                None => format!(
                    "source ports are kept (pods draw from {ranges}); one that is taken is drawn anew from {range}"
                ),
                Some(limit) => {
                    format!("source ports inside {limit} are kept, others drawn from it (pods draw from {ranges})")
                }
            };
            return self.known(worst(&[self.range]), worst(&allocated), why);
        }
        // What is drawn anew does not depend on the connection's own port.
        let any = PortSettings { ephemeral: unlimited(), reserved: Vec::new() };
        let favoured = favoured(range);
        let unevenly =
            if favoured > 0 { format!(" (the kernel draws its first {favoured} more often)") } else { String::new() };
        let why =
            format!("{node_ports} of the {} ports {range} that are drawn from are NodePorts{unevenly}", range.count());
        self.known(landing(target, &any, &[self.range]), landing(target, &any, &allocated), why)
    }

    fn known(&self, range: f64, allocated: f64, why: String) -> Shares {
        // A connection that cannot land in the range cannot land on what is allocated in it.
        let allocated = (self.allocated.is_known() || range <= 0.0).then_some(allocated);
        Shares { range: Some(range), allocated, why }
    }

    /// One row for each protocol that the rules of a group translate.
    fn group(&self, group: &[&SourceNatRule]) -> Vec<ShareReport> {
        let mut rows: Vec<ShareReport> = Vec::new();
        for protocol in PROTOCOLS {
            let rules = group.iter().filter(|rule| rule.protocol.is_none_or(|only| only == protocol));
            let (mut left, mut taken) = (1.0, 0.0);
            let (mut range, mut allocated) = (Some(0.0), Some(0.0));
            let (mut count, mut why) = (0_u32, Vec::new());
            for rule in rules {
                let part = left * rule.probability;
                let shares = self.shares(&rule.target, protocol);
                if part <= 0.0 {
                    continue;
                }
                range = range.zip(shares.range).map(|(sum, share)| sum + part * share);
                allocated = allocated.zip(shares.allocated).map(|(sum, share)| sum + part * share);
                (left, taken, count) = (left - part, taken + part, count + 1);
                why.push(if part < 1.0 { format!("{:.1} %: {}", part * 100.0, shares.why) } else { shares.why });
            }
            let Some(first) = group.first().filter(|_| count > 0) else { continue };
            rows.push(ShareReport {
                place: first.place.clone(),
                owner: owner(first),
                protocol,
                rules: count,
                share: range.map(|share| share / taken),
                share_allocated: allocated.map(|share| share / taken),
                why: why.join("; "),
            });
        }
        rows
    }
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
