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
}

/// The ports of a NAT IP, as ranges.
type Ranges = BTreeMap<IpAddr, Vec<PortRange>>;

/// All machines of a router.
pub(super) fn read(list: &Value, path: &str) -> Result<Said, BadDocument> {
    let machines: Vec<Machine> = field(list, TOOL, path)?;
    let mut all: BTreeMap<String, (BTreeSet<IpAddr>, Ranges)> = BTreeMap::new();
    for (index, machine) in machines.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let name = machine.instance_name.ok_or_else(|| BadDocument::Field {
            tool: TOOL,
            path: format!("{path}.instanceName"),
            why: "it is missing".to_owned(),
        })?;
        let (addresses, ranges) = all.entry(name).or_default();
        for (row, mapping) in machine.interface_nat_mappings.unwrap_or_default().into_iter().enumerate() {
            addresses.extend(mapping.source_virtual_ip);
            for (at, text) in mapping.nat_ip_port_ranges.unwrap_or_default().iter().enumerate() {
                let (ip, range) = range(text).ok_or_else(|| BadDocument::Field {
                    tool: TOOL,
                    path: format!("{path}.interfaceNatMappings[{row}].natIpPortRanges[{at}]"),
                    why: format!("`{}` is not like `203.0.113.1:1024-1535`", shortened(text)),
                })?;
                ranges.entry(ip).or_default().push(range);
            }
        }
    }
    if all.is_empty() {
        return Err(BadDocument::Nothing { tool: TOOL, hint: String::new() });
    }
    let nat_ips: BTreeSet<IpAddr> = all.values().flat_map(|(_, ranges)| ranges.keys().copied()).collect();
    let instances = all.into_iter().map(|(name, (addresses, ranges))| {
        let ports = Some(ranges.into_values().map(union).fold(0, u32::saturating_add));
        (name, Instance { addresses, ports, ..Instance::default() })
    });
    let described = Described {
        profile: Some(Profile::Gcp),
        nat_ips: u32::try_from(nat_ips.len()).ok().filter(|ips| *ips != 0),
        ..Described::default()
    };
    Ok(Said { tool: TOOL, described, instances: instances.collect(), ..Said::default() })
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
