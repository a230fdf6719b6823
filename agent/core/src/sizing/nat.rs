//! `headroom plan nat`: how many nodes a NAT serves, how many IPs it takes, and what to set where it does not fit.
//!
//! The rules of each NAT are in [`crate::model::nat`]; here they are applied to many nodes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::nat::remedy::Change;
use crate::model::nat::{
    AZURE_LB_TIERS, BEYOND_AZURES_TABLE, Basis, Capacity, Mode, NatSettings, NodePorts, Profile, Sharing,
    azure_lb_tier, granted,
};

mod notes;
mod options;

/// The kernel's port search gives up before the range is full (`nf_nat_core.c`: at most 248 tries); measured from 93 % on.
const LINUX_FULL_PERCENT: u64 = 93;

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The NAT and the nodes behind it.
    pub nat: NatSettings,
    /// Ports that a node needs to its busiest destination.
    pub demand: Demand,
    /// How long a connection lives.
    pub lifetime: Duration,
}

/// What nodes need.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Demand {
    /// Each node, unless it is one of those below.
    pub each: u32,
    /// Nodes that need something else.
    pub others: Vec<NodesDemand>,
}

/// So many nodes need so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodesDemand {
    /// How many nodes.
    pub nodes: u32,
    /// How many ports, each.
    pub ports: u32,
}

impl Demand {
    /// The same for each node.
    pub fn of_each(ports: u32) -> Self {
        Self { each: ports, others: Vec::new() }
    }

    /// The largest of a single node.
    pub fn largest(&self) -> u32 {
        self.others.iter().map(|some| some.ports).fold(self.each, u32::max)
    }

    /// Nodes that need something else than each.
    pub fn other_nodes(&self) -> u32 {
        self.others.iter().map(|some| some.nodes).fold(0, u32::saturating_add)
    }

    /// What they take together, where a node that needs so much takes `taken` of it: the others, then each of the rest.
    fn taken(&self, taken: impl Fn(u32) -> u32) -> (u64, u32) {
        let others = self.others.iter().map(|some| u64::from(some.nodes).saturating_mul(u64::from(taken(some.ports))));
        (others.fold(0, u64::saturating_add), taken(self.each))
    }
}

/// The answer; its keys are fixed, see the README.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NatPlan {
    /// Which NAT.
    pub profile: Profile,
    /// Static or dynamic, Cloud NAT only.
    pub mode: Option<Mode>,
    /// What the number of ports rests on.
    pub basis: Basis,
    /// Ports that a node has with this demand; where nothing is reserved, that it may have to one destination; absent where
    /// nobody knows.
    pub ports_per_node: Option<u32>,
    /// Ports that a node may grow to.
    pub max_ports_per_node: Option<u32>,
    /// How that comes about.
    pub why: String,
    /// NAT IPs; absent where the gateway adds them by itself.
    pub nat_ips: Option<u32>,
    /// Nobody has said how many there are: one is assumed, or as many as were seen to serve machines, and the nodes that fit rest on it.
    #[serde(default)]
    pub nat_ips_assumed: bool,
    /// Nodes that are wanted.
    pub nodes: Option<u32>,
    /// Nodes that fit; absent where nothing limits them.
    pub capacity_nodes: Option<u32>,
    /// Nodes that are wanted and do not fit.
    pub nodes_without_ports: Option<u32>,
    /// NAT IPs that the wanted nodes take.
    pub required_nat_ips: Option<u32>,
    /// Connections to one destination that a node can keep opening every second, with the lifetime that was asked.
    pub connections_per_sec: Option<f64>,
    /// Whether all wanted nodes get what they need.
    pub fits: bool,
    /// What to know besides.
    pub notes: Vec<String>,
    /// What to set so that it fits; empty where it does.
    pub options: Vec<PlanOption>,
}

/// One way to make it fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanOption {
    /// In words.
    pub says: String,
    /// Nodes that fit then.
    pub capacity_nodes: Option<u32>,
    /// NAT IPs it takes.
    pub nat_ips: u32,
    /// What to look out for.
    pub caution: Option<String>,
    /// The lines to type.
    pub changes: Vec<Change>,
}

/// The answer.
///
/// # Errors
/// There is no NAT to plan.
pub fn plan(question: &Question) -> Result<NatPlan, NothingToPlan> {
    let sums = Sums::of(question).ok_or(NothingToPlan)?;
    let nat = &question.nat;
    let fits = sums.fits();
    Ok(NatPlan {
        profile: nat.profile,
        mode: (nat.profile == Profile::Gcp).then_some(nat.mode),
        basis: sums.ports.basis,
        ports_per_node: sums.known.then_some(sums.each),
        max_ports_per_node: sums.known.then_some(sums.ports.ports),
        why: sums.ports.why.clone(),
        nat_ips: nat.nat_ips.or((!nat.auto_ips).then_some(sums.ips)),
        nat_ips_assumed: ips_assumed(nat),
        nodes: nat.nodes,
        capacity_nodes: sums.capacity_nodes,
        nodes_without_ports: sums.without_ports(),
        required_nat_ips: sums.required_nat_ips,
        connections_per_sec: sums
            .known
            .then(|| rate(sums.to_one_destination(), question.lifetime.saturating_add(nat.hold.tcp_time_wait))),
        fits,
        notes: notes::notes(question, &sums),
        options: if fits { Vec::new() } else { options::options(question, &sums) },
    })
}

/// `--profile none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is nothing to plan without a NAT")]
pub struct NothingToPlan;

/// So many ports, each taken for so long: connections a second, to three digits.
fn rate(ports: u32, taken_for: Duration) -> f64 {
    if taken_for.is_zero() {
        return f64::from(ports);
    }
    (f64::from(ports) / taken_for.as_secs_f64() * 1000.0).round() / 1000.0
}

/// What the question adds up to.
#[derive(Debug, Clone)]
struct Sums {
    capacity: Capacity,
    /// What nodes have is known; where it is not, the ports below are zero.
    known: bool,
    ports: NodePorts,
    /// NAT IPs to count with: as given, as many as the gateway may add by itself, one if nobody said.
    ips: u32,
    /// Ports of all IPs that nodes can share: to one destination where nothing is reserved.
    pool: u64,
    /// What a node takes of the pool, unless it is one of the others.
    each: u32,
    /// Nodes that are wanted, and those that an upgrade adds.
    nodes: Option<u32>,
    surge: u32,
    /// What all of them take of the pool.
    total: Option<u64>,
    /// What all of them need.
    needed: Option<u64>,
    capacity_nodes: Option<u32>,
    required_nat_ips: Option<u32>,
    largest: u32,
    /// The gateway adds NAT IPs by itself, and says that it could not.
    stuck: bool,
}

impl Sums {
    fn of(question: &Question) -> Option<Self> {
        let nat = &question.nat;
        if nat.nat_ips == Some(0) {
            return Self::without_ips(question);
        }
        let capacity = nat.profile.capacity()?;
        let known = !nat.beyond_azures_table();
        let ports = if known { nat.node_ports()? } else { beyond_azures_table(nat) };
        let ips = nat.nat_ips.unwrap_or(if nat.auto_ips { capacity.max_ips.unwrap_or(1) } else { nat.ips_counted() });
        let per_ip = nat.ports_of_an_ip(match capacity.sharing {
            Sharing::Reserved => capacity.ports_per_ip,
            Sharing::PerDestination => capacity.per_destination,
        });
        let per_ip = match nat.profile {
            Profile::Linux => u64::from(per_ip) * LINUX_FULL_PERCENT / 100,
            _ => u64::from(per_ip),
        };
        let pool = u64::from(ips) * per_ip;
        let taken = |demand: u32| match (capacity.sharing, nat.profile, nat.mode) {
            (Sharing::PerDestination, ..) => demand,
            (Sharing::Reserved, Profile::Gcp, Mode::Dynamic) => granted(ports.reserved, ports.ports, demand),
            (Sharing::Reserved, ..) => ports.reserved,
        };
        let (others, each) = question.demand.taken(taken);
        let (others_need, each_needs) = question.demand.taken(|demand| demand);
        let other_nodes = question.demand.other_nodes();
        let surge = nat.surge.unwrap_or(0);
        // Where nobody says how many nodes there are, a demand is that of one node.
        let nodes = nat.nodes.or((question.demand.largest() > 0).then_some(other_nodes.max(1)));
        let all = |others: u64, each: u32| {
            let rest = nodes?.saturating_add(surge).saturating_sub(other_nodes);
            Some(others.saturating_add(u64::from(rest).saturating_mul(u64::from(each))))
        };
        let total = all(others, each);
        let left = pool.checked_sub(others);
        let rest_fit = left.map_or(Some(0), |left| left.checked_div(u64::from(each)));
        let mut capacity_nodes = rest_fit.map(|fit| {
            let others_fit = if left.is_some() { other_nodes } else { 0 };
            u32::try_from(fit).unwrap_or(u32::MAX).saturating_add(others_fit).saturating_sub(surge)
        });
        let mut required = total.map(|total| total.div_ceil(per_ip.max(1)).max(1));
        if let Some(missing) = nat.missing_ips.filter(|_| !nat.auto_ips) {
            required = required.max(Some(u64::from(ips).saturating_add(u64::from(missing))));
        }
        if automatic_azure_lb(nat) {
            let (fit, with) = azure_lb_tiers(nat, ips, question.demand.largest());
            (capacity_nodes, required) = (fit, total.and(with));
        }
        Some(Self {
            capacity,
            known,
            ips,
            pool,
            each: if capacity.sharing == Sharing::Reserved { each } else { ports.ports },
            ports,
            nodes: nat.nodes,
            surge,
            total,
            needed: all(others_need, each_needs),
            capacity_nodes,
            required_nat_ips: required.map(|ips| u32::try_from(ips).unwrap_or(u32::MAX)),
            largest: question.demand.largest(),
            stuck: nat.auto_ips && nat.missing_ips.is_some_and(|missing| missing > 0),
        })
    }

    /// Of a gateway that has no NAT IP: nobody gets anything, and what is needed is what it would take to serve the nodes.
    fn without_ips(question: &Question) -> Option<Self> {
        let with = Self::of(&with_an_ip(question))?;
        Some(Self {
            ports: question.nat.node_ports()?,
            known: true,
            ips: 0,
            pool: 0,
            each: 0,
            capacity_nodes: Some(0),
            required_nat_ips: with.required_nat_ips.or(Some(1)),
            ..with
        })
    }

    /// Ports that a node may really have to one destination: not those that the kernel no longer finds.
    fn to_one_destination(&self) -> u32 {
        match self.capacity.sharing {
            Sharing::Reserved => self.ports.ports,
            Sharing::PerDestination => self.ports.ports.min(u32::try_from(self.pool).unwrap_or(u32::MAX)),
        }
    }

    fn without_ports(&self) -> Option<u32> {
        Some(self.nodes?.saturating_sub(self.capacity_nodes.unwrap_or(u32::MAX)))
    }

    fn fits(&self) -> bool {
        let room = self.required_nat_ips.is_none_or(|required| required <= self.ips);
        room && !self.stuck && self.without_ports().is_none_or(|nodes| nodes == 0) && self.largest <= self.ports.ports
    }
}

/// Nobody has said how many NAT IPs there are. Masquerading has one address unless somebody gives it more.
fn ips_assumed(nat: &NatSettings) -> bool {
    nat.nat_ips.is_none() && !nat.auto_ips && nat.profile != Profile::Linux
}

/// The same of a gateway with one NAT IP.
fn with_an_ip(question: &Question) -> Question {
    // Counted from the one that it has then.
    let missing_ips = question.nat.missing_ips.map(|missing| missing.saturating_sub(1));
    Question { nat: NatSettings { nat_ips: Some(1), missing_ips, ..question.nat.clone() }, ..question.clone() }
}

/// Nothing to count on.
fn beyond_azures_table(nat: &NatSettings) -> NodePorts {
    let why = BEYOND_AZURES_TABLE.to_owned();
    NodePorts { ports: 0, reserved: 0, capacity_nodes: None, basis: nat.basis, why }
}

fn automatic_azure_lb(nat: &NatSettings) -> bool {
    nat.profile == Profile::AzureLb && nat.min_ports.is_none_or(|ports| ports == 0) && nat.observed.is_none()
}

/// Azure's table: the largest pool that gives everyone the demand, and the IPs with which this pool does.
fn azure_lb_tiers(nat: &NatSettings, ips: u32, demand: u32) -> (Option<u32>, Option<u64>) {
    let surge = nat.surge.unwrap_or(0);
    let enough = AZURE_LB_TIERS.iter().rev().find(|(_, ports)| ports.saturating_mul(ips) >= demand);
    let capacity = enough.map_or(0, |(most, _)| most.saturating_sub(surge));
    let pool = nat.nodes.unwrap_or(1).saturating_add(surge);
    let required = azure_lb_tier(pool).map(|ports| u64::from(demand.div_ceil(ports).max(1)));
    (Some(capacity), required)
}
