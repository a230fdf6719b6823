//! How many ports a node gets: each NAT's rule, as a function of its settings.

use super::{Basis, Mode, NatSettings, PORTS_PER_NAT_IP, Profile, Sharing};
use crate::time::WallTime;
use crate::words::counted;

/// Ports that Cloud NAT gives every node with alias IP ranges under static allocation, at least.
pub const ALIAS_FLOOR: u32 = 1024;
/// Cloud NAT's default minimum with static allocation.
pub const STATIC_DEFAULT: u32 = 64;
/// Cloud NAT's default minimum with dynamic allocation.
pub const DYNAMIC_MIN_DEFAULT: u32 = 32;
/// Cloud NAT's default maximum with dynamic allocation.
pub const DYNAMIC_MAX_DEFAULT: u32 = 65_536;

/// Azure's default allocation: up to so many instances in the backend pool, so many ports each, per frontend IP
/// (azure-docs `load-balancer-outbound-connections.md`).
pub const AZURE_LB_TIERS: [(u32, u32); 6] = [(50, 1024), (100, 512), (200, 256), (400, 128), (800, 64), (1000, 32)];

/// What the NAT gives a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePorts {
    /// Ports of this node, per protocol and destination, at most.
    pub ports: u32,
    /// Ports reserved for each node from the start: what limits the number of nodes. Zero where nothing is reserved.
    pub reserved: u32,
    /// Nodes that fit on the NAT IPs, where ports are reserved and the IPs known.
    pub capacity_nodes: Option<u32>,
    /// What this rests on.
    pub basis: Basis,
    /// In words, how it comes about.
    pub why: String,
}

/// Ports that Cloud NAT reserves for a node with static allocation, at most those of a NAT IP; zero and absent mean the default.
pub fn static_ports(min: Option<u32>, alias_ranges: bool) -> u32 {
    let asked = min.filter(|min| *min != 0).unwrap_or(STATIC_DEFAULT);
    // What is above them, no NAT IP has: the settings end at 57,344.
    let rounded = asked.checked_next_power_of_two().map_or(PORTS_PER_NAT_IP, |ports| ports.min(PORTS_PER_NAT_IP));
    if alias_ranges { rounded.max(ALIAS_FLOOR) } else { rounded }
}

/// Ports that Cloud NAT has given a node under dynamic allocation by the time it needs so many: the minimum, doubled as
/// often as needed, at most the maximum.
pub fn granted(min: u32, max: u32, demand: u32) -> u32 {
    let mut ports = min.max(1);
    while ports < demand && ports < max {
        ports = ports.saturating_mul(2);
    }
    ports.min(max)
}

/// Why nobody knows what nodes have whose automatic allocation Azure does not document.
pub const BEYOND_AZURES_TABLE: &str = "Azure's table ends at 1000 nodes: allocate ports by hand";

/// Azure's default number of ports per instance and frontend IP for a backend pool of that size; `None` beyond the table.
pub fn azure_lb_tier(instances: u32) -> Option<u32> {
    AZURE_LB_TIERS.iter().find(|(most, _)| instances <= *most).map(|(_, ports)| *ports)
}

impl NatSettings {
    /// Minimum with dynamic allocation, or its default.
    pub fn dynamic_min(&self) -> u32 {
        self.min_ports.filter(|min| *min != 0).unwrap_or(DYNAMIC_MIN_DEFAULT)
    }

    /// Maximum with dynamic allocation, or its default.
    pub fn dynamic_max(&self) -> u32 {
        self.max_ports.filter(|max| *max != 0).unwrap_or(DYNAMIC_MAX_DEFAULT)
    }

    /// Ports of all NAT IPs, TCP and UDP each; `None` where their number is not known.
    pub fn pool(&self) -> Option<u64> {
        let capacity = self.profile.capacity()?;
        Some(u64::from(self.nat_ips?) * u64::from(self.ports_of_an_ip(capacity.ports_per_ip)))
    }

    /// Ports of one NAT IP: as the profile says, or the range that masquerading was given.
    pub fn ports_of_an_ip(&self, of_the_profile: u32) -> u32 {
        self.port_range.map_or(of_the_profile, |range| range.count().min(of_the_profile))
    }

    /// Whether an Azure load balancer allocates by itself, to more nodes than its documentation tells of.
    pub fn beyond_azures_table(&self) -> bool {
        let automatic = self.profile == Profile::AzureLb && self.min_ports.is_none_or(|ports| ports == 0);
        let has_ips = self.nat_ips != Some(0) && self.observed.is_none();
        automatic && has_ips && self.azure_lb_pool().is_some_and(|pool| azure_lb_tier(pool).is_none())
    }

    /// Nodes of the backend pool at most.
    fn azure_lb_pool(&self) -> Option<u32> {
        self.nodes.map(|nodes| self.with_surge(nodes))
    }

    /// The ports of a node; `None` without a NAT, and where nobody knows.
    pub fn node_ports(&self) -> Option<NodePorts> {
        let capacity = self.profile.capacity()?;
        if self.beyond_azures_table() {
            return None;
        }
        let rule = match (self.profile, self.mode) {
            (Profile::Gcp, Mode::Static) => self.gcp_static(),
            (Profile::Gcp, Mode::Dynamic) => self.gcp_dynamic(),
            (Profile::AzureLb, _) => self.azure_lb(),
            (Profile::Aws | Profile::AzureNatgw | Profile::Linux | Profile::None, _) => {
                self.shared(self.ports_of_an_ip(capacity.per_destination))
            }
        };
        let Some(observed) = &self.observed else { return Some(self.if_it_has_ips(rule)) };
        // What the NAT itself says it gave is better than what its documentation makes of the settings.
        let dynamic = self.profile == Profile::Gcp && self.mode == Mode::Dynamic;
        // What it may still grow to is what its settings say.
        let (ports, basis, may_grow) = if dynamic && observed.ports < rule.ports {
            (rule.ports, rule.basis, format!(", may grow to {}", rule.ports))
        } else {
            (observed.ports, Basis::Observed, String::new())
        };
        let reserved = match (capacity.sharing, dynamic) {
            (Sharing::PerDestination, _) => 0,
            (Sharing::Reserved, true) => rule.reserved,
            (Sharing::Reserved, false) => observed.ports,
        };
        let why = format!("{} ports, {}{may_grow}", observed.ports, observed.why);
        Some(NodePorts { ports, reserved, capacity_nodes: self.fit(reserved), basis, why })
    }

    /// The same, with the age of what was observed.
    pub fn node_ports_at(&self, now: WallTime) -> Option<NodePorts> {
        let ports = self.node_ports()?;
        let age = self.observed.as_ref().and_then(|observed| observed.told_age(now));
        let why = age.map_or_else(|| ports.why.clone(), |age| format!("{}, {age}", ports.why));
        Some(NodePorts { why, ..ports })
    }

    /// Whatever the settings are, nothing comes from a gateway without NAT IPs.
    fn if_it_has_ips(&self, rule: NodePorts) -> NodePorts {
        if self.nat_ips != Some(0) {
            return rule;
        }
        let why = "the gateway has no NAT IP: it translates nothing".to_owned();
        NodePorts { ports: 0, capacity_nodes: Some(0), why, ..rule }
    }

    /// Nodes that fit with so many ports reserved for each.
    pub(crate) fn fit(&self, reserved: u32) -> Option<u32> {
        Some(self.without_surge(self.pool()?.checked_div(u64::from(reserved))?))
    }

    fn gcp_static(&self) -> NodePorts {
        let asked = self.min_ports.filter(|min| *min != 0);
        let ports = static_ports(asked, self.alias_ranges);
        let rounded = static_ports(asked, false);
        let given = asked.map_or_else(|| format!("default of {STATIC_DEFAULT}"), |min| format!("minimum of {min}"));
        let have = if self.alias_assumed { "as nodes are taken to have" } else { "because nodes have" };
        let why = if self.basis == Basis::Assumed {
            // Nobody has said anything else.
            let raised = format!(", raised to {ALIAS_FLOOR} {have} alias IP ranges");
            format!("static with {rounded} ports by default{}", if ports > rounded { raised.as_str() } else { "" })
        } else if ports > rounded {
            format!("static, {given}, raised to {ALIAS_FLOOR} {have} alias IP ranges")
        } else if rounded == PORTS_PER_NAT_IP {
            format!("static, {given}, all ports of a NAT IP")
        } else if asked.is_some_and(|min| min != rounded) {
            format!("static, {given}, rounded up to a power of two")
        } else {
            format!("static, {given}")
        };
        NodePorts { ports, reserved: ports, capacity_nodes: self.fit(ports), basis: self.basis, why }
    }

    fn gcp_dynamic(&self) -> NodePorts {
        let (min, max) = (self.dynamic_min(), self.dynamic_max());
        let default = |set: Option<u32>| if set.is_none_or(|ports| ports == 0) { " (default)" } else { "" };
        let range = format!("{min}{} to {max}{}", default(self.min_ports), default(self.max_ports));
        let why = format!("dynamic, {range} ports per node; growing takes time, packets may drop meanwhile");
        NodePorts { ports: max, reserved: min, capacity_nodes: self.fit(min), basis: self.basis, why }
    }

    fn azure_lb(&self) -> NodePorts {
        if let Some(ports) = self.min_ports.filter(|ports| *ports != 0) {
            let why = format!("{} per node, allocated by hand", counted(ports, "port"));
            return NodePorts { ports, reserved: ports, capacity_nodes: self.fit(ports), basis: self.basis, why };
        }
        let last = AZURE_LB_TIERS.last().map_or(0, |(most, _)| *most);
        let pool = self.azure_lb_pool();
        let per_ip = azure_lb_tier(pool.unwrap_or(1)).unwrap_or(0);
        let ports = per_ip.saturating_mul(self.nat_ips.unwrap_or(1));
        let ips = match self.nat_ips {
            Some(ips) => counted(ips, "frontend IP"),
            None => "1 frontend IP assumed".to_owned(),
        };
        let (basis, nodes) = match pool {
            Some(pool) if self.nat_ips.is_none() => (Basis::Assumed, counted(pool, "node")),
            Some(pool) => (self.basis, counted(pool, "node")),
            None => (Basis::Assumed, "at most 50 nodes assumed".to_owned()),
        };
        let why = format!("automatic, {per_ip} ports for each frontend IP with {nodes}, {ips}");
        let capacity_nodes = Some(self.without_surge(last.into()));
        NodePorts { ports, reserved: ports, capacity_nodes, basis, why }
    }

    /// Nothing is reserved: one node may take all that the NAT has towards a destination.
    fn shared(&self, per_ip: u32) -> NodePorts {
        let (ips, said) = match self.nat_ips {
            Some(ips) => (ips, counted(ips, "IP")),
            None if self.profile == Profile::Linux => (1, "1 IP as masquerading has".to_owned()),
            None => (1, "1 IP assumed".to_owned()),
        };
        let whose = match self.nodes {
            Some(1) => String::new(),
            Some(nodes) => format!(", shared by {nodes} nodes"),
            None if self.profile == Profile::Linux => String::new(),
            None => ", shared by all nodes behind it".to_owned(),
        };
        let basis = if self.nat_ips.is_some() || self.profile == Profile::Linux { self.basis } else { Basis::Assumed };
        let why = format!("{per_ip} for each IP and destination, {said}{whose}");
        NodePorts { ports: per_ip.saturating_mul(ips), reserved: 0, capacity_nodes: None, basis, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gcp(mode: Mode, min_ports: Option<u32>, alias_ranges: bool, nat_ips: u32) -> NatSettings {
        let max_ports = (mode == Mode::Dynamic).then_some(1024);
        NatSettings {
            mode,
            min_ports,
            max_ports,
            alias_ranges,
            nat_ips: Some(nat_ips),
            ..NatSettings::of(Profile::Gcp, Basis::Configured)
        }
    }

    /// Exercises the published capacities of Cloud NAT. If this fails, nodes are planned that get no ports.
    #[test]
    fn cloud_nat_gives_what_its_documentation_says() {
        for (mode, min, alias, ips, ports, nodes) in [
            (Mode::Static, Some(64), false, 1, 64, 1008),
            (Mode::Static, Some(64), false, 2, 64, 2016),
            (Mode::Static, Some(4096), false, 1, 4096, 15),
            (Mode::Static, Some(32_769), true, 1, 64_512, 1),
            (Mode::Static, Some(57_344), false, 2, 64_512, 2),
            (Mode::Static, Some(256), false, 1, 256, 252),
            (Mode::Static, None, true, 1, 1024, 63),
            (Mode::Static, Some(50), false, 1, 64, 1008),
            (Mode::Static, Some(2048), true, 1, 2048, 31),
            (Mode::Static, Some(0), false, 1, 64, 1008),
            (Mode::Static, Some(2048), false, 14, 2048, 441),
            (Mode::Dynamic, Some(64), true, 1, 1024, 1008),
            (Mode::Dynamic, Some(64), true, 2, 1024, 2016),
        ] {
            let settings = gcp(mode, min, alias, ips);
            assert_eq!(settings.check(), Ok(()), "{settings:?}");
            let got = settings.node_ports().unwrap();
            assert_eq!((got.ports, got.capacity_nodes), (ports, Some(nodes)), "{settings:?}");
        }
    }

    #[test]
    fn azures_automatic_allocation_halves_at_every_edge() {
        for (instances, ports) in [
            (1, Some(1024)),
            (48, Some(1024)),
            (50, Some(1024)),
            (51, Some(512)),
            (52, Some(512)),
            (100, Some(512)),
            (101, Some(256)),
            (200, Some(256)),
            (201, Some(128)),
            (400, Some(128)),
            (401, Some(64)),
            (800, Some(64)),
            (801, Some(32)),
            (1000, Some(32)),
            (1001, None),
        ] {
            assert_eq!(azure_lb_tier(instances), ports, "{instances}");
        }
    }

    /// Exercises more nodes than the table has. If this fails, what nobody knows is zero, and every node is out of ports.
    #[test]
    fn beyond_azures_table_nothing_is_known() {
        let of = |nodes, surge, min_ports| NatSettings {
            nodes: Some(nodes),
            surge: Some(surge),
            min_ports,
            ..NatSettings::of(Profile::AzureLb, Basis::Configured)
        };
        assert_eq!(of(998, 2, None).node_ports().unwrap().ports, 32);
        for unknown in [of(998, 3, None), of(1001, 0, Some(0)), of(u32::MAX, 1, None)] {
            assert!(unknown.beyond_azures_table() && unknown.node_ports().is_none(), "{unknown:?}");
        }
        assert_eq!(of(1500, 0, Some(64)).node_ports().unwrap().ports, 64, "by hand");
        let none = NatSettings { nat_ips: Some(0), ..of(1500, 0, None) };
        assert_eq!(none.node_ports().unwrap().ports, 0, "without an IP it is known");
    }

    #[test]
    fn azures_manual_allocation_divides_the_frontends() {
        for (ports, ips, nodes) in [(1000, 2, 128), (1000, 7, 448), (4000, 2, 32), (4000, 7, 112)] {
            let settings = NatSettings {
                min_ports: Some(ports),
                nat_ips: Some(ips),
                ..NatSettings::of(Profile::AzureLb, Basis::Configured)
            };
            assert_eq!(settings.node_ports().unwrap().capacity_nodes, Some(nodes), "{ports} {ips}");
        }
    }

    #[test]
    fn shared_gateways_limit_connections_to_one_destination() {
        for (profile, ips, ports) in [
            (Profile::Aws, 1, 55_000),
            (Profile::Aws, 2, 110_000),
            (Profile::Aws, 8, 440_000),
            (Profile::AzureNatgw, 1, 50_000),
            (Profile::AzureNatgw, 16, 800_000),
            (Profile::Linux, 1, 64_512),
        ] {
            let settings = NatSettings { nat_ips: Some(ips), ..NatSettings::of(profile, Basis::Configured) };
            let got = settings.node_ports().unwrap();
            assert_eq!((got.ports, got.reserved, got.capacity_nodes), (ports, 0, None), "{profile} {ips}");
        }
        let sixteen = NatSettings { nat_ips: Some(16), ..NatSettings::of(Profile::AzureNatgw, Basis::Configured) };
        assert_eq!(sixteen.pool(), Some(1_032_192), "over one million, as its documentation has it");
    }

    #[test]
    fn ports_double_up_to_the_maximum() {
        for (demand, ports) in [(0, 64), (64, 64), (65, 128), (600, 1024), (1024, 1024), (5000, 1024)] {
            assert_eq!(granted(64, 1024, demand), ports, "{demand}");
        }
        assert_eq!(granted(32_768, 65_536, u32::MAX), 65_536);
        assert_eq!(granted(0, 0, 7), 0, "nothing to give is no endless loop");
    }
}
