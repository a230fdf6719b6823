//! What the user's words about the NAT mean: flags over file, checked.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use headroom_core::model::nat::{Described, NatSettings, Profile, SetTimes};
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
    pub(super) from: Vec<PathBuf>,
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

impl NatFile {
    /// What it sets of that which a NAT may refuse, and under which key.
    fn keys(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let keys = [
            ("min-ports", "min_ports", self.min_ports.is_some()),
            ("max-ports", "max_ports", self.max_ports.is_some()),
            ("mode", "mode", self.mode.is_some()),
            ("endpoint-independent", "endpoint_independent", self.endpoint_independent.is_some()),
            ("nat-ips", "nat_ips", self.nat_ips.is_some()),
            ("nodes", "nodes", self.nodes.is_some()),
            ("tcp-time-wait", "tcp_time_wait_secs", self.tcp_time_wait_secs.is_some()),
            ("tcp-reset", "tcp_transitory_secs", self.tcp_transitory_secs.is_some()),
            ("tcp-reset", "tcp_reset_secs", self.tcp_reset_secs.is_some()),
            ("tcp-established-idle", "tcp_established_idle_secs", self.tcp_established_idle_secs.is_some()),
            ("udp-idle", "udp_hold_down_secs", self.udp_hold_down_secs.is_some()),
            ("udp-idle", "udp_idle_secs", self.udp_idle_secs.is_some()),
            ("icmp-idle", "icmp_idle_secs", self.icmp_idle_secs.is_some()),
        ];
        keys.into_iter().filter(|(.., set)| *set).map(|(setting, key, _)| (setting, key))
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

/// The NAT as described; `None` if nothing was said about it. `config` is where `file` was read, `node` is asked who this node
/// is, where a file tells of many.
pub(super) fn settings(
    args: &NatArgs,
    (file, config): (&NatFile, Option<&Path>),
    node: impl FnOnce() -> (Option<String>, BTreeSet<IpAddr>),
) -> anyhow::Result<Option<NatSettings>> {
    let documents = documents::read(from(args, file), args.nat_gateway.as_deref().or(file.gateway.as_deref()))?;
    let mut places = documents.places.clone();
    if let Some(config) = config {
        file.keys().for_each(|(setting, key)| places.put(setting, format!("`nat.{key}` of `{}`", config.display())));
    }
    let documents = if documents.instances.is_empty() {
        documents.described
    } else {
        let (name, addresses) = node();
        documents.of_node(name.as_deref(), &addresses)
    };
    let flags = args.described();
    let described = flags.clone().or(file.described());
    same_nat(described.profile, documents.profile)?;
    let described = described.or(documents);
    if described.is_empty() {
        return Ok(None);
    }
    let Some(profile) = described.profile else {
        bail!("NAT settings need a profile: add `--nat-profile gcp` (in the file: `profile` under `[nat]`)");
    };
    let settings = described.settings_now(profile).and_then(NatSettings::remembered);
    settings.map(Some).map_err(|bad| places.blame(bad, &flags))
}

/// Files that say something about the NAT: those of the flags, or else of the configuration.
pub(super) fn from<'a>(args: &'a NatArgs, file: &'a NatFile) -> &'a [PathBuf] {
    if args.nat_from.is_empty() { &file.from } else { &args.nat_from }
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
pub(super) fn bypass(args: &[IpNet], (file, config): (&[IpNet], Option<&Path>)) -> anyhow::Result<Vec<IpNet>> {
    let mut prefixes: Vec<IpNet> = args.iter().chain(file).map(IpNet::trunc).collect();
    if let Some(index) = prefixes.iter().position(|prefix| prefix.prefix_len() == 0) {
        let config = config.filter(|_| index >= args.len());
        let place = config.map_or_else(String::new, |config| format!(" (`nat.bypass` of `{}`)", config.display()));
        let all = prefixes.remove(index);
        bail!("`bypass` {all}{place} leaves nothing for the NAT: for a node without one, the profile is `none`");
    }
    prefixes.sort_unstable();
    prefixes.dedup();
    Ok(prefixes)
}
