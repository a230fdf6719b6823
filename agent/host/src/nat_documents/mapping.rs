//! Which ports each machine has: `gcloud compute routers get-nat-mapping-info`.
//!
//! Rows of a machine may repeat each other (its primary address and its alias range), so that only the union of their port
//! ranges counts, never the sum of their totals.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use headroom_core::model::nat::{Described, Profile};
use headroom_core::ports::PortRange;
use serde::Deserialize;
use serde_json::Value;

use super::count::Count;
use super::{BadDocument, Instance, Said, field, shortened};

const TOOL: &str = "gcloud compute routers get-nat-mapping-info";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Machine {
    instance_name: Option<String>,
    interface_nat_mappings: Option<Vec<Mapping>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mapping {
    source_virtual_ip: Option<IpAddr>,
    nat_ip_port_ranges: Option<Vec<String>>,
    num_total_nat_ports: Option<Count>,
    rule_mappings: Option<Vec<Value>>,
}

/// The ports of a NAT IP, as ranges.
type Ranges = BTreeMap<IpAddr, Vec<PortRange>>;

/// What the rows of a machine say together.
#[derive(Debug, Default)]
struct Rows {
    addresses: BTreeSet<IpAddr>,
    ranges: Ranges,
    /// Some row has ports, or rules that have, without saying which.
    untold: bool,
}

/// All machines of a router.
pub(super) fn read(list: &Value, path: &str) -> Result<Said, BadDocument> {
    let machines: Vec<Machine> = field(list, TOOL, path)?;
    let mut all: BTreeMap<String, Rows> = BTreeMap::new();
    let mut rules = false;
    for (index, machine) in machines.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let name = machine.instance_name.ok_or_else(|| BadDocument::Field {
            tool: TOOL,
            path: format!("{path}.instanceName"),
            why: "it is missing".to_owned(),
        })?;
        let rows = all.entry(name).or_default();
        for (row, mapping) in machine.interface_nat_mappings.unwrap_or_default().into_iter().enumerate() {
            rows.addresses.extend(mapping.source_virtual_ip);
            let of_rules = mapping.rule_mappings.is_some_and(|rules| !rules.is_empty());
            rules |= of_rules;
            let told = mapping.nat_ip_port_ranges.as_ref().is_some_and(|ranges| !ranges.is_empty());
            rows.untold |= !told && (of_rules || mapping.num_total_nat_ports.is_some_and(|ports| ports.0 > 0));
            for (at, text) in mapping.nat_ip_port_ranges.unwrap_or_default().iter().enumerate() {
                let (ip, range) = range(text).ok_or_else(|| BadDocument::Field {
                    tool: TOOL,
                    path: format!("{path}.interfaceNatMappings[{row}].natIpPortRanges[{at}]"),
                    why: format!("`{}` is not like `203.0.113.1:1024-1535`", shortened(text)),
                })?;
                rows.ranges.entry(ip).or_default().push(range);
            }
        }
    }
    if all.is_empty() {
        return Err(BadDocument::Nothing { tool: TOOL, hint: String::new() });
    }
    let nat_ips: BTreeSet<IpAddr> = all.values().flat_map(|rows| rows.ranges.keys().copied()).collect();
    let instances = all.into_iter().map(|(name, rows)| {
        // No ranges are no ports only where the rows do not say otherwise.
        let known = !rows.untold || !rows.ranges.is_empty();
        let ports = known.then(|| rows.ranges.into_values().map(union).fold(0, u32::saturating_add));
        (name, Instance { addresses: rows.addresses, ports, ..Instance::default() })
    });
    let notes = if rules { vec!["ports of NAT rules are not counted".to_owned()] } else { Vec::new() };
    let described = Described {
        profile: Some(Profile::Gcp),
        // Others may serve machines that are not listed, or none yet.
        least_ips: u32::try_from(nat_ips.len()).ok().filter(|ips| *ips != 0),
        ..Described::default()
    };
    Ok(Said { tool: TOOL, described, instances: instances.collect(), notes, ..Said::default() })
}

/// One machine.
pub(super) fn one(machine: &Value) -> Result<Said, BadDocument> {
    read(&Value::Array(vec![machine.clone()]), "")
}

/// `203.0.113.1:1024-1535`, both ends inclusive.
fn range(text: &str) -> Option<(IpAddr, PortRange)> {
    let (ip, ports) = text.rsplit_once(':')?;
    Some((ip.trim_matches(['[', ']']).parse().ok()?, ports.parse().ok()?))
}

/// How many ports are in any of the ranges.
fn union(mut ranges: Vec<PortRange>) -> u32 {
    ranges.sort_unstable();
    let (mut ports, mut next) = (0_u32, 0_u32);
    for range in ranges {
        let end = u32::from(range.last()) + 1;
        ports = ports.saturating_add(end.saturating_sub(next.max(u32::from(range.first()))));
        next = next.max(end);
    }
    ports
}
