//! NAT ports end to end: a real gateway, real connections, real pods; what headroom says against what the gateway knows.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests may panic as tests do")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use headroom_lab::conntrack::Protocol;
use headroom_lab::headroom;
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

fn scenario(args: &[&str]) -> String {
    let lab = Lab::new().unwrap();
    let program = headroom_lab::traffic::binary().unwrap();
    let said = process::run(&lab, program.to_str().unwrap(), args).unwrap();
    for line in said.lines().filter(|line| !line.starts_with("──")) {
        assert!(line.chars().count() <= 80, "wider than 80 columns: `{line}`");
    }
    said
}

/// Exercises `cargo xtask lab nat-idle`: what the gateway's table says, and what happens when the connections are used again. If
/// this fails, connections that the NAT has dropped look like any other.
#[test]
fn connections_that_the_gateway_forgets_are_named_before_they_break() {
    let _alone = alone();
    let said = scenario(&["nat-idle", "--idle", "3s", "--watch", "6s"]);
    for part in [
        "WARNING nat-idle-timeout-exceeds-keepalive",
        "the NAT has dropped 20 of 20 connections to 203.0.113.7:443/tcp",
        "shop/checkout-7d9f6c5b8-x2x9k (10.64.0.2): 20 dropped",
        "20 of its sockets send no keepalive probes",
        "net.ipv4.tcp_keepalive_time=1",
        "the gateway itself: 203.0.113.7:443/tcp holds 0 ports {}; 198.51.100.9:443/tcp holds 5",
        "20 connections opened, 20 broke when they were used again",
        "the bystander itself: 5 connections opened, 0 broke",
    ] {
        assert!(said.contains(part), "`{part}` is missing in:\n{said}");
    }
}

/// Exercises `cargo xtask lab nat-dynamic`. If this fails, SYNs that are lost while the NAT enlarges the range look like a fault
/// of the destination.
#[test]
fn syns_lost_while_the_range_grows_are_explained() {
    let _alone = alone();
    let said = scenario(&["nat-dynamic", "--connections", "150", "--rate", "60", "--watch", "7s"]);
    for part in [
        "WARNING nat-syn-unanswered",
        "the NAT began with 64 ports and had to enlarge the range to 256 for 150",
        "raise min_ports_per_vm to 256",
        "150 connects, 150 opened, 0 timed out",
        "holds 150 of 256 ports",
    ] {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(&said).contains(part), "`{part}` is missing in:\n{said}");
    }
}
