//! Pod IPs end to end: real containerd, real CNI, real leaks.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests may panic as tests do")]

use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use headroom_lab::pods::Leak;
use headroom_lab::{Lab, Netns, Node, NodeOptions, headroom};
use serde_json::Value;

/// One lab at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn scan(node: &Node) -> (i32, Value) {
    let (socket, cni, conf) = (node.socket(), node.cni_dir(), node.cni_conf_dir());
    let paths = [socket.to_str().unwrap(), cni.to_str().unwrap(), conf.to_str().unwrap()];
    let args =
        ["ipam", "scan", "-o", "json", "--cri-socket", paths[0], "--cni-dir", paths[1], "--cni-conf-dir", paths[2]];
    let said = headroom::run(node.netns(), &args).unwrap();
    (said.exit_code, said.json().unwrap())
}

fn entry(scan: &Value, address: Ipv4Addr) -> Value {
    let address = address.to_string();
    let entries = scan["networks"][0]["entries"].as_array().unwrap();
    entries.iter().find(|entry| entry["address"] == address.as_str()).cloned().unwrap()
}

/// Exercises verdicts on what a real runtime and a real CNI leave behind. If this fails, live addresses are called leaked,
/// or leaked ones are not found.
#[test]
fn pods_leaks_and_a_stopped_runtime_get_their_verdicts() {
    let _alone = alone();
    let lab = Lab::new().unwrap();
    let netns = Netns::add(&lab, "node").unwrap();
    let node = Node::start(&netns, NodeOptions::default()).unwrap();
    let pod = node.run_pod("shop", "web-1").unwrap();
    let old = node.make_leak("shop", "gone-1", Leak::BehindTheBack).unwrap();
    let fresh = node.make_leak("shop", "gone-2", Leak::KilledAfterAdd).unwrap();
    node.set_reservation_age(old.address, Duration::from_secs(3600)).unwrap();
    node.set_reservation_age(pod.address.unwrap(), Duration::from_secs(3600)).unwrap();

    let (code, seen) = scan(&node);
    let live = entry(&seen, pod.address.unwrap());
    assert_eq!((&live["verdict"], &live["pod"]["name"]), (&Value::from("in_use"), &Value::from("web-1")), "{seen}");
    assert_eq!(live["pod"]["namespace"], "shop");
    assert_eq!(entry(&seen, old.address)["verdict"], "leaked", "{seen}");
    assert_eq!(entry(&seen, old.address)["container_id"], old.container_id.as_str());
    assert_eq!(entry(&seen, fresh.address)["verdict"], "settling", "{seen}");
    assert_eq!(seen["networks"][0]["usable"], 61, "a /26 less network, gateway and broadcast: {seen}");
    assert_eq!(code, 1);

    node.stop_runtime().unwrap();
    let (code, seen) = scan(&node);
    assert_eq!(entry(&seen, old.address)["verdict"], "undetermined", "{seen}");
    assert_eq!(entry(&seen, pod.address.unwrap())["verdict"], "in_use", "its namespace is alive: {seen}");
    assert_eq!(code, 3);

    node.start_runtime().unwrap();
    let (code, seen) = scan(&node);
    assert_eq!((entry(&seen, old.address)["verdict"].as_str(), code), (Some("leaked"), 1), "{seen}");
}
