//! One endpoint's state, as the agent keeps it for its next start (cilium/cilium `pkg/endpoint/restore.go`,
//! `serializableEndpoint`, called a stable API there). Pure.

use std::net::IpAddr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use headroom_core::ids::PodName;
use headroom_core::known::Known;
use headroom_core::observe::{Holder, Reservation};
use serde::Deserialize;

use crate::source::pod_store::{self, BadState};

/// Before the state in the header file: this, the agent's version in base64, a colon, the state in base64.
const PREFIX: &str = "CILIUM_BASE64_";

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    holder: Known<Holder>,
    pod: Option<PodName>,
    addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
struct State {
    #[serde(rename = "ID")]
    _id: u16,
    /// Kept under docker's name for the agent's older versions.
    #[serde(default, rename = "dockerID")]
    container: String,
    #[serde(default, rename = "ContainerIfName")]
    ifname: String,
    #[serde(default, rename = "IPv4")]
    v4: String,
    #[serde(default, rename = "IPv6")]
    v6: String,
    #[serde(default, rename = "K8sPodName")]
    pod: String,
    #[serde(default, rename = "K8sNamespace")]
    namespace: String,
}

impl Endpoint {
    /// A reservation for each of its addresses; the host's own endpoint has none.
    pub(super) fn reservations(&self, store: &str) -> Vec<Reservation> {
        let reservation = |address: &IpAddr| Reservation {
            store: store.into(),
            address: *address,
            holder: self.holder.clone(),
            modified: Known::because("Cilium's state does not tell since when"),
            pod: self.pod.clone(),
        };
        self.addresses.iter().map(reservation).collect()
    }
}

/// Reads `ep_config.json`.
///
/// # Errors
/// Bytes of another shape.
pub fn of_json(bytes: &[u8]) -> Result<Endpoint, BadState> {
    let state: State = pod_store::json(bytes)?;
    let addresses = [&state.v4, &state.v6].into_iter().filter(|text| !text.is_empty() && *text != "invalid IP");
    let addresses = addresses
        .map(|text| text.parse().map_err(|_not_an_address| BadState::Missing("address that can be understood")))
        .collect::<Result<Vec<IpAddr>, BadState>>()?;
    Ok(Endpoint {
        holder: pod_store::holder(&state.container, Some(&state.ifname)),
        pod: pod_store::pod(&state.namespace, &state.pod),
        addresses,
    })
}

/// Reads `ep_config.h`.
///
/// # Errors
/// Bytes of another shape.
pub fn of_header(bytes: &[u8]) -> Result<Endpoint, BadState> {
    let missing = || BadState::Missing("line of CILIUM_BASE64_");
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().find_map(|line| Some(line.split_once(PREFIX)?.1)).ok_or_else(missing)?;
    let (_version, state) = line.trim_end().split_once(':').ok_or_else(missing)?;
    let state = BASE64_STANDARD.decode(state).map_err(|error| BadState::Json(error.to_string()))?;
    of_json(&state)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "32327f7b4cf9040af80afe9607e8b7f4305701d75e585ae216c35f9b481405b2";

    fn state(rest: &str) -> String {
        format!(
            r#"{{"ID":2665,"ContainerName":"app1","dockerID":"{ID}","DockerNetworkID":"","IfName":"lxc807633bfedea","IfIndex":19,
             "LXCMAC":"6e:b0:7d:4e:6b:e5","IPv6":"","IPv4":"10.11.255.104","NodeMAC":"42:23:dc:4d:79:b1","Options":{{"map":{{"Debug":0}}}},
             "DNSRules":null,"DNSHistory":[],{rest}"DatapathConfiguration":{{}}}}"#
        )
    }

    #[test]
    fn both_files_tell_the_same() {
        let json = state(r#""K8sPodName":"web-1","K8sNamespace":"default","#);
        let endpoint = of_json(json.as_bytes()).unwrap();
        let reservations = endpoint.reservations("s");
        assert_eq!(reservations[0].address, IpAddr::from([10, 11, 255, 104]));
        assert_eq!(reservations[0].holder.present().unwrap().container.0, ID);
        assert_eq!(reservations[0].pod.as_ref().unwrap().to_string(), "default/web-1");
        let header = format!(
            "/*\n * CILIUM_BASE64_IjEuOC4xMCI=:{}\n * \n * Container ID: {ID}\n */\n#include \"lib/utils.h\"\n",
            BASE64_STANDARD.encode(&json)
        );
        assert_eq!(of_header(header.as_bytes()).unwrap(), endpoint);
    }

    #[test]
    fn the_hosts_endpoint_has_no_address_and_strange_ones_are_refused() {
        let host = r#"{"ID":1,"ContainerName":"","IPv4":"","IPv6":"invalid IP"}"#;
        assert!(of_json(host.as_bytes()).unwrap().reservations("s").is_empty());
        assert!(of_json(br#"{"ID":1,"IPv4":"10.0"}"#).is_err());
        assert!(of_json(br#"{"ID":70000}"#).is_err());
        assert!(of_json(b"{}").unwrap_err().to_string().contains("ID"));
        assert!(of_header(b"/* nothing */").unwrap_err().to_string().contains("CILIUM_BASE64_"));
        assert!(of_header(b"CILIUM_BASE64_x").is_err() && of_header(b"CILIUM_BASE64_x:???").is_err());
        assert!(of_header(&[0xff; 1000]).is_err());
    }
}
