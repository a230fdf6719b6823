//! Demand as headroom estimates it, against the gateway's own table: every second of a mixed load.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests may panic as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headroom_lab::conntrack::{self, Protocol};
use headroom_lab::headroom::Daemon;
use headroom_lab::nat::{OUTSIDE_V6, Timeouts};
use headroom_lab::traffic::{Connect, Generator, Serve, Server};
use headroom_lab::{Lab, NatLab, NatOptions, Netns};
use serde_json::Value;

const TARGET: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 7), 443);
const REFUSING: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 7), 81);
const SILENT: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 7), 444);
const RESETTING: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 8), 443);
const DATAGRAMS: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 9), 443);

/// Shorter holds than Cloud NAT's, so that ports are taken and given back within the minute.
const TIMES: Timeouts = Timeouts {
    tcp_established: Duration::from_secs(1200),
    tcp_time_wait: Duration::from_secs(12),
    tcp_transitory: Duration::from_secs(6),
    tcp_close: Duration::from_secs(5),
    udp: Duration::from_secs(10),
};
/// Seconds that are compared.
const SECONDS: usize = 60;

/// Protocol and destination.
type Key = (Protocol, SocketAddr);
/// Ports per destination.
type Ports = BTreeMap<Key, i64>;

fn millis_now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// Seconds and milliseconds of `2026-11-21T23:43:41.250Z` within the day.
fn millis_of_day(time: &str) -> i64 {
    let clock = time.split_once('T').unwrap().1.trim_end_matches('Z');
    let mut parts = clock.split([':', '.']).map(|part| part.parse::<i64>().unwrap());
    let mut next = || parts.next().unwrap();
    ((next() * 60 + next()) * 60 + next()) * 1000 + next()
}

/// What the gateway's own table held, again and again, with the time in the middle of each reading.
fn follow_gateway(nat: &NatLab, stop: &AtomicBool) -> Vec<(i64, Ports)> {
    let mut samples = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begin = millis_now();
        let mut ports = Ports::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for (destination, held) in conntrack::held_by_destination(&nat.gateway, protocol).unwrap() {
                ports.insert((protocol, destination), i64::try_from(held.ports).unwrap());
            }
        }
        samples.push(((begin + millis_now()) / 2, ports));
        std::thread::sleep(Duration::from_millis(40));
    }
    samples
}

/// held + wanting of every destination in scope.
fn estimate(report: &Value) -> Ports {
    let rows = report["nat"]["destinations"].as_array().unwrap().iter().filter(|row| row["in_scope"] == true);
    rows.filter_map(|row| {
        let protocol = match row["protocol"].as_str().unwrap() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return None,
        };
        let address = row["address"].as_str().unwrap().parse().unwrap();
        let port = u16::try_from(row["port"].as_u64().unwrap()).unwrap();
        let ports = row["held"].as_i64().unwrap() + row["wanting"].as_i64().unwrap();
        Some(((protocol, SocketAddr::new(address, port)), ports))
    })
    .collect()
}

fn start(netns: &Netns, rate: f64, connect: Connect) -> Generator {
    // Started apart, so that no four connects fall into the same moment.
    std::thread::sleep(Duration::from_millis(130));
    Generator::start(netns, &Connect { rate, timeout: Duration::from_millis(1500), ..connect }).unwrap()
}

/// Short ones like HTTP's, long-lived, refused, reset, unanswered, UDP requests, and IPv6 that nobody translates.
fn mixed_load(one: &Netns, two: &Netns) -> Vec<Generator> {
    let millis = Duration::from_millis;
    let v6 = SocketAddr::new(OUTSIDE_V6.into(), 443);
    vec![
        start(two, 4.0, Connect { talk: true, ..Connect::tcp(TARGET.into(), 240, millis(50)) }),
        start(two, 1.0, Connect { talk: true, ..Connect::tcp(TARGET.into(), 60, Duration::from_secs(15)) }),
        start(one, 1.0, Connect { reset: true, ..Connect::tcp(RESETTING.into(), 60, millis(300)) }),
        start(one, 1.0, Connect::tcp(REFUSING.into(), 60, millis(0))),
        start(two, 0.5, Connect::tcp(SILENT.into(), 30, millis(0))),
        start(one, 2.0, Connect::udp(DATAGRAMS.into(), 120, millis(100))),
        start(one, 1.0, Connect { talk: true, ..Connect::tcp(v6, 60, Duration::from_secs(5)) }),
    ]
}

/// How far apart two sides were.
#[derive(Debug, Default)]
struct Errors {
    compared: i64,
    sum: i64,
    worst: i64,
    /// Seconds in which they differed by more than 2 ports and 2 %.
    beyond: Vec<String>,
    busiest: i64,
}

/// Exercises the accounting against the gateway's own table: every second of a minute of mixed load, some of which existed
/// before. If this fails, headroom's numbers are not what the NAT counts.
#[test]
fn demand_agrees_with_the_gateways_own_table_every_second() {
    let lab = Lab::new().unwrap();
    let options = NatOptions { pods: 2, ports: 1024..=65535, timeouts: TIMES, ..NatOptions::default() };
    let nat = NatLab::build(&lab, &options).unwrap();
    nat.add_ipv6().unwrap();
    nat.silence(SILENT.1).unwrap();
    let v6 = SocketAddr::new(OUTSIDE_V6.into(), 443);
    let serve = Serve { udp: vec![DATAGRAMS.into()], ..Serve::tcp([TARGET.into(), RESETTING.into(), v6]) };
    let _servers = Server::start(&nat.outside, &serve).unwrap();
    let (one, two) = (&nat.pods[0].netns, &nat.pods[1].netns);
    let _before = Generator::start(one, &Connect::tcp(TARGET.into(), 10, Duration::from_secs(40))).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let args = "--nat-profile gcp --nat-min-ports 128 --nat-alias-ranges false --nat-tcp-time-wait 12s --nat-tcp-reset 5s \
                --nat-tcp-transitory 6s --nat-udp-idle 10s";
    let daemon = Daemon::start(&nat.node, 9497, &args.split_whitespace().collect::<Vec<_>>()).unwrap();
    let _load = mixed_load(one, two);

    let stop = Arc::new(AtomicBool::new(false));
    let (mut reports, samples) = std::thread::scope(|scope| {
        let follower = scope.spawn(|| follow_gateway(&nat, &stop));
        let mut reports = Vec::new();
        for _ in 0..SECONDS {
            std::thread::sleep(Duration::from_secs(1));
            reports.push(daemon.report().unwrap());
        }
        stop.store(true, Ordering::Relaxed);
        (reports, follower.join().unwrap())
    });
    reports.dedup_by(|a, b| a["time"] == b["time"]);
    assert!(reports.len() >= SECONDS - 10, "{} reports in {SECONDS} seconds", reports.len());

    let errors = compare(&reports, &samples);
    println!("{:<28} {:>9} {:>8} {:>9} {:>9}", "destination", "compared", "busiest", "max error", "mean");
    for ((protocol, destination), errors) in &errors {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let mean = errors.sum as f64 / errors.compared as f64;
        println!(
            "{:<28} {:>9} {:>8} {:>9} {mean:>9.2}",
            format!("{destination}/{protocol}"),
            errors.compared,
            errors.busiest,
            errors.worst
        );
    }
    let beyond: Vec<&String> = errors.values().flat_map(|errors| &errors.beyond).collect();
    assert!(beyond.is_empty(), "apart by more than 2 ports and 2 %: {beyond:#?}");
    for (at, protocol) in
        [TARGET, SILENT, RESETTING].map(|at| (at, Protocol::Tcp)).into_iter().chain([(DATAGRAMS, Protocol::Udp)])
    {
        assert!(errors[&(protocol, at.into())].busiest >= 3, "nothing went to {at:?}");
    }
    let last = reports.last().unwrap();
    let all = last["nat"]["destinations"].as_array().unwrap();
    let refusing =
        all.iter().find(|row| row["port"] == REFUSING.1).unwrap_or_else(|| panic!("no refused connects: {last}"));
    assert!(refusing["refused_total"].as_u64().unwrap() >= 30, "{refusing}");
    let untranslated = all.iter().find(|row| row["address"] == v6.ip().to_string());
    let untranslated = untranslated.unwrap_or_else(|| panic!("IPv6 is not listed: {last}"));
    assert_eq!(untranslated["in_scope"], false, "{untranslated}");
    assert!(untranslated["held"].as_u64().unwrap() >= 3, "{untranslated}");
}

/// Neither side can read at one instant: facts of a report are up to a quarter of a second old, and a reading of the gateway
/// takes some time itself. Of its readings around that moment the one that agrees best counts.
fn compare(reports: &[Value], samples: &[(i64, Ports)]) -> BTreeMap<Key, Errors> {
    let mut all: BTreeMap<Key, Errors> = BTreeMap::new();
    for report in reports {
        let time = millis_of_day(report["time"].as_str().unwrap());
        let apart = |at: i64| {
            let day = 86_400_000;
            let apart = (at.rem_euclid(day) - time).abs();
            apart.min(day - apart)
        };
        let nearest = samples.iter().map(|(at, _)| apart(*at)).min().unwrap();
        let around: Vec<&Ports> =
            samples.iter().filter(|(at, _)| apart(*at) <= nearest.max(300)).map(|(_, ports)| ports).collect();
        let estimate = estimate(report);
        let keys: BTreeSet<Key> =
            around.iter().flat_map(|ports| ports.keys()).chain(estimate.keys()).copied().collect();
        for key in keys.into_iter().filter(|(_, destination)| destination.is_ipv4()) {
            let estimated = estimate.get(&key).copied().unwrap_or_default();
            let gateways = around.iter().map(|ports| ports.get(&key).copied().unwrap_or_default());
            let gateway = gateways.min_by_key(|ports| (ports - estimated).abs()).unwrap();
            let (error, errors) = ((estimated - gateway).abs(), all.entry(key).or_default());
            errors.compared += 1;
            errors.sum += error;
            errors.worst = errors.worst.max(error);
            errors.busiest = errors.busiest.max(gateway);
            if error > 2.max(gateway / 50) {
                errors.beyond.push(format!("{}/{} estimated {estimated}, gateway {gateway}", key.1, key.0));
            }
        }
    }
    all
}
