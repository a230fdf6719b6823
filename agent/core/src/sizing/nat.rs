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

mod demand;
mod notes;
mod options;

pub use demand::{Demand, NodesDemand};

/// The kernel's port search gives up before the range is full (`nf_nat_core.c`: at most 248 tries); measured from 93 % on.
const LINUX_FULL_PERCENT: u64 = 93;
/// In a range of so many ports it tries each (`nf_nat_core.c`: the first round has at most so many tries): these can be full.
const LINUX_TRIES: u64 = 128;

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The NAT and the nodes behind it.
    pub nat: NatSettings,
    /// Ports that a node needs to its busiest destination.
    pub demand: Demand,
    /// How long a connection lives.
    pub lifetime: Duration,
    /// Nodes that were seen to have no ports.
    pub left_out: u32,
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
        // Why nodes are left out that would fit, nothing here tells.
        options: if sums.room() { Vec::new() } else { options::options(question, &sums) },
    })
}

/// `--profile none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is nothing to plan without a NAT")]
pub struct NothingToPlan;

/// So many ports, each taken for so long: connections a second, to three decimals or digits.
fn rate(ports: u32, taken_for: Duration) -> f64 {
    if taken_for.is_zero() {
        return f64::from(ports);
    }
    let rate = f64::from(ports) / taken_for.as_secs_f64();
    // What is less than one in ten seconds is not nothing.
    let places = if rate > 0.0 && rate < 0.1 { 10_f64.powf(2.0 - rate.log10().floor()) } else { 1000.0 };
    (rate * places).round() / places
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
    /// What all of them need, or have already.
    needed: Option<u64>,
    capacity_nodes: Option<u32>,
    required_nat_ips: Option<u32>,
    largest: u32,
    /// The node that needs most of those that need more than they get.
    short: Option<Short>,
    /// The gateway adds NAT IPs by itself, and says that it could not.
    stuck: bool,
    /// Nodes that were seen to have no ports.
    left_out: u32,
}

/// A node that needs more than it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Short {
    needs: u32,
    gets: u32,
}

impl Short {
    fn of(demand: &Demand, gets: impl Fn(&NodesDemand) -> u32) -> Option<Self> {
        let rest = demand.of_the_rest();
        let all = demand.others.iter().chain([&rest]).map(|node| Self { needs: node.ports, gets: gets(node) });
        all.filter(|node| node.needs > node.gets).max_by_key(|node| node.needs)
    }
}

/// Ports of one NAT IP that nodes can share.
fn ports_to_share(nat: &NatSettings, capacity: Capacity) -> u64 {
    let ports = u64::from(nat.ports_of_an_ip(match capacity.sharing {
        Sharing::Reserved => capacity.ports_per_ip,
        Sharing::PerDestination => capacity.per_destination,
    }));
    match nat.profile {
        Profile::Linux => (ports * LINUX_FULL_PERCENT / 100).max(ports.min(LINUX_TRIES)),
        _ => ports,
    }
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
        let per_ip = ports_to_share(nat, capacity);
        let pool = u64::from(ips) * per_ip;
        let reserved = capacity.sharing == Sharing::Reserved;
        let demand = &question.demand;
        let taken = |node: &NodesDemand| match nat.mode {
            _ if !reserved => node.ports,
            // What it was given until now it has needed.
            Mode::Dynamic => granted(ports.reserved, ports.ports, node.ports).max(node.has),
            Mode::Static if node.has > 0 => node.has,
            Mode::Static => ports.reserved,
        };
        let others = demand.sum_of_others(taken);
        let each = taken(&demand.of_the_rest());
        let other_nodes = demand.other_nodes();
        // Where nobody says how many nodes there are, a demand is that of one node.
        let nodes = nat.nodes.or((demand.largest() > 0).then_some(other_nodes.max(1)));
        let all = |others: u64, each: u32| {
            let rest = nat.with_surge(nodes?).saturating_sub(other_nodes);
            Some(others.saturating_add(u64::from(rest).saturating_mul(u64::from(each))))
        };
        // With static allocation what a node has is all that it gets.
        let (most, own) = (ports.ports, |node: &NodesDemand| reserved && nat.mode == Mode::Static && node.has > 0);
        let total = all(others, each);
        let fit = if total.unwrap_or(others) > pool {
            let rest = nodes.map_or(0, |nodes| nat.with_surge(nodes).saturating_sub(other_nodes));
            Some(u64::from(demand.that_fit(rest, pool, taken)))
        } else {
            let rest = pool.saturating_sub(others).checked_div(u64::from(each));
            rest.map(|rest| rest.saturating_add(other_nodes.into()))
        };
        let mut capacity_nodes = fit.map(|fit| nat.without_surge(fit));
        let mut required = total.map(|total| total.div_ceil(per_ip.max(1)).max(1));
        if let Some(missing) = nat.missing_ips.filter(|_| !nat.auto_ips) {
            required = required.max(Some(u64::from(ips).saturating_add(u64::from(missing))));
        }
        if automatic_azure_lb(nat) {
            let (fit, with) = azure_lb_tiers(nat, ips, demand.largest());
            (capacity_nodes, required) = (fit, total.and(with));
        }
        Some(Self {
            capacity,
            known,
            ips,
            pool,
            each: if reserved { each } else { ports.ports },
            ports,
            nodes: nat.nodes,
            surge: nat.surge_of(nodes.unwrap_or(0)),
            total,
            needed: all(demand.sum_of_others(|node| node.ports.max(node.has)), demand.each),
            capacity_nodes,
            required_nat_ips: required.map(|ips| u32::try_from(ips).unwrap_or(u32::MAX)),
            largest: demand.largest(),
            short: Short::of(demand, |node| if own(node) { node.has } else { most }),
            left_out: question.left_out,
            stuck: nat.auto_ips && nat.missing_ips.is_some_and(|missing| missing > 0),
        })
    }

    /// Of a gateway that has no NAT IP: nobody gets anything, and what is needed is what it would take to serve the nodes.
    fn without_ips(question: &Question) -> Option<Self> {
        let with = Self::of(&with_an_ip(question))?;
        Some(Self {
            ports: question.nat.node_ports()?,
            known: true,
            short: Short::of(&question.demand, |_| 0),
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
        Some(self.nodes?.saturating_sub(self.capacity_nodes.unwrap_or(u32::MAX)).max(self.left_out))
    }

    fn fits(&self) -> bool {
        self.room() && self.left_out == 0
    }

    /// Whether there is enough, whoever is left out all the same.
    fn room(&self) -> bool {
        let enough = self.required_nat_ips.is_none_or(|required| required <= self.ips);
        let all = self.nodes.is_none_or(|nodes| self.capacity_nodes.is_none_or(|fit| nodes <= fit));
        enough && all && !self.stuck && self.short.is_none()
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
    let enough = AZURE_LB_TIERS.iter().rev().find(|(_, ports)| ports.saturating_mul(ips) >= demand);
    let capacity = enough.map_or(0, |(most, _)| nat.without_surge((*most).into()));
    let pool = nat.with_surge(nat.nodes.unwrap_or(1));
    let required = azure_lb_tier(pool).map(|ports| u64::from(demand.div_ceil(ports).max(1)));
    (Some(capacity), required)
}
