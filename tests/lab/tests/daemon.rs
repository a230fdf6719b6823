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

/// Exercises old and stripped kernels: no BTF, no tracefs, no netlink. If this fails, headroom dies or shows a zero where it
/// knows nothing.
#[test]
fn without_btf_tracefs_and_netlink_each_is_named_and_the_rest_goes_on() {
    let lab = Lab::new().unwrap();
    let netns = node(&lab);
    let binary = headroom::binary().unwrap();
    // Empty file systems over what is to be missing, in a mount namespace of their own.
    let script = format!(
        "for dir in /sys/kernel/btf /sys/kernel/tracing; do mount -t tmpfs none $dir || exit 99; done; \
         exec setpriv --bounding-set=-net_admin --inh-caps=-net_admin {} check -o json",
        binary.display()
    );
    let said = headroom::said(&netns, netns.command("unshare", &["--mount", "sh", "-c", &script])).unwrap();
    let report = said.json().unwrap();
    let row = |source: &str| {
        let rows = report["coverage"].as_array().unwrap();
        rows.iter().find(|row| row["source"] == source).cloned().unwrap()
    };
    assert_eq!(row("tcp")["state"], "unknown");
    assert!(row("tcp")["why"].as_str().unwrap().contains("/sys/kernel/btf/vmlinux"), "{}", row("tcp"));
    assert_eq!(row("conntrack")["state"], "degraded", "{}", row("conntrack"));
    assert!(row("conntrack")["why"].as_str().unwrap().contains("CAP_NET_ADMIN"), "{}", row("conntrack"));
    assert_eq!(row("sockets")["state"], "ok", "{}", row("sockets"));
    assert_eq!(report["nat"]["demand"]["tcp"]["ports"], 0, "other sources stand in: {}", said.stdout);
    let named = report["findings"].as_array().unwrap();
    assert!(
        named.iter().any(|finding| finding["id"] == "source-degraded" && finding["subject"] == "tcp"),
        "{}",
        said.stdout
    );
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
