//! `headroom plan pods` and `plan eni` as scripts use them: keys, numbers, exit codes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use serde_json::Value;

/// Exit code, stdout and stderr of `headroom plan …`.
fn plan(arguments: &str) -> (i32, String, String) {
    let words = arguments.split_whitespace();
    let output = Command::new(env!("CARGO_BIN_EXE_headroom")).arg("plan").args(words).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn json(arguments: &str) -> (i32, Value) {
    let (code, stdout, stderr) = plan(&format!("{arguments} -o json"));
    (code, serde_json::from_str(&stdout).unwrap_or_else(|error| unreachable!("{error}: {stdout}{stderr}")))
}

/// Exercises the case of the NAT article with its ranges (facts: G10). If this fails, what ends first is missed.
#[test]
fn of_nodes_pods_and_nat_the_nat_ends_first_in_the_published_cluster() {
    let capacity = |arguments: &str, key: &str| json(arguments).1[key].as_u64();
    assert_eq!(capacity("pods --node-range 10.0.0.0/16 --max-pods 110", "max_nodes"), Some(65_532));
    let ranges = "pods --node-range 10.4.0.0/16 --pod-range 10.0.0.0/14 --max-pods 110";
    let nat = "nat --profile gcp --nat-ips 1";
    assert_eq!((capacity(ranges, "max_nodes"), json(ranges).1["binding"].as_str()), (Some(1024), Some("pod_range")));
    assert_eq!(capacity(nat, "capacity_nodes"), Some(63));
    // The same cluster, asked of both: up to 63 nodes nothing ends, from 64 on the NAT does, from 1025 on the ranges, too.
    for (nodes, codes) in [(63, (0, 0)), (64, (0, 1)), (1024, (0, 1)), (1025, (1, 1))] {
        let code = |arguments: &str| plan(&format!("{arguments} --nodes {nodes}")).0;
        assert_eq!((code(ranges), code(nat)), codes, "{nodes}");
    }
}

#[test]
fn eni_prints_the_keys_that_scripts_rely_on() {
    let (code, answer) = json("eni --instance-type r5.xlarge --pods 15");
    assert_eq!(code, 0);
    for (key, expected) in
        [("enis", 3), ("addresses", 42), ("unused", 27), ("pods_failing", 0), ("subnet_addresses", 45)]
    {
        assert_eq!(answer[key], expected, "{key}");
    }
    assert_eq!(answer["per_eni"], serde_json::json!([14, 14, 14]));
    let by_hand = "eni --max-enis 4 --ips-per-eni 15 --pods 24 --warm-ip-target 5 --minimum-ip-target 20";
    let (_, answer) = json(by_hand);
    assert_eq!((&answer["enis"], &answer["addresses"]), (&3.into(), &29.into()));
    let (_, answer) = json("eni --instance-type t3.small --prefix-delegation --warm-prefix-target 1 --pods 58");
    assert_eq!((&answer["enis"], &answer["addresses"], &answer["unused"]), (&2.into(), &80.into(), &22.into()));
    let (code, answer) = json("eni --instance-type r5.xlarge --pods 57");
    assert_eq!((code, &answer["pods_failing"]), (1, &1.into()));
    let (_, answer) = json("eni --instance-type t3.small --prefix-delegation true --pods 9 --max-pods 11");
    assert_eq!(answer["addresses"], 16);
}

#[test]
fn pods_prints_the_keys_that_scripts_rely_on() {
    let (code, answer) = json("pods --pod-range 10.0.0.0/14 --node-range 10.128.0.0/20 --pods-per-node 1");
    assert_eq!(code, 0);
    for (key, expected) in [("node_prefix", 24), ("addresses_per_node", 256), ("max_nodes", 1024)] {
        assert_eq!(answer[key], expected, "{key}");
    }
    assert_eq!((&answer["binding"], &answer["used_ratio"]), (&"pod_range".into(), &0.003_906_25.into()));
    assert!(answer["suggestion"].as_str().unwrap().contains("maximum of 8 pods"), "{answer}");
    let (code, answer) = json("pods --pod-range 10.0.0.0/20 --pod-range 10.4.0.0/20 --max-pods 32 --nodes 129");
    assert_eq!((code, &answer["max_nodes"]), (1, &128.into()));
}

#[test]
fn what_cannot_be_calculated_is_wrong_usage_with_the_next_step() {
    for (arguments, says) in [
        ("eni --instance-type x99.huge --pods 1", "give --max-enis and --ips-per-eni"),
        ("eni --pods 1", "Add --instance-type"),
        ("eni --max-enis 4 --ips-per-eni 1 --pods 1", "goes to no pod"),
        ("eni --max-enis 4 --ips-per-eni 15 --pods -1", "invalid value '-1'"),
        ("eni --max-enis 4 --ips-per-eni 15", "--pods"),
        ("pods --max-pods 7", "8 to 256"),
        ("pods --pod-range 10.0.0.0/33", "10.0.0.0/33"),
        ("pods --pod-range fd00::/64", "IPv4"),
        ("pods --pod-range 10.0.0.0/14 --node-range 10.0.0.0/20", "overlap"),
    ] {
        let (code, stdout, stderr) = plan(arguments);
        assert_eq!((code, stdout.as_str()), (64, ""), "{arguments}: {stderr}");
        assert!(stderr.contains(says), "{arguments}: {stderr}");
    }
}

/// Exercises the table at 80 columns. If this fails, the answer is for scripts only.
#[test]
fn the_tables_fit_into_80_columns() {
    for arguments in [
        "eni --instance-type p3dn.24xlarge --prefix-delegation --pods 700 --nodes 64",
        "pods --pod-range 10.0.0.0/14 --node-range 10.128.0.0/20 --nodes 15000 --pods-per-node 1",
    ] {
        let (_, stdout, _) = plan(arguments);
        assert!(stdout.lines().all(|line| line.chars().count() <= 80), "{stdout}");
        assert!(stdout.contains("fit"), "{stdout}");
    }
}
