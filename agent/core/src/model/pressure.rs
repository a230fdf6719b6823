//! How close the conntrack table is to full, and who fills it.

use crate::known::Known;
use crate::ledger::{Census, Ledger, SILENCE_SECS};
use crate::model::hairpin;
use crate::model::holders::Holders;
use crate::model::needs::no_port_seen;
use crate::observe::{ConntrackTimeouts, ConntrackUse};
use crate::report::{
    CensusDestination, CensusReport, CensusSilence, CensusSource, CensusState, ConntrackReport, DriftReport,
};
use crate::time::{NodeTime, Now};

/// How many hash buckets the kernel looks through for an entry to evict (`NF_CT_EVICTION_RANGE`).
const EVICTION_BUCKETS: f64 = 8.0;
/// In how many of all buckets each entry is: one for each direction.
const DIRECTIONS: f64 = 2.0;

/// The share of new connections for which a full table has no entry to evict: `early_drop` (`nf_conntrack_core.c`) looks through
/// eight buckets for one that is not assured. How many of them lie there is a matter of chance (Poisson).
#[expect(clippy::cast_precision_loss, reason = "entries and buckets are less than 2^52")]
fn refused_when_full(unassured: u64, buckets: u64) -> Option<f64> {
    let found = EVICTION_BUCKETS * DIRECTIONS * unassured as f64 / buckets as f64;
    found.is_finite().then(|| (-found).exp())
}

/// The conntrack part of the report.
pub(super) fn report(ledger: &Ledger, holders: &Holders<'_>, now: Now) -> ConntrackReport {
    let Some(used) = ledger.conntrack_use() else {
        return ConntrackReport { why: Some("not read yet".to_owned()), ..ConntrackReport::default() };
    };
    let stats = used.stats.present();
    let (entries, max) = (used.entries.present().copied(), used.max.present().copied());
    let limit = max.filter(|max| *max > 0).map(|max| u32::try_from(max).unwrap_or(u32::MAX));
    let full = limit.and_then(|limit| ledger.conntrack_filling().exhaustion(now.node, limit));
    let no_ports = || ledger.no_ports().iter(NodeTime::default(), std::time::Duration::ZERO);
    let no_port_total = no_port_seen(ledger).then(|| no_ports().map(|(.., total)| total).fold(0, u64::saturating_add));
    let drift = ledger.conntrack().drift().map(|drift| DriftReport {
        last: drift.last,
        total: drift.total,
        comparisons: drift.comparisons,
        settled: drift.settled,
        open: drift.open,
    });
    let timeouts = ledger.conntrack_timeouts();
    let census = ledger.conntrack().census();
    let whole = census.filter(|census| census.complete);
    let refused =
        whole.zip(used.buckets.present()).and_then(|(all, buckets)| refused_when_full(all.unassured, *buckets));
    let (hairpins, hairpins_omitted) = hairpin::report(ledger, holders);
    ConntrackReport {
        entries,
        max,
        buckets: used.buckets.present().copied(),
        insert_failed: stats.map(|stats| stats.insert_failed),
        drop: stats.map(|stats| stats.drop),
        early_drop: stats.map(|stats| stats.early_drop),
        table_full: stats.map(|stats| stats.table_full()),
        invalid: stats.and_then(|stats| stats.invalid),
        search_restart: stats.and_then(|stats| stats.search_restart),
        clash_resolve: stats.and_then(|stats| stats.clash_resolve),
        chain_toolong: stats.and_then(|stats| stats.chain_toolong),
        cpus: used.cpus.clone(),
        timeouts: timeouts.copied(),
        full_in_secs: full.as_ref().map(|full| full.within.as_secs()),
        full_basis: full.map(|full| full.basis("entries")),
        refused_when_full_ratio: refused,
        census: census.map(|census| summed_up(census, timeouts, holders, now)),
        hairpins,
        hairpins_omitted,
        hairpin_entries_untold: ledger.conntrack().hairpins().untold(),
        hairpins_age_secs: ledger.conntrack().hairpins().at().map(|at| now.node.since(at).as_secs()),
        cilium: hairpin::cilium(ledger, holders),
        no_port_total,
        drift,
        why: why(used),
    }
}

/// Why something of the table is not known, all of it.
fn why(used: &ConntrackUse) -> Option<String> {
    if used.entries == Known::Absent && used.max == Known::Absent && used.stats.unknown().is_none() {
        return Some("this kernel has no conntrack table here".to_owned());
    }
    let of = |known: &Known<u64>, name: &str| match known {
        Known::Present(_) => None,
        Known::Absent => Some(format!("{name} is not there")),
        Known::Unknown(why) => Some(why.to_string()),
    };
    let stats = used.stats.unknown().map(ToString::to_string);
    let whys = [of(&used.entries, "nf_conntrack_count"), of(&used.max, "nf_conntrack_max"), stats];
    let mut whys: Vec<String> = whys.into_iter().flatten().collect();
    whys.dedup();
    (!whys.is_empty()).then(|| whys.join("; "))
}

fn summed_up(census: &Census, timeouts: Option<&ConntrackTimeouts>, holders: &Holders<'_>, now: Now) -> CensusReport {
    let source = |(address, entries): &(std::net::IpAddr, u64)| {
        let pod = holders.pod(*address);
        CensusSource {
            namespace: pod.map(|pod| pod.namespace.clone()),
            name: pod.map(|pod| pod.name.clone()),
            address: *address,
            host: pod.is_none() && holders.is_host(*address),
            entries: *entries,
        }
    };
    let ends = SILENCE_SECS.into_iter().map(Some).chain([None]);
    let begins = [0].into_iter().chain(SILENCE_SECS);
    let silent = begins.zip(ends).zip(census.silent).filter(|(_, entries)| *entries > 0);
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    CensusReport {
        age_secs: now.node.since(census.at).as_secs(),
        complete: census.complete,
        entries: census.entries,
        not_told_apart: census.not_told_apart,
        sources: census.sources.listed.iter().map(source).collect(),
        sources_total: census.sources.distinct.map(count),
        destinations: census
            .destinations
            .listed
            .iter()
            .map(|(destination, entries)| CensusDestination {
                protocol: destination.protocol,
                address: destination.endpoint.address,
                port: destination.endpoint.port,
                entries: *entries,
            })
            .collect(),
        destinations_total: census.destinations.distinct.map(count),
        undercount: census.sources.undercount.max(census.destinations.undercount),
        states: census
            .states()
            .map(|(state, entries)| CensusState {
                state: state.name().to_owned(),
                entries,
                timeout_secs: timeouts.and_then(|timeouts| state.timeout(timeouts)),
            })
            .collect(),
        silent: silent.map(|((from_secs, to_secs), entries)| CensusSilence { from_secs, to_secs, entries }).collect(),
        silent_unknown: census.silent_unknown,
        unassured: census.unassured,
        closing: census.closing,
        ending_within_minute: census.ending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the share that a full table refuses. If this fails, the report promises room that the kernel does not find, or
    /// the other way round: 4,000 connections were refused as often on Linux 6.18 (`deploy/docs/conntrack.md`).
    #[test]
    fn a_full_table_refuses_as_many_as_were_measured() {
        for (unassured, measured) in [(5_000, 0.7295), (20_000, 0.2735), (60_000, 0.0193)] {
            let told = refused_when_full(unassured, 262_144).unwrap();
            assert!((told - measured).abs() < 0.025, "{unassured}: {told}");
        }
        assert_eq!(refused_when_full(0, 262_144), Some(1.0));
        assert_eq!((refused_when_full(0, 0), refused_when_full(1, 0)), (None, None));
    }
}
