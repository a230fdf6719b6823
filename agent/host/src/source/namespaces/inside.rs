//! What is read of one network namespace: its addresses, its port settings, its keepalive.

use std::net::IpAddr;
use std::path::Path;

use headroom_core::ids::NetnsInode;
use headroom_core::known::Known;
use headroom_core::observe::{Keepalive, Namespace};
use headroom_core::ports::{PortSettings, parse_port_range, parse_reserved_ports};

use super::addresses::{of_fib_trie, of_if_inet6};
use crate::bounded::{self, Refusal};
use crate::root::HostRoot;

/// `fib_trie` of a node that takes part in routing is long: 100,000 routes are 8 MB.
const TABLE_LIMIT: usize = 32 << 20;
/// Every second port reserved one by one is 200 kB.
const SYSCTL_LIMIT: usize = 512 << 10;

/// What was read inside a namespace.
pub(super) struct Inside {
    pub(super) ports: Known<PortSettings>,
    pub(super) keepalive: Known<Keepalive>,
    /// Only where no process could be asked.
    pub(super) addresses: Option<Known<Vec<IpAddr>>>,
}

impl Inside {
    /// Reads the settings of the namespace that the calling thread is in.
    pub(super) fn read(addresses: Option<Known<Vec<IpAddr>>>) -> Self {
        let root = HostRoot::live();
        Self { ports: ports(&root), keepalive: keepalive(&root), addresses }
    }
}

/// The addresses that a directory like `/proc/<pid>/net` tells.
pub(super) fn addresses(root: &HostRoot, net: &Path) -> Known<Vec<IpAddr>> {
    let table = |name: &str| {
        let path = net.join(name);
        let text = bounded::read_in(root, &path, TABLE_LIMIT).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (text, move |why: &dyn std::fmt::Display| format!("`{}` {why}", path.display()))
    };
    let (fib_trie, sentence) = table("fib_trie");
    let mut found = match fib_trie.map(|text| of_fib_trie(&text)) {
        Ok(Ok(found)) => found,
        Ok(Err(bad)) => return Known::because(sentence(&bad)),
        Err(refusal) => return Known::because(sentence(&refusal)),
    };
    let (if_inet6, sentence) = table("if_inet6");
    match if_inet6.map(|text| of_if_inet6(&text)) {
        Ok(Ok(more)) => found.extend(more),
        Ok(Err(bad)) => return Known::because(sentence(&bad)),
        // A kernel without IPv6.
        Err(Refusal::Missing) => {}
        Err(refusal) => return Known::because(sentence(&refusal)),
    }
    Known::Present(found.into_iter().collect())
}

/// The port settings of the network namespace that the calling thread is in, or of a captured node.
fn ports(root: &HostRoot) -> Known<PortSettings> {
    let sysctl = |name: &str| sysctl(root, name);
    let read = || {
        let ephemeral = parse_port_range(&sysctl("ip_local_port_range")?)
            .map_err(|bad| format!("`net.ipv4.ip_local_port_range` cannot be understood: {bad}"))?;
        let reserved = parse_reserved_ports(&sysctl("ip_local_reserved_ports")?)
            .map_err(|bad| format!("`net.ipv4.ip_local_reserved_ports` cannot be understood: {bad}"))?;
        Ok::<_, String>(PortSettings { ephemeral, reserved })
    };
    read().map_or_else(Known::because, Known::Present)
}

/// One line below `/proc/sys/net/ipv4`, or why it could not be read.
fn sysctl(root: &HostRoot, name: &str) -> Result<String, String> {
    let path = Path::new("/proc/sys/net/ipv4").join(name);
    bounded::read_line_in(root, &path, SYSCTL_LIMIT).map_err(|refusal| format!("`{}` {refusal}", path.display()))
}

/// The keepalive settings of the network namespace that the calling thread is in, or of a captured node.
fn keepalive(root: &HostRoot) -> Known<Keepalive> {
    let line = match sysctl(root, "tcp_keepalive_time") {
        Ok(line) => line,
        Err(why) => return Known::because(why),
    };
    line.parse().map_or_else(
        |_not_a_number| Known::because("`net.ipv4.tcp_keepalive_time` is not a number of seconds"),
        |time_secs| Known::Present(Keepalive { time_secs }),
    )
}

/// The node's own namespace in a captured tree. The capture may not tell its inode: 0 then.
pub(super) fn captured(root: &HostRoot) -> Namespace {
    let inode = std::fs::read_link(root.path("/proc/1/ns/net"))
        .ok()
        .and_then(|link| link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok())
        .unwrap_or(0);
    let addresses = match addresses(root, Path::new("/proc/1/net")) {
        Known::Unknown(_) => addresses(root, Path::new("/proc/net")),
        known => known,
    };
    let (ports, keepalive) = (ports(root), keepalive(root));
    Namespace { inode: NetnsInode(inode), host: true, pid: None, addresses, ports, keepalive }
}
