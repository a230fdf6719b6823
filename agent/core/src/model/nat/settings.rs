//! The settings of a NAT: as somebody described it, and as they hold after the defaults have been filled in and checked.

use serde::{Deserialize, Serialize};

use super::hold::MAX_HOLD;
use super::remedy::Names;
use super::{HoldTimes, ObservedPorts, Profile, SetTimes};
use crate::ports::PortRange;

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
    /// Minimum ports per node as configured, for an Azure load balancer those allocated by hand; absent or 0 = the default
    /// (64 static, 32 dynamic, Azure's table).
    pub min_ports: Option<u32>,
    /// Maximum ports per node as configured, dynamic only; absent or 0 = 65,536.
    pub max_ports: Option<u32>,
    /// NAT IPs of the gateway; zero only where it was seen to have none.
    pub nat_ips: Option<u32>,
    /// The gateway adds NAT IPs by itself; how many there are at the moment then limits nothing.
    pub auto_ips: bool,
    /// Nodes behind the gateway.
    pub nodes: Option<u32>,
    /// Nodes that an upgrade adds for a while.
    pub surge: Option<u32>,
    /// Nodes have alias IP ranges of more than one address (every VPC-native GKE node).
    pub alias_ranges: bool,
    /// One NAT port per source address and port for all destinations; absent = nobody has said.
    pub endpoint_independent: Option<bool>,
    /// The source ports that masquerading may use (`--to-ports`), Linux only.
    pub port_range: Option<PortRange>,
    /// Hold times.
    pub hold: HoldTimes,
    /// What the NAT says it has given this node.
    pub observed: Option<ObservedPorts>,
    /// NAT IPs that the gateway itself says it lacks.
    pub missing_ips: Option<u32>,
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
            min_ports: None,
            max_ports: None,
            nat_ips: None,
            auto_ips: false,
            nodes: None,
            surge: None,
            alias_ranges: true,
            endpoint_independent: None,
            port_range: None,
            hold: profile.hold(),
            observed: None,
            missing_ips: None,
            names: Names::default(),
            notes: Vec::new(),
        }
    }

    /// No NAT in front, as far as we know.
    pub fn none() -> Self {
        Self::of(Profile::None, Basis::Assumed)
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
        if let (Some(ips), Some(most)) = (self.nat_ips, self.profile.capacity().and_then(|capacity| capacity.max_ips))
            && ips > most
        {
            return Err(self.out_of_range("nat-ips", ips, format!("1 to {most} on one gateway")));
        }
        let idle = [("tcp-established-idle", self.hold.tcp_established_idle), ("udp-idle", self.hold.udp_idle)];
        if let Some((field, _)) = idle.into_iter().find(|(_, idle)| idle.is_zero()) {
            return Err(BadNatSettings::ForgottenAtOnce { field });
        }
        if let Some((field, _)) = self.hold.after_end().into_iter().find(|(_, held)| *held > MAX_HOLD) {
            return Err(BadNatSettings::HeldTooLong { field });
        }
        match self.profile {
            Profile::Gcp => self.check_gcp(),
            Profile::AzureLb => self.check_azure_lb(),
            Profile::Aws | Profile::AzureNatgw | Profile::Linux | Profile::None => Ok(()),
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
    #[error("`{field}`: a NAT hold time of more than an hour is not possible")]
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

/// A NAT as far as somebody has described it: flags, the configuration file, what a cloud's tool printed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Described {
    /// Which.
    pub profile: Option<Profile>,
    /// See [`NatSettings::mode`].
    pub mode: Option<Mode>,
    /// See [`NatSettings::min_ports`].
    pub min_ports: Option<u32>,
    /// See [`NatSettings::max_ports`].
    pub max_ports: Option<u32>,
    /// See [`NatSettings::nat_ips`].
    pub nat_ips: Option<u32>,
    /// See [`NatSettings::auto_ips`].
    pub auto_ips: Option<bool>,
    /// The gateway has no NAT IP at all.
    pub no_ips: bool,
    /// See [`NatSettings::nodes`].
    pub nodes: Option<u32>,
    /// See [`NatSettings::surge`].
    pub surge: Option<u32>,
    /// See [`NatSettings::alias_ranges`].
    pub alias_ranges: Option<bool>,
    /// See [`NatSettings::endpoint_independent`].
    pub endpoint_independent: Option<bool>,
    /// See [`NatSettings::port_range`].
    pub port_range: Option<PortRange>,
    /// Times that are set.
    pub times: SetTimes,
    /// See [`NatSettings::observed`].
    pub observed: Option<ObservedPorts>,
    /// See [`NatSettings::missing_ips`].
    pub missing_ips: Option<u32>,
    /// See [`NatSettings::names`].
    pub names: Names,
    /// See [`NatSettings::notes`].
    pub notes: Vec<String>,
}

impl Described {
    /// This where it says something, else the other.
    pub fn or(self, other: Self) -> Self {
        Self {
            profile: self.profile.or(other.profile),
            mode: self.mode.or(other.mode),
            min_ports: self.min_ports.or(other.min_ports),
            max_ports: self.max_ports.or(other.max_ports),
            nat_ips: self.nat_ips.or(other.nat_ips),
            auto_ips: self.auto_ips.or(other.auto_ips),
            no_ips: self.no_ips || other.no_ips,
            nodes: self.nodes.or(other.nodes),
            surge: self.surge.or(other.surge),
            alias_ranges: self.alias_ranges.or(other.alias_ranges),
            endpoint_independent: self.endpoint_independent.or(other.endpoint_independent),
            port_range: self.port_range.or(other.port_range),
            times: self.times.or(other.times),
            observed: self.observed.or(other.observed),
            missing_ips: self.missing_ips.or(other.missing_ips),
            names: self.names.or(other.names),
            notes: [self.notes, other.notes].concat(),
        }
    }

    /// Whether something is said about one of the settings that [`BadNatSettings`] names.
    pub fn says(&self, field: &str) -> bool {
        match field {
            "min-ports" => self.min_ports.is_some(),
            "max-ports" => self.max_ports.is_some(),
            "mode" => self.mode.is_some(),
            "endpoint-independent" => self.endpoint_independent.is_some(),
            "nat-ips" => self.nat_ips.is_some(),
            "nodes" => self.nodes.is_some(),
            "tcp-time-wait" => self.times.tcp_time_wait.is_some(),
            "tcp-reset" => self.times.tcp_reset.or(self.times.tcp_transitory).is_some(),
            "tcp-established-idle" => self.times.tcp_established_idle.is_some(),
            "udp-idle" => self.times.udp_idle.or(self.times.udp_hold_down).is_some(),
            "icmp-idle" => self.times.icmp_idle.is_some(),
            _ => false,
        }
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether something is said that decides how many ports Cloud NAT gives a node. Other NATs have no default that stands
    /// alone: see [`NatSettings::node_ports`].
    fn says_ports(&self) -> bool {
        self.mode.is_some() || self.min_ports.is_some() || self.max_ports.is_some()
    }

    /// The settings of that NAT, its own defaults filled in. Where nothing is said about the ports of a node, they are assumed.
    ///
    /// # Errors
    /// See [`NatSettings::check`].
    pub fn settings(self, profile: Profile) -> Result<NatSettings, BadNatSettings> {
        let assumed = profile == Profile::Gcp && !self.says_ports();
        let own = NatSettings::of(profile, if assumed { Basis::Assumed } else { Basis::Configured });
        let no_ips = self.no_ips && self.nat_ips.is_none() && self.auto_ips != Some(true);
        if profile == Profile::None && !(Self { profile: None, ..self.clone() }).is_empty() {
            return Err(BadNatSettings::NoneWithSettings);
        }
        let settings = NatSettings {
            mode: self.mode.unwrap_or(own.mode),
            min_ports: self.min_ports,
            max_ports: self.max_ports,
            nat_ips: self.nat_ips,
            // Somebody who says how many there are means a gateway with these.
            auto_ips: self.auto_ips.unwrap_or(own.auto_ips) && self.nat_ips.is_none(),
            nodes: self.nodes,
            surge: self.surge,
            alias_ranges: self.alias_ranges.unwrap_or(own.alias_ranges),
            endpoint_independent: self.endpoint_independent,
            port_range: self.port_range,
            hold: self.times.over(own.hold),
            observed: self.observed,
            missing_ips: self.missing_ips,
            names: self.names,
            notes: self.notes,
            ..own
        };
        settings.check()?;
        // Nobody sets a gateway to have none, but there are some.
        Ok(NatSettings { nat_ips: if no_ips { Some(0) } else { settings.nat_ips }, ..settings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(profile: Profile, described: Described) -> String {
        described.settings(profile).unwrap_err().to_string()
    }

    fn ports(mode: Mode, min_ports: Option<u32>, max_ports: Option<u32>) -> Described {
        Described { mode: Some(mode), min_ports, max_ports, ..Described::default() }
    }

    #[test]
    fn settings_that_cloud_nat_refuses_are_refused_with_their_name() {
        let gcp = |described| text(Profile::Gcp, described);
        assert!(gcp(ports(Mode::Static, Some(1), None)).contains("`min-ports` is 1: Cloud NAT takes 2 to 57344"));
        assert!(gcp(ports(Mode::Static, Some(57_345), None)).contains("57345"));
        assert!(gcp(ports(Mode::Static, Some(64), Some(128))).contains("`mode` dynamic"));
        assert!(gcp(ports(Mode::Dynamic, Some(100), None)).contains("power of two"));
        assert!(gcp(ports(Mode::Dynamic, Some(16), None)).contains("from 32"));
        assert!(gcp(ports(Mode::Dynamic, Some(64), Some(64))).contains("must be above"));
        assert!(gcp(ports(Mode::Dynamic, None, Some(96))).contains("`max-ports` is 96"));
        assert!(gcp(ports(Mode::Dynamic, None, Some(u32::MAX))).contains("from 64 to 65536"));
        let independent = Described { endpoint_independent: Some(true), ..ports(Mode::Dynamic, Some(64), Some(1024)) };
        assert!(gcp(independent).contains("exclude each other"));
        assert!(gcp(Described { nat_ips: Some(0), ..Described::default() }).contains("`nat-ips` is 0"));
        assert!(gcp(Described { nodes: Some(0), ..Described::default() }).contains("`nodes` is 0"));
        assert!(gcp(Described { nat_ips: Some(301), ..Described::default() }).contains("1 to 300"));
    }

    /// Exercises both ends of what is accepted. If this fails, people are told that a setting is wrong that the NAT takes.
    #[test]
    fn what_the_nat_takes_at_its_bounds_is_taken() {
        let taken = |profile: Profile, described: Described| {
            described.clone().settings(profile).unwrap_or_else(|bad| panic!("{described:?}: {bad}"))
        };
        for min in [2, 57_344] {
            taken(Profile::Gcp, ports(Mode::Static, Some(min), None));
        }
        for (min, max) in [(Some(32), Some(64)), (Some(32_768), Some(65_536)), (None, Some(64)), (Some(32_768), None)] {
            taken(Profile::Gcp, ports(Mode::Dynamic, min, max));
        }
        let ips = |nat_ips| Described { nat_ips: Some(nat_ips), ..Described::default() };
        for (profile, most) in
            [(Profile::Gcp, 300), (Profile::Aws, 8), (Profile::AzureNatgw, 16), (Profile::AzureLb, 100)]
        {
            taken(profile, ips(most));
            assert!(ips(most + 1).settings(profile).is_err(), "{profile}");
        }
        taken(Profile::AzureLb, Described { min_ports: Some(64_000), ..Described::default() });
        let hour = SetTimes { tcp_time_wait: Some(MAX_HOLD), ..SetTimes::default() };
        taken(Profile::Gcp, Described { times: hour, ..Described::default() });
    }

    /// Exercises idle times of nothing. If this fails, open connections are said to need no ports.
    #[test]
    fn a_nat_that_forgets_at_once_is_refused() {
        let zero = Some(std::time::Duration::ZERO);
        let established = SetTimes { tcp_established_idle: zero, ..SetTimes::default() };
        let udp = SetTimes { udp_idle: zero, ..SetTimes::default() };
        for (times, field) in [(established, "`tcp-established-idle` is 0"), (udp, "`udp-idle` is 0")] {
            assert!(text(Profile::Gcp, Described { times, ..Described::default() }).starts_with(field));
        }
    }

    #[test]
    fn zero_and_absent_mean_the_default() {
        for zero in [None, Some(0)] {
            assert!(ports(Mode::Static, zero, zero).settings(Profile::Gcp).is_ok());
            let dynamic = ports(Mode::Dynamic, zero, zero).settings(Profile::Gcp).unwrap();
            assert_eq!((dynamic.dynamic_min(), dynamic.dynamic_max()), (32, 65_536));
            assert!(ports(Mode::Static, zero, zero).settings(Profile::AzureLb).is_ok());
        }
    }

    #[test]
    fn other_nats_refuse_what_they_do_not_have() {
        let ips = |nat_ips| Described { nat_ips: Some(nat_ips), ..Described::default() };
        assert!(text(Profile::Aws, ips(9)).contains("an AWS NAT gateway takes 1 to 8"));
        assert!(text(Profile::AzureNatgw, ips(17)).contains("1 to 16"));
        for ports in [1001, 64_008] {
            let described = Described { min_ports: Some(ports), ..Described::default() };
            assert!(text(Profile::AzureLb, described).contains("multiple of 8"), "{ports}");
        }
        assert!(text(Profile::None, ips(1)).contains("no further settings"));
    }

    #[test]
    fn what_is_said_first_wins() {
        let first = Described { min_ports: Some(128), ..Described::default() };
        let second = Described { min_ports: Some(64), nat_ips: Some(2), ..Described::default() };
        let both = first.or(second);
        assert_eq!((both.min_ports, both.nat_ips), (Some(128), Some(2)));
        assert!(Described::default().is_empty() && !both.is_empty());
    }
}
