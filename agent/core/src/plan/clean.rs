//! Which leaked reservations are to be given back, and which are not, each with its reason.
//!
//! A plan is no permission: whoever carries it out looks again, under host-local's lock, and asks [`still_leaked`] about
//! each reservation.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::PodName;
use crate::known::Known;
use crate::ledger::{HeldReservation, Ledger};
use crate::model::leak::{self, Judge, Judgement, Verdict};
use crate::observe::{Ipam, Network, Outcome};
use crate::time::{Now, WallTime};

/// How much may go at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Reservations in one run, all networks together.
    pub max: usize,
    /// Why no more than these go, where it is not `--max` that says so.
    pub max_why: Option<String>,
    /// If more than this share of a network's reservations is leaked, none of them goes (percent).
    pub percent: u32,
    /// Somebody has looked and wants it although it is more than that share.
    pub force: bool,
    /// Only this network.
    pub network: Option<String>,
}

impl Limits {
    /// Twice what a node has pods by default.
    pub const MAX: usize = 256;
    /// Where most of a network seems to be leaked, something else is more likely.
    pub const PERCENT: u32 = 50;
}

impl Default for Limits {
    fn default() -> Self {
        Self { max: Self::MAX, max_why: None, percent: Self::PERCENT, force: false, network: None }
    }
}

/// One step of the plan: this reservation is to be given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Its network.
    pub network: String,
    /// The network's directory.
    pub store: String,
    /// The address.
    pub address: IpAddr,
    /// The container it was reserved for.
    pub container_id: String,
    /// The interface, where host-local wrote it down.
    pub ifname: Option<String>,
    /// When it was written: a reservation written at another time is another one. Milliseconds since the Unix epoch.
    pub modified: WallTime,
    /// How long ago that was.
    pub age_secs: u64,
    /// Why it is leaked.
    pub evidence: Vec<String>,
}

/// A reservation that nobody seems to use and that stays all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its network.
    pub network: String,
    /// The network's directory.
    pub store: String,
    /// The address.
    pub address: IpAddr,
    /// What it is.
    pub verdict: Verdict,
    /// Why it stays.
    pub why: String,
}

impl Refused {
    /// A reservation that was to go, and why it does not.
    pub fn of(release: &Release, why: impl Into<String>) -> Self {
        Self {
            network: release.network.clone(),
            store: release.store.clone(),
            address: release.address,
            verdict: Verdict::Leaked,
            why: why.into(),
        }
    }
}

/// What goes and what stays. Reservations in use are not mentioned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What goes, the oldest first.
    pub releases: Vec<Release>,
    /// What stays, by network and address.
    pub refused: Vec<Refused>,
}

/// Plans the giving back of what is leaked, within the limits.
pub fn plan(ledger: &Ledger, limits: &Limits, grace: Duration, now: Now) -> Plan {
    let mut plan = Plan::default();
    let pods = ledger.occupants().pods();
    let judge = Judge::new(ledger.occupants(), grace, now);
    // What other IPAMs keep is not ours to change.
    let wanted = |network: &&Network| {
        network.ipam == Ipam::HostLocal && limits.network.as_ref().is_none_or(|name| *name == network.name)
    };
    for network in ledger.reservations().networks().iter().filter(wanted) {
        let mut leaked = Vec::new();
        let mut total = 0_usize;
        for held in ledger.reservations().of(&network.store) {
            total += 1;
            let Judgement { verdict, evidence } = judge.judge(held);
            let refuse = |verdict, why| refused(network, held.reservation.address, verdict, why);
            match verdict {
                Verdict::InUse => {}
                Verdict::Settling | Verdict::Undetermined => plan.refused.push(refuse(verdict, evidence.join("; "))),
                Verdict::Leaked => match release(network, held, &pods, evidence, now) {
                    Ok(release) => leaked.push(release),
                    Err(why) => plan.refused.push(refuse(verdict, why)),
                },
            }
        }
        match whole_network(network, leaked.len(), total, limits) {
            Some(why) => plan.refused.extend(leaked.iter().map(|release| Refused::of(release, why.clone()))),
            None => plan.releases.append(&mut leaked),
        }
    }
    plan.releases.sort_by_key(|release| (release.modified, release.address));
    let beyond = plan.releases.split_off(limits.max.min(plan.releases.len()));
    let asked = || format!("{} are given back in one run at most (--max); run again for the rest", limits.max);
    let why = limits.max_why.clone().unwrap_or_else(asked);
    plan.refused.extend(beyond.iter().map(|release| Refused::of(release, why.clone())));
    plan.refused.sort_by(|a, b| (&a.store, a.address).cmp(&(&b.store, b.address)));
    plan
}

/// Asked under the lock, with what was seen there in the ledger: is the reservation as planned, and still leaked?
///
/// # Errors
/// Why it has to stay.
pub fn still_leaked(ledger: &Ledger, release: &Release, grace: Duration, now: Now) -> Result<(), String> {
    let networks = ledger.reservations().networks().iter();
    if networks.filter(|network| network.store == release.store).any(|network| network.ipam != Ipam::HostLocal) {
        return Err("its store is not host-local's".to_owned());
    }
    let Some(held) = ledger.reservations().get(&release.store, release.address) else {
        return Err("it was not seen when the plan was made".to_owned());
    };
    let same_holder = held
        .reservation
        .holder
        .present()
        .is_some_and(|holder| holder.container.0 == release.container_id && holder.ifname == release.ifname);
    if !same_holder || held.reservation.modified.present() != Some(&release.modified) {
        return Err("it is another reservation than the planned one".to_owned());
    }
    match leak::judge(held, ledger.occupants(), grace, now) {
        Judgement { verdict: Verdict::Leaked, .. } => Ok(()),
        Judgement { verdict, evidence } => {
            Err(format!("looked at again it is {}: {}", verdict.name().replace('_', " "), evidence.join("; ")))
        }
    }
}

/// Why the latest look at the runtime and the namespaces allows no verdict at all; `None` if it was complete.
pub fn blind(ledger: &Ledger) -> Option<String> {
    let incomplete = |outcome: &Outcome| match outcome {
        Outcome::Complete => None,
        Outcome::Partial(why) | Outcome::Failed(why) => Some(why.as_str().to_owned()),
    };
    let runtime = ledger.occupants().runtime().0;
    let namespaces = ledger.occupants().namespace_rounds().0;
    match (runtime, namespaces) {
        (Some(runtime), Some(walk)) => incomplete(&runtime.outcome).or_else(|| incomplete(&walk.outcome)),
        (None, _) => Some("the runtime was not asked".to_owned()),
        (_, None) => Some("the network namespaces were not read".to_owned()),
    }
}

/// Whether CNI would take this as a network's name: libcni since 0.8.0 takes letters, digits, `_`, `.`, `-`, and a letter
/// or digit in front. What is called otherwise is not host-local's.
pub fn is_network_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// One leaked reservation as a step of the plan, unless something speaks against it that the verdict does not ask.
fn release(
    network: &Network,
    held: &HeldReservation,
    pods: &BTreeMap<IpAddr, &PodName>,
    evidence: Vec<String>,
    now: Now,
) -> Result<Release, String> {
    let reservation = &held.reservation;
    if let Some(pod) = pods.get(&reservation.address) {
        return Err(format!("the runtime says that the pod {pod} has this address, under another container id"));
    }
    let (Known::Present(holder), Known::Present(modified)) = (&reservation.holder, &reservation.modified) else {
        return Err("its holder and its time of writing are not known".to_owned());
    };
    let age = now.wall.since(*modified).ok_or("it was written in the future: a clock has jumped")?;
    Ok(Release {
        network: network.name.clone(),
        store: network.store.clone(),
        address: reservation.address,
        container_id: holder.container.0.clone(),
        ifname: holder.ifname.clone(),
        modified: *modified,
        age_secs: age.as_secs(),
        evidence,
    })
}

/// Why nothing of a network may go.
fn whole_network(network: &Network, leaked: usize, total: usize, limits: &Limits) -> Option<String> {
    if leaked == 0 {
        return None;
    }
    if !is_network_name(&network.name) {
        return Some("the directory's name is none that CNI gives a network; host-local did not make it".to_owned());
    }
    if !network.complete {
        return Some("the network's directory was not read to the end".to_owned());
    }
    let (share, percent) = (leaked.saturating_mul(100), usize::try_from(limits.percent).unwrap_or(usize::MAX));
    if share > percent.saturating_mul(total) && !limits.force {
        return Some(format!(
            "{leaked} of {total} reservations of {} seem leaked, more than {} %: look at the evidence, then add --force",
            network.name, limits.percent
        ));
    }
    None
}

fn refused(network: &Network, address: IpAddr, verdict: Verdict, why: String) -> Refused {
    Refused { network: network.name.clone(), store: network.store.clone(), address, verdict, why }
}
