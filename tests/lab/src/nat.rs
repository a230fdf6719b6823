//! A node behind a NAT gateway that runs dry.
//!
//! ```text
//!  pods 10.64.0.x ── node 10.0.0.2 ── 10.0.0.1 gateway 192.0.2.1 ── outside 203.0.113.7, 203.0.113.8, 198.51.100.9
//!                    MASQUERADE of     MASQUERADE to few ports
//!                    what leaves 10/8  (what Cloud NAT gives one VM)
//! ```
//!
//! What it does not imitate: a pressed kernel NAT takes over translations that are in TIME_WAIT (nf_nat_core's
//! `nf_nat_used_tuple_harder`; seen on 6.18: of 64 ports the 60th closed connection already reused one, and 64 more in
//! a row all opened), which Cloud NAT does not. Held connections run dry exactly; for closed ones that still hold their
//! port give the gateway a range in which a free port is found within the first few tries, such as `1024..=65535`.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::Result;

use crate::conntrack::{self, Held, Protocol};
use crate::lab::Lab;
use crate::netns::{Netns, veth};
use crate::process::Process;

mod dynamic;
mod ipv6;

pub use dynamic::{DynamicPorts, Grown, Growth};
pub use ipv6::OUTSIDE_V6;

/// The node's address on its network.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The gateway's address on the node's network.
pub const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The address all translated traffic comes from.
pub const NAT_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The addresses of the outside; servers bind to them.
pub const OUTSIDE_ADDRESSES: [Ipv4Addr; 4] = [
    Ipv4Addr::new(203, 0, 113, 7),
    Ipv4Addr::new(203, 0, 113, 8),
    Ipv4Addr::new(198, 51, 100, 9),
    Ipv4Addr::new(198, 51, 100, 10),
];

/// The conntrack time-outs of a namespace that tests care about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    pub tcp_established: Duration,
    pub tcp_time_wait: Duration,
    /// Half-open and half-closed connections.
    pub tcp_transitory: Duration,
    /// Reset connections.
    pub tcp_close: Duration,
    pub udp: Duration,
}

impl Timeouts {
    /// Cloud NAT's defaults; what it does after a reset is not documented, the transitory time is assumed.
    pub const CLOUD_NAT: Self = Self {
        tcp_established: Duration::from_secs(1200),
        tcp_time_wait: Duration::from_secs(120),
        tcp_transitory: Duration::from_secs(30),
        tcp_close: Duration::from_secs(30),
        udp: Duration::from_secs(30),
    };

    fn apply(&self, netns: &Netns) -> Result<()> {
        for (name, value) in [
            ("tcp_timeout_established", self.tcp_established),
            ("tcp_timeout_time_wait", self.tcp_time_wait),
            ("tcp_timeout_syn_sent", self.tcp_transitory),
            ("tcp_timeout_syn_recv", self.tcp_transitory),
            ("tcp_timeout_fin_wait", self.tcp_transitory),
            ("tcp_timeout_close_wait", self.tcp_transitory),
            ("tcp_timeout_last_ack", self.tcp_transitory),
            ("tcp_timeout_close", self.tcp_close),
            ("udp_timeout", self.udp),
            ("udp_timeout_stream", self.udp),
        ] {
            netns.set_sysctl(&format!("net.netfilter.nf_conntrack_{name}"), &value.as_secs().to_string())?;
        }
        Ok(())
    }
}

/// How the NAT lab is to be.
#[derive(Debug, Clone)]
pub struct NatOptions {
    /// How many plain pods (a namespace with a process, known to no runtime): 10.64.0.101 and on.
    pub pods: u8,
    /// The source ports the gateway may use, per destination.
    pub ports: RangeInclusive<u16>,
    pub timeouts: Timeouts,
    /// `--random-fully` on the node's MASQUERADE.
    pub node_random_fully: bool,
}

impl Default for NatOptions {
    fn default() -> Self {
        Self { pods: 2, ports: 1024..=1087, timeouts: Timeouts::CLOUD_NAT, node_random_fully: false }
    }
}

/// A pod without a runtime: a namespace on a link to the node, with a process that lives in it.
#[derive(Debug)]
pub struct PlainPod {
    pub netns: Netns,
    pub address: Ipv4Addr,
    /// What makes it alive: `sleep infinity`.
    pub process: Process,
}

/// The four kinds of namespace, wired.
#[derive(Debug)]
pub struct NatLab {
    pub pods: Vec<PlainPod>,
    pub node: Netns,
    pub gateway: Netns,
    pub outside: Netns,
    ports: RangeInclusive<u16>,
}

impl NatLab {
    /// Builds it; takes about a second.
    pub fn build(lab: &Lab, options: &NatOptions) -> Result<Self> {
        let node = Netns::add(lab, "node")?;
        let gateway = Netns::add(lab, "gateway")?;
        let outside = Netns::add(lab, "outside")?;

        veth((&node, "eth0"), (&gateway, "inside"))?;
        node.add_address("eth0", &format!("{NODE_ADDRESS}/24"))?;
        gateway.add_address("inside", &format!("{GATEWAY_ADDRESS}/24"))?;
        node.add_route(&["default", "via", &GATEWAY_ADDRESS.to_string()])?;

        veth((&gateway, "outside"), (&outside, "eth0"))?;
        gateway.add_address("outside", &format!("{NAT_ADDRESS}/24"))?;
        outside.add_address("eth0", "192.0.2.254/24")?;
        for address in OUTSIDE_ADDRESSES {
            outside.add_address("lo", &format!("{address}/32"))?;
        }
        gateway.add_route(&["default", "via", "192.0.2.254"])?;

        for netns in [&node, &gateway] {
            netns.set_sysctl("net.ipv4.ip_forward", "1")?;
        }
        masquerade_on_node(&node, options.node_random_fully)?;
        masquerade_on_gateway(&gateway, &options.ports)?;
        options.timeouts.apply(&gateway)?;

        let pods = (0..options.pods).map(|number| plain_pod(&node, number)).collect::<Result<_>>()?;
        Ok(Self { pods, node, gateway, outside, ports: options.ports.clone() })
    }

    /// How many source ports the gateway has for each destination.
    pub fn gateway_ports(&self) -> usize {
        self.ports.len()
    }

    /// What the gateway's own table holds for a destination.
    pub fn gateway_held(&self, protocol: Protocol, destination: SocketAddr) -> Result<Held> {
        conntrack::held(&self.gateway, protocol, destination)
    }

    /// What the node's own table holds for a destination (with the pods' addresses as sources).
    pub fn node_held(&self, protocol: Protocol, destination: SocketAddr) -> Result<Held> {
        conntrack::held(&self.node, protocol, destination)
    }

    /// Sets the gateway's time-outs anew; entries that exist keep theirs until their next packet.
    pub fn set_gateway_timeouts(&self, timeouts: &Timeouts) -> Result<()> {
        timeouts.apply(&self.gateway)
    }

    /// Adds an address to the outside.
    pub fn add_outside_address(&self, address: Ipv4Addr) -> Result<()> {
        self.outside.add_address("lo", &format!("{address}/32"))
    }

    /// From now on the outside answers nothing that comes to this TCP port.
    pub fn silence(&self, port: u16) -> Result<()> {
        let port = port.to_string();
        let rule = ["-w", "-A", "INPUT", "-p", "tcp", "--dport", &port, "-j", "DROP"];
        self.outside.exec("iptables", &rule).map(drop)
    }

    /// From now on the gateway answers packets of connections it does not know with a reset, as AWS and Azure do. A kernel's NAT
    /// would take them for new connections.
    pub fn reset_what_is_unknown(&self) -> Result<()> {
        self.gateway.set_sysctl("net.netfilter.nf_conntrack_tcp_loose", "0")?;
        let rule = ["-w", "-A", "FORWARD", "-p", "tcp", "-m", "conntrack", "--ctstate", "INVALID"];
        self.gateway.exec("iptables", &[&rule[..], &["-j", "REJECT", "--reject-with", "tcp-reset"]].concat()).map(drop)
    }

    /// Empties the gateway's table: every held port is free again.
    pub fn flush_gateway(&self) -> Result<()> {
        self.gateway.exec("conntrack", &["-F"]).map(drop)
    }
}

/// What GKE's ip-masq-agent writes: everything to non-private addresses leaves with the node's address.
pub(crate) fn masquerade_on_node(node: &Netns, random_fully: bool) -> Result<()> {
    let iptables = |args: &[&str]| node.exec("iptables", &[&["-w", "-t", "nat"], args].concat()).map(drop);
    iptables(&["-N", "IP-MASQ"])?;
    let comment =
        "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our IP-MASQ chain";
    iptables(&[
        "-A",
        "POSTROUTING",
        "-m",
        "comment",
        "--comment",
        comment,
        "-m",
        "addrtype",
        "!",
        "--dst-type",
        "LOCAL",
        "-j",
        "IP-MASQ",
    ])?;
    for private in ["169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"] {
        iptables(&["-A", "IP-MASQ", "-d", private, "-j", "RETURN"])?;
    }
    let mut masquerade = vec!["-A", "IP-MASQ", "-j", "MASQUERADE"];
    if random_fully {
        masquerade.push("--random-fully");
    }
    iptables(&masquerade)
}

fn masquerade_on_gateway(gateway: &Netns, ports: &RangeInclusive<u16>) -> Result<()> {
    let ports = format!("{}-{}", ports.start(), ports.end());
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        gateway.exec(
            "iptables",
            &[
                "-w",
                "-t",
                "nat",
                "-A",
                "POSTROUTING",
                "-o",
                "outside",
                "-p",
                protocol.name(),
                "-j",
                "MASQUERADE",
                "--to-ports",
                &ports,
            ],
        )?;
    }
    Ok(())
}

/// A pod on a point-to-point link, as the `ptp` plugin makes it.
pub(crate) fn plain_pod(node: &Netns, number: u8) -> Result<PlainPod> {
    let netns = Netns::add(node.lab(), &format!("pod{number}"))?;
    let address = Ipv4Addr::new(10, 64, 0, 101_u8.saturating_add(number));
    let (link, host) = (format!("pod{number}"), "10.64.0.1");
    veth((&netns, "eth0"), (node, &link))?;
    netns.add_address("eth0", &format!("{address}/32"))?;
    netns.add_route(&[host, "dev", "eth0", "scope", "link"])?;
    netns.add_route(&["default", "via", host])?;
    node.add_address(&link, &format!("{host}/32"))?;
    node.add_route(&[&format!("{address}/32"), "dev", &link, "scope", "host"])?;
    let process = netns.spawn(netns.command("sleep", &["infinity"]))?;
    Ok(PlainPod { netns, address, process })
}
