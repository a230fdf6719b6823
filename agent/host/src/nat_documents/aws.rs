//! AWS NAT gateways: `aws ec2 describe-nat-gateways`.

use headroom_core::model::nat::remedy::Names;
use headroom_core::model::nat::{Described, Profile};
use serde::Deserialize;
use serde_json::Value;

use super::{BadDocument, Said, choose, field};

const TOOL: &str = "aws ec2 describe-nat-gateways";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NatGateway {
    nat_gateway_id: Option<String>,
    state: Option<String>,
    connectivity_type: Option<String>,
    nat_gateway_addresses: Option<Vec<Address>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Address {
    status: Option<String>,
}

pub(super) fn nat_gateways(document: &Value, gateway: Option<&str>) -> Result<Said, BadDocument> {
    let list = document.get("NatGateways").unwrap_or(&Value::Null);
    let gateways: Vec<NatGateway> = field(list, TOOL, "NatGateways")?;
    said(gateways, gateway)
}

/// What `aws ec2 create-nat-gateway` answers.
pub(super) fn created(document: &Value, gateway: Option<&str>) -> Result<Said, BadDocument> {
    let one = document.get("NatGateway").unwrap_or(&Value::Null);
    said(vec![field(one, TOOL, "NatGateway")?], gateway)
}

fn said(gateways: Vec<NatGateway>, gateway: Option<&str>) -> Result<Said, BadDocument> {
    let gone = |gateway: &NatGateway| matches!(gateway.state.as_deref(), Some("deleted" | "deleting" | "failed"));
    let found = gateways.into_iter().filter(|gateway| !gone(gateway)).map(|gateway| {
        let listed = gateway.nat_gateway_addresses.is_some();
        let addresses = gateway.nat_gateway_addresses.unwrap_or_default();
        // Gateways of before secondary addresses say no status.
        let serves = |address: &&Address| address.status.as_deref().is_none_or(|status| status == "succeeded");
        let ips = u32::try_from(addresses.iter().filter(serves).count()).unwrap_or(u32::MAX);
        let mut notes = Vec::new();
        if gateway.connectivity_type.as_deref() == Some("private") {
            notes.push("this gateway translates between networks, not to the internet".to_owned());
        }
        let comes = |address: &Address| matches!(address.status.as_deref(), Some("assigning" | "associating"));
        let pending = gateway.state.as_deref() == Some("pending") || addresses.iter().any(comes);
        let no_ips = listed && ips == 0 && !pending;
        if no_ips {
            notes.push("none of its addresses serves: nothing is translated".to_owned());
        }
        let described = Described {
            profile: Some(Profile::Aws),
            no_ips,
            nat_ips: Some(ips).filter(|ips| *ips != 0),
            names: Names { gateway: gateway.nat_gateway_id, ..Names::default() },
            ..Described::default()
        };
        Said { tool: TOOL, described, notes, ..Said::default() }
    });
    choose(found.collect(), gateway, TOOL)
}
