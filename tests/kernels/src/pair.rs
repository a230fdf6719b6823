//! A node that dials by itself, and an outside: for checks that want a table of conntrack to themselves.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use headroom_lab::netns::veth;
use headroom_lab::{Lab, Netns};

/// The outside, which answers.
pub(crate) const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
/// Where packets vanish.
pub(crate) const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

/// Both, wired.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) node: Netns,
    pub(crate) outside: Netns,
    _lab: Lab,
}

impl Pair {
    pub(crate) fn build(name: &str) -> Result<Self> {
        let lab = Lab::new()?;
        let (node, outside) = (Netns::add(&lab, &format!("{name}-node"))?, Netns::add(&lab, &format!("{name}-out"))?);
        veth((&node, "out0"), (&outside, "eth0"))?;
        node.add_address("out0", "192.0.2.1/24")?;
        outside.add_address("eth0", &format!("{OUTSIDE}/24"))?;
        node.add_route(&["198.51.100.0/24", "via", &OUTSIDE.to_string()])?;
        outside.add_route(&["blackhole", "198.51.100.0/24"])?;
        Ok(Self { node, outside, _lab: lab })
    }
}
