//! Reports against readings of the gateway's table, both of them of something that moves.
//!
//! Neither side reads at one instant: what a report rests on is older than the report, as its coverage says, and a reading of the
//! gateway takes some time itself. So each report has a *bracket*: every reading that overlaps the time from its oldest fact on,
//! and one wholly before and one wholly after it. What the gateway held meanwhile lies between the least and the most of them; an
//! error is how far the report is outside. A report that calls its own numbers old is not held to them, but few may do so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Key, Ports, Reading};
use crate::conntrack::Protocol;
use crate::nat::OUTSIDE_ADDRESSES;

/// How old the facts of a report are where it does not say: a round of the sources and the pause before it.
const FACTS_ARE_OLD_MILLIS: i64 = 300;
/// How exactly the node can know when a flow of UDP fell silent, so that the gateway drops it: the kernel tells what is left of a
/// timer in whole seconds.
const SILENCE_MILLIS: i64 = 500;
/// Facts that are older are called old by the report itself (`agent/core/src/model/freshness.rs`).
const STALE_MILLIS: i64 = 2000;
/// So many reports may be stale: one in four.
const STALE_ONE_IN: usize = 4;
const DAY_MILLIS: i64 = 86_400_000;

/// How far apart two sides were.
#[derive(Debug, Default)]
pub struct Errors {
    pub compared: u32,
    /// Most ports that the gateway held.
    pub busiest: i64,
    /// Outside of the bracket, all and the largest.
    sum: i64,
    pub worst: i64,
    /// From the reading that is nearest in time, all and the largest.
    nearest_sum: i64,
    nearest_worst: i64,
    /// Outside of the bracket by more than 2 ports and 2 %.
    beyond: Vec<String>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Comparison {
    pub destinations: BTreeMap<Key, Errors>,
    /// The largest over all destinations.
    pub demand: BTreeMap<Protocol, Errors>,
    /// How old the facts of a protocol were at most, in milliseconds.
    oldest: BTreeMap<Protocol, i64>,
    /// Reports that were compared, for each protocol, and those that called their own numbers old.
    reports: usize,
    stale: usize,
}

/// Compares every report with its bracket, for the addresses of the lab's outside.
pub fn compare(reports: &[Value], readings: &[Reading]) -> Result<Comparison> {
    let mut all = Comparison::default();
    for report in reports {
        let time = report["time"].as_str().context("find the time of a report")?;
        let estimate = estimate(report)?;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let age = age_millis(report, protocol);
            all.reports += 1;
            if age > STALE_MILLIS {
                all.stale += 1;
                continue;
            }
            let oldest = all.oldest.entry(protocol).or_default();
            *oldest = age.max(*oldest);
            let blurred = if protocol == Protocol::Udp { SILENCE_MILLIS } else { 0 };
            let bracket = Bracket::of(time, (age + blurred, blurred), readings)?;
            let held = bracket.readings.iter().flat_map(|reading| reading.ports.keys());
            let ours = |key: &&Key| key.0 == protocol && is_ours(key.1.ip());
            let keys: BTreeSet<Key> = held.chain(estimate.keys()).filter(ours).copied().collect();
            for key in keys {
                let estimated = estimate.get(&key).copied().unwrap_or_default();
                let errors = all.destinations.entry(key).or_default();
                errors.note(time, estimated, &bracket, |ports| ports.get(&key).copied().unwrap_or_default());
            }
            let demand = report.pointer("/nat/demand").and_then(|demand| demand.get(protocol.name()));
            let demand = demand.with_context(|| format!("find demand for {protocol}"))?;
            let worst = demand.pointer("/worst/address").and_then(Value::as_str);
            let worst = worst.map(str::parse::<IpAddr>).transpose()?;
            // Somebody else on this machine needs more.
            if worst.is_some_and(|address| !is_ours(address)) {
                continue;
            }
            let estimated = demand["ports"].as_i64().with_context(|| format!("find the ports of {demand}"))?;
            let most = |ports: &Ports| {
                ports.iter().filter(|(key, _)| key.0 == protocol).map(|(_, held)| *held).max().unwrap_or_default()
            };
            all.demand.entry(protocol).or_default().note(time, estimated, &bracket, most);
        }
    }
    ensure!(!all.demand.is_empty(), "there is nothing to compare");
    Ok(all)
}

/// How old the facts of a protocol are, as a report says: of what is counted, the reading has an age.
fn age_millis(report: &Value, protocol: Protocol) -> i64 {
    let of = |source: &str| {
        let rows = report["coverage"].as_array()?;
        rows.iter().find(|row| row["source"] == source)?.get("age_millis")?.as_i64()
    };
    let tcp = if protocol == Protocol::Tcp { of("tcp") } else { None };
    tcp.or_else(|| of("conntrack")).unwrap_or_default().max(FACTS_ARE_OLD_MILLIS)
}

/// The readings around a report.
struct Bracket<'a> {
    readings: &'a [Reading],
    /// Of these, the one that is nearest to the report in time.
    nearest: &'a Reading,
}

impl<'a> Bracket<'a> {
    /// From so long before the report to so long after it, in milliseconds.
    fn of(time: &str, (before, after): (i64, i64), readings: &'a [Reading]) -> Result<Self> {
        let first = readings.first().context("find a reading of the gateway")?;
        // A report's time is taken for one on the day around the readings.
        let of_day = millis_of_day(time).with_context(|| format!("understand the time `{time}`"))?;
        let half = DAY_MILLIS / 2;
        let at = first.begin + (of_day - first.begin + half).rem_euclid(DAY_MILLIS) - half;
        let before = readings.iter().rposition(|reading| reading.end <= at - before);
        let after = readings.iter().position(|reading| reading.begin >= at + after);
        let (before, after) = before.zip(after).with_context(|| format!("the gateway was not read around {time}"))?;
        let readings = readings.get(before..=after).unwrap_or_default();
        let nearest = readings.iter().min_by_key(|reading| (i64::midpoint(reading.begin, reading.end) - at).abs());
        Ok(Self { readings, nearest: nearest.unwrap_or(first) })
    }
}

impl Errors {
    fn note(&mut self, time: &str, estimated: i64, bracket: &Bracket<'_>, held: impl Fn(&Ports) -> i64) {
        let all = || bracket.readings.iter().map(|reading| held(&reading.ports));
        let (least, most) = (all().min().unwrap_or_default(), all().max().unwrap_or_default());
        let error = (least - estimated).max(estimated - most).max(0);
        let from_nearest = (held(&bracket.nearest.ports) - estimated).abs();
        self.compared += 1;
        self.busiest = self.busiest.max(most);
        self.sum += error;
        self.worst = self.worst.max(error);
        self.nearest_sum += from_nearest;
        self.nearest_worst = self.nearest_worst.max(from_nearest);
        if error > 2.max(most / 50) {
            self.beyond.push(format!("{time}: estimated {estimated}, gateway {least} to {most}"));
        }
    }

    fn mean(&self, sum: i64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let sum = sum as f64;
        sum / f64::from(self.compared.max(1))
    }
}

impl Comparison {
    /// An error if one side was outside of the other's bracket by more than 2 ports and 2 %.
    pub fn agrees(&self) -> Result<()> {
        let beyond: Vec<_> =
            self.rows().flat_map(|(name, errors)| errors.beyond.iter().map(move |at| (name.clone(), at))).collect();
        ensure!(beyond.is_empty(), "apart by more than 2 ports and 2 %: {beyond:#?}");
        let Self { reports, stale, .. } = self;
        ensure!(stale * STALE_ONE_IN <= *reports, "{stale} of {reports} times the numbers were old");
        Ok(())
    }

    fn rows(&self) -> impl Iterator<Item = (String, &Errors)> {
        let destinations =
            self.destinations.iter().map(|((protocol, at), errors)| (format!("{at}/{protocol}"), errors));
        destinations.chain(self.demand.iter().map(|(protocol, errors)| (format!("demand of {protocol}"), errors)))
    }
}

/// A table: largest and mean error, and from the reading that is nearest in time. Then how old the facts were.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<22} {:>8} {:>7} {:>9} {:>5} {:>11} {:>5}",
            "", "compared", "busiest", "max error", "mean", "nearest max", "mean"
        )?;
        for (name, errors) in self.rows() {
            let Errors { compared, busiest, worst, nearest_worst, .. } = errors;
            let (mean, nearest) = (errors.mean(errors.sum), errors.mean(errors.nearest_sum));
            write!(
                f,
                "\n{name:<22} {compared:>8} {busiest:>7} {worst:>9} {mean:>5.2} {nearest_worst:>11} {nearest:>5.2}"
            )?;
        }
        let oldest: Vec<_> = self.oldest.iter().map(|(protocol, age)| format!("{protocol} {age} ms")).collect();
        write!(f, "\nfacts at most so old: {}; {} of {} older", oldest.join(", "), self.stale, self.reports)
    }
}

/// held + wanting of every destination in scope.
fn estimate(report: &Value) -> Result<Ports> {
    let rows = report.pointer("/nat/destinations").and_then(Value::as_array).context("find the destinations")?;
    let mut ports = Ports::new();
    for row in rows.iter().filter(|row| row["in_scope"] == true) {
        let protocol = match row["protocol"].as_str() {
            Some("tcp") => Protocol::Tcp,
            Some("udp") => Protocol::Udp,
            _ => continue,
        };
        let read = || {
            let address = row["address"].as_str()?.parse().ok()?;
            let port = u16::try_from(row["port"].as_u64()?).ok()?;
            Some((SocketAddr::new(address, port), row["held"].as_i64()? + row["wanting"].as_i64()?))
        };
        let (at, held) = read().with_context(|| format!("understand the destination {row}"))?;
        ports.insert((protocol, at), held);
    }
    Ok(ports)
}

fn is_ours(address: IpAddr) -> bool {
    OUTSIDE_ADDRESSES.iter().any(|ours| IpAddr::V4(*ours) == address)
}

/// Milliseconds of `2026-11-21T23:43:41.250Z` within the day.
fn millis_of_day(time: &str) -> Option<i64> {
    let clock = time.split_once('T')?.1.strip_suffix('Z')?;
    let (clock, millis) = clock.split_once('.')?;
    let mut seconds = 0;
    for part in clock.split(':') {
        seconds = seconds * 60 + part.parse::<i64>().ok()?;
    }
    Some(seconds * 1000 + millis.parse::<i64>().ok()?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const AT: &str = "203.0.113.7";

    /// A reading of a tenth of a second, so long after the epoch.
    fn reading(begin: i64, held: i64) -> Reading {
        let key = (Protocol::Tcp, SocketAddr::new(AT.parse().unwrap(), 443));
        Reading { begin, end: begin + 100, ports: [(key, held)].into() }
    }

    fn report(time: &str, held: i64) -> Value {
        let row =
            json!({ "protocol": "tcp", "address": AT, "port": 443, "in_scope": true, "held": held, "wanting": 0 });
        let demand =
            json!({ "tcp": { "ports": held, "worst": { "address": AT } }, "udp": { "ports": 0, "worst": null } });
        json!({ "time": time, "nat": { "destinations": [row], "demand": demand } })
    }

    /// Exercises what may differ and what may not. If this fails, headroom could be wrong and the comparison would not see it.
    #[test]
    fn a_report_may_be_two_ports_outside_of_the_readings_around_it() {
        // Around 00:00:01.000: before 0.7, and 1.0 or later; for UDP before 0.2, and 1.5 or later.
        let readings = [(0, 90), (550, 10), (800, 20), (1100, 14), (1400, 90), (1600, 90)]
            .map(|(begin, held)| reading(begin, held));
        for (held, worst, agrees) in [(7, 3, false), (8, 2, true), (15, 0, true), (22, 2, true), (23, 3, false)] {
            let compared = compare(&[report("1970-01-01T00:00:01.000Z", held)], &readings).unwrap();
            assert_eq!(compared.agrees().is_ok(), agrees, "{held}: {compared}");
            assert!(compared.rows().any(|(_, errors)| errors.worst == worst), "{held}: {compared}");
        }
        // Nobody looked before, or after.
        assert!(compare(&[report("1970-01-01T00:00:00.700Z", 90)], &readings).is_err());
        assert!(compare(&[report("1970-01-01T00:00:02.000Z", 90)], &readings).is_err());
    }

    /// Exercises both sides of two seconds. If this fails, numbers are held to a moment they do not tell of, or to none.
    #[test]
    fn a_report_is_compared_with_the_time_its_facts_are_from() {
        let readings = [(0, 10), (1300, 20), (2000, 20), (3500, 20)].map(|(begin, held)| reading(begin, held));
        let aged = |age_millis: u64| {
            let mut report = report("1970-01-01T00:00:03.000Z", 10);
            report["coverage"] = json!([{ "source": "tcp", "age_millis": age_millis }, { "source": "conntrack" }]);
            report
        };
        for (age_millis, agrees) in [(250, false), (1500, false), (1700, true)] {
            let compared = compare(&[aged(age_millis)], &readings).unwrap();
            assert_eq!(compared.agrees().is_ok(), agrees, "{age_millis}: {compared}");
        }
        // Of two times a report, TCP's and UDP's, one in four may be stale.
        for (stale, agrees) in [(1, true), (2, true), (3, false)] {
            let reports: Vec<_> = (0..4).map(|number| aged(if number < stale { 2001 } else { 2000 })).collect();
            assert_eq!(compare(&reports, &readings).unwrap().agrees().is_ok(), agrees, "{stale}");
        }
    }

    /// Exercises the large numbers. If this fails, 2 % are more or less than that.
    #[test]
    fn of_many_ports_two_in_a_hundred_may_differ() {
        let readings = [(0, 500), (1500, 500)].map(|(begin, held)| reading(begin, held));
        for (held, agrees) in [(489, false), (490, true), (510, true), (511, false)] {
            let compared = compare(&[report("1970-01-01T00:00:01.000Z", held)], &readings).unwrap();
            assert_eq!(compared.agrees().is_ok(), agrees, "{held}: {compared}");
        }
    }

    /// Exercises midnight between a reading and a report. If this fails, the comparison takes the wrong day's readings.
    #[test]
    fn midnight_may_pass_meanwhile() {
        let readings = [reading(DAY_MILLIS - 900, 5), reading(DAY_MILLIS + 600, 5)];
        let compared = compare(&[report("1970-01-02T00:00:00.100Z", 5)], &readings).unwrap();
        assert!(compared.agrees().is_ok(), "{compared}");
    }
}
