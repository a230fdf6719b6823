//! Azure: `az aks show`, `az network nat gateway show`, `az network lb outbound-rule list`.

use std::collections::BTreeMap;
use std::str::FromStr;

use headroom_core::model::nat::remedy::Names;
use headroom_core::model::nat::{Described, NodePool, Profile, SetTimes, Surge};
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use serde_json::Value;

use super::count::{Count, number, time};
use super::{BadDocument, Said, choose, field, shortened};

const AKS: &str = "az aks show";
const GATEWAY: &str = "az network nat gateway show";
const RULE: &str = "az network lb outbound-rule list";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    name: Option<String>,
    resource_group: Option<String>,
    allocated_outbound_ports: Option<Count>,
    idle_timeout_in_minutes: Option<Count>,
    #[serde(rename = "frontendIPConfigurations", alias = "frontendIpConfigurations")]
    frontends: Option<Vec<Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NatGateway {
    name: Option<String>,
    resource_group: Option<String>,
    idle_timeout_in_minutes: Option<Count>,
    public_ip_addresses: Option<Vec<Value>>,
    public_ip_prefixes: Option<Vec<Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Cluster {
    name: Option<String>,
    resource_group: Option<String>,
    provisioning_state: Option<String>,
    network_profile: Option<NetworkProfile>,
    agent_pool_profiles: Option<Vec<Pool>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NetworkProfile {
    outbound_type: Option<String>,
    load_balancer_profile: Option<LoadBalancer>,
    nat_gateway_profile: Option<ManagedGateway>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LoadBalancer {
    allocated_outbound_ports: Option<Count>,
    idle_timeout_in_minutes: Option<Count>,
    #[serde(rename = "effectiveOutboundIPs", alias = "effectiveOutboundIps")]
    effective: Option<Vec<Value>>,
    #[serde(rename = "managedOutboundIPs", alias = "managedOutboundIps")]
    managed: Option<Managed>,
    #[serde(rename = "outboundIPs", alias = "outboundIps")]
    own: Option<OwnIps>,
}

/// Addresses that the user has made and handed to the cluster.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OwnIps {
    #[serde(rename = "publicIPs", alias = "publicIps")]
    ips: Option<Vec<Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ManagedGateway {
    idle_timeout_in_minutes: Option<Count>,
    #[serde(rename = "effectiveOutboundIPs", alias = "effectiveOutboundIps")]
    effective: Option<Vec<Value>>,
    #[serde(rename = "managedOutboundIPProfile", alias = "managedOutboundIpProfile")]
    managed: Option<Managed>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Managed {
    count: Option<Count>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Pool {
    count: Option<Count>,
    max_count: Option<Count>,
    enable_auto_scaling: Option<bool>,
    upgrade_settings: Option<UpgradeSettings>,
    power_state: Option<PowerState>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PowerState {
    code: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct UpgradeSettings {
    max_surge: Option<MaxSurge>,
}

/// Nodes that an upgrade adds: a number or a share, both as text; empty where nobody has set it.
#[derive(Debug, Clone, Copy)]
struct MaxSurge(Option<Surge>);

impl FromStr for MaxSurge {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let surge = match text.strip_suffix('%') {
            _ if text.is_empty() => return Ok(Self(None)),
            Some(percent) => percent.parse().map(Surge::Percent),
            None => text.parse().map(Surge::Nodes),
        };
        if let Ok(Surge::Percent(101..)) = surge {
            return Err(format!("`{}` is more than 100% of the nodes", shortened(text)));
        }
        let bad =
            |_| format!("`{}` is neither a number of nodes like `1` nor a share of them like `33%`", shortened(text));
        surge.map(|surge| Self(Some(surge))).map_err(bad)
    }
}

impl<'de> Deserialize<'de> for MaxSurge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Pool {
    /// Nodes at most.
    fn nodes(&self) -> u32 {
        let most = if self.enable_auto_scaling == Some(true) { number(self.max_count) } else { None };
        most.or(number(self.count)).unwrap_or(0)
    }

    /// Nodes that there are: none while it is stopped.
    fn now(&self) -> u32 {
        let stopped = self.power_state.as_ref().is_some_and(|state| state.code.as_deref() == Some("Stopped"));
        number(self.count).filter(|_| !stopped).unwrap_or(0)
    }

    /// With the nodes that an upgrade adds: 1 unless somebody has set it.
    fn described(&self) -> NodePool {
        let surge = self.upgrade_settings.as_ref().and_then(|settings| settings.max_surge?.0);
        NodePool { nodes: self.nodes(), now: self.now(), surge: surge.unwrap_or(Surge::Nodes(1)) }
    }

    /// Behind a gateway that has the same ports for however many.
    fn without_upgrades(&self) -> NodePool {
        NodePool { surge: Surge::Nodes(0), ..self.described() }
    }
}

/// Whether it is a resource of that type; some versions of the tool leave the type out, but not what is in it.
pub(super) fn is(value: &Value, kind: &str) -> bool {
    let typed = value.get("type").and_then(Value::as_str).and_then(|name| name.rsplit('/').next());
    let has = |key: &str| value.get(key).is_some();
    match (typed, kind) {
        (Some(name), kind) => name.eq_ignore_ascii_case(kind),
        (None, "outboundRules") => has("allocatedOutboundPorts"),
        (None, "natGateways") => has("publicIpAddresses") && has("idleTimeoutInMinutes"),
        (None, _) => has("networkProfile") && has("agentPoolProfiles"),
    }
}

/// Where an item of a document is: the whole of it, or a place in its list.
fn place(items: &[Value], index: usize) -> String {
    if items.len() == 1 { String::new() } else { format!("[{index}]") }
}

fn each(
    items: &[Value],
    tool: &'static str,
    gateway: Option<&str>,
    said: impl Fn(&Value, &str) -> Result<Said, BadDocument>,
) -> Result<Said, BadDocument> {
    let found = items.iter().enumerate().map(|(index, item)| said(item, &place(items, index)));
    choose(found.collect::<Result<_, BadDocument>>()?, gateway, tool)
}

fn length(list: Option<&Vec<Value>>) -> Option<u32> {
    list.map(|list| u32::try_from(list.len()).unwrap_or(u32::MAX)).filter(|ips| *ips != 0)
}

/// Where the settings of something are that is at `path`.
fn places<const N: usize>(path: &str, settings: [(&'static str, &str); N]) -> BTreeMap<&'static str, String> {
    let place = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    settings.into_iter().map(|(setting, name)| (setting, place(name))).collect()
}

/// The number of addresses that the cluster was asked to make; 0 where it was not.
fn asked(managed: Option<Managed>) -> Option<u32> {
    number(managed?.count).filter(|ips| *ips != 0)
}

/// Outbound rules of a load balancer.
pub(super) fn outbound_rules(items: &[Value], gateway: Option<&str>) -> Result<Said, BadDocument> {
    each(items, RULE, gateway, |item, path| {
        let rule: Rule = field(item, RULE, path)?;
        let no_ips = rule.frontends.as_ref().is_some_and(Vec::is_empty);
        let notes = if no_ips { vec!["it has no frontend IP: nothing is translated".to_owned()] } else { Vec::new() };
        let described = Described {
            profile: Some(Profile::AzureLb),
            no_ips,
            min_ports: number(rule.allocated_outbound_ports),
            nat_ips: length(rule.frontends.as_ref()),
            times: SetTimes { tcp_established_idle: time(rule.idle_timeout_in_minutes, 60), ..SetTimes::default() },
            names: Names { gateway: rule.name, group: rule.resource_group, ..Names::default() },
            ..Described::default()
        };
        let places = places(
            path,
            [
                ("min-ports", "allocatedOutboundPorts"),
                ("nat-ips", "frontendIPConfigurations"),
                ("tcp-established-idle", "idleTimeoutInMinutes"),
            ],
        );
        Ok(Said { tool: RULE, described, places, notes, ..Said::default() })
    })
}

/// NAT gateways.
pub(super) fn nat_gateways(items: &[Value], gateway: Option<&str>) -> Result<Said, BadDocument> {
    each(items, GATEWAY, gateway, |item, path| {
        let found: NatGateway = field(item, GATEWAY, path)?;
        let prefixes = length(found.public_ip_prefixes.as_ref());
        let mut notes = Vec::new();
        let ip_notes = prefixes
            .map(|_| "it has public IP prefixes, whose addresses are not in this document: give --nat-ips".to_owned());
        // Where both lists are there, and empty.
        let empty = |list: &Option<Vec<Value>>| list.as_ref().is_some_and(Vec::is_empty);
        let no_ips = empty(&found.public_ip_addresses) && found.public_ip_prefixes.is_none_or(|list| list.is_empty());
        if no_ips {
            notes.push("it has no public IP address: nothing is translated".to_owned());
        }
        let described = Described {
            profile: Some(Profile::AzureNatgw),
            no_ips,
            nat_ips: length(found.public_ip_addresses.as_ref()).filter(|_| prefixes.is_none()),
            ip_notes: ip_notes.into_iter().collect(),
            times: SetTimes { tcp_established_idle: time(found.idle_timeout_in_minutes, 60), ..SetTimes::default() },
            names: Names { gateway: found.name, group: found.resource_group, ..Names::default() },
            ..Described::default()
        };
        let places = places(path, [("nat-ips", "publicIpAddresses"), ("tcp-established-idle", "idleTimeoutInMinutes")]);
        Ok(Said { tool: GATEWAY, described, places, notes, ..Said::default() })
    })
}

/// AKS clusters.
pub(super) fn clusters(items: &[Value], gateway: Option<&str>) -> Result<Said, BadDocument> {
    each(items, AKS, gateway, |item, path| cluster(field(item, AKS, path)?, path))
}

fn cluster(cluster: Cluster, path: &str) -> Result<Said, BadDocument> {
    let pools = cluster.agent_pool_profiles.unwrap_or_default();
    let network = cluster.network_profile.unwrap_or_default();
    let mut notes = Vec::new();
    if pools.iter().any(|pool| pool.enable_auto_scaling == Some(true)) {
        let counted =
            "of pools that scale by themselves a plan counts all the nodes they may have, a check those they have";
        notes.push(counted.to_owned());
    }
    // Addresses that are about to come are not there yet.
    let pending = matches!(cluster.provisioning_state.as_deref(), Some("Creating" | "Updating"));
    let none = |effective: &Option<Vec<Value>>| !pending && effective.as_ref().is_some_and(Vec::is_empty);
    let common = Described {
        names: Names { cluster: cluster.name, group: cluster.resource_group, ..Names::default() },
        ..Described::default()
    };
    let (described, places) = match network.outbound_type.as_deref() {
        None | Some("loadBalancer") => {
            let profile = network.load_balancer_profile.unwrap_or_default();
            let no_ips = none(&profile.effective);
            let wanted = length(profile.own.as_ref().and_then(|own| own.ips.as_ref())).or(asked(profile.managed));
            let place = |name: &str| format!("networkProfile.loadBalancerProfile.{name}");
            let ips = if profile.effective.is_some() { "effectiveOutboundIPs" } else { "managedOutboundIPs.count" };
            let places = [
                ("min-ports", place("allocatedOutboundPorts")),
                ("nat-ips", place(ips)),
                ("tcp-established-idle", place("idleTimeoutInMinutes")),
            ];
            let described = Described {
                profile: Some(Profile::AzureLb),
                no_ips,
                min_ports: number(profile.allocated_outbound_ports),
                nat_ips: length(profile.effective.as_ref()).or(wanted.filter(|_| !no_ips)),
                pools: pools.iter().map(Pool::described).collect(),
                times: SetTimes {
                    tcp_established_idle: time(profile.idle_timeout_in_minutes, 60),
                    ..SetTimes::default()
                },
                ..common
            };
            (described, places)
        }
        Some(kind @ ("managedNATGateway" | "userAssignedNATGateway" | "managedNATGatewayV2")) => {
            let profile = network.nat_gateway_profile.unwrap_or_default();
            // A gateway of the user's own is not the cluster's to tell of.
            let no_ips = kind != "userAssignedNATGateway" && none(&profile.effective);
            let place = |name: &str| format!("networkProfile.natGatewayProfile.{name}");
            let ips =
                if profile.effective.is_some() { "effectiveOutboundIPs" } else { "managedOutboundIPProfile.count" };
            let places = [
                ("nat-ips", place(ips)),
                ("nodes", "agentPoolProfiles".to_owned()),
                ("tcp-established-idle", place("idleTimeoutInMinutes")),
            ];
            let described = Described {
                profile: Some(Profile::AzureNatgw),
                pools: pools.iter().map(Pool::without_upgrades).collect(),
                no_ips,
                nat_ips: length(profile.effective.as_ref()).or(asked(profile.managed).filter(|_| !no_ips)),
                times: SetTimes {
                    tcp_established_idle: time(profile.idle_timeout_in_minutes, 60),
                    ..SetTimes::default()
                },
                ..common
            };
            (described, places)
        }
        Some(other) => {
            let hint = format!(": its outbound type is `{}`, whose way out is your own", shortened(other));
            return Err(BadDocument::Nothing { tool: AKS, hint });
        }
    };
    if described.no_ips {
        notes.push("none of its outbound addresses is in effect: nothing is translated".to_owned());
    }
    let places = self::places(path, places.each_ref().map(|(setting, name)| (*setting, name.as_str())));
    Ok(Said { tool: AKS, described, places, notes, ..Said::default() })
}
