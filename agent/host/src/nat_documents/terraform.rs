//! NATs in Terraform: what `terraform show -json` prints of a state or a plan.
//!
//! Resources lie in modules that lie in modules: `values.root_module` of a state, `planned_values.root_module` of a plan
//! (<https://developer.hashicorp.com/terraform/internals/json-format>). What a plan does not know yet is absent there.

use std::collections::{BTreeMap, BTreeSet};

use headroom_core::model::nat::remedy::Names;
use headroom_core::model::nat::{Described, Profile};
use serde::Deserialize;
use serde_json::Value;

use super::gcloud::{self, RouterNat};
use super::{BadDocument, Said, aws, choose, distinct, field};

mod azure;

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
    connectivity_type: Option<String>,
    availability_mode: Option<String>,
    regional_nat_gateway_address: Option<Vec<ZoneAddress>>,
}

/// An address that a regional gateway has in a zone.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ZoneAddress {
    availability_zone: Option<String>,
    availability_zone_id: Option<String>,
    status: Option<String>,
}

/// A resource of a document.
struct Resource<'a> {
    kind: &'a str,
    address: &'a str,
    values: &'a Value,
    /// Where its values are.
    path: String,
}

pub(super) fn read(document: &Value, gateway: Option<&str>) -> Result<Said, BadDocument> {
    check_version(document.get("format_version").unwrap_or(&Value::Null))?;
    let (place, unknown) = if document.get("planned_values").is_some() {
        ("planned_values.root_module", unknown_after_apply(document))
    } else {
        ("values.root_module", BTreeMap::new())
    };
    let mut resources = Vec::new();
    let root = place.split('.').try_fold(document, |value, key| value.get(key));
    if let Some(root) = root {
        collect(root, place, &mut resources);
    }
    let mut found = Vec::new();
    for resource in &resources {
        let not_yet = unknown.get(resource.address).cloned().unwrap_or_default();
        found.extend(nat(resource, &not_yet, &resources)?);
    }
    choose(found, gateway, TOOL)
}

fn check_version(version: &Value) -> Result<(), BadDocument> {
    let why = match version.as_str() {
        Some(text) if matches!(text.split('.').next(), Some("0" | "1")) => return Ok(()),
        Some(text) => format!("`{}` is not known, 0.1 to 1.x are", super::shortened(text)),
        None => format!("`{}` is no string such as \"1.0\"", super::shortened(&version.to_string())),
    };
    Err(BadDocument::Field { tool: TOOL, path: "format_version".to_owned(), why })
}

/// What a plan does not know before it was applied: names of attributes, however deep in blocks, by the address of the resource.
fn unknown_after_apply(document: &Value) -> BTreeMap<&str, BTreeSet<&str>> {
    fn leaves<'a>(value: &'a Value, name: &'a str, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Bool(true) => {
                found.insert(name);
            }
            Value::Array(items) => items.iter().for_each(|item| leaves(item, name, found)),
            Value::Object(fields) => fields.iter().for_each(|(name, value)| leaves(value, name, found)),
            Value::Null | Value::Bool(false) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let changes = document.get("resource_changes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let unknown = changes.iter().filter_map(|change| {
        let mut found = BTreeSet::new();
        leaves(change.pointer("/change/after_unknown")?, "", &mut found);
        Some((change.get("address")?.as_str()?, found))
    });
    unknown.collect()
}

/// The resources of a module and of those inside it.
fn collect<'a>(module: &'a Value, place: &str, found: &mut Vec<Resource<'a>>) {
    let list = |key: &str| module.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (index, resource) in list("resources").iter().enumerate() {
        let text = |key: &str| resource.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("mode") != "data" {
            found.push(Resource {
                kind: text("type"),
                address: text("address"),
                values: resource.get("values").unwrap_or(&Value::Null),
                path: format!("{place}.resources[{index}].values"),
            });
        }
    }
    for (index, child) in list("child_modules").iter().enumerate() {
        collect(child, &format!("{place}.child_modules[{index}]"), found);
    }
}

/// What a resource says, if it is a NAT.
fn nat(resource: &Resource<'_>, unknown: &BTreeSet<&str>, all: &[Resource<'_>]) -> Result<Option<Said>, BadDocument> {
    let said = match resource.kind {
        "google_compute_router_nat" => Some(google(resource, unknown)?),
        "aws_nat_gateway" => Some(amazon(resource)?),
        "azurerm_kubernetes_cluster" => azure::cluster(resource)?,
        "azurerm_nat_gateway" => Some(azure::nat_gateway(resource, all)?),
        "azurerm_lb_outbound_rule" => Some(azure::outbound_rule(resource)?),
        _ => None,
    };
    Ok(said.map(|mut said| {
        said.tool = TOOL;
        said.notes.extend(not_yet(resource.kind, unknown));
        said
    }))
}

/// Attributes that decide about ports, by the resource, with the flag that says the same. NAT IPs of Google's have a note of their own.
const DECIDING: [(&str, &[(&str, &str)]); 5] = [
    (
        "google_compute_router_nat",
        &[
            ("min_ports_per_vm", "min-ports"),
            ("max_ports_per_vm", "max-ports"),
            ("enable_dynamic_port_allocation", "mode"),
            ("enable_endpoint_independent_mapping", "endpoint-independent"),
            ("nat_ip_allocate_option", "nat-ips"),
            ("source_subnetwork_ip_ranges_to_nat", "alias-ranges"),
            ("source_ip_ranges_to_nat", "alias-ranges"),
            ("tcp_time_wait_timeout_sec", "tcp-time-wait"),
            ("tcp_transitory_idle_timeout_sec", "tcp-transitory"),
            ("tcp_established_idle_timeout_sec", "tcp-established-idle"),
            ("udp_idle_timeout_sec", "udp-idle"),
            ("icmp_idle_timeout_sec", "icmp-idle"),
        ],
    ),
    ("aws_nat_gateway", &[("secondary_allocation_ids", "nat-ips"), ("availability_mode", "nat-ips")]),
    (
        "azurerm_kubernetes_cluster",
        &[
            ("outbound_type", "profile"),
            ("outbound_ports_allocated", "min-ports"),
            ("managed_outbound_ip_count", "nat-ips"),
            ("idle_timeout_in_minutes", "tcp-established-idle"),
        ],
    ),
    ("azurerm_nat_gateway", &[("idle_timeout_in_minutes", "tcp-established-idle")]),
    (
        "azurerm_lb_outbound_rule",
        &[
            ("allocated_outbound_ports", "min-ports"),
            ("frontend_ip_configuration", "nat-ips"),
            ("idle_timeout_in_minutes", "tcp-established-idle"),
        ],
    ),
];

/// What is taken at its default since the plan does not know it.
fn not_yet(kind: &str, unknown: &BTreeSet<&str>) -> Option<String> {
    let (_, attributes) = DECIDING.into_iter().find(|(of, _)| *of == kind)?;
    let (names, flags): (Vec<&str>, BTreeSet<String>) = attributes
        .iter()
        .filter(|(attribute, _)| unknown.contains(attribute))
        .map(|(attribute, flag)| (*attribute, format!("--{flag}")))
        .unzip();
    (!names.is_empty()).then(|| {
        let flags = flags.into_iter().collect::<Vec<_>>().join(", ");
        format!(
            "known only after the plan was applied, and taken at its default until then: {}; give {flags}",
            names.join(", ")
        )
    })
}

fn google(resource: &Resource<'_>, unknown: &BTreeSet<&str>) -> Result<Said, BadDocument> {
    let (nat, place): (RouterNat, Place) =
        (field(resource.values, TOOL, &resource.path)?, field(resource.values, TOOL, &resource.path)?);
    let names = Names { router: place.router, region: place.region, group: place.project, ..Names::default() };
    let ips_unknown = unknown.contains("nat_ips");
    let mut said = gcloud::said(nat, names);
    if unknown.contains("source_subnetwork_ip_ranges_to_nat64") {
        said.described.nat64 = None;
    }
    if ips_unknown && said.described.auto_ips != Some(true) {
        said.described.nat_ips = None;
        said.described
            .ip_notes
            .push("its NAT IPs are known only after the plan was applied: give --nat-ips".to_owned());
    }
    Ok(Said { places: gcloud::places(&resource.path, true), ..said })
}

fn amazon(resource: &Resource<'_>) -> Result<Said, BadDocument> {
    let nat: AwsNat = field(resource.values, TOOL, &resource.path)?;
    let mut notes = Vec::new();
    if nat.connectivity_type.as_deref() == Some("private") {
        notes.push(aws::PRIVATE.to_owned());
    }
    let mut ip_notes = Vec::new();
    let regional = aws::is_regional(nat.availability_mode.as_deref());
    let (nat_ips, list) = if regional {
        let addresses = nat.regional_nat_gateway_address.unwrap_or_default().into_iter();
        let serving = addresses.filter(|address| address.status.as_deref().is_none_or(|status| status == "succeeded"));
        let (nat_ips, note) =
            aws::of_a_zone(serving.map(|address| address.availability_zone_id.or(address.availability_zone)));
        ip_notes.push(note);
        (nat_ips, "regional_nat_gateway_address")
    } else {
        let secondary = nat.secondary_allocation_ids.as_deref().map_or(0, distinct);
        let first = u32::from(nat.allocation_id.is_some() || nat.private_ip.is_some());
        // A plan knows no allocation ids, but there is always one address.
        (Some(first.max(1).saturating_add(secondary)), "secondary_allocation_ids")
    };
    let described = Described {
        profile: Some(Profile::Aws),
        regional,
        nat_ips,
        ip_notes,
        names: Names { gateway: nat.id, ..Names::default() },
        ..Described::default()
    };
    let places = BTreeMap::from([("nat-ips", format!("{}.{list}", resource.path))]);
    Ok(Said { described, places, notes, ..Said::default() })
}
