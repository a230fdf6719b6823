//! Pod addresses of this node: per network, how many there are, who has them, which are leaked.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::ids::PodName;
use crate::known::Known;
use crate::ledger::{HeldReservation, Ledger};
use crate::model::leak::{Judge, Verdict};
use crate::model::policy::Policy;
use crate::observe::{AddressRange, Network};
use crate::report::{EntryReport, NetworkReport, RangeSetReport, VerdictCounts};
use crate::time::Now;

mod exhaustion;
mod pool;
mod range_sets;
mod stranded;

pub use exhaustion::ReservedMemory;

/// Every network with a verdict per reservation, complete.
pub fn networks(ledger: &Ledger, policy: &Policy, now: Now) -> Vec<NetworkReport> {
    let pods = ledger.occupants().pods();
    let pod_of = |address: IpAddr| pods.get(&address).map(|pod| (*pod).clone());
    let judge = Judge::new(ledger.occupants(), policy.leak_grace, now);
    ledger.reservations().networks().iter().map(|network| report(network, &pod_of, ledger, &judge, now)).collect()
}

fn report(
    network: &Network,
    pod_of: &dyn Fn(IpAddr) -> Option<PodName>,
    ledger: &Ledger,
    judge: &Judge<'_>,
    now: Now,
) -> NetworkReport {
    let mut counts = VerdictCounts::default();
    let held = ledger.reservations().of(&network.store);
    let entries: Vec<EntryReport> = held.map(|held| entry(held, pod_of, ledger, judge, now)).collect();
    entries.iter().for_each(|entry| counts.add(&entry.verdict));
    let taken: BTreeSet<IpAddr> = entries.iter().map(|entry| entry.address).collect();
    let sets = network.range_sets.present().map_or(&[][..], Vec::as_slice);
    let range_sets: Vec<RangeSetReport> = sets
        .iter()
        .enumerate()
        .map(|(index, set)| {
            let last = u32::try_from(index).ok().and_then(|index| network.last_reserved.get(&index));
            let report = range_sets::report(set, &taken, last.copied());
            // Which address is free is not known where some reservations were not seen.
            RangeSetReport { next: report.next.filter(|_| network.complete), ..report }
        })
        .collect();
    let pool = network.pool.present().map(pool::report);
    let (usable, usable_why) = match (&network.range_sets, &pool) {
        // Each pod takes an address of every set, so the smallest set counts.
        (Known::Present(_), _) => (range_sets.iter().map(|set| set.usable).min(), None),
        (_, Some(pool)) => (Some(pool.total), None),
        (Known::Absent, None) => (None, Some("no CNI configuration names this network".to_owned())),
        (Known::Unknown(why), None) => (None, Some(why.to_string())),
    };
    NetworkReport {
        store: network.store.clone(),
        ipam: network.ipam,
        network: network.name.clone(),
        usable,
        usable_why,
        outside_ranges: network.range_sets.present().map(|sets| outside(sets, &taken)),
        stranded: network.complete.then(|| stranded::report(sets, &entries)).flatten(),
        range_sets,
        pool,
        pool_why: network.pool.unknown().map(ToString::to_string),
        complete: network.complete,
        counts,
        entries,
        entries_omitted: 0,
        ignored: network.ignored.clone(),
    }
}

fn entry(
    held: &HeldReservation,
    pod_of: &dyn Fn(IpAddr) -> Option<PodName>,
    ledger: &Ledger,
    judge: &Judge<'_>,
    now: Now,
) -> EntryReport {
    let reservation = &held.reservation;
    let holder = reservation.holder.present();
    let mut judgement = judge.judge(held);
    let pod = pod_of(reservation.address);
    let cached = holder.map_or(&[][..], |holder| ledger.attachments().of(&holder.container));
    let reserved_for = reservation.pod.as_ref().or_else(|| cached.iter().find_map(|cached| cached.pod.as_ref()));
    if judgement.verdict != Verdict::InUse {
        judgement.evidence.extend(reserved_for.map(|pod| format!("it was reserved for {pod}")));
        if cached.is_empty() && holder.is_some() && ledger.attachments().complete() {
            judgement.evidence.push("libcni remembers no successful ADD for it".to_owned());
        }
    }
    EntryReport {
        address: reservation.address,
        container_id: holder.map(|holder| holder.container.0.clone()),
        ifname: holder.and_then(|holder| holder.ifname.clone()),
        age_secs: reservation.modified.present().and_then(|at| now.wall.since(*at)).map(|age| age.as_secs()),
        reserved_for: reserved_for.filter(|_| pod.is_none()).cloned(),
        pod,
        verdict: judgement.verdict,
        evidence: judgement.evidence,
    }
}

/// How many addresses are in none of the ranges.
fn outside(sets: &[Vec<AddressRange>], taken: &BTreeSet<IpAddr>) -> u64 {
    let outside = taken.iter().filter(|address| !sets.iter().any(|set| range_sets::hands_out(set, **address)));
    u64::try_from(outside.count()).unwrap_or(u64::MAX)
}

/// Keeps a report small: what is in use is only counted, of the rest at most `max` are listed, leaked ones first.
pub fn shorten(network: &mut NetworkReport, max: usize) {
    let all = network.entries.len();
    let rank = |verdict: &Verdict| match verdict {
        Verdict::Leaked => 0,
        Verdict::Undetermined => 1,
        Verdict::Settling => 2,
        Verdict::InUse => 3,
    };
    network.entries.retain(|entry| entry.verdict != Verdict::InUse);
    network.entries.sort_by_key(|entry| (rank(&entry.verdict), entry.address));
    network.entries.truncate(max);
    network.entries_omitted = u64::try_from(all - network.entries.len()).unwrap_or(u64::MAX);
}
