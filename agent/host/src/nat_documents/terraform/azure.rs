//! Azure's ways out in Terraform: clusters, NAT gateways with what is associated with them, outbound rules.

use std::collections::BTreeMap;

use headroom_core::model::nat::remedy::Names;
use headroom_core::model::nat::{Described, Profile, SetTimes};
use serde::Deserialize;
use serde_json::Value;

use super::{Resource, TOOL};
use crate::nat_documents::count::{Count, number, time};
use crate::nat_documents::{BadDocument, Said, distinct, field};

/// Blocks are lists in Terraform, of one at most here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Aks {
    name: Option<String>,
    resource_group_name: Option<String>,
    network_profile: Option<Vec<AksNetwork>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AksNetwork {
    outbound_type: Option<String>,
    load_balancer_profile: Option<Vec<AksOutbound>>,
    nat_gateway_profile: Option<Vec<AksOutbound>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AksOutbound {
    managed_outbound_ip_count: Option<Count>,
    outbound_ports_allocated: Option<Count>,
    idle_timeout_in_minutes: Option<Count>,
    effective_outbound_ips: Option<Vec<String>>,
    outbound_ip_address_ids: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NatGateway {
    id: Option<String>,
    name: Option<String>,
    resource_group_name: Option<String>,
    idle_timeout_in_minutes: Option<Count>,
}

/// Something that is associated with a NAT gateway.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Association {
    nat_gateway_id: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OutboundRule {
    name: Option<String>,
    resource_group_name: Option<String>,
    loadbalancer_id: Option<String>,
    allocated_outbound_ports: Option<Count>,
    frontend_ip_configuration: Option<Vec<Value>>,
    idle_timeout_in_minutes: Option<Count>,
}

fn place(resource: &Resource<'_>, attribute: &str) -> String {
    format!("{}.{attribute}", resource.path)
}

fn idle(minutes: Option<Count>) -> SetTimes {
    SetTimes { tcp_established_idle: time(minutes, 60), ..SetTimes::default() }
}

/// A cluster's own load balancer or NAT gateway; nothing where the way out is the user's own.
pub(super) fn cluster(resource: &Resource<'_>) -> Result<Option<Said>, BadDocument> {
    let cluster: Aks = field(resource.values, TOOL, &resource.path)?;
    let network = cluster.network_profile.and_then(|blocks| blocks.into_iter().next()).unwrap_or_default();
    let first =
        |blocks: Option<Vec<AksOutbound>>| blocks.and_then(|blocks| blocks.into_iter().next()).unwrap_or_default();
    let (profile, block, outbound) = match network.outbound_type.as_deref() {
        None | Some("loadBalancer") => {
            (Profile::AzureLb, "load_balancer_profile", first(network.load_balancer_profile))
        }
        Some("managedNATGateway") => (Profile::AzureNatgw, "nat_gateway_profile", first(network.nat_gateway_profile)),
        Some(_) => return Ok(None),
    };
    let some = |ids: &Option<Vec<String>>| ids.as_deref().map(distinct).filter(|ips| *ips != 0);
    let effective = some(&outbound.effective_outbound_ips).or(some(&outbound.outbound_ip_address_ids));
    let described = Described {
        profile: Some(profile),
        min_ports: number(outbound.outbound_ports_allocated),
        nat_ips: effective.or(number(outbound.managed_outbound_ip_count)).filter(|ips| *ips != 0),
        times: idle(outbound.idle_timeout_in_minutes),
        names: Names { cluster: cluster.name, group: cluster.resource_group_name, ..Names::default() },
        ..Described::default()
    };
    let ips = if effective.is_some() { "effective_outbound_ips" } else { "managed_outbound_ip_count" };
    let of_block = |attribute: &str| place(resource, &format!("network_profile[0].{block}[0].{attribute}"));
    let places = BTreeMap::from([
        ("min-ports", of_block("outbound_ports_allocated")),
        ("nat-ips", of_block(ips)),
        ("tcp-established-idle", of_block("idle_timeout_in_minutes")),
    ]);
    Ok(Some(Said { described, places, ..Said::default() }))
}

/// A NAT gateway, whose addresses other resources associate with it.
pub(super) fn nat_gateway(resource: &Resource<'_>, all: &[Resource<'_>]) -> Result<Said, BadDocument> {
    let nat: NatGateway = field(resource.values, TOOL, &resource.path)?;
    let alone = all.iter().filter(|other| other.kind == resource.kind).count() == 1;
    let addresses = associated(all, "azurerm_nat_gateway_public_ip_association", nat.id.as_deref(), alone)?;
    let prefixes = associated(all, "azurerm_nat_gateway_public_ip_prefix_association", nat.id.as_deref(), alone)?;
    let (nat_ips, note) = match (addresses, prefixes) {
        (Some(ips), Some(0)) if ips > 0 => (Some(ips), None),
        (_, Some(1..)) => (None, Some("it has public IP prefixes, whose addresses are not counted: give --nat-ips")),
        _ => (None, Some("which addresses are associated with it is not said: give --nat-ips")),
    };
    let described = Described {
        profile: Some(Profile::AzureNatgw),
        nat_ips,
        ip_notes: note.map(str::to_owned).into_iter().collect(),
        times: idle(nat.idle_timeout_in_minutes),
        names: Names { gateway: nat.name, group: nat.resource_group_name, ..Names::default() },
        ..Described::default()
    };
    let places = BTreeMap::from([
        ("nat-ips", format!("azurerm_nat_gateway_public_ip_association of {}", resource.path)),
        ("tcp-established-idle", place(resource, "idle_timeout_in_minutes")),
    ]);
    Ok(Said { described, places, ..Said::default() })
}

/// How many resources of a kind associate something with that gateway. A plan does not know the ids of what is yet to be made: where the
/// gateway is the only one (`alone`), it is meant; else nothing is known.
fn associated(
    all: &[Resource<'_>],
    kind: &str,
    gateway: Option<&str>,
    alone: bool,
) -> Result<Option<u32>, BadDocument> {
    let mut count = 0_u32;
    for resource in all.iter().filter(|resource| resource.kind == kind) {
        let association: Association = field(resource.values, TOOL, &resource.path)?;
        match (association.nat_gateway_id.as_deref(), gateway) {
            // Azure's ids are the same in whichever case.
            (Some(id), Some(gateway)) if !id.eq_ignore_ascii_case(gateway) => {}
            (Some(_), Some(_)) => count = count.saturating_add(1),
            _ if alone => count = count.saturating_add(1),
            _ => return Ok(None),
        }
    }
    Ok(Some(count))
}

/// An outbound rule of a load balancer.
pub(super) fn outbound_rule(resource: &Resource<'_>) -> Result<Said, BadDocument> {
    let rule: OutboundRule = field(resource.values, TOOL, &resource.path)?;
    let frontends = rule.frontend_ip_configuration.map(|blocks| u32::try_from(blocks.len()).unwrap_or(u32::MAX));
    let group = rule.resource_group_name.or_else(|| group_of(rule.loadbalancer_id.as_deref()?));
    let described = Described {
        profile: Some(Profile::AzureLb),
        min_ports: number(rule.allocated_outbound_ports),
        nat_ips: frontends.filter(|ips| *ips != 0),
        times: idle(rule.idle_timeout_in_minutes),
        names: Names { gateway: rule.name, group, ..Names::default() },
        ..Described::default()
    };
    let places = BTreeMap::from([
        ("min-ports", place(resource, "allocated_outbound_ports")),
        ("nat-ips", place(resource, "frontend_ip_configuration")),
        ("tcp-established-idle", place(resource, "idle_timeout_in_minutes")),
    ]);
    Ok(Said { described, places, ..Said::default() })
}

/// `/subscriptions/S/resourceGroups/GROUP/providers/…`
fn group_of(id: &str) -> Option<String> {
    let mut parts = id.split('/').skip_while(|part| !part.eq_ignore_ascii_case("resourceGroups"));
    parts.nth(1).map(str::to_owned)
}
