//! Giving leaked pod IPs back, end to end: real containerd, real CNI, real leaks, a node that is full.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests may panic as tests do")]

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use headroom_lab::headroom::{self, Daemon};
use headroom_lab::pods::Leak;
use headroom_lab::scenario::{FullNode, IpStorm, NODE_FULL};
use headroom_lab::{Lab, Netns, Node, NodeOptions};
use serde_json::Value;

/// headroom on a full node: its exit code and its one JSON document.
fn said(full: &FullNode, args: &[&str]) -> (i32, Value) {
    let output = full.headroom(&headroom::binary().unwrap(), &[args, &["-o", "json"]].concat()).unwrap();
    let json = serde_json::from_str(&output.stdout).unwrap_or_else(|error| {
        unreachable!("{error}: {}{}", output.stdout, output.stderr);
    });
    (output.code(), json)
}

fn addresses(answer: &Value, list: &str) -> Vec<String> {
    let mut addresses: Vec<String> =
        answer[list].as_array().unwrap().iter().map(|entry| entry["address"].as_str().unwrap().to_owned()).collect();
    addresses.sort();
    addresses
}

/// Exercises the whole story. If this fails, a full node stays full, or a live pod pays for it.
#[test]
fn a_full_node_is_found_cleaned_and_takes_the_next_pod() {
    let lab = Lab::new().unwrap();
    let full = FullNode::build(&lab).unwrap();
    let reserved = full.node.reservations().unwrap();
    assert_eq!(reserved.len(), 13);
    assert!(full.next_pod_fails().unwrap().contains(NODE_FULL));
    let mut leaked: Vec<String> = full.leaked.iter().map(|leak| leak.address.to_string()).collect();
    leaked.sort();

    let (code, plan) = said(&full, &["ipam", "clean"]);
    assert_eq!((code, addresses(&plan, "plan"), plan["applied"].as_array().unwrap().len()), (1, leaked.clone(), 0));
    assert_eq!(plan["journal"], Value::Null);
    assert_eq!(full.node.reservations().unwrap(), reserved, "a dry run changes nothing");

    let (code, few) = said(&full, &["ipam", "clean", "--apply", "--max", "2", "--max-percent", "38"]);
    assert_eq!((code, few["refused"].as_array().unwrap().len()), (1, 5), "5 of 13 are more than 38 %: {few}");
    let (code, few) = said(&full, &["ipam", "clean", "--apply", "--max", "2"]);
    assert_eq!((code, addresses(&few, "applied").len(), few["refused"].as_array().unwrap().len()), (1, 2, 3), "{few}");
    let (code, rest) = said(&full, &["ipam", "clean", "--apply"]);
    assert_eq!((code, addresses(&rest, "applied").len()), (0, 3), "{rest}");
    let alive: Vec<_> = full.pods.iter().map(|pod| pod.address.unwrap()).collect();
    assert_eq!(full.node.reservations().unwrap(), alive, "every pod has its address, and nobody else has one");
    assert_eq!(said(&full, &["ipam", "clean", "--apply"]).0, 0, "nothing is left to do");

    let next = full.node.run_pod("shop", "next").unwrap();
    assert!(leaked.contains(&next.address.unwrap().to_string()), "{next:?}");
    let (code, back) = said(&full, &["ipam", "restore", "--journal", few["journal"].as_str().unwrap()]);
    let (code_rest, back_rest) = said(&full, &["ipam", "restore"]);
    let refused = [addresses(&back, "refused"), addresses(&back_rest, "refused")].concat();
    assert_eq!(refused, [next.address.unwrap().to_string()], "{back} {back_rest}");
    assert_eq!(code + code_rest, 1);
    assert_eq!(full.node.reservations().unwrap(), reserved, "all the others are back");
    full.node.remove_pod(&next).unwrap();
    let pods = full.pods.iter().map(|pod| pod.netns.inode()).collect::<Result<Vec<_>, _>>();
    assert_eq!(pods.unwrap().len(), 8, "the pods live");
}

/// Exercises a runtime that cannot be asked. If this fails, `--apply` works from what it guesses.
#[test]
fn without_an_answer_of_the_runtime_nothing_is_given_back() {
    let lab = Lab::new().unwrap();
    let netns = Netns::add(&lab, "node").unwrap();
    let node = Node::start(&netns, NodeOptions::default()).unwrap();
    let pods = vec![node.run_pod("shop", "web-1").unwrap(), node.run_pod("shop", "web-2").unwrap()];
    let leaked = vec![node.make_leak("shop", "gone-1", Leak::BehindTheBack).unwrap()];
    // The runtime was killed while it made this one, and remembers it: its address is taken, ready or not.
    let half = node.interrupt_add("shop", "half-1").unwrap();
    assert!(half.known, "containerd 1.6.20 writes a sandbox down before CNI's ADD: {half:?}");
    // A namespace that the runtime forgot, without a process and mounted where only it looks: the route to it is left.
    let carried = node.make_leak("shop", "gone-2", Leak::KilledAfterAddNamespaceStays).unwrap();
    let all = pods.iter().filter_map(|pod| pod.address).chain([leaked[0].address, half.address, carried.address]);
    all.for_each(|address| node.set_reservation_age(address, Duration::from_secs(3600)).unwrap());
    let full = FullNode { pods, leaked, node };
    let before = full.node.reservations().unwrap();
    let refused = |code, answer: &Value, why: &str| {
        assert_eq!((code, answer["applied"].as_array().unwrap().len()), (3, 0), "{answer}");
        let refused = answer["refused"].as_array().unwrap();
        assert!(refused.iter().all(|entry| entry["why"].as_str().unwrap().contains(why)), "{answer}");
        assert_eq!(full.node.reservations().unwrap(), before);
    };
    let apply = ["ipam", "clean", "--apply", "--force"];
    full.node.hang_runtime(true).unwrap();
    let (code, answer) = said(&full, &apply);
    full.node.hang_runtime(false).unwrap();
    refused(code, &answer, "did not answer");
    full.node.stop_runtime().unwrap();
    let (code, answer) = said(&full, &apply);
    refused(code, &answer, "nobody listens on the socket");
    full.node.start_runtime().unwrap();
    let (code, answer) = said(&full, &apply);
    assert_eq!((code, addresses(&answer, "applied")), (0, vec![full.leaked[0].address.to_string()]), "{answer}");
    assert!(full.node.reservations().unwrap().contains(&half.address), "the runtime knows it");
    assert!(full.node.reservations().unwrap().contains(&carried.address), "its namespace carries it");
}

/// What report and metrics say after three of five leaks were given back: which, when, where they are, and why no more.
fn assert_told(daemon: &Daemon, full: &FullNode) {
    let report = daemon.report().unwrap();
    let cleaner = &report["ipam"]["cleaner"];
    assert_eq!(
        (&cleaner["mode"], &cleaner["interval_secs"]),
        (&Value::from("interval"), &Value::from(10)),
        "{cleaner}"
    );
    assert_eq!((&cleaner["released_total"], &cleaner["refused_last"]["leaked"]), (&Value::from(3), &Value::from(2)));
    assert_eq!((&cleaner["errors_total"], &cleaner["error_last"]), (&Value::from(0), &Value::Null), "{cleaner}");
    let ago = age(cleaner["last_run_unix_secs"].as_u64().unwrap());
    assert!(ago < Duration::from_secs(30) && cleaner["last_run"].as_str().unwrap().ends_with('Z'), "{cleaner}");
    let run = PathBuf::from(cleaner["journal"].as_str().unwrap());
    let below = full.node.cni_dir().join(headroom_host::act::journal::FOLDER);
    assert!(run.starts_with(&below) && run.is_dir(), "{cleaner}");
    let findings = report["findings"].as_array().unwrap();
    let leaked = findings.iter().find(|finding| finding["id"] == "ipam-leaked").unwrap();
    let why = "the agent's cleaner left 2 when it ran last: 3 are given back in any hour at most";
    assert!(leaked["evidence"].to_string().contains(why), "{leaked}");
    let metrics = daemon.get("/metrics").unwrap().1;
    for line in [
        "headroom_ipam_released_addresses_total 3",
        "headroom_ipam_cleaner_errors_total 0",
        "headroom_ipam_refused_addresses{verdict=\"leaked\"} 2.0",
        "headroom_ipam_range_set_usable_addresses{network=\"gke-pod-network\",ranges=\"10.64.0.1-10.64.0.14\"} 13.0",
        "headroom_ipam_range_set_reserved_addresses{network=\"gke-pod-network\",ranges=\"10.64.0.1-10.64.0.14\"} 10.0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "`{line}` is missing in:\n{metrics}");
    }
}

fn age(unix_secs: u64) -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(unix_secs)).unwrap()
}

/// Exercises the daemon's interval mode. If this fails, the cleaner's DaemonSet does nothing, or too much.
#[test]
fn the_daemon_gives_back_within_its_limits_when_it_is_told_to() {
    let lab = Lab::new().unwrap();
    let full = FullNode::build(&lab).unwrap();
    let config = lab.dir().join("headroom.toml");
    std::fs::write(&config, "[clean]\ninterval_secs = 10\nmax = 2\nmax_per_hour = 3\n").unwrap();
    let paths = [full.node.socket(), full.node.cni_dir(), full.node.cni_conf_dir(), config].map(|path| {
        let path: PathBuf = path;
        path.to_str().unwrap().to_owned()
    });
    let args = ["--cri-socket", &paths[0], "--cni-dir", &paths[1], "--cni-conf-dir", &paths[2], "--config", &paths[3]];
    let (_code, doctor) = said(&full, &["doctor", "--clean-interval", "10m"]);
    let cleaner = &doctor["cleaner"];
    assert_eq!(
        (&cleaner["interval_secs"], &cleaner["directories"][0]["why"]),
        (&Value::from(600), &Value::Null),
        "{cleaner}"
    );
    let daemon = Daemon::start(full.node.netns(), 9497, &args).unwrap();
    let deadline = Instant::now() + Duration::from_secs(50);
    let mut counts = vec![13];
    while counts.last() != Some(&10) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(200));
        let count = full.node.reservations().unwrap().len();
        if counts.last() != Some(&count) {
            counts.push(count);
        }
    }
    // Renames are seen one by one: never more than two within one run, never more than three in the hour.
    std::thread::sleep(Duration::from_secs(11));
    assert_eq!(full.node.reservations().unwrap().len(), 10, "{counts:?}: three in an hour");
    assert_told(&daemon, &full);
    let (code, log) = daemon.stop().unwrap();
    assert_eq!(code, 0);
    assert_eq!(log.matches("given back address").count() + log.matches("given back\"").count(), 3, "{log}");
    let alive = full.node.reservations().unwrap();
    assert!(full.pods.iter().all(|pod| alive.contains(&pod.address.unwrap())));
}

/// Exercises ADD and DEL of the real plugin beside the cleaner. If this fails, an address is handed out twice.
#[test]
fn in_a_storm_of_cni_calls_no_live_reservation_is_touched() {
    let lab = Lab::new().unwrap();
    let storm = IpStorm { headroom: headroom::binary().unwrap(), operations: 800 };
    let weathered = storm.weather(&lab).unwrap();
    assert_eq!(weathered.violations, Vec::<String>::new(), "{weathered:?}");
    assert!(weathered.operations >= 800 && weathered.deleted > 150 && weathered.runs > 2, "{weathered:?}");
    assert!(weathered.leaked > 20 && weathered.cleaned == weathered.leaked, "{weathered:?}");
}
