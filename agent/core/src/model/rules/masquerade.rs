//! Rules on masquerading that gives connections the ports of NodePorts.

use std::collections::{BTreeMap, BTreeSet};

mod own_rules;

use self::own_rules::{own_rules, takes_ports};
use super::overlap::{allocated_basis, are_spared, harm, range_basis};
use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::flow::Protocol;
use crate::model::View;
use crate::observe::{PortChoice, RuleBackend, RulePlace, ServiceProxy, SourceId};
use crate::ports::PortRange;
use crate::report::{MasqueradeReport, OverlapReport, Report, RuleOwner, ShareReport};

/// Findings at most: chains differ per pod with some plugins.
const MAX_FINDINGS: usize = 10;

/// Who made rules, and in which chain; chains that a plugin makes for each pod count as one.
type Maker<'a> = (RuleOwner, &'a str);

/// Masquerading that puts connections on NodePorts: one finding for each maker of rules, largest share first.
pub(super) fn masquerade(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let overlap = &report.overlap;
    let mut all: BTreeMap<Maker<'_>, Vec<&ShareReport>> = BTreeMap::new();
    // By how many shares are larger than the maker's largest one: they come largest first.
    let mut larger: BTreeMap<Maker<'_>, usize> = BTreeMap::new();
    for (index, share) in overlap.shares.iter().enumerate() {
        let chain = if share.owner == RuleOwner::Cni { "" } else { share.place.chain.as_str() };
        if gives(share) {
            larger.entry((share.owner, chain)).or_insert(index);
        }
        all.entry((share.owner, chain)).or_default().push(share);
    }
    // Its other chains, too, translate what the maker does.
    let chains: Vec<RuleOwner> = all.keys().map(|(owner, _)| *owner).collect();
    let alone = |owner| chains.iter().filter(|other| **other == owner).count() == 1;
    let mut makers: Vec<_> = all.into_iter().filter(|(maker, _)| larger.contains_key(maker)).collect();
    makers.sort_by_key(|(maker, _)| larger.get(maker).copied());
    let more = makers.len().saturating_sub(MAX_FINDINGS);
    let told: Vec<_> = makers.into_iter().take(MAX_FINDINGS).collect();
    let mut findings: Vec<Finding> =
        told.iter().map(|(maker, shares)| finding(view, *maker, alone(maker.0), shares, overlap)).collect();
    if let (Some(last), 1..) = (findings.last_mut(), more) {
        last.evidence.push(Evidence::seen(
            SourceId::Rules,
            format!("rules of {more} more chains give connections NodePorts, too, and no more often than these"),
        ));
    }
    findings
}

/// Whether some of its connections get NodePorts.
fn gives(share: &ShareReport) -> bool {
    share.share.is_some_and(|share| share > 0.0)
}

/// `alone`: no other chain is of the same owner. `all`: those rules, too, that give no NodePort away.
fn finding(
    view: &View<'_>,
    (owner, chain): Maker<'_>,
    alone: bool,
    all: &[&ShareReport],
    overlap: &OverlapReport,
) -> Finding {
    let shares: Vec<&ShareReport> = all.iter().copied().filter(|share| gives(share)).collect();
    let subject = if chain.is_empty() { owner.name().to_owned() } else { format!("{} ({chain})", owner.name()) };
    let who = if alone { owner.name() } else { &subject };
    let largest = |of: fn(&ShareReport) -> Option<f64>| shares.iter().filter_map(|row| of(row)).fold(0.0, f64::max);
    let (share, allocated) = (largest(|row| row.share), largest(|row| row.share_allocated));
    // The largest of several rules is not what all of them do.
    let mut first: BTreeMap<Protocol, &ShareReport> = BTreeMap::new();
    let differ = all.iter().any(|row| differs(first.entry(row.protocol).or_insert(row), row));
    let protocols: BTreeSet<Option<String>> = all.iter().map(|row| row.share.map(percent)).collect();
    let up_to = if differ || protocols.len() > 1 { "up to " } else { "" };
    let allocated_known = shares.iter().all(|row| row.share_allocated.is_some());
    let harmful = overlap.proxies.iter().any(|proxy| proxy.harmful);
    let rules = rules_of(&shares, overlap);
    let node_ports = overlap.node_port_range;
    let title = match (allocated_known, allocated > 0.0) {
        (true, true) => format!(
            "{up_to}{} of the connections that {} translates get an allocated NodePort as source port (one in {:.0}), {} one of {node_ports}",
            percent(allocated),
            who,
            1.0 / allocated,
            percent(share)
        ),
        (true, false) => format!(
            "{up_to}{} of the connections that {} translates get a source port of the NodePorts {node_ports}, none of which is allocated that they get",
            percent(share),
            who
        ),
        (false, _) => format!(
            "{up_to}{} of the connections that {} translates get a source port of the NodePorts {node_ports}; which are allocated is not known",
            percent(share),
            who
        ),
    };
    let mut evidence: Vec<Evidence> =
        rules.iter().take(3).map(|row| Evidence::seen(SourceId::Rules, rule(row))).collect();
    if rules.len() > 3 {
        evidence.push(Evidence::seen(SourceId::Rules, format!("and {} more rules like these", rules.len() - 3)));
    }
    evidence.extend(shares.iter().take(2).map(|row| {
        let of_range = row.share.map_or_else(|| "?".to_owned(), percent);
        let of_allocated = row.share_allocated.map_or_else(|| "?".to_owned(), percent);
        let family = row.place.family.name();
        let said = format!("{}/{family}: {of_range} in the range, {of_allocated} allocated: {}", row.protocol, row.why);
        Evidence::seen(SourceId::Rules, said)
    }));
    evidence.extend(allocated_basis(overlap));
    evidence.extend(harm(view, overlap));
    let spared = are_spared(view, overlap, &rules);
    if spared {
        evidence.push(Evidence::given("these rules are for pods, which IPVS spares"));
    }
    evidence.extend(range_basis(overlap));
    let remedy = remedy(owner, &rules, overlap);
    let bites = harmful && !spared && (allocated > 0.0 || !allocated_known);
    Finding {
        id: FindingId::MasqueradeOverlapsNodeport,
        severity: if bites { Severity::Warning } else { Severity::Info },
        title,
        subject,
        evidence,
        remedy,
    }
}

fn differs(one: &ShareReport, other: &ShareReport) -> bool {
    (one.share, one.share_allocated) != (other.share, other.share_allocated)
}

/// The rules that shares are of: those of the same chains, from the first one on, that give NodePorts away.
fn rules_of<'a>(shares: &[&ShareReport], overlap: &'a OverlapReport) -> Vec<&'a MasqueradeReport> {
    let chain = |place: &RulePlace| (place.backend, place.family, place.table.clone(), place.chain.clone());
    let mut begins: BTreeMap<_, u32> = BTreeMap::new();
    for share in shares {
        let begin = begins.entry(chain(&share.place)).or_insert(u32::MAX);
        *begin = share.place.position.min(*begin);
    }
    let giving = overlap.masquerade.iter().filter(|row| row.share.is_some_and(|share| share > 0.0));
    giving.filter(|row| begins.get(&chain(&row.place)).is_some_and(|begin| row.place.position >= *begin)).collect()
}

/// Where a rule stands, to whom it applies and what it does.
fn rule(row: &MasqueradeReport) -> String {
    let place = &row.place;
    let protocols = row.protocols.asked().map(|asked| format!(" {asked}")).unwrap_or_default();
    let conditions: String = row.conditions.iter().map(|condition| format!(" {condition}")).collect();
    let chance = if row.probability < 1.0 { format!(" by a chance of {:.4}", row.probability) } else { String::new() };
    let except = match row.exceptions.as_slice() {
        [] => String::new(),
        some => {
            let more = if some.len() > 4 { format!(" and {} more", some.len() - 4) } else { String::new() };
            format!(", but for {}{more}", some.iter().take(4).cloned().collect::<Vec<_>>().join("; "))
        }
    };
    // Tables of iptables are known by name; chains of nftables are found by theirs.
    let table = if place.backend == RuleBackend::Nftables { format!("{} ", place.table) } else { String::new() };
    let unclear = match row.unclear.as_slice() {
        [] => String::new(),
        some => format!("; not understood, so not reckoned with: {}", some.join("; ")),
    };
    format!(
        "{} {} {table}{} rule {}:{protocols}{conditions}{chance} {}{except}{unclear}",
        place.backend.name(),
        place.family.name(),
        place.chain,
        place.position,
        row.action
    )
}

/// What to change, so that no connection gets a NodePort.
fn remedy(owner: RuleOwner, rules: &[&MasqueradeReport], overlap: &OverlapReport) -> String {
    let beside = beside(overlap.node_port_range);
    if beside.is_empty() && !matches!(owner, RuleOwner::KubeProxy | RuleOwner::Cilium | RuleOwner::AwsVpcCni) {
        return format!(
            "no port lies beside the NodePorts {}: give the cluster a smaller range (--service-node-port-range of kube-apiserver)",
            overlap.node_port_range
        );
    }
    let list = beside.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let drawn = rules.iter().any(|row| row.choice != PortChoice::Keep);
    let limited = rules.iter().any(|row| row.ports.is_some());
    if !drawn && !limited {
        let apart = format!(
            "keep the pods' net.ipv4.ip_local_port_range apart from {} (see ephemeral-overlaps-nodeport)",
            overlap.node_port_range
        );
        let limiting = || format!("{apart}, or limit the rule: {}", own_rules(&beside, rules));
        return if rules.iter().any(|row| takes_ports(row)) { limiting() } else { apart };
    }
    match owner {
        RuleOwner::IpMasqAgent if limited => format!("set `--to-ports={list}` in the arguments of ip-masq-agent"),
        RuleOwner::IpMasqAgent => format!(
            "set `--to-ports={list}` in the arguments of ip-masq-agent (2.12 or later), or `--random-fully=false` (2.11 or \
             later): it then keeps the pods' ports, and two pods that take the same one at the same moment may lose a packet"
        ),
        RuleOwner::KubeProxy => {
            let mode = if overlap.proxies.iter().any(|row| row.proxy == ServiceProxy::Ipvs) {
                "change kube-proxy from ipvs to iptables or nftables mode, in which a collision does no harm"
            } else {
                "nothing to do in iptables and nftables mode"
            };
            format!("kube-proxy always draws from all ports and cannot be limited: {mode}")
        }
        RuleOwner::Cilium => {
            "let Cilium masquerade in eBPF (`bpf.masquerade=true`), which draws above the NodePorts, or set \
                              `iptablesRandomFully=false`"
                .to_owned()
        }
        RuleOwner::AwsVpcCni => "set AWS_VPC_K8S_CNI_RANDOMIZESNAT=none for aws-node: ports are then kept".to_owned(),
        RuleOwner::Cni => format!(
            "set `ipMasq: false` in the CNI configuration and let ip-masq-agent 2.12 or later masquerade with \
             `--to-ports={list}`"
        ),
        RuleOwner::Calico | RuleOwner::Flannel | RuleOwner::Docker | RuleOwner::Libvirt | RuleOwner::Other => {
            let what = if rules.iter().any(|row| takes_ports(row)) { "limit the rule to other ports: " } else { "" };
            format!("{what}{}", own_rules(&beside, rules))
        }
    }
}

/// The ports that may be drawn, without the NodePorts.
pub(super) fn beside(node_ports: PortRange) -> Vec<PortRange> {
    let below = node_ports.first().checked_sub(1).and_then(|last| PortRange::new(1024, last));
    let above = node_ports.last().checked_add(1).and_then(|first| PortRange::new(first, u16::MAX));
    below.into_iter().chain(above).collect()
}

/// A share in per cent, with as many digits as it takes to see it.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent >= 0.1 || percent <= 0.0 { format!("{percent:.2} %") } else { format!("{percent:.4} %") }
}
