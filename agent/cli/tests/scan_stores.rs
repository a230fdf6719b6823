//! `headroom ipam scan` over nodes of every kind, as scripts use it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Exit code and answer.
fn scan(node: &str) -> (i32, Value) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/nodes").join(node);
    let output = Command::new(env!("CARGO_BIN_EXE_headroom"))
        .args(["ipam", "scan", "-o", "json", "--root"])
        .arg(&root)
        .output()
        .unwrap();
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

fn network<'a>(answer: &'a Value, name: &str) -> &'a Value {
    answer["networks"].as_array().unwrap().iter().find(|network| network["network"] == name).unwrap()
}

#[test]
fn every_store_is_told_apart_with_its_range_sets_and_its_pool() {
    let (code, gke) = scan("gke-dataplane-v2");
    // Without the runtime and the namespaces of that node nothing can be judged.
    assert_eq!(code, 3);
    let network = |name| network(&gke, name);
    let host_local = network("gke-pod-network");
    assert_eq!((&host_local["ipam"], &host_local["usable"]), (&"host-local".into(), &61.into()));
    assert_eq!(host_local["counts"]["undetermined"], 4);
    let set = &host_local["range_sets"][0];
    assert_eq!((&set["used"], &set["next"], &set["exhausted"]), (&4.into(), &"10.48.131.6".into(), &false.into()));
    let evidence = |index: usize| host_local["entries"][index]["evidence"].to_string();
    assert!(evidence(0).contains("reserved for default/web-2"), "{}", evidence(0));
    assert!(evidence(3).contains("libcni remembers no successful ADD"), "{}", evidence(3));
    assert_eq!(host_local["entries"][0]["reserved_for"]["name"], "web-2");
    assert_eq!(network("cilium")["counts"]["undetermined"], 3);
}

#[test]
fn a_dual_stack_node_counts_each_set_for_itself() {
    let (_, kind) = scan("kind-dual-stack");
    let network = network(&kind, "kindnet");
    assert_eq!((&network["usable"], &network["outside_ranges"]), (&1.into(), &1.into()));
    let sets = network["range_sets"].as_array().unwrap();
    assert_eq!((&sets[0]["used"], &sets[0]["exhausted"]), (&1.into(), &true.into()));
    assert_eq!((&sets[1]["used"], &sets[1]["next"]), (&2.into(), &"fd00:1::4".into()));
}

#[test]
fn an_unread_store_and_a_pool_are_said_to_be_so() {
    let (code, metis) = scan("gke-metis");
    assert_eq!((code, &metis["networks"]), (3, &serde_json::json!([])));
    assert!(metis["coverage"].to_string().contains("metis"), "{metis}");
    let (_, aks) = scan("aks-azure-cni");
    let azure = network(&aks, "azure");
    assert_eq!(
        (&azure["pool"]["total"], &azure["pool"]["idle"], &azure["usable"]),
        (&30.into(), &2.into(), &30.into())
    );
    let (_, eks) = scan("eks-r5-xlarge");
    assert!(network(&eks, "aws-cni")["pool_why"].as_str().unwrap().contains("captured tree"));
}

/// Exercises a mistyped path. If this fails, a node that nobody looked at is reported as an empty one.
#[test]
fn what_was_named_and_does_not_exist_could_not_be_told() {
    let node = tempfile::tempdir().unwrap();
    let run = |command: &[&str], given: &[&str]| {
        let headroom = Command::new(env!("CARGO_BIN_EXE_headroom"))
            .args(command)
            .args(["-o", "json", "--root"])
            .arg(node.path())
            .args(given)
            .output()
            .unwrap();
        (headroom.status.code().unwrap(), String::from_utf8(headroom.stdout).unwrap())
    };
    let scan = |given: &[&str]| run(&["ipam", "scan"], given);
    let (code, answer) = scan(&[]);
    assert_eq!(code, 0, "nothing is there, and nothing was named: {answer}");
    let file = node.path().join("headroom.toml");
    std::fs::write(&file, "cni_dir = \"/no/such/place\"\n").unwrap();
    for given in [
        ["--cni-dir", "/no/such/place"],
        ["--cni-conf-dir", "/no/such/place"],
        ["--cri-socket", "/no/such/place"],
        ["--config", file.to_str().unwrap()],
    ] {
        let (code, answer) = scan(&given);
        assert_eq!(code, 3, "{given:?}: {answer}");
        let named = ["does not exist", "no container runtime socket at"].iter().any(|what| answer.contains(what));
        assert!(named && answer.contains("`/no/such/place`"), "{given:?}: {answer}");
    }
}
