//! The shapes of Azure's state files (Azure/azure-container-networking: `cni/ipam`, `network/endpoint.go`,
//! `cns/restserver`). Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use headroom_core::ids::PodName;
use headroom_core::known::Known;
use headroom_core::observe::{Holder, Pool, Reservation};
use headroom_core::time::WallTime;
use serde::Deserialize;

use crate::source::pod_store::{self, BadState};

/// What `azure-vnet-ipam.json` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vnet {
    /// All addresses of the node.
    pub pool: Pool,
    /// Those in use, and by whom.
    pub in_use: BTreeMap<IpAddr, Known<Holder>>,
}

/// An endpoint: a container's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    holder: Known<Holder>,
    pod: Option<PodName>,
    addresses: Vec<IpAddr>,
}

impl Endpoint {
    /// A reservation for each of its addresses.
    pub(super) fn reservations(&self, store: &str) -> impl Iterator<Item = Reservation> {
        self.addresses.iter().map(move |address| Reservation {
            store: store.into(),
            address: *address,
            holder: self.holder.clone(),
            modified: no_time(),
            pod: self.pod.clone(),
        })
    }
}

/// No file of Azure's tells since when an address is taken.
pub(super) fn no_time() -> Known<WallTime> {
    Known::because("Azure's state does not tell since when")
}

#[derive(Deserialize)]
struct IpamFile {
    #[serde(rename = "IPAM")]
    ipam: Ipam,
}

#[derive(Deserialize)]
struct Ipam {
    #[serde(default, rename = "AddressSpaces")]
    spaces: Option<BTreeMap<String, Space>>,
}

#[derive(Deserialize)]
struct Space {
    #[serde(default, rename = "Pools")]
    pools: Option<BTreeMap<String, AddressPool>>,
}

#[derive(Deserialize)]
struct AddressPool {
    #[serde(default, rename = "Addresses")]
    addresses: Option<BTreeMap<String, Address>>,
}

#[derive(Deserialize)]
struct Address {
    #[serde(default, rename = "ID")]
    id: String,
    #[serde(default, rename = "InUse")]
    in_use: bool,
}

/// Reads `azure-vnet-ipam.json`.
///
/// # Errors
/// Bytes of another shape.
pub fn ipam(bytes: &[u8]) -> Result<Vnet, BadState> {
    let file: IpamFile = pod_store::json(bytes)?;
    let pools = file.ipam.spaces.into_iter().flatten().flat_map(|(_, space)| space.pools.into_iter().flatten());
    let mut total = 0_u64;
    let mut in_use = BTreeMap::new();
    for (text, address) in pools.flat_map(|(_, pool)| pool.addresses.into_iter().flatten()) {
        total += 1;
        if address.in_use {
            let parsed = text.parse().map_err(|_not_an_address| BadState::Missing("address where one is in use"))?;
            in_use.insert(parsed, pod_store::holder(&address.id, None));
        }
    }
    let assigned = u64::try_from(in_use.len()).unwrap_or(u64::MAX);
    let pool = Pool { total, assigned, cooling: 0, interfaces: Vec::new(), prefixes: false, targets: Known::Absent };
    Ok(Vnet { pool, in_use })
}

#[derive(Deserialize)]
struct VnetFile {
    #[serde(rename = "Network")]
    network: VnetNetwork,
}

#[derive(Deserialize)]
struct VnetNetwork {
    #[serde(default, rename = "ExternalInterfaces")]
    interfaces: Option<BTreeMap<String, ExternalInterface>>,
}

#[derive(Deserialize)]
struct ExternalInterface {
    #[serde(default, rename = "Networks")]
    networks: Option<BTreeMap<String, InnerNetwork>>,
}

#[derive(Deserialize)]
struct InnerNetwork {
    #[serde(default, rename = "Endpoints")]
    endpoints: Option<BTreeMap<String, VnetEndpoint>>,
}

#[derive(Deserialize)]
struct VnetEndpoint {
    /// The interface in the pod; older versions left it out.
    #[serde(default, rename = "IfName")]
    ifname: String,
    #[serde(default, rename = "ContainerID")]
    container: String,
    #[serde(default, rename = "PODName", alias = "PodName")]
    pod: String,
    #[serde(default, rename = "PODNameSpace", alias = "PodNamespace")]
    namespace: String,
    #[serde(default, rename = "IPAddresses")]
    addresses: Option<Vec<IpNet>>,
}

/// `net.IPNet` of Go.
#[derive(Deserialize)]
struct IpNet {
    #[serde(default, rename = "IP")]
    ip: String,
}

/// Reads `azure-vnet.json`.
///
/// # Errors
/// Bytes of another shape.
pub fn vnet(bytes: &[u8]) -> Result<Vec<Endpoint>, BadState> {
    let file: VnetFile = pod_store::json(bytes)?;
    let interfaces = file.network.interfaces.into_iter().flatten();
    let networks = interfaces.flat_map(|(_, interface)| interface.networks.into_iter().flatten());
    let endpoints = networks.flat_map(|(_, network)| network.endpoints.into_iter().flatten());
    Ok(endpoints
        .map(|(_, endpoint)| Endpoint {
            holder: pod_store::holder(&endpoint.container, Some(&endpoint.ifname)),
            pod: pod_store::pod(&endpoint.namespace, &endpoint.pod),
            addresses: addresses(endpoint.addresses),
        })
        .collect())
}

#[derive(Deserialize)]
struct EndpointsFile {
    #[serde(default, rename = "Endpoints")]
    endpoints: Option<BTreeMap<String, CnsEndpoint>>,
}

#[derive(Deserialize)]
struct CnsEndpoint {
    #[serde(default, rename = "PodName")]
    pod: String,
    #[serde(default, rename = "PodNamespace")]
    namespace: String,
    #[serde(default, rename = "IfnameToIPMap")]
    interfaces: Option<BTreeMap<String, Option<CnsInterface>>>,
}

#[derive(Deserialize)]
struct CnsInterface {
    #[serde(default, rename = "IPv4")]
    v4: Option<Vec<IpNet>>,
    #[serde(default, rename = "IPv6")]
    v6: Option<Vec<IpNet>>,
}

/// Reads `azure-endpoints.json`.
///
/// # Errors
/// Bytes of another shape.
pub fn endpoints(bytes: &[u8]) -> Result<Vec<Endpoint>, BadState> {
    let file: EndpointsFile = pod_store::json(bytes)?;
    let mut found = Vec::new();
    for (container, endpoint) in file.endpoints.ok_or(BadState::Missing("Endpoints"))? {
        let pod = pod_store::pod(&endpoint.namespace, &endpoint.pod);
        for (ifname, interface) in endpoint.interfaces.into_iter().flatten() {
            let Some(interface) = interface else { continue };
            let both = interface.v4.into_iter().flatten().chain(interface.v6.into_iter().flatten()).collect();
            let holder = pod_store::holder(&container, Some(&ifname));
            found.push(Endpoint { holder, pod: pod.clone(), addresses: addresses(Some(both)) });
        }
    }
    Ok(found)
}

fn addresses(nets: Option<Vec<IpNet>>) -> Vec<IpAddr> {
    let parsed = nets.into_iter().flatten().filter_map(|net| net.ip.parse::<IpAddr>().ok());
    parsed.map(|address| address.to_canonical()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f2b9c0de1a4f5b6c7d8e9f00112233445566778899aabbccddeeff001122334";

    #[test]
    fn the_ipam_file_tells_all_addresses_and_those_in_use() {
        let text = format!(
            r#"{{"IPAM":{{"Version":"v1.0.17","TimeStamp":"2019-03-18T21:48:15.199533623Z","AddressSpaces":{{"local":{{"Id":"local","Scope":0,
             "Pools":{{"10.240.0.0/16":{{"Id":"10.240.0.0/16","IfName":"eth0","Subnet":{{"IP":"10.240.0.0","Mask":"//8AAA=="}},"Gateway":"10.240.0.1",
             "Addresses":{{"10.240.0.5":{{"ID":"{ID}","Addr":"10.240.0.5","InUse":true}},"10.240.0.6":{{"ID":"","Addr":"10.240.0.6","InUse":false}},
             "10.240.0.7":{{"ID":"","Addr":"10.240.0.7","InUse":true}}}},"RefCount":1}}}}}}}}}}}}"#
        );
        let vnet = ipam(text.as_bytes()).unwrap();
        assert_eq!((vnet.pool.total, vnet.pool.assigned), (3, 2));
        let holders: Vec<_> = vnet.in_use.values().collect();
        assert_eq!(holders[0].present().unwrap().container.0, ID);
        assert!(holders[1].unknown().is_some(), "in use by nobody that is named");
    }

    #[test]
    fn an_endpoint_names_container_pod_and_addresses() {
        let text = format!(
            r#"{{"Network":{{"Version":"v1.4.35","ExternalInterfaces":{{"eth0":{{"Name":"eth0","Networks":{{"azure":{{"Id":"azure","Mode":"transparent",
             "Endpoints":{{"3f2b9c0d-eth0":{{"Id":"3f2b9c0d-eth0","SandboxKey":"","IfName":"eth0","HostIfName":"azv3f2b9c0","MacAddress":"vI1=",
             "IPAddresses":[{{"IP":"10.240.0.5","Mask":"//8AAA=="}}],"ContainerID":"{ID}","PODName":"web-1","PODNameSpace":"default"}}}}}}}}}}}}}}}}"#
        );
        let [endpoint] = vnet(text.as_bytes()).unwrap().try_into().unwrap();
        let [reservation]: [Reservation; 1] = endpoint.reservations("s").collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(reservation.address, IpAddr::from([10, 240, 0, 5]));
        assert_eq!(reservation.pod.unwrap().to_string(), "default/web-1");
        assert_eq!(reservation.holder.present().unwrap().ifname.as_deref(), Some("eth0"));
        assert!(reservation.modified.unknown().is_some());
    }

    #[test]
    fn cns_keys_its_endpoints_by_container() {
        let text = format!(
            r#"{{"Endpoints":{{"{ID}":{{"PodName":"web-1","PodNamespace":"default","IfnameToIPMap":{{"eth0":{{
             "IPv4":[{{"IP":"10.244.1.5","Mask":"////AA=="}}],"IPv6":[{{"IP":"fd00::5","Mask":"//////////8AAAAAAAAAAA=="}}],"NICType":"InfraNIC"}},
             "eth1":null}}}}}}}}"#
        );
        let [endpoint] = endpoints(text.as_bytes()).unwrap().try_into().unwrap();
        let reservations: Vec<Reservation> = endpoint.reservations("s").collect();
        assert_eq!(reservations.len(), 2);
        assert!(reservations.iter().all(|one| one.holder.present().unwrap().container.0 == ID));
    }

    #[test]
    fn other_files_are_refused_by_name() {
        for bytes in [&b"{}"[..], b"[]", b"{\"IPAM\":7}", b"\xff", b""] {
            assert!(ipam(bytes).is_err() && vnet(bytes).is_err() && endpoints(bytes).is_err(), "{bytes:?}");
        }
        let hostile = br#"{"IPAM":{"AddressSpaces":{"x":{"Pools":{"y":{"Addresses":{"../..":{"InUse":true}}}}}}}}"#;
        assert!(ipam(hostile).unwrap_err().to_string().contains("address"));
        assert_eq!(ipam(br#"{"IPAM":{"AddressSpaces":null}}"#).unwrap().pool.total, 0);
    }
}
