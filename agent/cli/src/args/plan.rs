//! What the user typed to plan with.

use std::time::Duration;

use clap::{Args, Subcommand};
use headroom_core::ports::PortRange;
use headroom_core::sizing::nat::{Demand, NodesDemand};

use super::Format;
use super::nat::{ModeArg, ProfileArg};

/// What can be planned.
#[derive(Debug, Subcommand)]
pub enum PlanCommand {
    /// NAT sizes: how many nodes fit behind a gateway, how many NAT IPs they take, what to set.
    Nat(PlanNatArgs),
}

/// `headroom plan nat`
#[derive(Debug, Args)]
pub struct PlanNatArgs {
    /// Which NAT.
    #[arg(long, value_enum, value_name = "PROFILE")]
    pub profile: Option<ProfileArg>,
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
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub lifetime: Option<Duration>,
    /// How long the NAT holds a port after a TCP connection closed [default: the profile's, 2m on Cloud NAT]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub tcp_time_wait: Option<Duration>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// `100,3x2000`
fn demand(text: &str) -> Result<Demand, String> {
    let number = |part: &str| part.trim().parse::<u32>().map_err(|error| format!("`{}`: {error}", part.trim()));
    let mut demand = Demand::default();
    for (index, part) in text.split(',').enumerate() {
        match part.split_once('x') {
            Some((nodes, ports)) => {
                demand.others.push(NodesDemand { nodes: number(nodes)?, ports: number(ports)? });
            }
            None if index == 0 => demand.each = number(part)?,
            None => return Err(format!("`{}` needs a number of nodes before it, as in `3x2000`", part.trim())),
        }
    }
    Ok(demand)
}
