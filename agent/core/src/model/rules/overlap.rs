//! Rules on source ports that reach into the NodePorts.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::model::View;
use crate::observe::{ServiceProxy, SourceId};
use crate::ports::{PortRange, PortSettings};
use crate::report::{
    AllocatedBasis, EphemeralReport, MasqueradeReport, NodePortBasis, NodePortReport, OverlapReport, ProxyReport,
    Report,
};

/// Network namespaces that may pick an allocated NodePort as source port.
pub(super) fn ephemeral(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let colliding = report.overlap.ephemeral.iter().filter(|row| row.overlap_ports.is_some_and(|ports| ports > 0));
    colliding.map(|row| ephemeral_of(view, row, &report.overlap)).collect()
}

fn ephemeral_of(view: &View<'_>, row: &EphemeralReport, overlap: &OverlapReport) -> Finding {
    let node_ports = overlap.node_port_range;
    let range = row.range.map_or_else(String::new, |range| range.to_string());
    let host = row.subject == "host";
    let ports = row.overlap_ports.unwrap_or_default();
    let mut evidence = vec![Evidence::seen(
        SourceId::Namespaces,
        format!("ip_local_port_range {range}, {ports} of {} NodePorts not reserved", node_ports.count()),
    )];
    evidence.extend(harm(view, overlap));
    evidence.extend(range_basis(overlap));
    let reserve = row.reserve.as_ref().map_or_else(|| node_ports.to_string(), Clone::clone);
    let beside = if row.reserved.is_empty() { "" } else { " (keeps what is reserved already)" };
    let reserving = if host {
        format!("sysctl -w net.ipv4.ip_local_reserved_ports={reserve}{beside}, and the same in /etc/sysctl.d")
    } else {
        format!(
            "set net.ipv4.ip_local_reserved_ports={reserve}{beside} in the pod's securityContext.sysctls (a safe sysctl since \
             Kubernetes 1.27)"
        )
    };
    Finding {
        id: FindingId::EphemeralOverlapsNodeport,
        // A pod's source port only matters where it survives masquerading.
        severity: if host && !is_harmless(view, overlap) { Severity::Warning } else { Severity::Info },
        title: format!("source ports {range} of {} reach into the NodePorts {node_ports} ({ports} ports)", row.subject),
        subject: row.subject.clone(),
        evidence,
        remedy: ways_out(row, node_ports, reserving),
    }
}

/// Ports that a range must leave: with fewer, connections soon find none.
const ENOUGH_PORTS: u32 = 1024;

/// What ends an overlap: each of these leaves ports to draw from.
fn ways_out(row: &EphemeralReport, node_ports: PortRange, reserving: String) -> String {
    let usable = row.range.map(|ephemeral| PortSettings { ephemeral, reserved: row.reserved.clone() }.usable());
    let left = usable.unwrap_or_default().saturating_sub(row.overlap_ports.unwrap_or_default());
    let mut ways = Vec::new();
    if left >= ENOUGH_PORTS {
        ways.push(reserving);
    }
    if u32::from(u16::MAX - node_ports.last()) >= ENOUGH_PORTS {
        ways.push(format!("move ip_local_port_range above {}", node_ports.last()));
    } else if u32::from(node_ports.first()) >= 1024 + ENOUGH_PORTS {
        ways.push(format!("move ip_local_port_range below {}", node_ports.first()));
    }
    if ways.is_empty() {
        ways.push(format!(
            "give the cluster a smaller NodePort range (--service-node-port-range of kube-apiserver): beside {node_ports} there \
             are not enough ports"
        ));
    }
    ways.join("; or ")
}

/// From where the NodePort range is known, unless the user gave it.
pub(super) fn range_basis(overlap: &OverlapReport) -> Option<Evidence> {
    let range = overlap.node_port_range;
    match overlap.node_port_basis {
        NodePortBasis::Configured | NodePortBasis::Proxy => None,
        NodePortBasis::Default => Some(format!(
            "the NodePort range {range} is assumed: Kubernetes' default (--node-port-range if the cluster has another)"
        )),
        NodePortBasis::Observed => Some(format!(
            "the NodePort range {range} is assumed: Kubernetes' default, widened to the NodePorts that were seen \
             (--node-port-range if the cluster has another)"
        )),
    }
    .map(Evidence::given)
}

/// NodePorts named that a given list lacks.
const NAMED: usize = 3;

/// From where it is known which NodePorts are allocated, where that is not what this node shows.
pub(super) fn allocated_basis(overlap: &OverlapReport) -> Vec<Evidence> {
    let given = (overlap.nodeports_basis == Some(AllocatedBasis::Given))
        .then_some("which NodePorts are allocated is taken from the list that was given (--node-ports)");
    let lacking = overlap.nodeports_not_given;
    let contradiction = (lacking > 0).then(|| {
        let named: Vec<String> = overlap.nodeports.iter().filter(|row| !row.given).take(NAMED).map(node_port).collect();
        let more = if lacking > u64::try_from(named.len()).unwrap_or(u64::MAX) { ", …" } else { "" };
        format!("the list that was given (--node-ports) lacks {lacking} served here: {}{more}", named.join(", "))
    });
    given.map(str::to_owned).into_iter().chain(contradiction).map(Evidence::given).collect()
}

fn node_port(row: &NodePortReport) -> String {
    let service = row.service.as_ref().map_or_else(String::new, |service| format!(" of {service}"));
    let by = row.proxies.first().map_or_else(String::new, |proxy| format!(" by {}", proxy.title()));
    format!("{}/{}{service}{by}", row.port, row.protocol)
}

/// Said where Services made by eBPF or IPVS could not be looked for.
pub(super) const CILIUM_MAY_BE: &str = "NodePorts of Cilium and IPVS could not be read: Cilium may be there, and with it a collision does harm (--service-proxy says \
     what there is)";

/// Whether all that makes Services reachable is known: read, or named by the user.
fn proxies_are_known(view: &View<'_>) -> bool {
    view.ledger.has_read(SourceId::Services) || view.policy.service_proxy.is_some()
}

/// Every proxy lets replies pass; without one, or where some may not have been seen, that is not known.
pub(super) fn is_harmless(view: &View<'_>, overlap: &OverlapReport) -> bool {
    proxies_are_known(view) && !overlap.proxies.is_empty() && overlap.proxies.iter().all(|proxy| !proxy.harmful)
}

/// Whether answers to what these rules translate cannot get lost: they are for pods, and IPVS takes answers of the node itself alone.
pub(super) fn are_spared(view: &View<'_>, overlap: &OverlapReport, rules: &[&MasqueradeReport]) -> bool {
    let mut harmful = overlap.proxies.iter().filter(|proxy| proxy.harmful).peekable();
    let by_ipvs = harmful.peek().is_some() && harmful.all(|proxy| proxy.proxy == ServiceProxy::Ipvs);
    let own = view.ledger.occupants().host_addresses();
    by_ipvs && !rules.is_empty() && rules.iter().all(|rule| is_for_others(rule, &own))
}

/// Whether a rule asks for sources that the node itself does not use: it leaves with the address of the interface it leaves through,
/// so one address of its own among those of pods (a bridge's) is not one that it would be translated from.
fn is_for_others(rule: &MasqueradeReport, own: &BTreeSet<IpAddr>) -> bool {
    let sources = rule.conditions.iter().filter_map(|condition| condition.strip_prefix("-s "));
    let mut networks = sources.filter_map(network);
    networks.any(|network| {
        let global = |address: &&IpAddr| !address.is_loopback() && address.is_ipv4() == network.addr().is_ipv4();
        own.iter().filter(global).any(|address| !network.contains(address))
    })
}

/// `10.64.0.0/24`, or an address alone.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// What the proxies of this node do to a reply that comes to a NodePort: the harmful one, or else all of them.
pub(super) fn harm(view: &View<'_>, overlap: &OverlapReport) -> Vec<Evidence> {
    let harmful: Vec<&ProxyReport> = overlap.proxies.iter().filter(|proxy| proxy.harmful).collect();
    let doubt = harmful.is_empty() && !proxies_are_known(view);
    let told = if harmful.is_empty() { overlap.proxies.iter().collect() } else { harmful };
    let says = |row: &ProxyReport| {
        let word = if row.harmful { "a collision does harm" } else { "a collision does no harm" };
        Evidence::given(format!("{}: {word}: {}", row.proxy.title(), row.why))
    };
    if told.is_empty() {
        return vec![Evidence::given(
            "no proxy for Services was recognised on this node: harmful with Cilium, Dataplane V2 and ipvs, not with iptables \
             and nftables",
        )];
    }
    told.into_iter().map(says).chain(doubt.then(|| Evidence::given(CILIUM_MAY_BE))).collect()
}
