//! kube-proxy's NodePorts: rules of a chain with `iptables-nft`, keys of maps in a table of its own with nftables.

use std::time::Instant;

use headroom_core::flow::Protocol;
use headroom_core::observe::{NodePort, RuleFamily, ServiceProxy};

use super::elements;
use crate::netlink::message::Malformed;
use crate::netlink::nftables::rule::{SetInWords, rule};
use crate::netlink::nftables::{Place, RawRule};
use crate::source::rules::Reading;

/// kube-proxy's table, and its maps with NodePorts as keys.
pub(super) const TABLE: &str = "kube-proxy";
const MAPS: [&str; 2] = ["service-nodeports", "no-endpoint-nodeports"];
/// kube-proxy's chain of NodePorts, in tables of `iptables-nft`.
pub(super) const CHAIN: &str = "KUBE-NODEPORTS";
/// Elements of a map at most: one for each NodePort, and no more of these are kept.
const ELEMENTS_LIMIT: usize = super::super::NODE_PORTS_LIMIT;

/// A NodePort as a rule of `iptables-nft`: `-p tcp -m comment --comment "ns/name:port" --dport 30080 -j KUBE-EXT-…`.
pub(super) fn of_rule(raw: &RawRule<'_>, family: RuleFamily) -> Result<Option<NodePort>, Malformed> {
    let parts = rule(raw, family, 1, &mut |_set| SetInWords::default())?.parts;
    let (Some(protocol), Some(port)) = (parts.protocols.single(), parts.destination_port) else { return Ok(None) };
    Ok(Some(NodePort { proxy: ServiceProxy::Iptables, family, protocol, port, service: parts.comment }))
}

/// NodePorts as keys of maps: protocol and port, each in four bytes; the chain it leads to holds the Service's name. What is missing
/// of them is said.
pub(super) fn maps(reading: &mut Reading, family: RuleFamily, deadline: Instant) {
    for map in MAPS {
        let place = Place { family, table: TABLE, within: Some(map) };
        let mut found = Vec::new();
        let read = elements(&place, ELEMENTS_LIMIT, deadline, |element| {
            let [protocol, _, _, _, high, low, ..] = *element.key else { return };
            found.push(NodePort {
                proxy: ServiceProxy::Nftables,
                family,
                protocol: Protocol(protocol),
                port: u16::from_be_bytes([high, low]),
                service: element.chain.as_deref().and_then(service),
            });
        });
        let missing = match read {
            Ok(false) => None,
            Ok(true) => Some(format!(" has more than {ELEMENTS_LIMIT} elements")),
            // Older versions of kube-proxy lack one of them.
            Err(error) if error.is_missing() => None,
            Err(error) => Some(format!(": {error}; {} were read", found.len())),
        };
        reading.missing.extend(missing.map(|why| format!("kube-proxy's map `{} {map}`{why}", family.name())));
        reading.node_ports.append(&mut found);
    }
}

/// `external-ULMVA6XW-ns1/svc1/tcp/p80` names `ns1/svc1:p80`.
fn service(chain: &str) -> Option<String> {
    let rest = chain.split_once('-')?.1.split_once('-')?.1;
    let mut words = rest.split('/');
    let (namespace, name, _protocol) = (words.next()?, words.next()?, words.next()?);
    let port = words.next().filter(|port| !port.is_empty()).map(|port| format!(":{port}")).unwrap_or_default();
    Some(format!("{namespace}/{name}{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the bound of time. If this fails, a map that the kernel is slow to list is one without NodePorts, and nobody knows
    /// which.
    #[test]
    fn a_map_that_is_not_listed_in_time_is_named() {
        let mut reading = Reading::default();
        maps(&mut reading, RuleFamily::Ip, Instant::now());
        let [first, _second] = reading.missing.as_slice() else { panic!("{reading:?}") };
        assert_eq!(first, "kube-proxy's map `ip service-nodeports`: listing elements takes too long; 0 were read");
    }

    #[test]
    fn a_chain_of_kube_proxy_names_its_service() {
        assert_eq!(service("external-ULMVA6XW-ns1/svc1/tcp/p80").as_deref(), Some("ns1/svc1:p80"));
        assert_eq!(service("external-ULMVA6XW-ns1/svc1/udp/").as_deref(), Some("ns1/svc1"));
        assert_eq!(service("reject-chain"), None);
    }
}
