//! The daemon end to end: its pages, its end, and what it says when things are missing.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::process::Command;
use std::time::{Duration, Instant};

use headroom_lab::headroom::{self, Daemon};
use headroom_lab::{Lab, Netns};

fn node(lab: &Lab) -> Netns {
    let netns = Netns::add(lab, "node").unwrap();
    netns.up("lo").unwrap();
    netns
}

/// Exercises every path of the daemon. If this fails, Prometheus or the kubelet gets something it cannot use.
#[test]
fn the_daemon_serves_its_pages_and_ends_on_sigterm() {
    let lab = Lab::new().unwrap();
    let netns = node(&lab);
    let daemon = Daemon::start(&netns, 9497, &["--nat-profile", "gcp"]).unwrap();
    assert_eq!(daemon.get("/healthz").unwrap(), (200, "ok\n".to_owned()));
    assert_eq!(daemon.get("/readyz").unwrap().0, 200);
    let report = daemon.report().unwrap();
    assert_eq!(report["schema"], "headroom.report/1");
    for key in ["node", "time", "coverage", "nat", "overlap", "ipam", "conntrack", "findings"] {
        assert!(report.get(key).is_some(), "`{key}` is missing");
    }
    let (status, metrics) = daemon.get("/metrics").unwrap();
    assert_eq!(status, 200);
    for line in ["headroom_nat_allocated_ports 1024.0", "headroom_source_up{source=\"conntrack\"} 1.0", "# EOF"] {
        assert!(metrics.contains(line), "`{line}` is missing in:\n{metrics}");
    }
    assert_eq!(daemon.get("/").unwrap().0, 404);
    assert_eq!(daemon.request("POST", "/report.json").unwrap().0, 405);

    let first = report["time"].clone();
    std::thread::sleep(Duration::from_millis(2500));
    assert_ne!(daemon.report().unwrap()["time"], first, "a report every tick");

    let asked = Instant::now();
    let (code, stderr) = daemon.stop().unwrap();
    assert_eq!(code, 0, "{stderr}");
    assert!(asked.elapsed() < Duration::from_secs(6), "it took {:?} to stop", asked.elapsed());
}

/// Exercises the commonest mistake. If this fails, a second agent runs beside the first and counts for nobody.
#[test]
fn a_taken_port_is_a_clear_error() {
    let lab = Lab::new().unwrap();
    let netns = node(&lab);
    let _first = Daemon::start(&netns, 9497, &[]).unwrap();
    let said = headroom::run(&netns, &["agent"]).unwrap();
    assert_eq!(said.exit_code, 3);
    assert!(said.stderr.contains("listen on 127.0.0.1:9497"), "{}", said.stderr);
}

/// Exercises headroom without root. If this fails, somebody without rights is told that all is well.
#[test]
fn without_root_every_missing_privilege_is_named_and_nothing_is_called_clean() {
    let lab = Lab::new().unwrap();
    let netns = node(&lab);
    // The binary may lie where only root can read.
    let binary = lab.dir().join("headroom");
    std::fs::copy(headroom::binary().unwrap(), &binary).unwrap();
    let command = |args: &[&str]| {
        let mut command: Command =
            netns.command("setpriv", &["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]);
        command.arg(&binary).args(args);
        command
    };
    let said = headroom::said(&netns, command(&["check", "-o", "json"])).unwrap();
    let report = said.json().unwrap();
    assert_eq!(said.exit_code, 3, "{}", said.stdout);
    let state = |source: &str| {
        let rows = report["coverage"].as_array().unwrap();
        rows.iter()
            .find(|row| row["source"] == source)
            .map(|row| (row["state"].clone(), row["why"].to_string()))
            .unwrap()
    };
    let (tcp, why) = state("tcp");
    assert_eq!(tcp, "unknown");
    assert!(why.contains("CAP_BPF"), "{why}");
    let (conntrack, why) = state("conntrack");
    assert_eq!(conntrack, "unknown");
    assert!(why.contains("CAP_NET_ADMIN"), "{why}");
    assert_ne!(state("namespaces").0, "ok");
    assert!(!said.stderr.contains("panicked"), "{}", said.stderr);
}
