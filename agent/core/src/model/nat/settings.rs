//! The settings of a NAT as they hold: defaults filled in, and refused where the NAT would refuse them.

use serde::{Deserialize, Serialize};

use super::hold::MAX_HOLD;
use super::remedy::Names;
use super::{HoldTimes, NodePool, ObservedPorts, Profile, pools};
use crate::ports::PortRange;
use crate::time::WallTime;

/// How Cloud NAT gives ports to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The same fixed number for every node.
    Static,
    /// Between a minimum and a maximum, doubled as needed.
    Dynamic,
}

impl Mode {
    /// The name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Dynamic => "dynamic",
        }
    }
}

/// Where the settings of the NAT come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// The cloud said so.
    Observed,
    /// The user gave the NAT's settings.
    Configured,
    /// A recognised platform, and its defaults.
    Assumed,
}

/// The NAT in front of this node; checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatSettings {
    /// Which.
    pub profile: Profile,
    /// Where the settings come from.
    pub basis: Basis,
    /// Cloud NAT: static or dynamic ports.
    pub mode: Mode,
    /// Nobody has said which, though what the node was given is known.
    pub mode_assumed: bool,
    /// Minimum ports per node as configured, for an Azure load balancer those allocated by hand; absent or 0 = the default
    /// (64 static, 32 dynamic, Azure's table).
    pub min_ports: Option<u32>,
    /// Maximum ports per node as configured, dynamic only; absent or 0 = 65,536.
    pub max_ports: Option<u32>,
    /// NAT IPs of the gateway; zero only where it was seen to have none.
    pub nat_ips: Option<u32>,
    /// NAT IPs that were seen to serve machines, where nobody says how many there are: at least so many.
    pub least_ips: Option<u32>,
    /// The gateway adds NAT IPs by itself; how many there are at the moment then limits nothing.
    pub auto_ips: bool,
    /// AWS: the gateway has addresses in every availability zone for the nodes there, as many as it needs; `nat_ips` are those of
    /// one zone.
    pub regional: bool,
    /// Nodes behind the gateway.
    pub nodes: Option<u32>,
    /// Nodes that an upgrade adds for a while, as somebody has said.
    pub surge: Option<u32>,
    /// Where nobody has, the pools whose upgrades add them.
    pub pools: Vec<NodePool>,
    /// Nodes have alias IP ranges of more than one address (every VPC-native GKE node).
    pub alias_ranges: bool,
    /// Nobody has said whether they have.
    pub alias_assumed: bool,
    /// One NAT port per source address and port for all destinations; absent = nobody has said.
    pub endpoint_independent: Option<bool>,
    /// Cloud NAT: whether it translates IPv6 to IPv4 (NAT64); absent = nobody has said.
    pub nat64: Option<bool>,
    /// The source ports that masquerading may use (`--to-ports`), Linux only.
    pub port_range: Option<PortRange>,
    /// Hold times.
    pub hold: HoldTimes,
    /// What the NAT says it has given this node.
    pub observed: Option<ObservedPorts>,
    /// NAT IPs that the gateway itself says it lacks.
    pub missing_ips: Option<u32>,
    /// When the gateway could not give ports to some machine, as it says itself; of how many nobody tells.
    pub allocation_failed: Option<WallTime>,
    /// What it is called, for the lines to type.
    pub names: Names,
    /// What to know about these settings.
    pub notes: Vec<String>,
}

impl NatSettings {
    /// A NAT with its defaults, in front of a Kubernetes node.
    pub fn of(profile: Profile, basis: Basis) -> Self {
        Self {
            profile,
            basis,
            mode: Mode::Static,
            mode_assumed: false,
            min_ports: None,
            max_ports: None,
            nat_ips: None,
            least_ips: None,
            auto_ips: false,
            regional: false,
            nodes: None,
            surge: None,
            pools: Vec::new(),
            alias_ranges: true,
            alias_assumed: true,
            endpoint_independent: None,
            nat64: None,
            port_range: None,
            hold: profile.hold(),
            observed: None,
            missing_ips: None,
            allocation_failed: None,
            names: Names::default(),
            notes: Vec::new(),
        }
    }

    /// No NAT in front, as far as we know.
    pub fn none() -> Self {
        Self::of(Profile::None, Basis::Assumed)
    }

    /// NAT IPs to count with: as many as there are, as were seen, or one, whoever says nothing.
    pub fn ips_counted(&self) -> u32 {
        self.nat_ips.or(self.least_ips).unwrap_or(1)
    }

    /// NAT IPs that a gateway takes, where there is a limit; none is published for a zone of a regional gateway.
    pub fn max_ips(&self) -> Option<u32> {
        self.profile.capacity()?.max_ips.filter(|_| !self.regional)
    }

    /// Whether it translates IPv6 addresses that stand for IPv4 ones, or may do.
    pub fn may_nat64(&self) -> bool {
        self.profile.nat64() && self.nat64 != Some(false)
    }

    /// Whether the gateway has said that it lacks NAT IPs, or that some machine got no ports.
    pub fn lacks_ips(&self) -> bool {
        self.missing_ips.is_some_and(|missing| missing > 0) || self.allocation_failed.is_some()
    }

    /// Nodes that an upgrade adds for a while where there are so many.
    pub fn surge_of(&self, nodes: u32) -> u32 {
        self.surge.unwrap_or_else(|| pools::surge(&self.pools, nodes))
    }

    /// So many nodes, and those that an upgrade adds.
    pub fn with_surge(&self, nodes: u32) -> u32 {
        nodes.saturating_add(self.surge_of(nodes))
    }

    /// How many nodes there may be so that these and those that an upgrade adds are no more than `all`.
    pub fn without_surge(&self, all: u64) -> u32 {
        let fit = |nodes: u32| u64::from(nodes).saturating_add(self.surge_of(nodes).into()) <= all;
        // More nodes never come with fewer added ones: so many fit at least, and so many at most.
        let (mut least, mut most) = (0, u32::try_from(all).unwrap_or(u32::MAX));
        while least < most {
            let middle = most - (most - least) / 2;
            if fit(middle) { least = middle } else { most = middle - 1 }
        }
        least
    }

    /// Refuses what the NAT would refuse.
    ///
    /// # Errors
    /// The first setting that is out of range or contradicts another.
    pub fn check(&self) -> Result<(), BadNatSettings> {
        let one_or_more = |field, value: Option<u32>| match value {
            Some(0) => Err(self.out_of_range(field, 0, "1 or more")),
            _ => Ok(()),
        };
        one_or_more("nat-ips", self.nat_ips)?;
        one_or_more("nodes", self.nodes)?;
        if let (Some(ips), Some(most)) = (self.nat_ips, self.max_ips())
            && ips > most
        {
            return Err(self.out_of_range("nat-ips", ips, format!("1 to {most} on one gateway")));
        }
        let idle = [("tcp-established-idle", self.hold.tcp_established_idle), ("udp-idle", self.hold.udp_idle)];
        if let Some((field, _)) = idle.into_iter().find(|(_, idle)| idle.is_zero()) {
            return Err(BadNatSettings::ForgottenAtOnce { field });
        }
        match self.profile {
            Profile::Gcp => self.check_gcp(),
            Profile::AzureLb => self.check_azure_lb(),
            Profile::Aws | Profile::AzureNatgw | Profile::Linux | Profile::None => Ok(()),
        }
    }

    /// Refuses times that a NAT may have, but for which no ended flow is remembered.
    ///
    /// # Errors
    /// The first of them.
    pub fn remembered(self) -> Result<Self, BadNatSettings> {
        match self.hold.after_end().into_iter().find(|(_, held)| *held > MAX_HOLD) {
            Some((field, _)) => Err(BadNatSettings::HeldTooLong { field }),
            None => Ok(self),
        }
    }

    fn check_gcp(&self) -> Result<(), BadNatSettings> {
        match self.mode {
            Mode::Static => {
                if let Some(min) = self.min_ports.filter(|min| *min != 0)
                    && !(2..=57_344).contains(&min)
                {
                    return Err(self.out_of_range("min-ports", min, "2 to 57344 with static allocation"));
                }
                if self.max_ports.is_some_and(|max| max != 0) {
                    return Err(BadNatSettings::MaxWithStatic);
                }
            }
            Mode::Dynamic => {
                let (min, max) = (self.dynamic_min(), self.dynamic_max());
                if !min.is_power_of_two() || !(32..=32_768).contains(&min) {
                    let takes = "a power of two from 32 to 32768 with dynamic allocation";
                    return Err(self.out_of_range("min-ports", min, takes));
                }
                if !max.is_power_of_two() || !(64..=65_536).contains(&max) {
                    let takes = "a power of two from 64 to 65536 with dynamic allocation";
                    return Err(self.out_of_range("max-ports", max, takes));
                }
                if max <= min {
                    return Err(BadNatSettings::MaxNotAboveMin { min, max });
                }
                if self.endpoint_independent == Some(true) {
                    return Err(BadNatSettings::IndependentWithDynamic);
                }
            }
        }
        Ok(())
    }

    fn check_azure_lb(&self) -> Result<(), BadNatSettings> {
        match self.min_ports {
            Some(ports) if ports % 8 != 0 || ports > 64_000 => {
                Err(self.out_of_range("min-ports", ports, "a multiple of 8 up to 64000, or 0 for Azure's own table"))
            }
            _ => Ok(()),
        }
    }

    fn out_of_range(&self, field: &'static str, value: u32, takes: impl Into<String>) -> BadNatSettings {
        BadNatSettings::OutOfRange { field, value, nat: self.profile.title(), takes: takes.into() }
    }
}

/// A setting that the NAT would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadNatSettings {
    /// Outside what the NAT accepts.
    #[error("`{field}` is {value}: {nat} takes {takes}")]
    OutOfRange {
        /// Which setting.
        field: &'static str,
        /// Its value.
        value: u32,
        /// Which NAT.
        nat: &'static str,
        /// What would be accepted.
        takes: String,
    },
    /// Dynamic: the maximum must be above the minimum.
    #[error("`max-ports` {max} must be above `min-ports` {min} with dynamic allocation")]
    MaxNotAboveMin {
        /// Minimum.
        min: u32,
        /// Maximum.
        max: u32,
    },
    /// A setting that only makes sense with another mode.
    #[error("`max-ports` needs `mode` dynamic: static allocation gives every node the same number")]
    MaxWithStatic,
    /// Cloud NAT has either the one or the other.
    #[error(
        "`endpoint-independent` mapping and `mode` dynamic exclude each other on Cloud NAT: turn the mapping off, or use \
         static allocation"
    )]
    IndependentWithDynamic,
    /// Ended flows are not remembered for longer.
    #[error(
        "`{field}` is more than an hour, which is what headroom remembers of flows that have ended: set `1h`, and ports that the \
         NAT holds for longer are not counted"
    )]
    HeldTooLong {
        /// Which setting.
        field: &'static str,
    },
    /// Whatever is open would count as forgotten.
    #[error("`{field}` is 0: a NAT that forgets flows at once translates none; leave it out for the NAT's own time")]
    ForgottenAtOnce {
        /// Which setting.
        field: &'static str,
    },
    /// Settings of nothing.
    #[error("`profile` none takes no further settings: there is no NAT to describe")]
    NoneWithSettings,
}

impl BadNatSettings {
    /// The settings that it is about.
    pub fn fields(&self) -> Vec<&'static str> {
        match self {
            Self::OutOfRange { field, .. } | Self::HeldTooLong { field } | Self::ForgottenAtOnce { field } => {
                vec![field]
            }
            Self::MaxNotAboveMin { .. } => vec!["max-ports", "min-ports"],
            Self::MaxWithStatic => vec!["max-ports", "mode"],
            Self::IndependentWithDynamic => vec!["endpoint-independent", "mode"],
            Self::NoneWithSettings => Vec::new(),
        }
    }
}
