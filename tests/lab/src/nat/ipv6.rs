//! IPv6 beside the NAT: routed, and translated by nobody.

use std::net::Ipv6Addr;

use anyhow::Result;

use super::NatLab;

/// An address of the outside.
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 7);
/// The first plain pod's address.
const POD: &str = "2001:db8:64::65";

impl NatLab {
    /// Gives the first plain pod an IPv6 address and a way to [`OUTSIDE_V6`], which no one translates.
    pub fn add_ipv6(&self) -> Result<()> {
        let Some(pod) = self.pods.first() else { return Ok(()) };
        let pod = &pod.netns;
        for (netns, link, address) in [
            (pod, "eth0", format!("{POD}/64")),
            (&self.node, "pod0", "2001:db8:64::1/64".to_owned()),
            (&self.node, "eth0", "2001:db8:1::2/64".to_owned()),
            (&self.gateway, "inside", "2001:db8:1::1/64".to_owned()),
            (&self.gateway, "outside", "2001:db8:2::1/64".to_owned()),
            (&self.outside, "eth0", "2001:db8:2::2/64".to_owned()),
            (&self.outside, "lo", format!("{OUTSIDE_V6}/128")),
        ] {
            netns.ip(&["-6", "address", "add", &address, "dev", link, "nodad"])?;
        }
        for netns in [&self.node, &self.gateway] {
            netns.set_sysctl("net.ipv6.conf.all.forwarding", "1")?;
        }
        for (netns, to, via) in [
            (pod, "default", "2001:db8:64::1"),
            (&self.node, "default", "2001:db8:1::1"),
            (&self.gateway, "2001:db8:7::/64", "2001:db8:2::2"),
            (&self.gateway, "2001:db8:64::/64", "2001:db8:1::2"),
            (&self.outside, "default", "2001:db8:2::1"),
        ] {
            netns.ip(&["-6", "route", "add", to, "via", via])?;
        }
        Ok(())
    }
}
