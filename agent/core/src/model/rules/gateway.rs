//! Rules on the gateway: nodes it cannot serve, and what it says of itself.

use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::flow::Protocol;
use crate::model::View;
use crate::model::demand::{self, Group};
use crate::model::nat::{BEYOND_AZURES_TABLE, Basis, NodePorts, Sharing, remedy};
use crate::report::Report;

/// Nodes without ports where ports are reserved; where they are shared, a demand that all nodes together could not have.
pub(super) fn nat_gateway(view: &View<'_>, _report: &Report) -> Vec<Finding> {
    if view.nat.beyond_azures_table() {
        return vec![beyond_the_table(view)];
    }
    let Some(ports) = view.node_ports else { return Vec::new() };
    let sharing = view.nat.profile.capacity().map(|capacity| capacity.sharing);
    let by_number = view.nat.nodes.and_then(|nodes| match sharing? {
        Sharing::PerDestination => all_alike(view, ports, nodes),
        Sharing::Reserved => no_ports_left(view, ports, nodes),
    });
    no_ports_here(view)
        .or(by_number)
        .or_else(|| gateway_says(view, ports))
        .or_else(|| allocation_failed(view, ports))
        .into_iter()
        .collect()
}

/// What nodes have is not known, so that their demand is not judged; that alone is to be told.
fn beyond_the_table(view: &View<'_>) -> Finding {
    let nodes = view.nat.with_surge(view.nat.nodes.unwrap_or_default());
    Finding {
        id: FindingId::NatGatewayTooSmall,
        severity: Severity::Warning,
        title: format!(
            "Azure's automatic allocation ends at 1000 nodes, there may be {nodes}: what a node gets is not known"
        ),
        subject: "gateway".to_owned(),
        evidence: vec![Evidence::given(BEYOND_AZURES_TABLE)],
        remedy: "allocate ports by hand: `headroom plan nat --profile azure-lb --min-ports N` says how many nodes fit"
            .to_owned(),
    }
}

/// The NAT has left this very node out, or has no NAT IP to serve any.
pub(super) fn left_out(view: &View<'_>) -> bool {
    view.nat.observed.as_ref().map_or(view.nat.nat_ips == Some(0), |observed| observed.ports == 0)
}

fn no_ports_here(view: &View<'_>) -> Option<Finding> {
    let ports = view.node_ports.filter(|_| left_out(view))?;
    let (title, why) = match &view.nat.observed {
        Some(observed) => ("this node was given no NAT ports at all: whatever passes the NAT fails", &observed.why),
        None => ("the NAT gateway has no NAT IP: whatever passes it fails", &ports.why),
    };
    Some(Finding {
        id: FindingId::NatGatewayTooSmall,
        severity: Severity::Critical,
        title: title.to_owned(),
        subject: "gateway".to_owned(),
        evidence: vec![Evidence::given(format!("allocation: 0 ports, {why}"))],
        remedy: remedy::missing_ips(view.nat, ports, view.nat.missing_ips.unwrap_or(1), view.need).text(),
    })
}

/// Cloud NAT counts the NAT IPs it lacks.
fn gateway_says(view: &View<'_>, ports: &NodePorts) -> Option<Finding> {
    let missing = view.nat.missing_ips.filter(|ips| *ips > 0)?;
    Some(Finding {
        id: FindingId::NatGatewayTooSmall,
        severity: Severity::Critical,
        title: format!(
            "the NAT gateway itself says that it lacks {}: some nodes have no ports",
            remedy::nat_ips(missing)
        ),
        subject: "gateway".to_owned(),
        evidence: vec![Evidence::given(format!("allocation: {} ports, {}", ports.ports, ports.why))],
        remedy: remedy::missing_ips(view.nat, ports, missing, view.need).text(),
    })
}

/// Cloud Monitoring tells that some machine got no ports, not how many NAT IPs are missing.
fn allocation_failed(view: &View<'_>, ports: &NodePorts) -> Option<Finding> {
    let says = view.nat.told_allocation_failed(view.now)?;
    Some(Finding {
        id: FindingId::NatGatewayTooSmall,
        severity: if view.nat.failed_lately(view.now) { Severity::Critical } else { Severity::Warning },
        title: says,
        subject: "gateway".to_owned(),
        evidence: vec![Evidence::given(
            "of how many machines, and how many NAT IPs are missing, this metric does not tell",
        )],
        remedy: remedy::after_failed_allocation(view.nat, ports, view.need).text(),
    })
}

fn no_ports_left(view: &View<'_>, ports: &NodePorts, nodes: u32) -> Option<Finding> {
    let (ips, capacity) = (view.nat.nat_ips?, ports.capacity_nodes?);
    let short = nodes.checked_sub(capacity).filter(|short| *short > 0)?;
    let pool = view.nat.pool()?;
    let assumed = ports.basis == Basis::Assumed || view.nat.mode_assumed;
    let doubt = assumed.then(|| {
        Evidence::given(
            "what is reserved per node is assumed: say what the NAT has with --nat-from, or --nat-mode, --nat-min-ports and \
             friends",
        )
    });
    Some(Finding {
        id: FindingId::NatGatewayTooSmall,
        severity: if assumed { Severity::Warning } else { Severity::Critical },
        title: format!(
            "{capacity} nodes fit behind the NAT gateway, there are {nodes}: {short} {} no ports",
            if short == 1 { "gets" } else { "get" }
        ),
        subject: "gateway".to_owned(),
        evidence: std::iter::once(Evidence::given(format!(
            "{} x {} ports, {} reserved per node ({})",
            remedy::nat_ips(ips),
            pool / u64::from(ips.max(1)),
            ports.reserved,
            ports.why
        )))
        .chain(doubt)
        .collect(),
        remedy: remedy::bigger_gateway(view.nat, ports, view.need).text(),
    })
}

fn all_alike(view: &View<'_>, ports: &NodePorts, nodes: u32) -> Option<Finding> {
    let protocols = [Protocol::TCP, Protocol::UDP, Protocol::ICMP].into_iter();
    let of_each = protocols.filter_map(|protocol| demand::worst(view.accounts, protocol, view.nat.profile));
    let worst = of_each.max_by_key(Group::demand)?;
    let together = worst.demand().saturating_mul(nodes);
    (nodes > 1 && together > ports.ports).then(|| Finding {
        id: FindingId::NatGatewayTooSmall,
        severity: Severity::Warning,
        title: format!(
            "if all {nodes} nodes needed as much as this one, {} would take {together} ports: the gateway has {}",
            worst.subject(),
            ports.ports
        ),
        subject: worst.subject(),
        evidence: vec![
            Evidence::seen(worst.largest.source, format!("{} held, {} wanting here", worst.held(), worst.wanting())),
            Evidence::given(format!("allocation: {} ports, {}", ports.ports, ports.why)),
        ],
        remedy: remedy::more_ports_for_all(view.nat, ports, view.need).text(),
    })
}
