//! The packet rules of the node that matter here: those that translate source addresses, and kube-proxy's NodePorts.
//!
//! From the kernel itself, in the agent's own network namespace: `x_tables` by `getsockopt`, `nf_tables` by netlink dumps. No
//! program is executed, nothing is written, and no module is loaded: `nf_tables` is asked only where it is in `/sys/module` or
//! `/proc/kallsyms` (asking makes the kernel load it), `x_tables` only for tables that exist. Both take CAP_NET_ADMIN.
//! Reading takes at most [`ROUND_LIMIT`]; of the time at most one part in [`IDLE_PER_ROUND`].

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use headroom_core::known::Known;
use headroom_core::observe::{
    Fact, NodePort, Outcome, PortChoice, RuleBackend, RuleFamily, ServiceProxy, Snapshot, SourceId, SourceNatRule,
};
use headroom_core::protocols::Protocols;
use headroom_core::time::NodeTime;

use crate::clock;
use crate::iptables;
use crate::root::HostRoot;
use crate::rules::source_nat::{Table, source_nat};
use crate::source::{Sink, Source, ended, observation, unreadable};

mod nftables;
pub(crate) mod symbols;

pub use nftables::{CHAINS_LIMIT, RULES_LIMIT};

const ID: SourceId = SourceId::Rules;
/// How long one round may take.
pub const ROUND_LIMIT: Duration = Duration::from_secs(5);
/// Reading rules may take one part in two hundred of the time.
pub const IDLE_PER_ROUND: u32 = 200;
/// Rules that translate source addresses at most; a node with 250 pods has some 500 of CNI plugins.
pub const TRANSLATING_LIMIT: usize = 4096;
/// NodePorts at most; a cluster has 2,768 of them per protocol unless its range is wider.
pub const NODE_PORTS_LIMIT: usize = 65_536;

/// What was read, and what is missing from it.
#[derive(Debug, Default)]
pub struct Reading {
    /// Rules that translate source addresses.
    pub source_nat: Vec<SourceNatRule>,
    /// NodePorts of kube-proxy.
    pub node_ports: Vec<NodePort>,
    /// The kinds of kube-proxy that are at work.
    pub proxies: Vec<ServiceProxy>,
    /// Rules that were looked at.
    pub rules: usize,
    /// The interfaces that hold rules.
    pub seen: Vec<&'static str>,
    /// What could not be read, and why.
    pub missing: Vec<String>,
    /// Interfaces that could not be read at all.
    pub failed: usize,
    /// Tables of nftables that are switched off (`flags dormant`).
    pub dormant: usize,
}

/// Reads the rules, at once and then every so often.
#[derive(Debug)]
pub struct RulesSource {
    root: HostRoot,
    every: Duration,
    next: Option<NodeTime>,
    said: Option<Fact>,
}

impl RulesSource {
    /// Reads at most once in `every`, and less often where it takes long.
    pub fn new(root: &HostRoot, every: Duration) -> Self {
        Self { root: root.clone(), every, next: None, said: None }
    }
}

/// Reads all there is, once.
pub fn read(root: &HostRoot) -> Reading {
    let deadline = Instant::now() + ROUND_LIMIT;
    let mut reading = Reading::default();
    for (family, name) in [(RuleFamily::Ip, "iptables-legacy"), (RuleFamily::Ip6, "ip6tables-legacy")] {
        match iptables::kernel::nat_table(root, family) {
            Ok(None) => {}
            Ok(Some(table)) => {
                reading.seen.push(name);
                reading.legacy(family, table);
            }
            Err(error) => {
                reading.failed += 1;
                reading.missing.push(format!("{name}: {error}"));
            }
        }
    }
    match symbols::has(root, &symbols::NF_TABLES) {
        Ok(false) => {}
        Ok(true) => nftables::read(&mut reading, deadline),
        Err(why) => {
            reading.failed += 1;
            reading.missing.push(format!("nftables: {why}"));
        }
    }
    reading.bound();
    iptables::ipset::name_sets(&mut reading.source_nat);
    reading
}

impl Reading {
    /// Drops what is more than anybody keeps, and says so.
    fn bound(&mut self) {
        if self.source_nat.len() > TRANSLATING_LIMIT {
            self.missing.push(format!("there are more than {TRANSLATING_LIMIT} rules that translate source addresses"));
            self.keep_what_matters();
        }
        if self.node_ports.len() > NODE_PORTS_LIMIT {
            self.missing.push(format!("there are more than {NODE_PORTS_LIMIT} NodePorts"));
            self.node_ports.truncate(NODE_PORTS_LIMIT);
        }
    }

    /// Drops rules that no packet comes to before others, and those that keep ports before those that give out others.
    fn keep_what_matters(&mut self) {
        let gives = |rule: &SourceNatRule| rule.target.choice != PortChoice::Keep || rule.target.ports != Known::Absent;
        let mut order: Vec<(usize, &SourceNatRule)> = self.source_nat.iter().enumerate().collect();
        order.sort_by_key(|(_, rule)| (rule.unreached.is_some(), !gives(rule)));
        let kept: BTreeSet<usize> = order.into_iter().take(TRANSLATING_LIMIT).map(|(index, _)| index).collect();
        let (mut index, mut lacking) = (0.., false);
        self.source_nat.retain_mut(|rule| {
            let kept = index.next().is_some_and(|index| kept.contains(&index));
            // What a dropped one takes is not known to the next one.
            if kept && std::mem::take(&mut lacking) {
                rule.between.doubt(Protocols::ALL);
            }
            lacking |= !kept && rule.unreached.is_none();
            kept
        });
    }

    fn legacy(&mut self, family: RuleFamily, table: iptables::blob::Table) {
        let place = Table { backend: RuleBackend::IptablesLegacy, family, name: "nat".to_owned() };
        let found = source_nat(&place, &table.chains);
        self.missing.extend(found.cut.map(|why| format!("table `{} nat`: {why}", family.name())));
        self.source_nat.extend(found.rules);
        self.rules += table.rules;
        if table.kube_proxy {
            self.proxy(ServiceProxy::Iptables);
        }
        self.node_ports.extend(table.node_ports);
    }

    fn proxy(&mut self, proxy: ServiceProxy) {
        if !self.proxies.contains(&proxy) {
            self.proxies.push(proxy);
        }
    }

    fn outcome(&self) -> (Outcome, Fact) {
        let dormant = match self.dormant {
            0 => String::new(),
            1 => "; 1 table is dormant".to_owned(),
            many => format!("; {many} tables are dormant"),
        };
        let how = || format!("{} rules of {}{dormant}", self.rules, self.seen.join(", "));
        ended((!self.seen.is_empty()).then(how), &self.missing)
    }
}

impl Source for RulesSource {
    fn id(&self) -> SourceId {
        ID
    }

    fn observe(&mut self, sink: Sink<'_>) {
        let mut emit = |fact| sink(observation(ID, fact));
        if !self.root.is_live() {
            // Rules are not files: a captured tree has none, and nobody knows whether the node had.
            emit(unreadable("rules are read from a running kernel, not from a captured tree"));
            return;
        }
        let begun = clock::node_time();
        if self.next.is_none_or(|next| begun >= next) {
            emit(Fact::Begin(Snapshot::Rules));
            let reading = read(&self.root);
            let (outcome, coverage) = reading.outcome();
            reading.source_nat.into_iter().for_each(|rule| emit(Fact::SourceNat(rule)));
            reading.proxies.into_iter().for_each(|proxy| emit(Fact::ServiceProxy(proxy)));
            reading.node_ports.into_iter().for_each(|node_port| emit(Fact::NodePort(node_port)));
            emit(Fact::End { snapshot: Snapshot::Rules, outcome });
            let now = clock::node_time();
            self.next = Some(now.after(self.every.max(now.since(begun).saturating_mul(IDLE_PER_ROUND))));
            self.said = Some(coverage);
        }
        // Said in every round: a lane that was taken for dead is heard of again.
        self.said.iter().cloned().for_each(emit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use headroom_core::flow::Protocol;
    use headroom_core::observe::{RulePlace, SourceNat};

    fn masquerade() -> SourceNatRule {
        let place = RulePlace {
            backend: RuleBackend::Nftables,
            family: RuleFamily::Ip,
            table: "nat".to_owned(),
            chain: "POSTROUTING".to_owned(),
            position: 1,
        };
        SourceNatRule::new(place, SourceNat::MASQUERADE)
    }

    /// Exercises the bounds of what is kept. If this fails, a node with many rules fills the memory, or loses some silently.
    #[test]
    fn what_is_more_than_anybody_keeps_is_dropped_and_that_is_said() {
        let node_port = NodePort {
            proxy: ServiceProxy::Iptables,
            family: RuleFamily::Ip,
            protocol: Protocol::TCP,
            port: 30_080,
            service: None,
        };
        let kept = |rules: usize, ports: usize| {
            let mut reading = Reading {
                source_nat: vec![masquerade(); rules],
                node_ports: vec![node_port.clone(); ports],
                ..Reading::default()
            };
            reading.bound();
            (reading.source_nat.len(), reading.node_ports.len(), reading.missing)
        };
        assert_eq!(kept(TRANSLATING_LIMIT, NODE_PORTS_LIMIT), (TRANSLATING_LIMIT, NODE_PORTS_LIMIT, Vec::new()));
        let (rules, ports, missing) = kept(TRANSLATING_LIMIT + 1, NODE_PORTS_LIMIT + 1);
        assert_eq!((rules, ports), (TRANSLATING_LIMIT, NODE_PORTS_LIMIT));
        let [rules, ports] = missing.as_slice() else { panic!("{missing:?}") };
        assert!(rules.contains("more than 4096 rules") && ports.contains("more than 65536 NodePorts"), "{missing:?}");
    }

    /// Exercises which rules are dropped. If this fails, dead rules of a pod's chains push out the one that gives NodePorts away;
    /// or a rule is told to get a part that one takes which was dropped.
    #[test]
    fn dead_rules_are_dropped_first_and_then_those_that_keep_ports() {
        let dead = SourceNatRule { unreached: Some("never reached".to_owned()), ..masquerade() };
        let drawing = {
            let mut rule = masquerade();
            rule.target.choice = PortChoice::RandomFully;
            rule
        };
        let kept = |front: &[&SourceNatRule]| {
            let last = vec![drawing.clone(); TRANSLATING_LIMIT];
            let source_nat = front.iter().map(|rule| (*rule).clone()).chain(last).collect();
            let mut reading = Reading { source_nat, ..Reading::default() };
            reading.bound();
            reading.source_nat
        };
        let of_two = kept(&[&dead, &masquerade()]);
        assert_eq!((of_two.len(), of_two.iter().all(|rule| *rule == drawing)), (TRANSLATING_LIMIT, false));
        let unsure = of_two.iter().map(|rule| rule.between.is_unsure_of(Protocol::TCP));
        assert_eq!(unsure.take(2).collect::<Vec<_>>(), [true, false]);
        assert!(kept(&[&dead]).iter().all(|rule| *rule == drawing), "a dead rule takes nothing");
        assert!(!kept(&[&drawing])[0].between.is_unsure_of(Protocol::TCP));
    }
}
