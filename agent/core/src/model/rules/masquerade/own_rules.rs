//! What to put into chains that nobody we know made, rule by rule.

use std::collections::BTreeMap;

use crate::flow::Protocol;
use crate::model::overlap::WITH_NODE_PORTS;
use crate::observe::{RuleBackend, RuleFamily, SourceNatKind};
use crate::ports::PortRange;
use crate::report::MasqueradeReport;
use crate::words::counted;

/// Fixes written out in one finding.
const MAX_FIXES: usize = 3;
/// Rules that one of them is for and that are named one by one, without the first and the last.
const MAX_POSITIONS: usize = 6;

/// To what a rule translates, and how.
struct Target<'a> {
    family: RuleFamily,
    /// To this address, or these; those of the interface if there is none.
    addresses: Option<&'a str>,
    /// The same client gets the same address.
    persistent: bool,
}

impl<'a> Target<'a> {
    fn of(rule: &'a MasqueradeReport) -> Self {
        let addresses = (rule.kind == SourceNatKind::Snat).then(|| rule.addresses.as_deref().unwrap_or("ADDRESS"));
        Self { family: rule.place.family, addresses, persistent: rule.action.ends_with(" --persistent") }
    }

    fn in_nft(&self, ports: PortRange) -> String {
        let persistent = if self.persistent { ",persistent" } else { "" };
        let Some(addresses) = self.addresses else { return format!("masquerade to :{ports} fully-random{persistent}") };
        let v6 = addresses.contains(':');
        // A table of both families has to be told which one the address is of.
        let ip = match self.family {
            RuleFamily::Inet if v6 => "ip6 ",
            RuleFamily::Inet => "ip ",
            RuleFamily::Ip | RuleFamily::Ip6 => "",
        };
        let to = if v6 { format!("[{}]", addresses.replace('-', "]-[")) } else { addresses.to_owned() };
        format!("snat {ip}to {to}:{ports} fully-random{persistent}")
    }

    fn in_iptables(&self, ports: PortRange) -> String {
        let persistent = if self.persistent { " --persistent" } else { "" };
        match self.addresses {
            // Its MASQUERADE does not take the option.
            None => format!("-j MASQUERADE --to-ports {ports} --random-fully"),
            Some(addresses) if addresses.contains(':') => {
                format!("-j SNAT --to-source [{addresses}]:{ports} --random-fully{persistent}")
            }
            Some(addresses) => format!("-j SNAT --to-source {addresses}:{ports} --random-fully{persistent}"),
        }
    }
}

/// Whether ports can be told to a rule that does the same: NETMAP takes none, and addresses of a map are not known.
pub(super) fn takes_ports(rule: &MasqueradeReport) -> bool {
    rule.kind != SourceNatKind::Netmap && !rule.addresses.as_deref().is_some_and(|addresses| addresses.contains('?'))
}

/// What to put into each chain: what stands in for one rule would change what another one does.
pub(super) fn own_rules(beside: &[PortRange], rules: &[&MasqueradeReport]) -> String {
    let (limitable, others): (Vec<&MasqueradeReport>, Vec<_>) = rules.iter().partition(|row| takes_ports(row));
    let mut groups: BTreeMap<_, Vec<&MasqueradeReport>> = BTreeMap::new();
    for rule in &limitable {
        let place = &rule.place;
        let target = Target::of(rule);
        let protocols = (limited_by(rule), rule.protocols.is_within(WITH_NODE_PORTS.into_iter().collect()));
        let chain = (place.backend, place.family, &place.table, &place.chain);
        groups.entry((chain, target.addresses, target.persistent, protocols)).or_default().push(rule);
    }
    let mut groups: Vec<Vec<&MasqueradeReport>> = groups.into_values().collect();
    groups.sort_by(|a, b| a.iter().map(|rule| &rule.place).cmp(b.iter().map(|rule| &rule.place)));
    let alone = limitable.len() == 1 && others.is_empty();
    let mut texts: Vec<String> =
        groups
            .iter()
            .take(MAX_FIXES)
            .map(|group| {
                if alone { lines(beside, group) } else { format!("for {}: {}", positions(group), lines(beside, group)) }
            })
            .collect();
    if let more @ 1.. = groups.iter().skip(MAX_FIXES).map(Vec::len).sum::<usize>() {
        texts.push(format!("and so for {}", counted(more, "more rule")));
    }
    if let Some(first) = others.first() {
        texts.push(format!(
            "ports cannot be told to {}: keep what it translates away from those ports",
            position(first)
        ));
    }
    texts.join("; ")
}

fn position(rule: &MasqueradeReport) -> String {
    let place = &rule.place;
    format!("{} {} {} {} rule {}", place.backend.name(), place.family.name(), place.table, place.chain, place.position)
}

/// Where some rules of one chain stand.
fn positions(rules: &[&MasqueradeReport]) -> String {
    let [first, others @ ..] = rules else { return String::new() };
    let (last, between) = match others.split_last() {
        None => return position(first),
        Some(split) => split,
    };
    let place = &first.place;
    let chain = format!("{} {} {} {}", place.backend.name(), place.family.name(), place.table, place.chain);
    if between.len() > MAX_POSITIONS {
        return format!(
            "{chain} rule {} and {} more down to rule {}",
            place.position,
            between.len(),
            last.place.position
        );
    }
    let between: String = between.iter().map(|rule| format!(", {}", rule.place.position)).collect();
    format!("{chain} rules {}{between} and {}", place.position, last.place.position)
}

/// The protocols of a rule that ports can be told to.
fn limited_by(rule: &MasqueradeReport) -> Vec<Protocol> {
    rule.protocols.and(WITH_NODE_PORTS.into_iter().collect()).iter().collect()
}

/// Rules that give connections the ports beside the NodePorts: both ranges in the right proportion, or the only one there is. In
/// the words of `nft` where the rules are its own. All of these rules translate alike, and the same protocols.
fn lines(beside: &[PortRange], rules: &[&MasqueradeReport]) -> String {
    let Some(rule) = rules.first() else { return String::new() };
    let (target, native) = (Target::of(rule), rule.place.backend == RuleBackend::Nftables);
    let (it, itself) = if rules.len() > 1 { ("each", "each rule itself") } else { ("it", "the rule itself") };
    let (place, rest) = if rule.protocols.is_within(WITH_NODE_PORTS.into_iter().collect()) {
        (format!("instead of {it}"), String::new())
    } else {
        // Ports can only be told to rules of one protocol.
        (format!("in front of {it}"), format!("; {itself} is left with what has no ports"))
    };
    let protocols = limited_by(rule);
    let [first, others @ ..] = protocols.as_slice() else { return String::new() };
    let one = |ports: &PortRange, chance: Option<f64>| match (native, chance) {
        (true, Some(chance)) => {
            // In whole numbers, as `nft` takes them.
            let of = format!("numgen random mod 10000 < {:.0}", chance * 10_000.0);
            format!("`meta l4proto {first} {of} {}`", target.in_nft(*ports))
        }
        (true, None) => format!("`meta l4proto {first} {}`", target.in_nft(*ports)),
        (false, Some(chance)) => {
            let of = format!("-m statistic --mode random --probability {chance:.4}");
            format!("`-p {first} {of} {}`", target.in_iptables(*ports))
        }
        (false, None) => format!("`-p {first} {}`", target.in_iptables(*ports)),
    };
    let lines = match beside {
        [below, above] => {
            let chance = f64::from(below.count()) / f64::from(below.count() + above.count());
            format!("{} and behind that {}", one(below, Some(chance)), one(above, None))
        }
        [only] => one(only, None),
        _ => return "there is no port beside the NodePorts".to_owned(),
    };
    let same = match others {
        [] => String::new(),
        some => {
            let names = some.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
            format!(", and the same for {names}")
        }
    };
    format!("{place}, with its conditions, {lines}{same}{rest}")
}
