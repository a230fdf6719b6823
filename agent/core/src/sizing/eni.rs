//! How many addresses ipamd of the AWS VPC CNI attaches to a node: its pool logic, step by step.
//!
//! Follows amazon-vpc-cni-k8s v1.23.1 (`pkg/ipamd/ipamd.go`), for pods that are only added. It reproduces AWS's own table of
//! secondary addresses row by row, and the one of prefixes except for four rows that contradict the code. Where pods come
//! and go, interfaces with a single pod on them cannot be given back: then the number of interfaces is a lower bound.

use serde::Serialize;

use crate::observe::WarmTargets;

mod closed_form;
mod instances;

pub use closed_form::wanted_addresses;
pub use instances::{INSTANCE_TYPES, InstanceType, instance_type};

/// Addresses of one prefix (/28).
pub const PREFIX_ADDRESSES: u32 = 16;
/// More interfaces than any instance has.
const MAX_ENIS: u32 = 1024;
/// More addresses than any interface takes.
const MAX_ADDRESSES_PER_ENI: u32 = 1024;
/// More pods than are worth calculating with.
const MAX_PODS: u32 = 1_000_000;

/// What an instance can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Network interfaces.
    pub enis: u32,
    /// IPv4 addresses of each, the primary one among them.
    pub addresses_per_eni: u32,
}

/// What to calculate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The instance.
    pub limits: Limits,
    /// ipamd's settings.
    pub targets: WarmTargets,
    /// Pods on the pod network; those on the host's network take no address.
    pub pods: u32,
    /// kubelet's maximum of pods: the pool does not grow beyond it.
    pub max_pods: Option<u32>,
}

/// What ipamd attaches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EniPlan {
    /// Network interfaces.
    pub enis: u32,
    /// Addresses for pods; the interfaces' own are not among them.
    pub addresses: u32,
    /// Of these, held by no pod.
    pub unused: u32,
    /// Pods that get no address.
    pub pods_failing: u32,
    /// Addresses taken from the subnet: those for pods and one for each interface.
    pub subnet_addresses: u32,
    /// Addresses for pods of each interface.
    pub per_eni: Vec<u32>,
    /// Prefixes of each interface; empty without prefix delegation.
    pub prefixes_per_eni: Vec<u32>,
    /// What to know about it.
    pub notes: Vec<String>,
}

/// A question without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EniError {
    /// No or too many interfaces.
    #[error("an instance has 1 to {MAX_ENIS} network interfaces, not {0}")]
    Enis(u32),
    /// No address beside the interface's own, or too many.
    #[error(
        "a network interface has 2 to {MAX_ADDRESSES_PER_ENI} addresses, not {0}: the first one is its own and goes to no pod"
    )]
    Addresses(u32),
    /// Too many pods.
    #[error("{0} pods are more than {MAX_PODS}")]
    Pods(u32),
    /// A target beyond reason.
    #[error("a target of {0} is more than {MAX_PODS}")]
    Target(u32),
}

/// Calculates what ipamd attaches to a node on which so many pods were started.
///
/// # Errors
/// Numbers that no instance has.
pub fn plan(question: &Question) -> Result<EniPlan, EniError> {
    let Question { limits, targets, pods, max_pods } = *question;
    if !(1..=MAX_ENIS).contains(&limits.enis) {
        return Err(EniError::Enis(limits.enis));
    }
    if !(2..=MAX_ADDRESSES_PER_ENI).contains(&limits.addresses_per_eni) {
        return Err(EniError::Addresses(limits.addresses_per_eni));
    }
    if pods > MAX_PODS {
        return Err(EniError::Pods(pods));
    }
    let given = [targets.warm_eni, targets.warm_ip, targets.minimum_ip, targets.warm_prefix];
    if let Some(target) = given.into_iter().flatten().find(|target| *target > MAX_PODS) {
        return Err(EniError::Target(target));
    }
    let mut pool = Pool::new(limits, targets, max_pods);
    pool.settle();
    for _pod in 0..pods {
        if pool.available() == 0 {
            break;
        }
        pool.assigned += 1;
        pool.settle();
    }
    let addresses = pool.total();
    let enis = u32::try_from(pool.units.len()).unwrap_or(u32::MAX);
    Ok(EniPlan {
        enis,
        addresses,
        unused: pool.available(),
        pods_failing: pods - pool.assigned,
        subnet_addresses: addresses.saturating_add(enis),
        per_eni: pool.units.iter().map(|units| units * pool.unit).collect(),
        prefixes_per_eni: if targets.prefix_delegation { pool.units.clone() } else { Vec::new() },
        notes: notes(question, &pool),
    })
}

/// What is attached to a node.
#[derive(Debug)]
struct Pool {
    /// Slots in use, per interface: an address each, or a prefix.
    units: Vec<u32>,
    /// Addresses of a slot.
    unit: u32,
    /// Slots of an interface.
    slots: u32,
    max_enis: u32,
    max_pods: Option<u32>,
    targets: WarmTargets,
    /// Addresses held by pods.
    assigned: u32,
}

impl Pool {
    /// A node that has just started: its first interface, and nothing on it.
    fn new(limits: Limits, targets: WarmTargets, max_pods: Option<u32>) -> Self {
        Self {
            units: vec![0],
            unit: if targets.prefix_delegation { PREFIX_ADDRESSES } else { 1 },
            slots: limits.addresses_per_eni - 1,
            max_enis: limits.enis,
            max_pods,
            targets,
            assigned: 0,
        }
    }

    fn total(&self) -> u32 {
        self.units.iter().sum::<u32>() * self.unit
    }

    fn available(&self) -> u32 {
        self.total() - self.assigned
    }

    /// Prefixes that no pod has an address of, where pods fill them one after the other.
    fn free_units(&self) -> u32 {
        self.units.iter().sum::<u32>() - self.assigned.div_ceil(self.unit)
    }

    /// Grows until ipamd has what it wants, or nothing is left to attach.
    fn settle(&mut self) {
        while let Some(units) = self.short() {
            let enis = u32::try_from(self.units.len()).unwrap_or(u32::MAX);
            match self.units.iter_mut().find(|units| **units < self.slots) {
                Some(used) => *used += units.min(self.slots - *used),
                None if enis < self.max_enis => self.units.push(units.min(self.slots)),
                None => return,
            }
        }
    }

    /// How many slots ipamd is short of; `None` if it wants no more. It fills one interface at a time and then asks anew.
    fn short(&self) -> Option<u32> {
        if self.max_pods.is_some_and(|max| self.total() >= max) {
            return None;
        }
        let (warm_ip, minimum_ip) = (self.targets.warm_ip.unwrap_or(0), self.targets.minimum_ip.unwrap_or(0));
        if warm_ip > 0 || minimum_ip > 0 {
            let short = warm_ip.saturating_sub(self.available()).max(minimum_ip.saturating_sub(self.total()));
            return (short > 0).then(|| short.div_ceil(self.unit));
        }
        let (target, of_each, wanted) = if self.targets.prefix_delegation {
            let target = self.targets.warm_prefix.unwrap_or(0);
            (target, self.unit, target.saturating_sub(self.free_units()).max(1))
        } else {
            (self.targets.warm_eni.unwrap_or(1), self.slots, self.slots)
        };
        let low = u64::from(self.available()) < u64::from(target) * u64::from(of_each);
        (low || (target == 0 && self.available() == 0)).then_some(wanted)
    }
}

/// What the numbers do not say by themselves.
fn notes(question: &Question, pool: &Pool) -> Vec<String> {
    let WarmTargets { warm_eni, warm_ip, minimum_ip, warm_prefix, prefix_delegation } = question.targets;
    let (ip, minimum) = (warm_ip.unwrap_or(0), minimum_ip.unwrap_or(0));
    let by_addresses = ip > 0 || minimum > 0;
    let mut notes = Vec::new();
    if by_addresses && (warm_eni.is_some() || warm_prefix.is_some()) {
        notes.push("WARM_IP_TARGET and MINIMUM_IP_TARGET win over WARM_ENI_TARGET and WARM_PREFIX_TARGET".to_owned());
    }
    if minimum > 0 && ip == 0 {
        notes.push(format!(
            "MINIMUM_IP_TARGET without WARM_IP_TARGET: the pool never grows beyond {}, further pods get no address; set WARM_IP_TARGET too",
            pool.total()
        ));
    }
    if warm_prefix.is_some() && !prefix_delegation {
        notes.push(
            "WARM_PREFIX_TARGET counts only with prefix delegation; the stock manifest sets it all the same".to_owned(),
        );
    }
    if prefix_delegation && warm_eni.is_some() {
        notes.push("WARM_ENI_TARGET does not count with prefix delegation".to_owned());
    }
    if !by_addresses && !prefix_delegation && warm_eni == Some(0) {
        notes.push(
            "WARM_ENI_TARGET=0 attaches an interface whenever no address is left and frees it when it is empty: it flaps"
                .to_owned(),
        );
    }
    if prefix_delegation {
        notes.push(
            "prefix delegation needs a Nitro instance; on others ipamd falls back to single addresses".to_owned(),
        );
    }
    if question.max_pods.is_some_and(|max| pool.total() >= max && question.pods < max) {
        notes.push(format!(
            "the pool stops growing at {} addresses, since the node takes no more than {} pods",
            pool.total(),
            question.max_pods.unwrap_or_default()
        ));
    }
    notes.push(
        "after pods have gone the pool can be larger: an interface with a pod on it cannot be given back".to_owned(),
    );
    notes
}

#[cfg(test)]
mod tests;
