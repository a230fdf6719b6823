//! What the user typed about the NAT in front of the node.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use headroom_core::model::nat::{Mode, Profile};
use headroom_core::ports::PortRange;
use ipnet::IpNet;

/// The NAT in front of the node.
#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "The NAT in front of the node (by default recognised from the platform)")]
pub struct NatArgs {
    /// Which NAT.
    #[arg(long, value_enum, value_name = "PROFILE")]
    pub nat_profile: Option<ProfileArg>,
    /// What a cloud's tool printed about the NAT, as JSON: `gcloud compute routers nats describe`, `get-nat-mapping-info`,
    /// `terraform show -json`, `aws ec2 describe-nat-gateways`, `az aks show` and others; may be given more than once. Flags
    /// and the configuration file win over it.
    #[arg(long, value_name = "FILE")]
    pub nat_from: Vec<PathBuf>,
    /// Which NAT of those in the files, by its name.
    #[arg(long, value_name = "NAME")]
    pub nat_gateway: Option<String>,
    /// How Cloud NAT gives ports to nodes [default: static]
    #[arg(long, value_enum, value_name = "MODE")]
    pub nat_mode: Option<ModeArg>,
    /// Minimum ports per node, as configured on the gateway [default: 64 static, 32 dynamic]. For azure-lb those allocated
    /// by hand [default: Azure's table]
    #[arg(long, value_name = "PORTS", allow_negative_numbers = true)]
    pub nat_min_ports: Option<u32>,
    /// Maximum ports per node, dynamic mode [default: 65536]
    #[arg(long, value_name = "PORTS", allow_negative_numbers = true)]
    pub nat_max_ports: Option<u32>,
    /// NAT IPs of the gateway.
    #[arg(long, value_name = "COUNT", alias = "nat-nat-ips", allow_negative_numbers = true)]
    pub nat_ips: Option<u32>,
    /// Nodes behind the gateway.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub nat_nodes: Option<u32>,
    /// Nodes that an upgrade adds for a while; azure-lb counts them.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pub nat_surge: Option<u32>,
    /// Whether nodes have alias IP ranges, as every VPC-native GKE node [default: true]
    #[arg(long, value_name = "true|false")]
    pub nat_alias_ranges: Option<bool>,
    /// Whether the NAT maps endpoint-independently: one port for all destinations [default: unknown, taken as false]
    #[arg(long, value_name = "true|false")]
    pub nat_endpoint_independent: Option<bool>,
    /// The source ports that masquerading may use, profile linux [default: 1024-65535]
    #[arg(long, value_name = "RANGE")]
    pub nat_port_range: Option<PortRange>,
    /// How long the NAT holds a port after a TCP connection closed [default: the profile's, 2m on Cloud NAT]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, allow_hyphen_values = true)]
    pub nat_tcp_time_wait: Option<Duration>,
    /// How long the NAT holds a port after a TCP connection was reset [default: the profile's, 30s on Cloud NAT]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, allow_hyphen_values = true)]
    pub nat_tcp_reset: Option<Duration>,
    /// After how much silence the NAT forgets a half-open TCP connection [default: the profile's, 30s on Cloud NAT]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, allow_hyphen_values = true)]
    pub nat_tcp_transitory: Option<Duration>,
    /// After how much silence the NAT forgets an established TCP connection [default: the profile's, 20m on Cloud NAT]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, allow_hyphen_values = true)]
    pub nat_tcp_established_idle: Option<Duration>,
    /// After how much silence the NAT forgets a UDP flow [default: the profile's, 30s on Cloud NAT]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, allow_hyphen_values = true)]
    pub nat_udp_idle: Option<Duration>,
    /// How long after that a UDP port does not serve the same destination [default: the profile's, 0s on Cloud NAT]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, allow_hyphen_values = true)]
    pub nat_udp_hold_down: Option<Duration>,
    /// After how much silence the NAT forgets an ICMP flow [default: the profile's, 30s on Cloud NAT]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, allow_hyphen_values = true)]
    pub nat_icmp_idle: Option<Duration>,
    /// A prefix that is reached without the NAT; may be given more than once.
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    pub nat_bypass: Vec<IpNet>,
}

fn prefix(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_no_prefix| "it is no prefix like 203.0.113.0/24 or 2001:db8::/32".to_owned())
}

/// NAT profiles on the command line and in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProfileArg {
    /// Google Cloud NAT.
    Gcp,
    /// AWS NAT gateway.
    Aws,
    /// Azure NAT gateway.
    AzureNatgw,
    /// Outbound rules of an Azure load balancer, as AKS makes them.
    AzureLb,
    /// Masquerading by a Linux machine: the node itself, or a box that nodes share.
    Linux,
    /// No NAT: demand is shown, not judged.
    None,
}

impl From<ProfileArg> for Profile {
    fn from(profile: ProfileArg) -> Self {
        match profile {
            ProfileArg::Gcp => Self::Gcp,
            ProfileArg::Aws => Self::Aws,
            ProfileArg::AzureNatgw => Self::AzureNatgw,
            ProfileArg::AzureLb => Self::AzureLb,
            ProfileArg::Linux => Self::Linux,
            ProfileArg::None => Self::None,
        }
    }
}

/// Port allocation modes on the command line and in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeArg {
    /// Every node gets the same number.
    Static,
    /// Between a minimum and a maximum, as needed.
    Dynamic,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Static => Self::Static,
            ModeArg::Dynamic => Self::Dynamic,
        }
    }
}
