//! A NAT as far as somebody has described it, in pieces that are put together, and the settings that follow.

use super::remedy::Names;
use super::{ALIAS_FLOOR, BadNatSettings, Basis, Mode, NatSettings, NodePool, ObservedPorts, Profile, SetTimes, pools};
use crate::ports::PortRange;
use crate::time::WallTime;
use crate::words::counted;

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
    /// See [`NatSettings::least_ips`].
    pub least_ips: Option<u32>,
    /// The gateway has no NAT IP at all.
    pub no_ips: bool,
    /// See [`NatSettings::regional`].
    pub regional: bool,
    /// See [`NatSettings::nodes`].
    pub nodes: Option<u32>,
    /// See [`NatSettings::surge`].
    pub surge: Option<u32>,
    /// Where nothing else is said, they are the nodes, and their upgrades the surge.
    pub pools: Vec<NodePool>,
    /// See [`NatSettings::alias_ranges`].
    pub alias_ranges: Option<bool>,
    /// See [`NatSettings::endpoint_independent`].
    pub endpoint_independent: Option<bool>,
    /// See [`NatSettings::nat64`].
    pub nat64: Option<bool>,
    /// See [`NatSettings::port_range`].
    pub port_range: Option<PortRange>,
    /// Times that are set.
    pub times: SetTimes,
    /// See [`NatSettings::observed`].
    pub observed: Option<ObservedPorts>,
    /// See [`NatSettings::missing_ips`].
    pub missing_ips: Option<u32>,
    /// See [`NatSettings::allocation_failed`].
    pub allocation_failed: Option<WallTime>,
    /// See [`NatSettings::names`].
    pub names: Names,
    /// See [`NatSettings::notes`].
    pub notes: Vec<String>,
    /// What to know about the number of NAT IPs besides, unless somebody says how many there are.
    pub ip_notes: Vec<String>,
}

impl Described {
    /// This where it says something, else the other.
    pub fn or(self, other: Self) -> Self {
        // Who says that ports are static takes the maximum away.
        let maximum_goes = self.mode == Some(Mode::Static) && self.max_ports.is_none();
        let without = other.max_ports.filter(|max| maximum_goes && *max != 0);
        let without = without.map(|max| format!("`max-ports` {max} is left out: static allocation has no maximum"));
        let ips_said = self.nat_ips.is_some();
        Self {
            profile: self.profile.or(other.profile),
            mode: self.mode.or(other.mode),
            min_ports: self.min_ports.or(other.min_ports),
            max_ports: self.max_ports.or(other.max_ports.filter(|_| !maximum_goes)),
            nat_ips: self.nat_ips.or(other.nat_ips),
            least_ips: self.least_ips.or(other.least_ips),
            auto_ips: self.auto_ips.or(other.auto_ips),
            no_ips: self.no_ips || other.no_ips,
            regional: self.regional || other.regional,
            nodes: self.nodes.or(other.nodes),
            surge: self.surge.or(other.surge),
            pools: if self.pools.is_empty() { other.pools } else { self.pools },
            alias_ranges: self.alias_ranges.or(other.alias_ranges),
            endpoint_independent: self.endpoint_independent.or(other.endpoint_independent),
            nat64: self.nat64.or(other.nat64),
            port_range: self.port_range.or(other.port_range),
            times: self.times.or(other.times),
            observed: self.observed.or(other.observed),
            missing_ips: self.missing_ips.or(other.missing_ips),
            allocation_failed: self.allocation_failed.or(other.allocation_failed),
            names: self.names.or(other.names),
            notes: self.notes.into_iter().chain(other.notes).chain(without).collect(),
            ip_notes: self.ip_notes.into_iter().chain(other.ip_notes.into_iter().filter(|_| !ips_said)).collect(),
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
            "nodes" => self.nodes.is_some() || !self.pools.is_empty(),
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

    /// The same without the settings that this NAT does not have; what was left out is noted.
    fn with_meaning(self, profile: Profile) -> Self {
        let gcp = profile == Profile::Gcp;
        let by_hand = gcp || profile == Profile::AzureLb;
        let maps = gcp || profile == Profile::Linux;
        let linux = profile == Profile::Linux;
        let without = [
            ("mode dynamic", !gcp && self.mode == Some(Mode::Dynamic)),
            ("max-ports", !gcp && self.max_ports.is_some_and(|max| max != 0)),
            ("min-ports", !by_hand && self.min_ports.is_some_and(|min| min != 0)),
            ("endpoint-independent", !maps && self.endpoint_independent == Some(true)),
            ("port-range", !linux && self.port_range.is_some()),
        ];
        let without = without.into_iter().filter(|(_, given)| *given);
        let notes = without.map(|(name, _)| format!("`{name}` means nothing to {} and is left out", profile.title()));
        Self {
            mode: self.mode.filter(|_| gcp),
            max_ports: self.max_ports.filter(|_| gcp),
            min_ports: self.min_ports.filter(|_| by_hand),
            endpoint_independent: self.endpoint_independent.filter(|_| maps),
            port_range: self.port_range.filter(|_| linux),
            notes: self.notes.into_iter().chain(notes).collect(),
            ..self
        }
    }

    /// What is not known where machines are all that somebody has told of.
    fn of_machines_alone(&self, profile: Profile) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(least) = self.least_ips
            && self.nat_ips.is_none()
            && self.auto_ips != Some(true)
        {
            let ips = if least == 1 { "1 NAT IP serves".to_owned() } else { format!("{least} NAT IPs serve") };
            notes.push(format!("{ips} the machines that are listed: there are at least so many, maybe more"));
        }
        if profile == Profile::Gcp && self.observed.is_some() && self.mode.is_none() {
            notes.push("whether ports are static or dynamic is not said: taken as static".to_owned());
        }
        notes
    }

    /// The settings of that NAT as it is now: with the nodes that there are, not those that pools may come to have, and without those
    /// that an upgrade adds for a while. What becomes of the ports then is noted.
    ///
    /// # Errors
    /// See [`NatSettings::check`].
    pub fn settings_now(self, profile: Profile) -> Result<NatSettings, BadNatSettings> {
        if self.pools.is_empty() {
            return self.settings(profile);
        }
        let most = self.clone().settings(profile)?;
        let there = Some(pools::now(&self.pools)).filter(|nodes| *nodes != 0);
        let mut now = Self { nodes: self.nodes.or(there), pools: Vec::new(), ..self }.settings(profile)?;
        let ports = |nat: &NatSettings| nat.node_ports().map(|given| given.ports);
        let nodes = most.nodes.map_or(0, |nodes| most.with_surge(nodes));
        if ports(&now) != ports(&most) && now.observed.is_none() {
            let then = ports(&most).map_or("nobody knows how many ports".to_owned(), |ports| format!("{ports} ports"));
            now.notes.push(format!(
                "with all that its pools may have and an upgrade adds ({}) each node gets {then}: `headroom plan nat` tells what to do",
                counted(nodes, "node")
            ));
        }
        Ok(now)
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
        let given = self.with_meaning(profile);
        let nodes = given.nodes.or(Some(pools::nodes(&given.pools)).filter(|nodes| *nodes != 0));
        let of_machines = given.of_machines_alone(profile);
        let notes = given.notes.into_iter().chain(given.ip_notes).chain(of_machines).collect();
        let mode_assumed = profile == Profile::Gcp && given.observed.is_some() && given.mode.is_none();
        // Fewer than every node with alias ranges would have.
        let below_floor = |observed: &ObservedPorts| (1..ALIAS_FLOOR).contains(&observed.ports);
        let alias_ranges = own.alias_ranges && !given.observed.as_ref().is_some_and(below_floor);
        let settings = NatSettings {
            mode_assumed,
            least_ips: given.least_ips.filter(|_| given.nat_ips.is_none()),
            mode: given.mode.unwrap_or(own.mode),
            min_ports: given.min_ports,
            max_ports: given.max_ports,
            nat_ips: given.nat_ips,
            // Somebody who says how many there are means a gateway with these.
            auto_ips: given.auto_ips.unwrap_or(own.auto_ips) && given.nat_ips.is_none(),
            regional: given.regional && profile == Profile::Aws,
            nodes,
            surge: given.surge,
            pools: given.pools,
            alias_assumed: given.alias_ranges.is_none(),
            alias_ranges: given.alias_ranges.unwrap_or(alias_ranges),
            endpoint_independent: given.endpoint_independent,
            nat64: given.nat64,
            port_range: given.port_range,
            hold: given.times.over(own.hold),
            observed: given.observed,
            missing_ips: given.missing_ips,
            allocation_failed: given.allocation_failed,
            names: given.names,
            notes,
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
    use crate::model::nat::MAX_HOLD;

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
        // A NAT may hold ports for longer than ended flows are remembered.
        let held = |time| {
            let times = SetTimes { tcp_time_wait: Some(time), ..SetTimes::default() };
            taken(Profile::Gcp, Described { times, ..Described::default() }).remembered()
        };
        assert!(held(MAX_HOLD).is_ok());
        let longer = held(MAX_HOLD + std::time::Duration::from_secs(1));
        assert_eq!(longer, Err(BadNatSettings::HeldTooLong { field: "tcp-time-wait" }));
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

    /// Exercises settings of another NAT. If this fails, they are said to be left out, and the numbers go by them all the same.
    #[test]
    fn settings_without_meaning_are_left_out_of_the_numbers() {
        let all = Described {
            mode: Some(Mode::Dynamic),
            min_ports: Some(1024),
            max_ports: Some(2048),
            endpoint_independent: Some(true),
            port_range: "1024-2047".parse().ok(),
            ..Described::default()
        };
        assert!(all.port_range.is_some());
        for (profile, left_out) in
            [(Profile::Aws, 5), (Profile::AzureNatgw, 5), (Profile::AzureLb, 4), (Profile::Linux, 3)]
        {
            let settings = all.clone().settings(profile).unwrap();
            assert_eq!(settings.notes.len(), left_out, "{:?}", settings.notes);
            assert_eq!((settings.mode, settings.max_ports), (Mode::Static, None), "{profile}");
            assert_eq!(settings.min_ports.is_some(), profile == Profile::AzureLb);
            assert_eq!(settings.endpoint_independent.is_some(), profile == Profile::Linux);
            assert_eq!(settings.port_range.is_some(), profile == Profile::Linux);
            let without = NatSettings { notes: Vec::new(), ..settings.clone() };
            if profile != Profile::Linux && profile != Profile::AzureLb {
                assert_eq!(without, Described::default().settings(profile).unwrap());
            }
        }
        let gcp = Described { endpoint_independent: None, ..all }.settings(Profile::Gcp).unwrap();
        assert_eq!((gcp.notes.len(), gcp.port_range, gcp.max_ports), (1, None, Some(2048)));
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
