//! A namespace's conntrack table as the tool `conntrack` prints it: the lab's ground truth.
//!
//! Read with the tool, not with our own netlink code: what is checked must not be the check.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};

use crate::netns::Netns;

/// A transport protocol that a NAT translates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// Its name as conntrack and iptables write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// One entry of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    pub protocol: Protocol,
    /// TCP's state (`ESTABLISHED`, `TIME_WAIT`, …); none for UDP.
    pub state: Option<String>,
    /// Seconds until the entry goes if nothing more is seen.
    pub timeout_secs: u64,
    /// Who opened it, before translation.
    pub source: SocketAddr,
    /// To whom, before translation.
    pub destination: SocketAddr,
    /// To whom the answers come: the translated source.
    pub translated: SocketAddr,
}

/// What a table holds for one destination.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Distinct translated source ports: what the NAT cannot give to anyone else for this destination.
    pub ports: usize,
    /// Entries per TCP state (`UDP` for UDP).
    pub states: BTreeMap<String, usize>,
    /// Entries per source address before translation at this table.
    pub sources: BTreeMap<IpAddr, usize>,
}

/// All entries of one protocol in the table of a namespace.
pub fn flows(netns: &Netns, protocol: Protocol) -> Result<Vec<Flow>> {
    let text = netns.exec("conntrack", &["-L", "-p", protocol.name()])?;
    text.lines().map(|line| parse(line).with_context(|| format!("understand conntrack's line `{line}`"))).collect()
}

/// What the table of a namespace holds for one destination.
pub fn held(netns: &Netns, protocol: Protocol, destination: SocketAddr) -> Result<Held> {
    Ok(summarise(flows(netns, protocol)?.iter().filter(|flow| flow.destination == destination)))
}

/// What the table holds, for every destination in it.
pub fn held_by_destination(netns: &Netns, protocol: Protocol) -> Result<BTreeMap<SocketAddr, Held>> {
    let flows = flows(netns, protocol)?;
    let destinations: BTreeSet<_> = flows.iter().map(|flow| flow.destination).collect();
    Ok(destinations
        .into_iter()
        .map(|destination| (destination, summarise(flows.iter().filter(|flow| flow.destination == destination))))
        .collect())
}

fn summarise<'a>(flows: impl Iterator<Item = &'a Flow>) -> Held {
    let mut held = Held::default();
    let mut ports = BTreeSet::new();
    for flow in flows {
        ports.insert(flow.translated);
        *held.states.entry(flow.state.clone().unwrap_or_else(|| "UDP".into())).or_default() += 1;
        *held.sources.entry(flow.source.ip()).or_default() += 1;
    }
    held.ports = ports.len();
    held
}

/// `tcp 6 117 TIME_WAIT src=… dst=… sport=… dport=… [UNREPLIED] src=… dst=… sport=… dport=… [ASSURED] mark=0 use=1`
fn parse(line: &str) -> Option<Flow> {
    let mut words = line.split_whitespace();
    let protocol = match words.next()? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    let timeout_secs = words.nth(1)?.parse().ok()?;
    let words: Vec<_> = words.collect();
    let state = words.first().filter(|word| !word.contains(['=', '['])).map(|word| (*word).to_owned());
    let field = |name: &str, nth: usize| {
        words.iter().filter_map(|word| word.split_once('=')).filter(|(key, _)| *key == name).nth(nth).map(|pair| pair.1)
    };
    let end = |address: &str, port: &str, nth: usize| {
        Some(SocketAddr::new(field(address, nth)?.parse().ok()?, field(port, nth)?.parse().ok()?))
    };
    Some(Flow {
        protocol,
        state,
        timeout_secs,
        source: end("src", "sport", 0)?,
        destination: end("dst", "dport", 0)?,
        translated: end("dst", "dport", 1)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the reading of the tool's lines. If this fails, the lab's ground truth is wrong.
    #[test]
    fn a_translated_flow_is_read_with_both_its_directions() {
        let line = "tcp      6 117 TIME_WAIT src=10.0.0.2 dst=203.0.113.7 sport=40000 dport=443 src=203.0.113.7 \
                    dst=192.0.2.1 sport=443 dport=1024 [ASSURED] mark=0 use=1";
        let flow = parse(line).unwrap();
        assert_eq!(flow.state.as_deref(), Some("TIME_WAIT"));
        assert_eq!(flow.timeout_secs, 117);
        assert_eq!(flow.destination, "203.0.113.7:443".parse().unwrap());
        assert_eq!(flow.translated, "192.0.2.1:1024".parse().unwrap());
    }

    /// Exercises the same for UDP, which has no state. If this fails, UDP's held ports are not counted.
    #[test]
    fn a_udp_flow_has_no_state() {
        let line = "udp      17 28 src=10.0.0.2 dst=198.51.100.9 sport=5000 dport=53 [UNREPLIED] src=198.51.100.9 \
                    dst=192.0.2.1 sport=53 dport=1030 mark=0 use=1";
        let flow = parse(line).unwrap();
        assert_eq!((flow.protocol, flow.state), (Protocol::Udp, None));
        assert_eq!(flow.source, "10.0.0.2:5000".parse().unwrap());
    }
}
