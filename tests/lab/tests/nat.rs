//! NAT ports end to end: a real gateway, real connections, real pods; what headroom says against what the gateway knows.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests may panic as tests do")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headroom_lab::conntrack::Protocol;
use headroom_lab::headroom::{self, Daemon};
use headroom_lab::nat::Timeouts;
use headroom_lab::traffic::{Connect, Generator, Serve, Server};
use headroom_lab::{Lab, NatLab, NatOptions, Node, NodeOptions, process};
use serde_json::Value;

const TARGET: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 7), 443);
const OTHER: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 9), 443);

/// One lab at a time: each takes both cores.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn finding<'a>(report: &'a Value, id: &str) -> Option<&'a Value> {
    report["findings"].as_array()?.iter().find(|finding| finding["id"] == id)
}

fn destination(report: &Value, at: (Ipv4Addr, u16), protocol: &str) -> Option<Value> {
    let all = report["nat"]["destinations"].as_array()?;
    let address = at.0.to_string();
    all.iter()
        .find(|row| row["address"] == address.as_str() && row["port"] == at.1 && row["protocol"] == protocol)
        .cloned()
}

/// Exercises the whole way from a SYN to the remedy. If this fails, headroom does not do what it is for.
#[test]
fn a_pod_that_drains_the_nat_is_named_with_numbers_failures_and_remedy() {
    let _alone = alone();
    let lab = Lab::new().unwrap();
    let nat = NatLab::build(&lab, &NatOptions { pods: 0, ..NatOptions::default() }).unwrap();
    let _servers = Server::start(&nat.outside, &Serve::tcp([SocketAddr::from(TARGET), OTHER.into()])).unwrap();
    let node = Node::start(&nat.node, NodeOptions::default()).unwrap();
    let culprit = node.run_pod("shop", "checkout-7d9f").unwrap();
    let bystander = node.run_pod("shop", "catalog-5c8d").unwrap();
    let (socket, cni) = (node.socket(), node.cni_dir());

    // Four connections exist before headroom starts: they count as well.
    let hold = Duration::from_secs(60);
    let before = Generator::start(&culprit.netns, &Connect::tcp(TARGET.into(), 4, hold)).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let generator = std::thread::scope(|scope| {
        let started = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(1200));
            let connect =
                Connect { rate: 80.0, timeout: Duration::from_secs(2), ..Connect::tcp(TARGET.into(), 76, hold) };
            let culprit = Generator::start(&culprit.netns, &connect).unwrap();
            (culprit, Generator::start(&bystander.netns, &Connect::tcp(OTHER.into(), 5, hold)).unwrap())
        });
        let (socket, cni) = (socket.to_str().unwrap(), cni.to_str().unwrap());
        let mut args = vec!["check", "--watch", "6s", "-o", "json", "--cri-socket", socket, "--cni-dir", cni];
        args.extend(["--nat-profile", "gcp", "--nat-min-ports", "64", "--nat-alias-ranges", "false"]);
        let said = headroom::run(&nat.node, &args).unwrap();
        let report = said.json().unwrap();
        let held = nat.gateway_held(Protocol::Tcp, TARGET.into()).unwrap();
        assert_eq!(held.ports, 64, "the gateway is dry: {held:?}");
        assert_eq!(said.exit_code, 2, "{}", said.stdout);

        let found = finding(&report, "nat-ports-exhausted").unwrap_or_else(|| panic!("no finding: {}", said.stdout));
        let title = found["title"].as_str().unwrap();
        for part in ["203.0.113.7:443/tcp", "64 of 64", "shop/checkout-7d9f"] {
            assert!(title.contains(part), "`{part}` is not in `{title}`");
        }
        assert!(found["remedy"].as_str().unwrap().contains("min_ports_per_vm = 128"), "{found}");
        let row = destination(&report, TARGET, "tcp").unwrap();
        assert_eq!((&row["held"], &row["in_scope"]), (&Value::from(64), &Value::from(true)), "{row}");
        assert_eq!(row["pods"][0]["name"], "checkout-7d9f", "{row}");
        let failed = row["failed_total"].as_u64().unwrap();
        assert!((14..=16).contains(&failed), "16 connects got no port, {failed} were seen to fail: {row}");
        assert_eq!(
            row["given_up_total"], row["failed_total"],
            "the generator's patience ends before the kernel's: {row}"
        );
        assert!(row["syn_unanswered_total"].as_u64().unwrap() >= 16, "{row}");
        let calm = destination(&report, OTHER, "tcp").unwrap();
        assert_eq!(
            (&calm["held"], &calm["pods"][0]["name"]),
            (&Value::from(5), &Value::from("catalog-5c8d")),
            "{calm}"
        );
        assert!(report["nat"]["demand"]["tcp"]["peak_1m"].as_u64().unwrap() >= 64);
        started.join().unwrap()
    });
    let stats = generator.0.stop().unwrap();
    assert_eq!((stats.opened, stats.timed_out), (60, 16), "the generator's own account: {stats:?}");
    drop((generator.1, before));
}

/// Exercises the scenario as somebody runs it who has just cloned the repository. If this fails, `cargo xtask lab
/// nat-exhaustion` shows nothing, or leaves something behind.
#[test]
fn the_scenario_shows_headroom_and_the_gateway_of_one_mind() {
    let _alone = alone();
    let lab = Lab::new().unwrap();
    let program = headroom_lab::traffic::binary().unwrap();
    let said = process::run(&lab, program.to_str().unwrap(), &["nat-exhaustion", "--watch", "6s"]).unwrap();
    for part in [
        "CRITICAL nat-ports-exhausted",
        "203.0.113.7:443/tcp holds 64 of 64 NAT ports",
        "shop/checkout-7d9f6c5b8-x2x9k",
        "16 connects were given up",
        "min_ports_per_vm = 128",
        "headroom ended with 2",
        "the gateway itself: 203.0.113.7:443/tcp holds 64 of 64 ports",
    ] {
        assert!(said.contains(part), "`{part}` is missing in:\n{said}");
    }
    for line in said.lines().filter(|line| !line.starts_with("──")) {
        assert!(line.chars().count() <= 80, "wider than 80 columns: `{line}`");
    }
    let namespaces = process::run(&lab, "ip", &["netns", "list"]).unwrap();
    assert!(!namespaces.contains("-gateway"), "left behind: {namespaces}");
}

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
fn follow_gateway(nat: &NatLab, stop: &AtomicBool) -> Vec<(i64, i64, i64)> {
    let mut samples = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begin = millis_now();
        let tcp = nat.gateway_held(Protocol::Tcp, TARGET.into()).unwrap();
        let udp = nat.gateway_held(Protocol::Udp, OTHER.into()).unwrap();
        let count = |ports: usize| i64::try_from(ports).unwrap();
        samples.push(((begin + millis_now()) / 2, count(tcp.ports), count(udp.ports)));
        std::thread::sleep(Duration::from_millis(40));
    }
    samples
}

/// Exercises the accounting against the gateway's own table: every second of a minute of short and long connections, some
/// of which existed before, some reset, and UDP. If this fails, headroom's numbers are not what the NAT counts.
#[test]
fn held_ports_agree_with_the_gateways_own_table_every_second() {
    let _alone = alone();
    let lab = Lab::new().unwrap();
    // Shorter holds than Cloud NAT's, so that ports are taken and given back within the minute.
    let timeouts = Timeouts {
        tcp_time_wait: Duration::from_secs(12),
        tcp_close: Duration::from_secs(5),
        udp: Duration::from_secs(10),
        ..Timeouts::CLOUD_NAT
    };
    let nat =
        NatLab::build(&lab, &NatOptions { pods: 2, ports: 1024..=65535, timeouts, ..NatOptions::default() }).unwrap();
    let serve = Serve { udp: vec![OTHER.into()], ..Serve::tcp([SocketAddr::from(TARGET)]) };
    let _servers = Server::start(&nat.outside, &serve).unwrap();
    let (one, two) = (&nat.pods[0].netns, &nat.pods[1].netns);
    let _before = Generator::start(one, &Connect::tcp(TARGET.into(), 10, Duration::from_secs(40))).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let daemon = Daemon::start(
        &nat.node,
        9497,
        &[
            "--nat-profile",
            "gcp",
            "--nat-min-ports",
            "128",
            "--nat-alias-ranges",
            "false",
            "--nat-tcp-time-wait",
            "12s",
            "--nat-tcp-reset",
            "5s",
            "--nat-udp-idle",
            "10s",
        ],
    )
    .unwrap();

    let mixed = |connect: Connect, rate: f64| Connect { rate, ..connect };
    let short = Connect { talk: true, ..Connect::tcp(TARGET.into(), 240, Duration::from_millis(50)) };
    let reset = Connect { reset: true, ..Connect::tcp(TARGET.into(), 60, Duration::from_millis(300)) };
    // Started apart, so that no four connects fall into the same moment.
    let start = |netns, connect| {
        std::thread::sleep(Duration::from_millis(130));
        Generator::start(netns, &connect).unwrap()
    };
    let long = Connect { talk: true, ..Connect::tcp(TARGET.into(), 60, Duration::from_secs(15)) };
    let datagrams = Connect::udp(OTHER.into(), 120, Duration::from_millis(100));
    let _load = [
        start(two, mixed(short, 4.0)),
        start(two, mixed(long, 1.0)),
        start(one, mixed(reset, 1.0)),
        start(one, mixed(datagrams, 2.0)),
    ];

    let stop = Arc::new(AtomicBool::new(false));
    let (mut reports, samples) = std::thread::scope(|scope| {
        let follower = scope.spawn(|| follow_gateway(&nat, &stop));
        let mut reports = Vec::new();
        for _ in 0..60 {
            std::thread::sleep(Duration::from_secs(1));
            reports.push(daemon.report().unwrap());
        }
        stop.store(true, Ordering::Relaxed);
        (reports, follower.join().unwrap())
    });
    reports.dedup_by(|a, b| a["time"] == b["time"]);
    assert!(reports.len() >= 50, "{} reports in 60 seconds", reports.len());

    let mut worst = (0_i64, 0_i64);
    let mut lines = Vec::new();
    for report in &reports {
        let time = millis_of_day(report["time"].as_str().unwrap());
        let held = |at, protocol| destination(report, at, protocol).map_or(0, |row| row["held"].as_i64().unwrap());
        let (tcp, udp) = (held(TARGET, "tcp"), held(OTHER, "udp"));
        // Neither side can read at one instant: facts of a report are up to a quarter of a second old, and a reading of the
        // gateway takes some time itself. Of its readings around that moment the one that agrees best counts.
        let day = 86_400_000;
        let apart = |at: i64| {
            let apart = (at.rem_euclid(day) - time).abs();
            apart.min(day - apart)
        };
        let nearest = samples.iter().map(|(at, _, _)| apart(*at)).min().unwrap();
        let around = samples.iter().filter(|(at, _, _)| apart(*at) <= nearest.max(300));
        let gateway = |held: i64, of: fn(&(i64, i64, i64)) -> i64| {
            around.clone().map(of).min_by_key(|ports| (ports - held).abs()).unwrap()
        };
        let (gateway_tcp, gateway_udp) = (gateway(tcp, |sample| sample.1), gateway(udp, |sample| sample.2));
        worst = (worst.0.max((tcp - gateway_tcp).abs()), worst.1.max((udp - gateway_udp).abs()));
        lines.push(format!("tcp {tcp:4} gateway {gateway_tcp:4}   udp {udp:4} gateway {gateway_udp:4}"));
    }
    println!("{}\nlargest difference: tcp {} udp {}", lines.join("\n"), worst.0, worst.1);
    let busiest = samples.iter().map(|(_, tcp, _)| *tcp).max().unwrap();
    assert!(busiest > 60, "the load was too small to show anything: {busiest}");
    assert!(
        worst.0 <= 2 && worst.1 <= 2,
        "headroom and the gateway differ by more than 2 ports:\n{}",
        lines.join("\n")
    );
}
