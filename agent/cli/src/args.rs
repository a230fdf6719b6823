//! What the user typed. Nothing is read or decided here; the help texts are documentation.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use headroom_core::flow::Protocol;
use headroom_core::observe::ServiceProxy;
use headroom_core::ports::PortRange;
use headroom_host::source::aws_vpc_cni::Server;
use serde::Deserialize;

pub mod nat;
pub mod plan;

pub use nat::NatArgs;
pub use plan::PlanCommand;

/// How close is this Kubernetes node to running out of NAT ports, NodePorts, conntrack entries and pod IPs?
///
/// Nothing on the node is changed, unless `ipam clean --apply` or `ipam restore` says so. Run it as root: what it may not
/// read it reports as unknown.
#[derive(Debug, Parser)]
#[command(name = "headroom", version, max_term_width = 80)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// What to log to stderr: error, warn, info, debug, trace, or a tracing filter [default: info for the agent, else error]
    #[arg(long, global = true, env = "HEADROOM_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Diagnose this node once.
    ///
    /// Exit code: 0 clean, 1 warnings, 2 critical, 3 could not tell, 64 wrong usage.
    Check(CheckArgs),
    /// The daemon: serves /report.json, /metrics, /healthz and /readyz.
    Agent(AgentArgs),
    /// Pod IP reservations of this node.
    Ipam {
        /// What to do with them.
        #[command(subcommand)]
        command: IpamCommand,
    },
    /// Arithmetic before you build: what fits, what does not, and what to set. No node is read.
    ///
    /// Exit code: 0 it fits (or no range was given that it could fit into), 1 it does not, 64 wrong usage.
    Plan {
        /// Of what.
        #[command(subcommand)]
        command: PlanCommand,
    },
    /// What a finding means, why it matters and what to do.
    Explain {
        /// The finding's id; without one, all ids are listed.
        id: Option<String>,
    },
    /// What this node lets headroom see, and why not.
    Doctor(DoctorArgs),
}

/// Commands on reservations.
#[derive(Debug, Subcommand)]
pub enum IpamCommand {
    /// Every reservation with a verdict and its evidence. Reads only.
    ///
    /// Exit code: 0 nothing leaked, 1 leaked reservations, 3 some could not be told.
    Scan(ScanArgs),
    /// Give leaked reservations back. Without --apply it only says which, and why.
    ///
    /// They are moved into a journal under host-local's lock, after everything was looked at again; `ipam restore` puts them
    /// back. Exit code: 0 nothing to give back, or all of it given back; 1 there is something to give back, or some of it was
    /// refused; 3 it could not be told; 64 wrong usage.
    Clean(CleanArgs),
    /// Put back what `ipam clean` took in its last run, unless the address has been reserved anew.
    ///
    /// Exit code: 0 all of it is back, 1 some was refused, 3 could not tell, 64 wrong usage.
    Restore(RestoreArgs),
}

/// `headroom check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Watch the node for this long before judging ("30s", "2m"): failures and trends need time to show.
    #[arg(long, value_name = "DURATION", value_parser = watch_time)]
    pub watch: Option<Duration>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    #[command(flatten)]
    /// The node.
    pub node: NodeArgs,
    #[command(flatten)]
    /// The NAT.
    pub nat: NatArgs,
}

/// Switches the agent's cleaner on where its arguments are somebody else's; `doctor` in the same container sees it, too.
const CLEAN_INTERVAL: &str = "HEADROOM_CLEAN_INTERVAL";

/// `headroom agent`
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Where to listen. Beyond loopback everybody who reaches the port can read the report.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// How often to make a report.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub tick: Option<Duration>,
    /// Give leaked pod IPs back this often, within the limits of `[clean]` in the configuration [default: never]
    #[arg(long, value_name = "DURATION", env = CLEAN_INTERVAL, value_parser = humantime::parse_duration)]
    pub clean_interval: Option<Duration>,
    #[command(flatten)]
    /// The node.
    pub node: NodeArgs,
    #[command(flatten)]
    /// The NAT.
    pub nat: NatArgs,
}

/// `headroom ipam scan`
#[derive(Debug, Args)]
pub struct ScanArgs {
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    #[command(flatten)]
    /// The node.
    pub node: NodeArgs,
}

/// `headroom ipam clean`
#[derive(Debug, Args)]
pub struct CleanArgs {
    /// Do it; without it, only the plan is shown.
    #[arg(long)]
    pub apply: bool,
    #[command(flatten)]
    /// How much.
    pub limits: CleanLimits,
    /// Give back more than --max-percent of a network, and with a grace period of less than a minute.
    #[arg(long)]
    pub force: bool,
    /// Only this network.
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    #[command(flatten)]
    /// The node.
    pub node: NodeArgs,
}

/// How much may be given back at once.
#[derive(Debug, Args, Default)]
pub struct CleanLimits {
    /// Give back at most so many in one run [default: 256; as an interval mode 32]
    #[arg(long = "max", value_name = "COUNT")]
    pub max: Option<usize>,
    /// Give back nothing of a network of which more than this share seems leaked [default: 50]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub max_percent: Option<u32>,
}

/// `headroom ipam restore`
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The run to undo, as `ipam clean` named it [default: the last one]
    #[arg(long, value_name = "DIR")]
    pub journal: Option<PathBuf>,
    /// Change nothing; list the runs there are.
    #[arg(long, conflicts_with = "journal")]
    pub list: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    #[command(flatten)]
    /// The node.
    pub node: NodeArgs,
}

/// `headroom doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// The agent's --clean-interval: could its cleaner work here? [default: what the configuration says]
    #[arg(long, value_name = "DURATION", env = CLEAN_INTERVAL, value_parser = humantime::parse_duration)]
    pub clean_interval: Option<Duration>,
    #[command(flatten)]
    /// The node.
    pub node: NodeArgs,
}

/// A NodePort as the user names it: `30080` or `30053/udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct GivenNodePort(pub Protocol, pub u16);

impl FromStr for GivenNodePort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("`{text}` is not a NodePort like `30080` or `30053/udp`");
        let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let port: NonZeroU16 = port.trim().parse().map_err(|_no_port| shape())?;
        let port = port.get();
        match protocol.trim() {
            "tcp" => Ok(Self(Protocol::TCP, port)),
            "udp" => Ok(Self(Protocol::UDP, port)),
            "sctp" => Ok(Self(Protocol::SCTP, port)),
            _ => Err(shape()),
        }
    }
}

impl TryFrom<String> for GivenNodePort {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What makes Services reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyArg {
    /// kube-proxy with iptables.
    Iptables,
    /// kube-proxy with nftables.
    Nftables,
    /// kube-proxy with IPVS.
    Ipvs,
    /// Cilium without kube-proxy; GKE's Dataplane V2.
    Cilium,
}

impl From<ProxyArg> for ServiceProxy {
    fn from(proxy: ProxyArg) -> Self {
        match proxy {
            ProxyArg::Iptables => Self::Iptables,
            ProxyArg::Nftables => Self::Nftables,
            ProxyArg::Ipvs => Self::Ipvs,
            ProxyArg::Cilium => Self::Cilium,
        }
    }
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: one document on stdout.
    Json,
}

/// Where and how to read the node.
#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "The node")]
pub struct NodeArgs {
    /// Settings from a file (TOML); flags win over it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Read the node's files under this directory: a captured tree. Live sources are left out.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// The container runtime's CRI socket; by default the usual places are tried.
    #[arg(long, value_name = "PATH")]
    pub cri_socket: Option<PathBuf>,
    /// The directory of host-local's networks [default: /var/lib/cni/networks]
    #[arg(long, value_name = "DIR")]
    pub cni_dir: Option<PathBuf>,
    /// The directory of the CNI configuration [default: /etc/cni/net.d]
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Where ipamd of the AWS VPC CNI answers, ADDRESS:PORT or unix:/PATH [default: 127.0.0.1:61679]
    #[arg(long, value_name = "SERVER")]
    pub vpc_cni_introspection: Option<Server>,
    /// The node's name; by default the host name.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// The cluster's NodePort range [default: 30000-32767]
    #[arg(long, value_name = "RANGE")]
    pub node_port_range: Option<PortRange>,
    /// All NodePorts that are allocated, where they cannot be seen ("30080,30053/udp"); those seen count, too
    #[arg(long, value_name = "PORT[/PROTOCOL]", value_delimiter = ',')]
    pub node_ports: Vec<GivenNodePort>,
    /// What makes Services reachable at this node, if that is not recognised
    #[arg(long, value_name = "PROXY", value_enum)]
    pub service_proxy: Option<ProxyArg>,
    /// A reservation younger than this is never called leaked [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub leak_grace: Option<Duration>,
}

/// A time to watch: 1 second to 1 day.
fn watch_time(text: &str) -> Result<Duration, String> {
    let watch = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(86_400));
    if (least..=most).contains(&watch) { Ok(watch) } else { Err("watch for 1s to 1d".to_owned()) }
}
