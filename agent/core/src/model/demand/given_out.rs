//! From which source ports this node's own rules let the kernel choose when it translates.

use std::net::IpAddr;

use crate::flow::Protocol;
use crate::ledger::Ledger;
use crate::model::nat::{NatSettings, ObservedPorts, PORTS_PER_NAT_IP, Profile};
use crate::model::overlap::owner;
use crate::observe::{RuleFamily, SourceNatKind, SourceNatRule};
use crate::ports::PortRange;
use crate::report::RuleOwner;

/// Ports that rules limit masquerading to.
pub(super) struct Limit {
    /// How many.
    pub(super) ports: u32,
    /// Which, in words.
    said: String,
}

/// To what `--to-ports` limits the flows of a protocol that leave as this address, or as whatever IPv4 address; `None` where
/// some may take any port, or that is not known.
pub(super) fn limit(ledger: &Ledger, protocol: Protocol, translated: Option<IpAddr>) -> Option<Limit> {
    let all = ledger.rules().source_nat();
    let fitting: Vec<&SourceNatRule> = all.filter(|rule| fits(rule, protocol, translated)).collect();
    // Those of kube-proxy translate what goes to Services, and Docker's what comes from its own containers.
    let of_pods =
        |rule: &&&SourceNatRule| !matches!(owner(rule), RuleOwner::KubeProxy | RuleOwner::Docker | RuleOwner::Libvirt);
    let mut rules: Vec<&SourceNatRule> = fitting.iter().filter(of_pods).copied().collect();
    if rules.is_empty() {
        rules = fitting;
    }
    // Such a rule translates a few flows: the others take other ports.
    if rules.iter().any(|rule| rule.conditions.iter().any(|condition| is_narrow(condition))) {
        return None;
    }
    let ranges: Option<Vec<PortRange>> = rules.iter().map(|rule| rule.target.ports.present().copied()).collect();
    let joined = PortRange::joined(ranges?);
    let ports: u32 = joined.iter().map(|range| range.count()).sum();
    let words = joined.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    let chain = &rules.first()?.place.chain;
    (ports < PORTS_PER_NAT_IP).then(|| Limit { ports, said: format!("--to-ports {words} in the chain {chain}") })
}

/// A condition that picks flows by where they go or by their ports.
fn is_narrow(condition: &str) -> bool {
    let excludes = condition.starts_with("! ") || condition.contains("!=");
    !excludes && ["-d ", "daddr ", "port"].iter().any(|part| condition.contains(part))
}

fn fits(rule: &SourceNatRule, protocol: Protocol, translated: Option<IpAddr>) -> bool {
    let family = match rule.place.family {
        RuleFamily::Ip => translated.is_none_or(|address| address.is_ipv4()),
        RuleFamily::Ip6 => translated.is_some_and(|address| address.is_ipv6()),
        RuleFamily::Inet => true,
    };
    let address = match (rule.target.kind, translated) {
        (SourceNatKind::Masquerade, _) | (SourceNatKind::Snat, None) => true,
        // A range of addresses is not looked into.
        (SourceNatKind::Snat, Some(translated)) => {
            let one = rule.target.addresses.as_deref().and_then(|text| text.parse::<IpAddr>().ok());
            one.is_none_or(|one| one == translated)
        }
        // Prefix for prefix: ports stay as they are.
        (SourceNatKind::Netmap, _) => false,
    };
    family && address && !rule.path.is_empty() && rule.protocols.contains(protocol)
}

/// A node that is its own NAT gives out what its rules say, unless somebody has said something else.
pub(crate) fn of_own_rules(nat: NatSettings, ledger: &Ledger) -> NatSettings {
    let own = nat.profile == Profile::Linux && nat.nodes.is_none_or(|nodes| nodes == 1);
    if !own || nat.port_range.is_some() || nat.observed.is_some() {
        return nat;
    }
    let Some(limit) = limit(ledger, Protocol::TCP, None) else { return nat };
    let ips = nat.nat_ips.unwrap_or(1);
    let ports = limit.ports.saturating_mul(ips);
    let each = if ips > 1 { format!(" for each of {ips} addresses") } else { String::new() };
    let why = format!("as this node's own rules limit masquerading: {}{each}", limit.said);
    NatSettings { observed: Some(ObservedPorts { ports, why, at: None }), ..nat }
}
