//! What the user typed to plan with.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use headroom_core::ports::PortRange;
use headroom_core::sizing::nat::{Demand, NodesDemand};
use ipnet::{IpNet, Ipv4Net};

use super::Format;
use super::nat::{ModeArg, ProfileArg};

/// What can be planned.
#[derive(Debug, Subcommand)]
pub enum PlanCommand {
    /// NAT sizes: how many nodes fit behind a gateway, how many NAT IPs they take, what to set.
    Nat(PlanNatArgs),
    /// GKE pod ranges: how many nodes fit, which range ends first, how much of it lies idle.
    Pods(PlanPodsArgs),
    /// The AWS VPC CNI's warm pools: interfaces and addresses that a node takes from its subnet.
    Eni(PlanEniArgs),
}

/// `headroom plan nat`
#[derive(Debug, Args)]
pub struct PlanNatArgs {
    /// Which NAT.
    #[arg(long, value_enum, value_name = "PROFILE")]
    pub profile: Option<ProfileArg>,
    /// What a cloud's tool printed about the NAT, as JSON (`-` is standard input): `gcloud compute routers nats describe`,
    /// `get-nat-mapping-info`, `terraform show -json`, `aws ec2 describe-nat-gateways`, `az aks show` and others; may be
    /// given more than once. Flags win over it.
    #[arg(long, value_name = "FILE")]
    pub from: Vec<PathBuf>,
    /// Which NAT of those in the files, by its name.
    #[arg(long, value_name = "NAME")]
    pub gateway: Option<String>,
    /// How Cloud NAT gives ports to nodes [default: static]
    #[arg(long, value_enum, value_name = "MODE")]
    pub mode: Option<ModeArg>,
    /// Minimum ports per node [default: 64 static, 32 dynamic]. For azure-lb those allocated by hand [default: Azure's table]
    #[arg(long, value_name = "PORTS", allow_negative_numbers = true)]
    pub min_ports: Option<u32>,
    /// Maximum ports per node, dynamic mode [default: 65536]
    #[arg(long, value_name = "PORTS", allow_negative_numbers = true)]
    pub max_ports: Option<u32>,
    /// NAT IPs of the gateway, frontend IPs of a load balancer [default: 1]
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub nat_ips: Option<u32>,
    /// Nodes that are wanted behind it.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub nodes: Option<u32>,
    /// Nodes that an upgrade adds for a while (AKS: 1 for each pool) [default: 0]
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub surge: Option<u32>,
    /// Whether nodes have alias IP ranges, as every VPC-native GKE node [default: true]
    #[arg(long, value_name = "true|false")]
    pub alias_ranges: Option<bool>,
    /// Whether the NAT maps endpoint-independently: one port for all destinations.
    #[arg(long, value_name = "true|false")]
    pub endpoint_independent: Option<bool>,
    /// The source ports that masquerading may use, profile linux [default: 1024-65535]
    #[arg(long, value_name = "RANGE")]
    pub port_range: Option<PortRange>,
    /// Ports that a node needs to its busiest destination at a time; nodes that need something else follow after commas:
    /// `100,3x2000` is 100 for each node and 2000 for three of them.
    #[arg(long, value_name = "PORTS[,NODESxPORTS…]", value_parser = demand, allow_negative_numbers = true)]
    pub demand: Option<Demand>,
    /// How long a connection lives, for the rate at which a node can open them [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, allow_hyphen_values = true)]
    pub lifetime: Option<Duration>,
    /// How long the NAT holds a port after a TCP connection closed [default: the profile's, 2m on Cloud NAT]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, allow_hyphen_values = true)]
    pub tcp_time_wait: Option<Duration>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// `headroom plan pods`
#[derive(Debug, Args)]
pub struct PlanPodsArgs {
    /// A secondary range that pods' addresses come from; may be given more than once.
    #[arg(long, value_name = "CIDR", value_parser = ipv4_range, value_delimiter = ',')]
    pub pod_range: Vec<Ipv4Net>,
    /// The subnet's primary range, which the nodes' own addresses come from.
    #[arg(long, value_name = "CIDR", value_parser = ipv4_range)]
    pub node_range: Option<Ipv4Net>,
    /// Maximum of pods per node, 8 to 256 [default: 110]
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub max_pods: Option<u32>,
    /// Nodes that are wanted.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub nodes: Option<u64>,
    /// Pods that really run on a node.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub pods_per_node: Option<u32>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// `headroom plan eni`
#[derive(Debug, Args)]
pub struct PlanEniArgs {
    /// The EC2 instance type; of those that are not known, give --max-enis and --ips-per-eni.
    #[arg(long, value_name = "TYPE")]
    pub instance_type: Option<String>,
    /// Network interfaces that the instance can carry.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub max_enis: Option<u32>,
    /// IPv4 addresses of each, the primary one among them.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub ips_per_eni: Option<u32>,
    /// Pods on the pod network, one started after the other; those on the host's network take no address.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub pods: u32,
    /// WARM_ENI_TARGET [default: 1]
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub warm_eni_target: Option<u32>,
    /// WARM_IP_TARGET; wins over WARM_ENI_TARGET and WARM_PREFIX_TARGET.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub warm_ip_target: Option<u32>,
    /// MINIMUM_IP_TARGET; likewise.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub minimum_ip_target: Option<u32>,
    /// WARM_PREFIX_TARGET; counts with prefix delegation only [default: 1, as in the stock manifest]
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub warm_prefix_target: Option<u32>,
    /// ENABLE_PREFIX_DELEGATION: addresses come in prefixes of 16.
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub prefix_delegation: Option<bool>,
    /// kubelet's maximum of pods: the pool does not grow beyond it.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub max_pods: Option<u32>,
    /// Nodes that are all alike.
    #[arg(long, value_name = "COUNT", default_value_t = 1, allow_negative_numbers = true)]
    pub nodes: u32,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// An IPv4 range: GKE's nodes draw pods' ranges from nothing else.
fn ipv4_range(text: &str) -> Result<Ipv4Net, String> {
    match text.trim().parse::<IpNet>() {
        Ok(IpNet::V4(range)) => Ok(range),
        Ok(IpNet::V6(_)) => Err("an IPv4 range is needed; IPv6 ranges do not run out".to_owned()),
        Err(_not_a_prefix) => Err("not a range like 10.0.0.0/14".to_owned()),
    }
}

/// `100,3x2000`
fn demand(text: &str) -> Result<Demand, String> {
    let number = |part: &str| part.trim().parse::<u32>().map_err(|error| format!("`{}`: {error}", part.trim()));
    let named = |part: &str, what: &str, whole: &str| match part.trim() {
        "" => Err(format!("`{}` lacks the number of {what}, as in `3x2000`", whole.trim())),
        part => number(part),
    };
    let mut demand = Demand::default();
    for (index, part) in text.split(',').enumerate() {
        match part.split_once('x') {
            Some((nodes, ports)) => {
                let (nodes, ports) = (named(nodes, "nodes", part)?, named(ports, "ports", part)?);
                if nodes == 0 {
                    return Err(format!("`{}` is the demand of no node: leave it out", part.trim()));
                }
                demand.others.push(NodesDemand { nodes, ports, has: 0 });
            }
            None if index == 0 => demand.each = number(part)?,
            None => return Err(format!("`{}` needs a number of nodes before it, as in `3x2000`", part.trim())),
        }
    }
    Ok(demand)
}
