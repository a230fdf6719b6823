//! Conntrack end to end: source ports that collide with NodePorts, and entries that stay behind; real kernel, real pods.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use headroom_lab::cilium::{CiliumMaps, Hairpin};
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

/// Exercises the maps of IPv6 and of what is not TCP, and those that nobody reads. If this fails, an IPv6 cluster leaks unseen, or a
/// map goes unmentioned.
#[test]
fn each_of_ciliums_maps_is_read_or_named() {
    let _alone = alone();
    let lab = Lab::new().unwrap();
    let node = Netns::add(&lab, "node").unwrap();
    let binary = headroom::binary().unwrap();
    let maps = CiliumMaps::new(&lab).unwrap();
    maps.pin("cilium_ct6_global", 38, 56).unwrap();
    maps.pin("cilium_ct_any4_global", 14, 56).unwrap();
    maps.pin("cilium_ct_any6_global", 40, 64).unwrap();
    maps.pin("cilium_ct4_00123", 14, 56).unwrap();
    let pod = "[fd00::160]:8080".parse().unwrap();
    maps.add(pod, 41_000..41_150, Hairpin::Alone).unwrap();
    maps.add(pod, 42_000..42_003, Hairpin::Broken).unwrap();
    let said = headroom::said(&node, maps.command(&node, binary.to_str().unwrap(), &["check", "-o", "json"])).unwrap();
    let report = said.json().unwrap();
    let cilium = &report["conntrack"]["cilium"];
    let read: Vec<_> = cilium["maps"].as_array().unwrap().iter().map(|map| (&map["name"], &map["entries"])).collect();
    let expected = [("cilium_ct4_global", 0), ("cilium_ct6_global", 156), ("cilium_ct_any4_global", 0)];
    assert_eq!(read.len(), expected.len(), "{cilium}");
    for ((name, entries), expected) in read.into_iter().zip(expected) {
        assert_eq!((name.as_str(), entries.as_u64()), (Some(expected.0), Some(expected.1)), "{cilium}");
    }
    assert_eq!((cilium["left_behind"].as_u64(), cilium["broken"].as_u64()), (Some(153), Some(3)), "{cilium}");
    let findings = report["findings"].as_array().unwrap();
    let leak = findings.iter().find(|finding| finding["id"] == "conntrack-hairpin-leak").unwrap();
    assert!(leak["title"].as_str().unwrap().starts_with("fd00::160 left 153 entries"), "{leak}");
    let coverage = report["coverage"].as_array().unwrap();
    let coverage = coverage.iter().find(|row| row["source"] == "cilium-conntrack").unwrap();
    assert_eq!(coverage["state"], "degraded", "{coverage}");
    let why = coverage["why"].as_str().unwrap();
    assert!(why.contains("`cilium_ct4_00123` is not read"), "{why}");
    assert!(why.contains("cilium_ct_any6_global`: it is laid out in a way that is not known here"), "{why}");
}
