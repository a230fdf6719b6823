//! What the user's words about the NAT mean: flags over file, checked.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use headroom_core::model::nat::{Basis, Described, NatSettings, Profile, SetTimes};
use headroom_core::ports::PortRange;
use ipnet::IpNet;
use serde::Deserialize;

use super::documents;
use crate::args::NatArgs;
use crate::args::nat::{ModeArg, ProfileArg};

/// The `[nat]` table of the configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "the table `[nat]`")]
pub(super) struct NatFile {
    profile: Option<ProfileArg>,
    from: Vec<PathBuf>,
    gateway: Option<String>,
    mode: Option<ModeArg>,
    min_ports: Option<u32>,
    max_ports: Option<u32>,
    nat_ips: Option<u32>,
    nodes: Option<u32>,
    surge: Option<u32>,
    alias_ranges: Option<bool>,
    endpoint_independent: Option<bool>,
    port_range: Option<PortRange>,
    tcp_time_wait_secs: Option<u64>,
    tcp_reset_secs: Option<u64>,
    tcp_transitory_secs: Option<u64>,
    tcp_established_idle_secs: Option<u64>,
    udp_idle_secs: Option<u64>,
    udp_hold_down_secs: Option<u64>,
    icmp_idle_secs: Option<u64>,
    pub(super) bypass: Vec<IpNet>,
}

impl NatFile {
    fn described(&self) -> Described {
        let secs = |secs: Option<u64>| secs.map(Duration::from_secs);
        Described {
            profile: self.profile.map(Into::into),
            mode: self.mode.map(Into::into),
            min_ports: self.min_ports,
            max_ports: self.max_ports,
            nat_ips: self.nat_ips,
            nodes: self.nodes,
            surge: self.surge,
            alias_ranges: self.alias_ranges,
            endpoint_independent: self.endpoint_independent,
            port_range: self.port_range,
            times: SetTimes {
                tcp_time_wait: secs(self.tcp_time_wait_secs),
                tcp_reset: secs(self.tcp_reset_secs),
                tcp_transitory: secs(self.tcp_transitory_secs),
                tcp_established_idle: secs(self.tcp_established_idle_secs),
                udp_idle: secs(self.udp_idle_secs),
                udp_hold_down: secs(self.udp_hold_down_secs),
                icmp_idle: secs(self.icmp_idle_secs),
            },
            ..Described::default()
        }
    }
}

impl NatArgs {
    fn described(&self) -> Described {
        Described {
            profile: self.nat_profile.map(Into::into),
            mode: self.nat_mode.map(Into::into),
            min_ports: self.nat_min_ports,
            max_ports: self.nat_max_ports,
            nat_ips: self.nat_ips,
            nodes: self.nat_nodes,
            surge: self.nat_surge,
            alias_ranges: self.nat_alias_ranges,
            endpoint_independent: self.nat_endpoint_independent,
            port_range: self.nat_port_range,
            times: SetTimes {
                tcp_time_wait: self.nat_tcp_time_wait,
                tcp_reset: self.nat_tcp_reset,
                tcp_transitory: self.nat_tcp_transitory,
                tcp_established_idle: self.nat_tcp_established_idle,
                udp_idle: self.nat_udp_idle,
                udp_hold_down: self.nat_udp_hold_down,
                icmp_idle: self.nat_icmp_idle,
            },
            ..Described::default()
        }
    }
}

/// The NAT as described; `None` if nothing was said about it. `node` is asked who this node is, where a file tells of many.
pub(super) fn settings(
    args: &NatArgs,
    file: &NatFile,
    node: impl FnOnce() -> (Option<String>, BTreeSet<IpAddr>),
) -> anyhow::Result<Option<NatSettings>> {
    let from = if args.nat_from.is_empty() { &file.from } else { &args.nat_from };
    let documents = documents::read(from, args.nat_gateway.as_deref().or(file.gateway.as_deref()))?;
    let places = documents.places.clone();
    let documents = if documents.instances.is_empty() {
        documents.described
    } else {
        let (name, addresses) = node();
        documents.of_node(name.as_deref(), &addresses)
    };
    let described = args.described().or(file.described());
    same_nat(described.profile, documents.profile)?;
    let set = described.clone();
    let described = described.or(documents);
    if described.is_empty() {
        return Ok(None);
    }
    let Some(profile) = described.profile else {
        bail!("NAT settings need a profile: add `--nat-profile gcp` (in the file: `profile` under `[nat]`)");
    };
    described.settings(profile, Basis::Configured).map(Some).map_err(|bad| places.blame(bad, &set))
}

/// Refuses files of another NAT than the one that was named.
pub(crate) fn same_nat(named: Option<Profile>, of_files: Option<Profile>) -> anyhow::Result<()> {
    match (named, of_files) {
        (Some(named), Some(found)) if named != found => {
            bail!("the profile is `{named}`, but the files are about {} (`{found}`)", found.title())
        }
        _ => Ok(()),
    }
}

/// Prefixes that bypass the NAT, each once.
pub(super) fn bypass(args: &[IpNet], file: &[IpNet]) -> anyhow::Result<Vec<IpNet>> {
    let mut prefixes: Vec<IpNet> = args.iter().chain(file).map(IpNet::trunc).collect();
    if let Some(all) = prefixes.iter().find(|prefix| prefix.prefix_len() == 0) {
        bail!("`bypass` {all} leaves nothing for the NAT: for a node without one, the profile is `none`");
    }
    prefixes.sort_unstable();
    prefixes.dedup();
    Ok(prefixes)
}
