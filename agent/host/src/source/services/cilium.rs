//! Services in Cilium's maps (`cilium_lb4_services_v2`, `cilium_lb6_services_v2`).
//!
//! `struct lb4_key`, `struct lb6_key` and `struct lb4_service` of `bpf/lib/common.h`: the sizes and what is read here are the
//! same from Cilium 1.8 to 1.18. The entry of a Service itself has the slot 0; those of its Endpoints follow.

use std::path::Path;
use std::time::Instant;

use headroom_core::flow::Protocol;
use headroom_core::observe::{NodePort, RuleFamily, ServiceProxy};
use headroom_core::ports::PortRange;

use super::Reading;
use crate::bounded;
use crate::ebpf::maps::{Pinned, PinnedError};
use crate::root::HostRoot;

/// Where Cilium and GKE's anetd pin their maps.
const FOLDER: &str = "/sys/fs/bpf/tc/globals";
/// Entries read at most; Cilium makes room for 65,536 unless told otherwise.
const ENTRIES_LIMIT: usize = 1 << 20;
/// `SVC_FLAG_NODEPORT`
const FLAG_NODE_PORT: u8 = 1 << 1;
/// What Cilium compiles its programs with; versions that load them with their settings instead (1.18) do not write the range there.
const SETTINGS: &str = "/var/run/cilium/state/globals/node_config.h";
/// It has some hundred lines.
const SETTINGS_LIMIT_BYTES: usize = 1 << 20;
/// The interface that Cilium makes on every node.
const INTERFACE: &str = "/sys/class/net/cilium_host";

/// Bytes of a key for IPv4 and IPv6, and of a value of either.
pub const KEY_V4: usize = 12;
/// Likewise.
pub const KEY_V6: usize = 24;
/// Likewise.
pub const VALUE: usize = 12;

/// Reads the maps, if they are there.
pub(super) fn read(reading: &mut Reading, root: &HostRoot, deadline: Instant) {
    let mut entries = 0;
    let mut there = false;
    for (map, v6) in [("cilium_lb4_services_v2", false), ("cilium_lb6_services_v2", true)] {
        let path = root.path(FOLDER).join(map);
        let mut found = Vec::new();
        let read = if v6 {
            map_of::<KEY_V6>(&path, deadline, &mut entries, &mut found)
        } else {
            map_of::<KEY_V4>(&path, deadline, &mut entries, &mut found)
        };
        there |= !matches!(read, Err(PinnedError::Missing));
        match read {
            Ok(true) | Err(PinnedError::Missing) => {}
            Ok(false) => {
                reading.missing.push(format!("Cilium's map `{map}` was read in part: it is large, or came too slowly"))
            }
            Err(error) => reading.missing.push(format!("Cilium's map `{}`: {error}", path.display())),
        }
        for (protocol, port) in found {
            let family = if v6 { RuleFamily::Ip6 } else { RuleFamily::Ip };
            reading.node_ports.push(NodePort { proxy: ServiceProxy::Cilium, family, protocol, port, service: None });
        }
    }
    if entries > 0 {
        reading.seen.push(format!("{entries} entries in Cilium's maps of Services"));
    }
    // Cilium beside kube-proxy has Services in its maps, but no NodePorts: those are kube-proxy's.
    if reading.node_ports.iter().any(|port| port.proxy == ServiceProxy::Cilium) {
        reading.proxies.push(ServiceProxy::Cilium);
        // Without it the range is assumed, and said to be.
        let settings = bounded::read_in(root, Path::new(SETTINGS), SETTINGS_LIMIT_BYTES).ok();
        reading.range = settings.and_then(|settings| configured_range(&settings));
    }
    if there {
        return;
    }
    if root.path(INTERFACE).exists() {
        let why = format!("Cilium is on this node, but its maps are not in `{FOLDER}`; is the bpffs mounted here?");
        reading.missing.push(why);
    } else if !root.is_live() && !root.path(FOLDER).exists() {
        reading.missing.push(format!("`{FOLDER}` is not in this tree: Cilium may have Services"));
    }
}

/// The range of NodePorts in Cilium's settings: `#define NODEPORT_PORT_MIN 30000`, `#define NODEPORT_PORT_MAX 32767`.
pub fn configured_range(settings: &[u8]) -> Option<PortRange> {
    let settings = str::from_utf8(settings).ok()?;
    let defined = |name: &str| -> Option<u16> {
        let mut defined = settings.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let of = words.next() == Some("#define") && words.next() == Some(name);
            of.then(|| words.next()).flatten()
        });
        defined.next()?.parse().ok()
    };
    PortRange::new(defined("NODEPORT_PORT_MIN")?, defined("NODEPORT_PORT_MAX")?).filter(|range| range.first() > 0)
}

fn map_of<const K: usize>(
    path: &Path,
    deadline: Instant,
    entries: &mut usize,
    found: &mut Vec<(Protocol, u16)>,
) -> Result<bool, PinnedError> {
    Pinned::<K, VALUE>::open(path)?.for_each(
        |key, value| {
            *entries += 1;
            found.extend(node_port(key, value).into_iter().flatten().flatten());
        },
        |seen| seen < ENTRIES_LIMIT && Instant::now() < deadline,
    )
}

/// The NodePort of an entry, if it is that of one. A key without a protocol (before Cilium 1.17, and later unless told
/// otherwise) is that of TCP and UDP alike.
pub fn node_port(key: &[u8], value: &[u8; VALUE]) -> Option<[Option<(Protocol, u16)>; 2]> {
    // Behind the address: port, slot, protocol, scope.
    let [high, low, slot_low, slot_high, protocol, ..] = *key.get(key.len().checked_sub(8)?..)? else { return None };
    let [.., flags, _, _, _] = *value;
    let port = u16::from_be_bytes([high, low]);
    if (slot_low, slot_high) != (0, 0) || port == 0 || flags & FLAG_NODE_PORT == 0 {
        return None;
    }
    Some(match protocol {
        0 => [Protocol::TCP, Protocol::UDP].map(|protocol| Some((protocol, port))),
        protocol => [Some((Protocol(protocol), port)), None],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(port: u16, slot: u16, protocol: u8) -> [u8; KEY_V4] {
        let ([high, low], [slot_low, slot_high]) = (port.to_be_bytes(), slot.to_ne_bytes());
        [192, 0, 2, 10, high, low, slot_low, slot_high, protocol, 0, 0, 0]
    }

    fn flags(flags: u8) -> [u8; VALUE] {
        [0, 0, 0, 0, 1, 0, 7, 0, flags, 0, 0, 0]
    }

    /// Exercises Cilium's layout. If this fails, Endpoints or ClusterIPs are taken for NodePorts.
    #[test]
    fn an_entry_of_a_node_port_is_one_and_those_of_its_endpoints_and_of_cluster_ips_are_none() {
        let told =
            |key: &[u8], value| node_port(key, &value).map(|ports| ports.into_iter().flatten().collect::<Vec<_>>());
        assert_eq!(told(&key(30_080, 0, 6), flags(2)), Some(vec![(Protocol::TCP, 30_080)]));
        let all = [Protocol::TCP, Protocol::UDP].map(|protocol| (protocol, 30_080)).to_vec();
        assert_eq!(told(&key(30_080, 0, 0), flags(2 | 0x10)), Some(all));
        assert_eq!(told(&key(30_080, 1, 6), flags(2)), None);
        assert_eq!(told(&key(30_080, 0, 6), flags(0)), None);
        // A hostPort.
        assert_eq!(told(&key(8080, 0, 17), flags(8)), None);
        let mut v6 = [0_u8; KEY_V6];
        v6[16..].copy_from_slice(&key(30_443, 0, 6)[4..]);
        assert_eq!(told(&v6, flags(2)), Some(vec![(Protocol::TCP, 30_443)]));
    }

    /// Exercises Cilium's settings, as version 1.14 writes them. If this fails, a cluster with another range is judged by the default.
    #[test]
    fn the_range_of_node_ports_is_in_ciliums_settings() {
        let range = |settings: &str| configured_range(settings.as_bytes()).map(|range| range.to_string());
        let with = |lines: &str| {
            format!("/*\n * 10.0.0.2\n */\n\n#define NAT46 1\n{lines}#define NODEPORT_PORT_MIN_NAT 24768\n")
        };
        let both = with("#define NODEPORT_PORT_MAX 24767\n#define NODEPORT_PORT_MIN 22000\n");
        assert_eq!(range(&both).as_deref(), Some("22000-24767"));
        for odd in [
            "",
            "#define NODEPORT_PORT_MAX 24767\n",
            "#define NODEPORT_PORT_MAX 24767\n#define NODEPORT_PORT_MIN (1 + 2)\n",
            "#define NODEPORT_PORT_MAX 22000\n#define NODEPORT_PORT_MIN 24767\n",
            "#define NODEPORT_PORT_MAX 70000\n#define NODEPORT_PORT_MIN 0\n",
            "// #define NODEPORT_PORT_MAX 2\n#define NODEPORT_PORT_MIN 1\n",
        ] {
            assert_eq!(range(&with(odd)), None, "{odd}");
        }
    }

    proptest! {
        #[test]
        fn any_entry_is_read_without_panic(key in prop::collection::vec(any::<u8>(), 0..40), value in any::<[u8; VALUE]>()) {
            let _port = node_port(&key, &value);
        }
    }
}
