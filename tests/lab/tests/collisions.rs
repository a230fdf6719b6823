//! Conntrack end to end: source ports that collide with NodePorts, and entries that stay behind; real kernel, real pods.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use headroom_lab::cilium::CiliumMaps;
use headroom_lab::{Lab, Netns, headroom, process};

/// One lab at a time: each takes both cores.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a scenario as somebody does who has just cloned the repository.
fn scenario(name: &str) -> String {
    let lab = Lab::new().unwrap();
    let program = headroom_lab::traffic::binary().unwrap();
    let said = process::run(&lab, program.to_str().unwrap(), &[name]).unwrap();
    for line in said.lines().filter(|line| !line.starts_with("──")) {
        assert!(line.chars().count() <= 80, "wider than 80 columns: `{line}`");
    }
    said
}

/// Wherever its lines were broken.
fn assert_holds(said: &str, parts: &[&str]) {
    let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in parts {
        assert!(flat.contains(part), "`{part}` is missing in:\n{said}");
    }
}

/// Exercises the break that GKE documents: masquerading picks NodePorts, and replies to them vanish. If this fails, headroom does
/// not name it, or still does when it is mended.
#[test]
fn connections_that_collide_with_node_ports_are_named_and_mending_the_rule_ends_it() {
    let _alone = alone();
    let said = scenario("nodeport-collision");
    assert_holds(
        &said,
        &[
            "CRITICAL nodeport-collision",
            "shop/checkout-7d9f6c5b8-x2x9k gets no answer on",
            "is an allocated",
            "--random-fully=false",
            "headroom ended with 2",
            "the fix: MASQUERADE without --random-fully",
            "the fix: MASQUERADE with --to-ports 32768-65535",
        ],
    );
    let (before, after) = said.split_once("the fix:").unwrap();
    assert!(!before.contains(" 0 of them no answer"), "{said}");
    assert!(!after.contains("nodeport-collision"), "{said}");
    assert_eq!(after.matches("── 0 of ").count(), 2, "{said}");
}

/// Exercises both kinds of leak: the node's own table against sockets, and a map laid out as Cilium's. If this fails, a table that
/// fills by itself has no culprit.
#[test]
fn entries_a_pod_leaves_behind_by_talking_to_itself_are_named_and_kept_connections_are_not() {
    let _alone = alone();
    let said = scenario("hairpin");
    assert_holds(
        &said,
        &[
            "WARNING conntrack-hairpin-leak",
            "CRITICAL conntrack-hairpin-leak",
            "talks to itself through 10.96.0.10:80/tcp and left 40 entries",
            "153 entries in Cilium's conntrack",
            "1.28.3-gke.1090000",
            "the table itself has 40 entries",
        ],
    );
    let (_, after) = said.split_once("the fix:").unwrap();
    assert!(!after.contains("conntrack-hairpin-leak"), "{said}");
    assert!(after.contains("the table itself has 40 entries"), "{said}");
}

/// Exercises a map of another version. If this fails, foreign bytes are taken for what they are not.
#[test]
fn a_cilium_map_of_other_sizes_is_not_read_and_that_is_said() {
    let _alone = alone();
    let lab = Lab::new().unwrap();
    let node = Netns::add(&lab, "node").unwrap();
    let binary = headroom::binary().unwrap();
    let maps = CiliumMaps::with_sizes(&lab, 16, 64).unwrap();
    let said = headroom::said(&node, maps.command(&node, binary.to_str().unwrap(), &["check", "-o", "json"])).unwrap();
    let report = said.json().unwrap();
    let coverage =
        report["coverage"].as_array().unwrap().iter().find(|row| row["source"] == "cilium-conntrack").unwrap();
    assert_eq!(coverage["state"], "unknown", "{coverage}");
    assert!(coverage["why"].as_str().unwrap().contains("keys of 16 bytes, values of 64 bytes"), "{coverage}");
    assert!(report["conntrack"]["cilium"].is_null());
}
