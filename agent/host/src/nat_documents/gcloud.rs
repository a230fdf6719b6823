//! Cloud NAT gateways: `gcloud compute routers nats describe|list`, `routers describe|list|get-status`.
//!
//! Fields are those of the Compute API's `RouterNat` and `RouterStatusNatStatus`; gcloud leaves out those at their default.

use std::collections::BTreeMap;

use headroom_core::model::nat::remedy::Names;
use headroom_core::model::nat::{Described, Mode, Profile, SetTimes};
use serde::Deserialize;
use serde_json::Value;

use super::count::{Count, number, time};
use super::{BadDocument, Said, choose, distinct, field, last_part, shortened};

const NATS: &str = "gcloud compute routers nats describe";
const STATUS: &str = "gcloud compute routers get-status";

/// `natIpAllocateOption`.
const IP_OPTIONS: [&str; 2] = ["AUTO_ONLY", "MANUAL_ONLY"];

/// `sourceSubnetworkIpRangesToNat64`, where it translates IPv6 to IPv4; it is absent, empty or unspecified where it does not.
const NAT64_OPTIONS: [&str; 2] = ["ALL_IPV6_SUBNETWORKS", "LIST_OF_IPV6_SUBNETWORKS"];

/// A gateway, as the API names its fields and as Terraform does.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RouterNat {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: Option<String>,
    #[serde(alias = "nat_ips")]
    nat_ips: Option<Vec<Option<String>>>,
    #[serde(alias = "drain_nat_ips")]
    drain_nat_ips: Option<Vec<Option<String>>>,
    #[serde(alias = "nat_ip_allocate_option")]
    nat_ip_allocate_option: Option<String>,
    #[serde(alias = "min_ports_per_vm")]
    min_ports_per_vm: Option<Count>,
    #[serde(alias = "max_ports_per_vm")]
    max_ports_per_vm: Option<Count>,
    #[serde(alias = "enable_dynamic_port_allocation")]
    enable_dynamic_port_allocation: Option<bool>,
    #[serde(alias = "enable_endpoint_independent_mapping")]
    enable_endpoint_independent_mapping: Option<bool>,
    #[serde(alias = "source_subnetwork_ip_ranges_to_nat")]
    source_subnetwork_ip_ranges_to_nat: Option<String>,
    #[serde(alias = "source_subnetwork_ip_ranges_to_nat64")]
    source_subnetwork_ip_ranges_to_nat64: Option<String>,
    #[serde(alias = "subnetwork")]
    subnetworks: Option<Vec<Subnetwork>>,
    #[serde(alias = "udp_idle_timeout_sec")]
    udp_idle_timeout_sec: Option<Count>,
    #[serde(alias = "icmp_idle_timeout_sec")]
    icmp_idle_timeout_sec: Option<Count>,
    #[serde(alias = "tcp_established_idle_timeout_sec")]
    tcp_established_idle_timeout_sec: Option<Count>,
    #[serde(alias = "tcp_transitory_idle_timeout_sec")]
    tcp_transitory_idle_timeout_sec: Option<Count>,
    #[serde(alias = "tcp_time_wait_timeout_sec")]
    tcp_time_wait_timeout_sec: Option<Count>,
    rules: Option<Vec<Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Subnetwork {
    #[serde(alias = "source_ip_ranges_to_nat")]
    source_ip_ranges_to_nat: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NatStatus {
    name: Option<String>,
    auto_allocated_nat_ips: Option<Vec<String>>,
    user_allocated_nat_ips: Option<Vec<String>>,
    min_extra_nat_ips_needed: Option<Count>,
    num_vm_endpoints_with_nat_mappings: Option<Count>,
}

/// What the API calls settings that Cloud NAT may refuse, and what Terraform calls them.
const SETTINGS: [(&str, &str, &str); 9] = [
    ("min-ports", "minPortsPerVm", "min_ports_per_vm"),
    ("max-ports", "maxPortsPerVm", "max_ports_per_vm"),
    ("mode", "enableDynamicPortAllocation", "enable_dynamic_port_allocation"),
    ("endpoint-independent", "enableEndpointIndependentMapping", "enable_endpoint_independent_mapping"),
    ("nat-ips", "natIps", "nat_ips"),
    ("tcp-time-wait", "tcpTimeWaitTimeoutSec", "tcp_time_wait_timeout_sec"),
    ("tcp-reset", "tcpTransitoryIdleTimeoutSec", "tcp_transitory_idle_timeout_sec"),
    ("udp-idle", "udpIdleTimeoutSec", "udp_idle_timeout_sec"),
    ("icmp-idle", "icmpIdleTimeoutSec", "icmp_idle_timeout_sec"),
];

/// Where the settings of a gateway are.
pub(super) fn places(path: &str, terraform: bool) -> BTreeMap<&'static str, String> {
    let place = |(setting, api, attribute): (&'static str, &str, &str)| {
        let name = if terraform { attribute } else { api };
        (setting, if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") })
    };
    SETTINGS.into_iter().map(place).collect()
}

/// Gateways by themselves. `path` is where they are: `.` for a single one, else the list's.
pub(super) fn nats(items: &[Value], path: &str, gateway: Option<&str>) -> Result<Said, BadDocument> {
    let found = items.iter().enumerate().map(|(index, item)| {
        let path = if path == "." { String::new() } else { format!("{path}[{index}]") };
        Ok(Said { places: places(&path, false), ..said(field(item, NATS, &path)?, Names::default()) })
    });
    choose(found.collect::<Result<_, BadDocument>>()?, gateway, NATS)
}

/// Cloud Routers with their gateways.
pub(super) fn routers(items: &[Value], gateway: Option<&str>) -> Result<Said, BadDocument> {
    const TOOL: &str = "gcloud compute routers describe";
    let mut found = Vec::new();
    for (index, router) in items.iter().enumerate() {
        let text = |key: &str| router.get(key).and_then(Value::as_str);
        let names = Names {
            router: text("name").map(str::to_owned),
            region: text("region").map(last_part),
            ..Names::default()
        };
        let path = if items.len() == 1 { "nats".to_owned() } else { format!("[{index}].nats") };
        let Some(nats) = router.get("nats").filter(|nats| !nats.is_null()) else { continue };
        let nats: Vec<Value> = field(nats, TOOL, &path)?;
        for (index, nat) in nats.iter().enumerate() {
            let path = format!("{path}[{index}]");
            found.push(Said { places: places(&path, false), ..said(field(nat, TOOL, &path)?, names.clone()) });
        }
    }
    choose(found, gateway, TOOL)
}

/// What a gateway's settings say.
pub(super) fn said(nat: RouterNat, names: Names) -> Said {
    let (mut notes, mut ip_notes) = (Vec::new(), Vec::new());
    let auto_ips = nat.nat_ip_allocate_option.as_deref() == Some("AUTO_ONLY");
    if let Some(option) = nat.nat_ip_allocate_option.as_deref().filter(|option| !IP_OPTIONS.contains(option)) {
        notes.push(format!("`{}` of NAT IPs is not known: taken as MANUAL_ONLY", shortened(option)));
    }
    let primary_only = primary_only(&nat);
    if primary_only {
        notes.push(
            "alias ranges are not translated, so that no 1024 ports are reserved for each node; a gateway that once \
             translated them keeps the 1024 until its minimum is lowered"
                .to_owned(),
        );
    }
    if nat.kind.as_deref() == Some("PRIVATE") {
        notes.push("this gateway translates between networks, not to the internet".to_owned());
    }
    if nat.rules.as_ref().is_some_and(|rules| !rules.is_empty()) {
        notes.push("NAT rules give some destinations addresses of their own: not counted here".to_owned());
    }
    let nat_ips = nat.nat_ips.map(|ips| distinct(&ips.into_iter().flatten().collect::<Vec<_>>()));
    let manual = nat.nat_ip_allocate_option.as_deref() == Some("MANUAL_ONLY");
    let no_ips = manual && nat_ips == Some(0);
    if no_ips {
        let drains = nat.drain_nat_ips.is_some_and(|ips| !ips.is_empty());
        let old = if drains { "; those that drain serve old connections only" } else { "" };
        notes.push(format!("it takes NAT IPs that are listed (MANUAL_ONLY), and none is: nothing is translated{old}"));
    } else if manual && nat_ips.is_none() {
        ip_notes.push(
            "it takes NAT IPs that are listed (MANUAL_ONLY), but the list is not there: their number is not known"
                .to_owned(),
        );
    }
    let described = Described {
        profile: Some(Profile::Gcp),
        mode: Some(if nat.enable_dynamic_port_allocation == Some(true) { Mode::Dynamic } else { Mode::Static }),
        min_ports: number(nat.min_ports_per_vm),
        max_ports: number(nat.max_ports_per_vm).filter(|max| *max != 0),
        nat_ips: nat_ips.filter(|ips| *ips != 0 && !auto_ips),
        auto_ips: Some(auto_ips),
        no_ips,
        ip_notes,
        alias_ranges: primary_only.then_some(false),
        endpoint_independent: nat.enable_endpoint_independent_mapping,
        nat64: Some(nat.source_subnetwork_ip_ranges_to_nat64.is_some_and(|of| NAT64_OPTIONS.contains(&of.as_str()))),
        times: SetTimes {
            tcp_time_wait: time(nat.tcp_time_wait_timeout_sec, 1),
            tcp_transitory: time(nat.tcp_transitory_idle_timeout_sec, 1),
            tcp_established_idle: time(nat.tcp_established_idle_timeout_sec, 1),
            udp_idle: time(nat.udp_idle_timeout_sec, 1),
            icmp_idle: time(nat.icmp_idle_timeout_sec, 1),
            ..SetTimes::default()
        },
        names: Names { gateway: nat.name, ..names },
        ..Described::default()
    };
    Said { tool: NATS, described, notes, ..Said::default() }
}

/// Whether no alias range of any subnetwork passes the gateway.
fn primary_only(nat: &RouterNat) -> bool {
    match nat.source_subnetwork_ip_ranges_to_nat.as_deref() {
        Some("ALL_SUBNETWORKS_ALL_PRIMARY_IP_RANGES") => true,
        Some("LIST_OF_SUBNETWORKS") => {
            let subnetworks = nat.subnetworks.as_deref().unwrap_or_default();
            let ranges = subnetworks.iter().map(|one| one.source_ip_ranges_to_nat.as_deref().unwrap_or_default());
            only_primary(ranges)
        }
        _ => false,
    }
}

/// Whether all subnetworks name their primary range and nothing else.
fn only_primary<'a>(mut subnetworks: impl ExactSizeIterator<Item = &'a [String]>) -> bool {
    subnetworks.len() > 0
        && subnetworks.all(|ranges| !ranges.is_empty() && ranges.iter().all(|range| range == "PRIMARY_IP_RANGE"))
}

/// What gateways say of themselves: NAT IPs they have, and NAT IPs they lack.
pub(super) fn status(result: &Value, gateway: Option<&str>) -> Result<Said, BadDocument> {
    let statuses: Option<Vec<NatStatus>> =
        result.get("natStatus").map(|list| field(list, STATUS, "result.natStatus")).transpose()?;
    let found = statuses.unwrap_or_default().into_iter().map(|status| {
        let auto = status.auto_allocated_nat_ips.as_deref().map_or(0, distinct);
        let ips = auto.saturating_add(status.user_allocated_nat_ips.as_deref().map_or(0, distinct));
        let mut notes = Vec::new();
        if let Some(served) = number(status.num_vm_endpoints_with_nat_mappings) {
            notes.push(format!("the gateway serves {served} network interfaces now"));
        }
        let described = Described {
            profile: Some(Profile::Gcp),
            nat_ips: Some(ips).filter(|ips| *ips != 0),
            auto_ips: (auto > 0).then_some(true),
            names: Names { gateway: status.name, ..Names::default() },
            ..Described::default()
        };
        let missing_ips = number(status.min_extra_nat_ips_needed).filter(|ips| *ips != 0);
        Said { tool: STATUS, described, missing_ips, notes, ..Said::default() }
    });
    choose(found.collect(), gateway, STATUS)
}
