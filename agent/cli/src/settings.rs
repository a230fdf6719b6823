//! What the words of the user mean: file and flags together, checked before anything starts. Flags win over the file.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use headroom_core::ledger::{Ledger, LedgerLimits, SourceFilter};
use headroom_core::model::policy::Policy;
use headroom_core::plan::clean::Limits;
use headroom_core::ports::PortRange;
use headroom_host::root::HostRoot;
use headroom_host::source::aws_vpc_cni::Server;
use headroom_host::source::host_local::{HostLocalSource, Named};
use headroom_host::source::platform;
use serde::Deserialize;

use crate::args::{GivenNodePort, NatArgs, NodeArgs, ProxyArg};

pub(crate) mod documents;
pub(crate) mod nat;
pub(crate) mod watch;

use nat::NatFile;

/// Largest configuration file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Everything a command needs to know, complete and valid.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the node's files are.
    pub root: HostRoot,
    /// The runtime's socket, if it was named.
    pub cri_socket: Option<PathBuf>,
    /// host-local's networks.
    pub cni_dir: PathBuf,
    /// The CNI configuration.
    pub cni_conf_dir: PathBuf,
    /// Which of these two was named.
    pub named: Named,
    /// Where ipamd of the AWS VPC CNI answers, if it was named.
    pub vpc_cni_introspection: Option<Server>,
    /// The node's name, if it was given.
    pub node_name: Option<String>,
    /// (destination, source) pairs the kernel map has room for.
    pub max_destinations: u32,
    /// Bounds of the ledger.
    pub limits: LedgerLimits,
    /// What verdicts depend on.
    pub policy: Policy,
    /// Files that the NAT's settings come from; standard input is none that could be read again.
    pub nat_files: Vec<PathBuf>,
    /// Where the daemon listens.
    pub listen: SocketAddr,
    /// How often the daemon makes a report.
    pub tick: Duration,
    /// How the daemon gives leaked reservations back; `None`: it does not.
    pub clean: Option<CleanSettings>,
    clean_file: CleanFile,
}

/// The daemon's cleaner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CleanSettings {
    /// From the end of one run to the beginning of the next.
    pub interval: Duration,
    /// Limits of one run.
    pub limits: Limits,
    /// Reservations in any hour.
    pub max_per_hour: usize,
}

impl CleanSettings {
    /// The shortest interval.
    const LEAST_INTERVAL: Duration = Duration::from_secs(10);
    /// In one run: a node that leaks loses a few an hour.
    const MAX: usize = 32;
    /// In any hour.
    const MAX_PER_HOUR: usize = 128;
    /// Nobody looks at the evidence here, so a pod that starts slowly gets its time.
    const LEAST_GRACE: Duration = Duration::from_secs(300);
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    root: Option<PathBuf>,
    cri_socket: Option<PathBuf>,
    cni_dir: Option<PathBuf>,
    cni_conf_dir: Option<PathBuf>,
    vpc_cni_introspection: Option<String>,
    node_name: Option<String>,
    node_port_range: Option<PortRange>,
    node_ports: Vec<GivenNodePort>,
    service_proxy: Option<ProxyArg>,
    leak_grace_secs: Option<u64>,
    max_destinations: Option<u32>,
    max_flows: Option<usize>,
    listen: Option<SocketAddr>,
    tick_secs: Option<u64>,
    nat: NatFile,
    clean: CleanFile,
}

/// Its `[clean]` table.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CleanFile {
    interval_secs: Option<u64>,
    max: Option<usize>,
    max_percent: Option<u32>,
    max_per_hour: Option<usize>,
    network: Option<String>,
}

impl Settings {
    /// An empty ledger that remembers what the NAT makes worth remembering.
    pub fn ledger(&self) -> Ledger {
        let ledger = Ledger::new(self.limits);
        match self.sources_apart() {
            Some(filter) => ledger.telling_sources_apart(filter),
            None => ledger,
        }
    }

    /// The flows whose sources are told apart, where the NAT maps endpoint-independently.
    pub fn sources_apart(&self) -> Option<SourceFilter> {
        let nat = self.policy.nat.as_ref().filter(|nat| nat.endpoint_independent == Some(true))?;
        Some(SourceFilter { scope: self.policy.scope(nat), hold: nat.hold })
    }

    /// host-local's stores, where these settings say that they are.
    pub fn stores(&self) -> HostLocalSource {
        HostLocalSource::new(self.root.clone(), self.cni_dir.clone(), self.cni_conf_dir.clone()).with_named(self.named)
    }

    /// Joins file and flags.
    ///
    /// # Errors
    /// An unreadable file, an unknown key, a value out of range, or NAT settings that contradict each other.
    pub fn new(node: &NodeArgs, nat: &NatArgs) -> anyhow::Result<Self> {
        let file = match &node.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let root = node.root.clone().or(file.root).map_or_else(HostRoot::live, HostRoot::at);
        let node_name = node.node_name.clone().filter(|name| !name.is_empty()).or(file.node_name);
        let settings = nat::settings(nat, (&file.nat, node.config.as_deref()), || {
            (platform::node(&root, node_name.as_deref()).ok(), platform::addresses(&root))
        })?;
        // Ended flows are remembered for as long as the NAT that will be assumed holds their ports.
        let hold = settings
            .as_ref()
            .map_or_else(|| Policy::assumed_nat(platform::cloud(&root).present().copied()).hold, |nat| nat.hold);
        let or = |given: &Option<PathBuf>, file: Option<PathBuf>, default: &str| {
            given.clone().or(file).unwrap_or_else(|| PathBuf::from(default))
        };
        let policy = Policy {
            nat: settings,
            extra_private: nat::bypass(&nat.nat_bypass, (&file.nat.bypass, node.config.as_deref()))?,
            node_ports: node.node_port_range.or(file.node_port_range).unwrap_or(PortRange::NODE_PORTS),
            node_ports_given: node.node_port_range.or(file.node_port_range).is_some(),
            allocated_node_ports: {
                let given = if node.node_ports.is_empty() { &file.node_ports } else { &node.node_ports };
                given.iter().map(|GivenNodePort(protocol, port)| (*protocol, *port)).collect()
            },
            service_proxy: node.service_proxy.or(file.service_proxy).map(Into::into),
            leak_grace: node
                .leak_grace
                .or(file.leak_grace_secs.map(Duration::from_secs))
                .unwrap_or(Policy::default().leak_grace),
            ..Policy::default()
        };
        let max_destinations = file.max_destinations.unwrap_or(65_536);
        if !(1024..=1_048_576).contains(&max_destinations) {
            bail!("`max_destinations` is {max_destinations}: 1024 to 1048576 are possible");
        }
        let max_flows = file.max_flows.unwrap_or(LedgerLimits::default().max_flows);
        if !(1024..=4_194_304).contains(&max_flows) {
            bail!("`max_flows` is {max_flows}: 1024 to 4194304 are possible");
        }
        let tick = Duration::from_secs(file.tick_secs.unwrap_or(5));
        if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&tick) {
            bail!("`tick_secs` is {}: 1 to 3600 are possible", tick.as_secs());
        }
        let from_file = || file.vpc_cni_introspection.as_deref().map(str::parse).transpose();
        let vpc_cni_introspection = match &node.vpc_cni_introspection {
            Some(server) => Some(server.clone()),
            None => from_file().map_err(|why: String| anyhow::anyhow!("`vpc_cni_introspection`: {why}"))?,
        };
        Ok(Self {
            root,
            cri_socket: node.cri_socket.clone().or(file.cri_socket),
            named: Named {
                cni_dir: node.cni_dir.is_some() || file.cni_dir.is_some(),
                cni_conf_dir: node.cni_conf_dir.is_some() || file.cni_conf_dir.is_some(),
            },
            cni_dir: or(&node.cni_dir, file.cni_dir, "/var/lib/cni/networks"),
            cni_conf_dir: or(&node.cni_conf_dir, file.cni_conf_dir, "/etc/cni/net.d"),
            node_name,
            vpc_cni_introspection,
            max_destinations,
            limits: LedgerLimits {
                max_flows,
                remember: hold.longest_after_end() + Duration::from_secs(30),
                node_ports: policy.node_ports,
            },
            nat_files: {
                let named = nat::from(nat, &file.nat).iter().chain(&node.config);
                named.filter(|path| *path != Path::new("-")).cloned().collect()
            },
            policy,
            listen: file.listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 9497))),
            tick,
            clean: clean_settings(&file.clean, None)?,
            clean_file: file.clean,
        })
    }

    /// Lets the daemon clean this often, whatever the file says.
    ///
    /// # Errors
    /// An interval or a limit out of range, a captured tree.
    pub fn clean_every(&mut self, interval: Option<Duration>) -> anyhow::Result<()> {
        self.clean = clean_settings(&self.clean_file, interval)?;
        if self.clean.is_none() {
            return Ok(());
        }
        if !self.root.is_live() {
            bail!("a captured tree (--root) is not a node: nothing can be given back");
        }
        if self.policy.leak_grace < CleanSettings::LEAST_GRACE {
            bail!(
                "the daemon gives nothing back with a grace period of {}: {} is the least",
                humantime::format_duration(self.policy.leak_grace),
                humantime::format_duration(CleanSettings::LEAST_GRACE)
            );
        }
        Ok(())
    }
}

/// The cleaner as described; an interval switches it on.
fn clean_settings(file: &CleanFile, interval: Option<Duration>) -> anyhow::Result<Option<CleanSettings>> {
    let Some(interval) = interval.or(file.interval_secs.map(Duration::from_secs)) else { return Ok(None) };
    if !(CleanSettings::LEAST_INTERVAL..=Duration::from_secs(86_400)).contains(&interval) {
        bail!("cleaning every {} is not possible: 10s to 1d are", humantime::format_duration(interval));
    }
    let percent = file.max_percent.unwrap_or(Limits::PERCENT);
    if !(1..=100).contains(&percent) {
        bail!("`max_percent` of `[clean]` is {percent}: 1 to 100 are possible");
    }
    let max = file.max.unwrap_or(CleanSettings::MAX);
    if max == 0 {
        bail!("`max` of `[clean]` is 0: at least 1 is possible; without `interval_secs` nothing is given back");
    }
    let max_why = Some(format!("{max} are given back in one run at most (`max` of `[clean]`); the next run goes on"));
    let limits = Limits { max, max_why, percent, force: false, network: file.network.clone() };
    let max_per_hour = file.max_per_hour.unwrap_or(CleanSettings::MAX_PER_HOUR);
    Ok(Some(CleanSettings { interval, limits, max_per_hour }))
}

fn read(path: &Path) -> anyhow::Result<File> {
    let metadata = std::fs::metadata(path).with_context(|| format!("read configuration `{}`", path.display()))?;
    // A FIFO or a device would be read for ever.
    if !metadata.is_file() {
        bail!("configuration `{}` is not a regular file", path.display());
    }
    let size = metadata.len();
    if size > MAX_FILE_BYTES {
        bail!("configuration `{}` has {size} bytes, at most {MAX_FILE_BYTES} are read", path.display());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("read configuration `{}`", path.display()))?;
    toml::from_str(&text).with_context(|| format!("understand configuration `{}`", path.display()))
}

#[cfg(test)]
mod tests;
