//! AWS NAT gateways: `aws ec2 describe-nat-gateways`.

use std::collections::BTreeMap;

use headroom_core::model::nat::remedy::Names;
use headroom_core::model::nat::{Described, Profile};
use headroom_core::words::counted;
use serde::Deserialize;
use serde_json::Value;

use super::{BadDocument, Said, choose, field, shortened};

const TOOL: &str = "aws ec2 describe-nat-gateways";

/// What a gateway does that lies between private networks.
pub(super) const PRIVATE: &str = "this gateway translates between networks, not to the internet";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NatGateway {
    nat_gateway_id: Option<String>,
    state: Option<String>,
    connectivity_type: Option<String>,
    availability_mode: Option<String>,
    nat_gateway_addresses: Option<Vec<Address>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Address {
    status: Option<String>,
    availability_zone: Option<String>,
    availability_zone_id: Option<String>,
}

pub(super) fn nat_gateways(document: &Value, gateway: Option<&str>) -> Result<Said, BadDocument> {
    let list = document.get("NatGateways").unwrap_or(&Value::Null);
    let gateways: Vec<NatGateway> = field(list, TOOL, "NatGateways")?;
    let placed = gateways.into_iter().enumerate().map(|(index, gateway)| (format!("NatGateways[{index}]"), gateway));
    said(placed, gateway)
}

/// What `aws ec2 create-nat-gateway` answers.
pub(super) fn created(document: &Value, gateway: Option<&str>) -> Result<Said, BadDocument> {
    let one = document.get("NatGateway").unwrap_or(&Value::Null);
    said([("NatGateway".to_owned(), field(one, TOOL, "NatGateway")?)].into_iter(), gateway)
}

fn said(gateways: impl Iterator<Item = (String, NatGateway)>, gateway: Option<&str>) -> Result<Said, BadDocument> {
    let gone = |gateway: &NatGateway| matches!(gateway.state.as_deref(), Some("deleted" | "deleting" | "failed"));
    let found = gateways.filter(|(_, gateway)| !gone(gateway)).map(|(path, gateway)| {
        let listed = gateway.nat_gateway_addresses.is_some();
        let addresses = gateway.nat_gateway_addresses.unwrap_or_default();
        // Gateways of before secondary addresses say no status.
        let serves = |address: &&Address| address.status.as_deref().is_none_or(|status| status == "succeeded");
        let serving = addresses.iter().filter(serves);
        let ips = u32::try_from(serving.clone().count()).unwrap_or(u32::MAX);
        let mut notes = Vec::new();
        if gateway.connectivity_type.as_deref() == Some("private") {
            notes.push(PRIVATE.to_owned());
        }
        let comes = |address: &Address| matches!(address.status.as_deref(), Some("assigning" | "associating"));
        let pending = gateway.state.as_deref() == Some("pending") || addresses.iter().any(comes);
        let no_ips = listed && ips == 0 && !pending;
        if no_ips {
            notes.push("none of its addresses serves: nothing is translated".to_owned());
        }
        let regional = is_regional(gateway.availability_mode.as_deref());
        let mut ip_notes = Vec::new();
        let nat_ips = if regional {
            let zone = |address: &Address| address.availability_zone_id.clone().or(address.availability_zone.clone());
            let (nat_ips, note) = of_a_zone(serving.map(zone));
            ip_notes.push(note);
            nat_ips
        } else {
            Some(ips)
        };
        let described = Described {
            profile: Some(Profile::Aws),
            no_ips,
            regional,
            nat_ips: nat_ips.filter(|ips| *ips != 0),
            ip_notes,
            names: Names { gateway: gateway.nat_gateway_id, ..Names::default() },
            ..Described::default()
        };
        let places = BTreeMap::from([("nat-ips", format!("{path}.NatGatewayAddresses"))]);
        Said { tool: TOOL, described, places, notes, ..Said::default() }
    });
    choose(found.collect(), gateway, TOOL)
}

/// Whether a gateway spans the zones of its region.
pub(super) fn is_regional(mode: Option<&str>) -> bool {
    mode == Some("regional")
}

/// How many addresses a zone of a regional gateway has, where each is said to be in one: of zones that differ the fewest, since nothing
/// here tells which one the node is in. With what to know about that.
pub(super) fn of_a_zone(zones: impl Iterator<Item = Option<String>>) -> (Option<u32>, String) {
    const EACH: &str =
        "a regional gateway has addresses of its own for each availability zone, and adds more as it needs them";
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for zone in zones {
        let Some(zone) = zone else {
            return (None, format!("{EACH}; which zone has which is not said: give --nat-ips for that of the node"));
        };
        let count = counts.entry(zone).or_default();
        *count = count.saturating_add(1);
    }
    let fewest = counts.iter().min_by_key(|(_, ips)| **ips);
    let most = counts.values().max();
    match (fewest, most) {
        (Some((zone, fewest)), Some(most)) if fewest != most => {
            let zone = shortened(zone);
            let note = format!(
                "{EACH}: zones have {fewest} to {}, counted are those of {zone}; give --nat-ips if the node is in another",
                counted(*most, "NAT IP")
            );
            (Some(*fewest), note)
        }
        (Some((_, each)), _) => {
            let zones = counted(counts.len() as u64, "zone");
            (
                Some(*each),
                format!("{EACH}: {} in {zones}, counted are one zone and its nodes", counted(*each, "NAT IP")),
            )
        }
        (None, _) => (None, format!("{EACH}; give --nat-ips for the zone of the node")),
    }
}
