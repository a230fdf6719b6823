//! NATs in Terraform: what `terraform show -json` prints of a state or a plan.
//!
//! Resources lie in modules that lie in modules: `values.root_module` of a state, `planned_values.root_module` of a plan
//! (<https://developer.hashicorp.com/terraform/internals/json-format>). What a plan does not know yet is absent there.

use std::collections::BTreeMap;

use headroom_core::model::nat::remedy::Names;
use headroom_core::model::nat::{Described, Profile, SetTimes};
use serde::Deserialize;
use serde_json::Value;

use super::count::{Count, number, time};
use super::gcloud::{self, RouterNat};
use super::{BadDocument, Said, choose, distinct, field};

const TOOL: &str = "terraform show -json";

/// Where a gateway is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Place {
    router: Option<String>,
    region: Option<String>,
    project: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AwsNat {
    id: Option<String>,
    allocation_id: Option<String>,
    private_ip: Option<String>,
    secondary_allocation_ids: Option<Vec<String>>,
}

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
struct AzureNat {
    name: Option<String>,
    resource_group_name: Option<String>,
    idle_timeout_in_minutes: Option<Count>,
}

pub(super) fn read(document: &Value, gateway: Option<&str>) -> Result<Said, BadDocument> {
    let version = document.get("format_version").and_then(Value::as_str).unwrap_or_default();
    if !matches!(version.split('.').next(), Some("0" | "1")) {
        return Err(BadDocument::Field {
            tool: TOOL,
            path: "format_version".to_owned(),
            why: format!("`{}` is not known, 0.1 to 1.x are", super::shortened(version)),
        });
    }
    let (place, unknown) = if document.get("planned_values").is_some() {
        ("planned_values.root_module", unknown_after_apply(document))
    } else {
        ("values.root_module", Vec::new())
    };
    let mut found = Vec::new();
    let root = place.split('.').try_fold(document, |value, key| value.get(key));
    if let Some(root) = root {
        module(root, place, &unknown, &mut found)?;
    }
    choose(found, gateway, TOOL)
}

/// Addresses of resources whose NAT IPs a plan does not know before it was applied.
fn unknown_after_apply(document: &Value) -> Vec<&str> {
    let changes = document.get("resource_changes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let unknown = changes.iter().filter(|change| {
        let after = change.pointer("/change/after_unknown");
        after.and_then(|after| after.get("nat_ips")).is_some_and(|ips| *ips == Value::Bool(true))
    });
    unknown.filter_map(|change| change.get("address").and_then(Value::as_str)).collect()
}

/// The NATs of a module and of those inside it.
fn module(module: &Value, place: &str, unknown: &[&str], found: &mut Vec<Said>) -> Result<(), BadDocument> {
    let list = |key: &str| module.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (index, resource) in list("resources").iter().enumerate() {
        let text = |key: &str| resource.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("mode") == "data" {
            continue;
        }
        let path = format!("{place}.resources[{index}].values");
        let values = resource.get("values").unwrap_or(&Value::Null);
        match text("type") {
            "google_compute_router_nat" => {
                let (nat, where_it_is) = (field(values, TOOL, &path)?, field(values, TOOL, &path)?);
                let said = google(nat, where_it_is, unknown.contains(&text("address")));
                found.push(Said { places: gcloud::places(&path, true), ..said });
            }
            "azurerm_kubernetes_cluster" => {
                let said = aks(field(values, TOOL, &path)?);
                found.extend(said.map(|said| Said { places: aks_places(&path, &said), ..said }));
            }
            "azurerm_nat_gateway" => found.push(azure_gateway(field(values, TOOL, &path)?)),
            "aws_nat_gateway" => found.push(aws(field(values, TOOL, &path)?)),
            _ => {}
        }
    }
    for (index, child) in list("child_modules").iter().enumerate() {
        self::module(child, &format!("{place}.child_modules[{index}]"), unknown, found)?;
    }
    Ok(())
}

fn google(nat: RouterNat, place: Place, ips_unknown: bool) -> Said {
    let names = Names { router: place.router, region: place.region, group: place.project, ..Names::default() };
    let mut said = gcloud::said(nat, names);
    said.tool = TOOL;
    if ips_unknown && said.described.auto_ips != Some(true) {
        said.described.nat_ips = None;
        said.notes.push("its NAT IPs are known only after the plan was applied: give --nat-ips".to_owned());
    }
    said
}

fn aws(nat: AwsNat) -> Said {
    let secondary = nat.secondary_allocation_ids.as_deref().map_or(0, distinct);
    let first = u32::from(nat.allocation_id.is_some() || nat.private_ip.is_some());
    let described = Described {
        profile: Some(Profile::Aws),
        // A plan knows no allocation ids, but there is always one address.
        nat_ips: Some(first.max(1).saturating_add(secondary)),
        names: Names { gateway: nat.id, ..Names::default() },
        ..Described::default()
    };
    Said { tool: TOOL, described, ..Said::default() }
}

/// A cluster's own load balancer or NAT gateway; nothing where the way out is the user's own.
fn aks(cluster: Aks) -> Option<Said> {
    let network = cluster.network_profile.and_then(|blocks| blocks.into_iter().next()).unwrap_or_default();
    let first =
        |blocks: Option<Vec<AksOutbound>>| blocks.and_then(|blocks| blocks.into_iter().next()).unwrap_or_default();
    let (profile, outbound) = match network.outbound_type.as_deref() {
        None | Some("loadBalancer") => (Profile::AzureLb, first(network.load_balancer_profile)),
        Some("managedNATGateway") => (Profile::AzureNatgw, first(network.nat_gateway_profile)),
        Some(_) => return None,
    };
    let some = |ids: &Option<Vec<String>>| ids.as_deref().map(distinct).filter(|ips| *ips != 0);
    let effective = some(&outbound.effective_outbound_ips).or(some(&outbound.outbound_ip_address_ids));
    let described = Described {
        profile: Some(profile),
        min_ports: number(outbound.outbound_ports_allocated),
        nat_ips: effective.or(number(outbound.managed_outbound_ip_count)).filter(|ips| *ips != 0),
        times: SetTimes { tcp_established_idle: time(outbound.idle_timeout_in_minutes, 60), ..SetTimes::default() },
        names: Names { cluster: cluster.name, group: cluster.resource_group_name, ..Names::default() },
        ..Described::default()
    };
    Some(Said { tool: TOOL, described, ..Said::default() })
}

/// Where the settings of a cluster's load balancer are.
fn aks_places(path: &str, said: &Said) -> BTreeMap<&'static str, String> {
    if said.described.profile != Some(Profile::AzureLb) {
        return BTreeMap::new();
    }
    let place = |attribute: &str| format!("{path}.network_profile[0].load_balancer_profile[0].{attribute}");
    BTreeMap::from([("min-ports", place("outbound_ports_allocated")), ("nat-ips", place("managed_outbound_ip_count"))])
}

fn azure_gateway(nat: AzureNat) -> Said {
    let described = Described {
        profile: Some(Profile::AzureNatgw),
        times: SetTimes { tcp_established_idle: time(nat.idle_timeout_in_minutes, 60), ..SetTimes::default() },
        names: Names { gateway: nat.name, group: nat.resource_group_name, ..Names::default() },
        ..Described::default()
    };
    let notes = vec!["its addresses are associated by other resources: give --nat-ips".to_owned()];
    Said { tool: TOOL, described, notes, ..Said::default() }
}
