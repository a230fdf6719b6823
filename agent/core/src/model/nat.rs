//! NAT profiles as data, the settings a user gives, and the ports they mean for this node.
//!
//! Google Cloud NAT: `cloud.google.com/nat/docs` (ports-and-addresses, set-up), Compute API `RouterNat`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Source ports of one NAT IP: 1024-65535.
pub const PORTS_PER_NAT_IP: u32 = 64_512;

/// Which NAT stands in front of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Google Cloud NAT.
    Gcp,
    /// None that we know: demand is shown, not judged.
    None,
}

impl Profile {
    /// The name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gcp => "gcp",
            Self::None => "none",
        }
    }
}

/// How Cloud NAT gives ports to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The same fixed number for every node.
    Static,
    /// Between a minimum and a maximum, doubled as needed.
    Dynamic,
}

/// How long a NAT keeps a port after the flow ended or fell silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldTimes {
    /// After a TCP connection closed in good order.
    pub tcp_time_wait: Duration,
    /// After a TCP connection was reset.
    pub tcp_reset: Duration,
    /// After the last packet of an established TCP connection.
    pub tcp_established_idle: Duration,
    /// After the last packet of a UDP flow.
    pub udp_idle: Duration,
    /// After the last packet of an ICMP flow.
    pub icmp_idle: Duration,
}

impl Default for HoldTimes {
    /// Cloud NAT's defaults; a reset falls under its transitory time-out.
    fn default() -> Self {
        Self {
            tcp_time_wait: Duration::from_secs(120),
            tcp_reset: Duration::from_secs(30),
            tcp_established_idle: Duration::from_secs(1200),
            udp_idle: Duration::from_secs(30),
            icmp_idle: Duration::from_secs(30),
        }
    }
}

impl HoldTimes {
    /// The longest time a port outlives its flow.
    pub fn longest_after_end(self) -> Duration {
        self.tcp_time_wait.max(self.tcp_reset).max(self.udp_idle).max(self.icmp_idle)
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

/// The NAT in front of this node, as it was described to us; checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatSettings {
    /// Which.
    pub profile: Profile,
    /// Where the settings come from.
    pub basis: Basis,
    /// Static or dynamic ports.
    pub mode: Mode,
    /// Minimum ports per node as configured; absent = the default (64 static, 32 dynamic).
    pub min_ports: Option<u32>,
    /// Maximum ports per node as configured, dynamic only; absent = 65,536.
    pub max_ports: Option<u32>,
    /// NAT IPs of the gateway.
    pub nat_ips: Option<u32>,
    /// Nodes behind the gateway.
    pub nodes: Option<u32>,
    /// Nodes have alias IP ranges of more than one address (every VPC-native GKE node).
    pub alias_ranges: bool,
    /// Hold times.
    pub hold: HoldTimes,
}

/// A setting that the NAT would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadNatSettings {
    /// Outside what the NAT accepts.
    #[error("`{field}` is {value}: Cloud NAT takes {takes}")]
    OutOfRange {
        /// Which setting.
        field: &'static str,
        /// Its value.
        value: u32,
        /// What would be accepted.
        takes: &'static str,
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
}

/// What the gateway can do for its nodes, with the settings at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePorts {
    /// Ports of this node, per protocol and destination, at most.
    pub ports: u32,
    /// Ports reserved for each node from the start: what limits the number of nodes.
    pub reserved: u32,
    /// Nodes that fit on the NAT IPs.
    pub capacity_nodes: Option<u32>,
    /// In words, how it comes about.
    pub why: String,
}

impl NatSettings {
    /// No NAT in front, as far as we know.
    pub fn none() -> Self {
        Self { profile: Profile::None, ..Self::gcp(Basis::Assumed) }
    }

    /// Cloud NAT with its defaults on a GKE node.
    pub fn gcp(basis: Basis) -> Self {
        Self {
            profile: Profile::Gcp,
            basis,
            mode: Mode::Static,
            min_ports: None,
            max_ports: None,
            nat_ips: None,
            nodes: None,
            alias_ranges: true,
            hold: HoldTimes::default(),
        }
    }

    /// Refuses what Cloud NAT would refuse.
    ///
    /// # Errors
    /// The first setting that is out of range or contradicts another.
    pub fn check(&self) -> Result<(), BadNatSettings> {
        let out_of_range = |field, value, takes| Err(BadNatSettings::OutOfRange { field, value, takes });
        match self.mode {
            Mode::Static => {
                if let Some(min) = self.min_ports.filter(|min| *min != 0)
                    && !(2..=57_344).contains(&min)
                {
                    return out_of_range("min-ports", min, "2 to 57344 with static allocation");
                }
                if self.max_ports.is_some_and(|max| max != 0) {
                    return Err(BadNatSettings::MaxWithStatic);
                }
            }
            Mode::Dynamic => {
                let (min, max) = (self.dynamic_min(), self.dynamic_max());
                if !min.is_power_of_two() || !(32..=32_768).contains(&min) {
                    return out_of_range("min-ports", min, "a power of two from 32 to 32768 with dynamic allocation");
                }
                if !max.is_power_of_two() || !(64..=65_536).contains(&max) {
                    return out_of_range("max-ports", max, "a power of two from 64 to 65536 with dynamic allocation");
                }
                if max <= min {
                    return Err(BadNatSettings::MaxNotAboveMin { min, max });
                }
            }
        }
        Ok(())
    }

    fn dynamic_min(&self) -> u32 {
        self.min_ports.filter(|min| *min != 0).unwrap_or(32)
    }

    fn dynamic_max(&self) -> u32 {
        self.max_ports.filter(|max| *max != 0).unwrap_or(65_536)
    }

    /// The ports of a node; `None` without a NAT.
    pub fn node_ports(&self) -> Option<NodePorts> {
        if self.profile == Profile::None {
            return None;
        }
        let (ports, reserved, why) = match self.mode {
            Mode::Static => {
                let asked = self.min_ports.filter(|min| *min != 0);
                let rounded = asked.unwrap_or(64).next_power_of_two();
                let ports = if self.alias_ranges { rounded.max(1024) } else { rounded };
                let given = asked.map_or_else(|| "default of 64".to_owned(), |min| format!("minimum of {min}"));
                let why = if ports > rounded {
                    format!("static, {given}, raised to 1024 because nodes have alias IP ranges")
                } else if asked.is_some_and(|min| min != rounded) {
                    format!("static, {given}, rounded up to a power of two")
                } else {
                    format!("static, {given}")
                };
                (ports, ports, why)
            }
            Mode::Dynamic => {
                let (min, max) = (self.dynamic_min(), self.dynamic_max());
                (
                    max,
                    min,
                    format!("dynamic, {min} to {max} ports per node; growing takes time, packets may drop meanwhile"),
                )
            }
        };
        let total = self.nat_ips.map(|ips| u64::from(ips) * u64::from(PORTS_PER_NAT_IP));
        let fit = |total: u64| u32::try_from(total / u64::from(reserved.max(1))).unwrap_or(u32::MAX);
        Some(NodePorts { ports, reserved, capacity_nodes: total.map(fit), why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(mode: Mode, min: Option<u32>, alias_ranges: bool, nat_ips: u32) -> NatSettings {
        let max_ports = (mode == Mode::Dynamic).then_some(1024);
        NatSettings {
            mode,
            min_ports: min,
            max_ports,
            alias_ranges,
            nat_ips: Some(nat_ips),
            ..NatSettings::gcp(Basis::Configured)
        }
    }

    /// Exercises the published capacities of Cloud NAT. If this fails, nodes are planned that get no ports.
    #[test]
    fn capacities_are_those_of_the_documentation() {
        for (mode, min, alias, ips, ports, nodes) in [
            (Mode::Static, Some(64), false, 1, 64, 1008),
            (Mode::Static, Some(64), false, 2, 64, 2016),
            (Mode::Static, Some(4096), false, 1, 4096, 15),
            (Mode::Static, Some(256), false, 1, 256, 252),
            (Mode::Static, None, true, 1, 1024, 63),
            (Mode::Static, Some(50), false, 1, 64, 1008),
            (Mode::Static, Some(2048), true, 1, 2048, 31),
            (Mode::Static, Some(0), false, 1, 64, 1008),
            (Mode::Static, Some(2048), false, 14, 2048, 441),
            (Mode::Dynamic, Some(64), true, 1, 1024, 1008),
            (Mode::Dynamic, Some(64), true, 2, 1024, 2016),
        ] {
            let settings = settings(mode, min, alias, ips);
            assert_eq!(settings.check(), Ok(()), "{settings:?}");
            let got = settings.node_ports().unwrap();
            assert_eq!((got.ports, got.capacity_nodes), (ports, Some(nodes)), "{settings:?}");
        }
    }

    #[test]
    fn settings_that_cloud_nat_refuses_are_refused_with_their_name() {
        let bad = |mode, min, max| NatSettings {
            mode,
            min_ports: min,
            max_ports: max,
            ..NatSettings::gcp(Basis::Configured)
        };
        let text = |settings: NatSettings| settings.check().unwrap_err().to_string();
        assert!(text(bad(Mode::Static, Some(1), None)).contains("`min-ports` is 1"));
        assert!(text(bad(Mode::Static, Some(64), Some(128))).contains("`mode` dynamic"));
        assert!(text(bad(Mode::Dynamic, Some(100), None)).contains("power of two"));
        assert!(text(bad(Mode::Dynamic, Some(64), Some(64))).contains("must be above"));
        assert!(text(bad(Mode::Dynamic, None, Some(96))).contains("`max-ports` is 96"));
    }
}
