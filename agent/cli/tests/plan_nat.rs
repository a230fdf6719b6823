//! `headroom plan nat`, the real binary: published numbers in, published answers out, and what it says to those who mistype.
#![expect(clippy::indexing_slicing, reason = "helpers of tests may panic as tests do")]

use std::process::Command;

#[path = "plan/binary.rs"]
mod plan;

use plan::{notes, number, plan, run};

/// What is said of an answer: (arguments, ports per node, nodes that fit, nodes without ports, NAT IPs required, fits).
type Row = (&'static str, u64, Option<u64>, Option<u64>, Option<u64>, bool);

fn check(rows: &[Row]) {
    for (args, ports, capacity, without, ips, fits) in rows {
        let (answer, code) = plan(args);
        let got = ["ports_per_node", "capacity_nodes", "nodes_without_ports", "required_nat_ips"];
        let got = got.map(|key| number(&answer, key));
        assert_eq!(got, [Some(*ports), *capacity, *without, *ips], "{args}: {answer:#}");
        assert_eq!((answer["fits"].as_bool(), code), (Some(*fits), i32::from(!*fits)), "{args}");
        assert!(answer["notes"].is_array(), "{args}");
    }
}

/// Exercises the numbers that Google publishes. If this fails, clusters are built whose nodes get no ports.
#[test]
fn cloud_nat_as_documented() {
    check(&[
        (
            "--profile gcp --alias-ranges false --nat-ips 1 --min-ports 64 --nodes 1008",
            64,
            Some(1008),
            Some(0),
            Some(1),
            true,
        ),
        (
            "--profile gcp --alias-ranges false --nat-ips 1 --min-ports 64 --nodes 1009",
            64,
            Some(1008),
            Some(1),
            Some(2),
            false,
        ),
        ("--profile gcp --alias-ranges false --nat-ips 2 --min-ports 64", 64, Some(2016), None, None, true),
        ("--profile gcp --alias-ranges false --nat-ips 1 --min-ports 4096", 4096, Some(15), None, None, true),
        ("--profile gcp --alias-ranges false --nat-ips 1 --min-ports 256", 256, Some(252), None, None, true),
        ("--profile gcp --nat-ips 1", 1024, Some(63), None, None, true),
        ("--profile gcp --mode dynamic --min-ports 64 --max-ports 1024 --nat-ips 2", 64, Some(2016), None, None, true),
        (
            "--profile gcp --mode dynamic --min-ports 64 --max-ports 1024 --nat-ips 2 --demand 1024",
            1024,
            Some(126),
            None,
            Some(1),
            true,
        ),
        ("--profile gcp --alias-ranges false --nat-ips 1 --min-ports 50", 64, Some(1008), None, None, true),
        ("--profile gcp --nat-ips 1 --min-ports 2048", 2048, Some(31), None, None, true),
        ("--profile gcp --nodes 64", 1024, Some(63), Some(1), Some(2), false),
        ("--profile gcp --nat-ips 14 --min-ports 2048 --alias-ranges false", 2048, Some(441), None, None, true),
        ("--profile gcp --mode dynamic --nat-ips 1", 32, Some(2016), None, None, true),
        ("--profile gcp --alias-ranges false --min-ports 57344 --nodes 1", 64_512, Some(1), Some(0), Some(1), true),
    ]);
    assert!(notes(&plan("--profile gcp --nat-ips 14 --min-ports 2048 --alias-ranges false").0).contains("434 where"));
    // Nodes of an upgrade are none that fit, and nodes that differ cannot be counted that way.
    let surge = "--profile gcp --nat-ips 14 --min-ports 2048 --alias-ranges false --surge 5";
    assert!(
        notes(&plan(surge).0).contains("436 nodes where a node's ports may lie on two IPs, 429 where they may not")
    );
    let mixed = "--profile gcp --mode dynamic --nat-ips 2 --nodes 520 --demand 2048,500x64";
    assert!(number(&plan(mixed).0, "capacity_nodes") == Some(547) && !notes(&plan(mixed).0).contains("may lie on two"));
    assert!(notes(&plan("--profile gcp --alias-ranges false --min-ports 50").0).contains("no power of two"));
    let quota = plan("--profile gcp --nodes 20000").0;
    assert_eq!(number(&quota, "required_nat_ips"), Some(318));
    assert!(notes(&quota).contains("not reachable with one gateway (300 at most): at least 2"), "{quota:#}");
}

/// Exercises the rate that an allocation keeps up. If this fails, a busy client is told that it may be busier than it may.
#[test]
fn rates_are_ports_over_the_time_each_is_taken() {
    let rate = |args: &str| plan(args).0["connections_per_sec"].as_f64().unwrap();
    for (args, expected) in [
        ("--profile gcp --alias-ranges false", 0.533),
        ("--profile gcp", 8.533),
        ("--profile gcp --lifetime 8s", 8.0),
        ("--profile gcp --tcp-time-wait 30s", 34.133),
        // Nothing has to be remembered for it.
        ("--profile gcp --tcp-time-wait 2h", 0.142),
        // Little is not nothing.
        ("--profile gcp --alias-ranges false --lifetime 1h", 0.017_2),
        ("--profile gcp --lifetime 100000h", 0.000_002_84),
        ("--profile aws", 916.667),
        ("--profile linux", 499.967),
    ] {
        let least: f64 = expected / 1000.0;
        assert!((rate(args) - expected).abs() < least.min(0.001), "{args}: {}", rate(args));
    }
}

/// Exercises AWS's numbers. If this fails, one destination takes more connections than the gateway has.
#[test]
fn aws_as_documented() {
    check(&[
        ("--profile aws --nat-ips 1", 55_000, None, None, None, true),
        ("--profile aws --nat-ips 2", 110_000, None, None, None, true),
        ("--profile aws --nat-ips 8", 440_000, None, None, None, true),
        ("--profile aws --demand 100000", 55_000, Some(0), None, Some(2), false),
        ("--profile aws --demand 30000 --nodes 1", 55_000, Some(1), Some(0), Some(1), true),
        ("--profile aws --demand 1000 --nodes 80", 55_000, Some(55), Some(25), Some(2), false),
        ("--profile aws --demand 100,3x20000 --nodes 80 --nat-ips 2", 110_000, Some(503), Some(0), Some(2), true),
        ("--profile azure-natgw --nat-ips 1", 50_000, None, None, None, true),
        ("--profile azure-natgw --nat-ips 16", 800_000, None, None, None, true),
        ("--profile azure-natgw --nat-ips 2 --demand 1000 --nodes 101", 100_000, Some(100), Some(1), Some(3), false),
        ("--profile linux --demand 59000", 64_512, Some(1), None, Some(1), true),
        ("--profile linux --demand 60000", 64_512, Some(0), None, Some(2), false),
        ("--profile linux --port-range 32768-65535 --demand 30000 --nodes 2", 32_768, Some(1), Some(1), Some(2), false),
    ]);
    assert!(notes(&plan("--profile linux --demand 60000").0).contains("93 %"));
    let too_many = plan("--profile aws --demand 10000 --nodes 80").0;
    assert!(notes(&too_many).contains("15 NAT IPs are not reachable with one gateway (8 at most)"), "{too_many:#}");
}

/// Exercises Azure's table and its hand-made allocation. If this fails, a 51st node halves everybody's ports unannounced.
#[test]
fn azure_load_balancers_as_documented() {
    check(&[
        ("--profile azure-lb --nodes 48", 1024, Some(1000), Some(0), Some(1), true),
        ("--profile azure-lb --nodes 52", 512, Some(1000), Some(0), Some(1), true),
        ("--profile azure-lb --nodes 48 --surge 3", 512, Some(997), Some(0), Some(1), true),
        ("--profile azure-lb --nodes 80 --demand 600", 512, Some(50), Some(30), Some(2), false),
        ("--profile azure-lb --min-ports 1000 --nat-ips 2", 1000, Some(128), None, None, true),
        ("--profile azure-lb --min-ports 1000 --nat-ips 7", 1000, Some(448), None, None, true),
        ("--profile azure-lb --min-ports 4000 --nat-ips 2", 4000, Some(32), None, None, true),
        ("--profile azure-lb --min-ports 4000 --nat-ips 7", 4000, Some(112), None, None, true),
        ("--profile azure-lb --min-ports 1024 --nodes 100", 1024, Some(62), Some(38), Some(2), false),
        (
            "--profile azure-lb --min-ports 4000 --nat-ips 7 --nodes 100 --surge 2",
            4000,
            Some(110),
            Some(0),
            Some(7),
            true,
        ),
        (
            "--profile azure-lb --min-ports 4000 --nat-ips 7 --nodes 111 --surge 2",
            4000,
            Some(110),
            Some(1),
            Some(8),
            false,
        ),
    ]);
    let (beyond, code) = plan("--profile azure-lb --nodes 1001 --demand 100");
    assert_eq!(
        (number(&beyond, "capacity_nodes"), number(&beyond, "nodes_without_ports"), code),
        (Some(400), Some(601), 1)
    );
    for unknown in ["ports_per_node", "max_ports_per_node", "connections_per_sec"] {
        assert!(beyond[unknown].is_null(), "{unknown}: {beyond:#}");
    }
    // Once, not twice.
    assert!(beyond["why"].as_str().unwrap().contains("ends at 1000 nodes"), "{beyond:#}");
    assert!(!notes(&beyond).contains("1000 nodes") && !notes(&beyond).contains("gets 0"), "{beyond:#}");
    assert!(notes(&plan("--profile azure-lb --nodes 48 --surge 3").0).contains("falls from 1024 to 512"));
    assert!(notes(&plan("--profile azure-lb --nodes 50").0).contains("from node 51 on every node has 512"));
    assert!(notes(&plan("--profile azure-lb --min-ports 4000 --nat-ips 2 --nodes 32").0).contains("--surge"));
    assert!(notes(&plan("--profile azure-lb --min-ports 4000 --nodes 32").0).contains("InvalidLoadBalancerProfile"));
}

/// Exercises the case of 80 nodes behind one NAT IP with everything at its default (README). If this fails, the fault that
/// headroom was made for goes unseen.
#[test]
fn eighty_nodes_behind_one_nat_ip() {
    let (answer, code) = plan("--profile gcp --nat-ips 1 --nodes 80");
    assert_eq!(code, 1);
    assert_eq!((number(&answer, "capacity_nodes"), number(&answer, "nodes_without_ports")), (Some(63), Some(17)));
    let options = answer["options"].as_array().unwrap();
    let dynamic = options.iter().find(|option| option["capacity_nodes"] == 1008).unwrap();
    let terraform = dynamic["changes"].as_array().unwrap().iter().find(|change| change["tool"] == "terraform").unwrap();
    assert_eq!(
        terraform["text"],
        "enable_dynamic_port_allocation = true\nenable_endpoint_independent_mapping = false\nmin_ports_per_vm = \
         64\nmax_ports_per_vm = 1024"
    );
    let (answer, code) = plan("--profile gcp --nat-ips 1 --nodes 80 --mode dynamic --min-ports 64 --max-ports 1024");
    assert_eq!((number(&answer, "capacity_nodes"), code), (Some(1008), 0));
    assert_eq!(answer["options"].as_array().unwrap().len(), 0);
}

/// Exercises a narrow range of ports, of which the kernel tries each. If this fails, NAT IPs are offered behind which no node fits.
#[test]
fn a_narrow_range_of_masquerading_can_be_full() {
    check(&[
        ("--profile linux --port-range 5000 --demand 1", 1, Some(1), None, Some(1), true),
        ("--profile linux --port-range 5000 --demand 2", 1, Some(0), None, Some(2), false),
        ("--profile linux --port-range 5000-5127 --demand 128", 128, Some(1), None, Some(1), true),
        ("--profile linux --port-range 5000-5128 --demand 129", 129, Some(0), None, Some(2), false),
    ]);
    let (answer, _) = plan("--profile linux --port-range 5000 --demand 2");
    let options = answer["options"].as_array().unwrap();
    // Two addresses with a port each, or more ports than one.
    let nodes: Vec<_> = options.iter().map(|option| number(option, "capacity_nodes")).collect();
    assert_eq!(nodes, [Some(1), Some(15_237)], "{answer:#}");
    assert!(!notes(&answer).contains("93 %"), "{answer:#}");
    let (answer, _) = plan("--profile linux --port-range 1024-1152 --demand 129");
    let tries = "tries 128 ports for a connection, and then fewer: of 129 no more than 128";
    assert!(notes(&answer).contains(tries) && !notes(&answer).contains("93 %"), "{answer:#}");
}

/// Exercises endpoint-independent mapping. If this fails, people count connections where source ports are what runs out.
#[test]
fn with_endpoint_independent_mapping_sources_are_counted() {
    for profile in ["gcp", "linux"] {
        let (answer, _) = plan(&format!("--profile {profile} --endpoint-independent true --demand 70000"));
        let notes = notes(&answer);
        assert!(notes.contains("a node that needs 70000 ports gets"), "{notes}");
        assert!(notes.contains("one source address and port for all destinations"), "{notes}");
        assert!(!notes.contains("ports to one destination") && !notes.contains("to each destination"), "{notes}");
    }
}

/// Exercises what is offered where the mapping goes. If this fails, sources are taken for connections to one destination, and nobody
/// is told.
#[test]
fn an_option_without_the_mapping_says_what_was_counted() {
    let caution = |mapping: &str| {
        let (answer, _) = plan(&format!("--profile gcp --nat-ips 1 --nodes 80 --demand 1500 {mapping}"));
        let options = answer["options"].as_array().unwrap();
        let dynamic = options.iter().find(|option| option["says"].as_str().unwrap().starts_with("dynamic")).unwrap();
        dynamic["caution"].as_str().unwrap().to_owned()
    };
    let on = caution("--endpoint-independent true");
    assert!(on.contains("counted as if all 1500 sources of a node went to one destination"), "{on}");
    assert!(!caution("--endpoint-independent false").contains("sources"));
}

/// What is wrong is said, with the name of the setting and what is accepted; exit code 64, nothing on stdout.
#[test]
fn bad_settings_are_explained() {
    for (args, words) in [
        ("", "which NAT?"),
        ("--profile none", "nothing to plan"),
        ("--profile none --nodes 3", "no further settings"),
        ("--profile ibm", "possible values: gcp, aws, azure-natgw, azure-lb"),
        ("--profile gcp --nat-ips 0", "`nat-ips` is 0: Cloud NAT takes 1 or more"),
        ("--profile gcp --nat-ips 301", "1 to 300"),
        ("--profile gcp --nodes 0", "`nodes` is 0"),
        ("--profile gcp --nodes -5", "-5 is not in 0..="),
        ("--profile gcp --nodes 18446744073709551616", "invalid value '18446744073709551616'"),
        ("--profile gcp --min-ports 1", "2 to 57344"),
        ("--profile gcp --min-ports 57345", "2 to 57344"),
        ("--profile gcp --max-ports 128", "`max-ports` needs `mode` dynamic"),
        ("--profile gcp --mode dynamic --min-ports 100", "a power of two from 32 to 32768"),
        ("--profile gcp --mode dynamic --max-ports 1000", "a power of two from 64 to 65536"),
        ("--profile gcp --mode dynamic --min-ports 1024 --max-ports 1024", "must be above"),
        ("--profile gcp --mode dynamic --endpoint-independent true", "exclude each other"),
        ("--profile aws --nat-ips 9", "1 to 8"),
        ("--profile azure-natgw --nat-ips 17", "1 to 16"),
        ("--profile azure-lb --min-ports 1001", "a multiple of 8"),
        ("--profile azure-lb --min-ports 64008", "up to 64000"),
        ("--profile gcp --demand many", "`many`"),
        ("--profile gcp --demand 5,6", "as in `3x2000`"),
        ("--profile gcp --demand -5", "`-5`"),
        ("--profile gcp --demand 100,0x2000", "`0x2000` is the demand of no node"),
        ("--profile gcp --demand 100,3x", "`3x` lacks the number of ports, as in `3x2000`"),
        ("--profile gcp --demand 100,x3", "`x3` lacks the number of nodes, as in `3x2000`"),
        ("--profile gcp --demand 5,4x7 --nodes 3", "that of 4 nodes, but there are 3"),
        ("--profile gcp --lifetime -1s", "invalid value '-1s' for '--lifetime <DURATION>'"),
        ("--profile gcp --from /nonexistent", "`/nonexistent`"),
        ("--profile gcp --from /dev/zero", "`/dev/zero`"),
        ("--profile gcp --from /", "`/`"),
    ] {
        let output = run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(output.status.code(), Some(64), "{args}: {said}");
        assert!(flat.contains(words), "{args}: {said}");
        assert!(output.stdout.is_empty(), "{args}");
    }
}

/// Exercises the same words where a node is diagnosed. If this fails, a typing error there reads like a fault of the node.
#[test]
fn bad_settings_of_a_diagnosis_are_explained() {
    for (args, words) in [
        ("--nat-min-ports 64", "NAT settings need a profile"),
        ("--nat-profile gcp --nat-tcp-time-wait -5s", "invalid value '-5s' for '--nat-tcp-time-wait <DURATION>'"),
        (
            "--nat-profile gcp --nat-tcp-time-wait 61m",
            "`tcp-time-wait` is more than an hour, which is what headroom remembers",
        ),
        ("--nat-profile gcp --nat-bypass 203.0.113.0/33", "it is no prefix like 203.0.113.0/24"),
        ("--nat-profile gcp --nat-bypass 0.0.0.0/0", "leaves nothing for the NAT"),
        ("--nat-profile gcp --nat-mode dynamic --nat-max-ports 32", "`max-ports` is 32"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headroom"));
        let output = command.arg("check").args(args.split_whitespace()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{args}: {said}");
        assert!(said.contains(words), "{args}: {said}");
    }
}

#[test]
fn settings_of_other_nats_are_left_out_and_said_so() {
    let (answer, code) = plan("--profile aws --mode dynamic --min-ports 64 --max-ports 1024 --nodes 3");
    assert_eq!(code, 0);
    for name in ["mode dynamic", "min-ports", "max-ports"] {
        assert!(notes(&answer).contains(&format!("`{name}` means nothing to an AWS NAT gateway")), "{answer:#}");
    }
}

/// Exercises the table. If this fails, look at the difference: it is what people paste from.
#[test]
fn the_table_reads_well_at_80_columns() {
    for (name, args) in [
        ("gcp-80-nodes", "--profile gcp --nat-ips 1 --nodes 80"),
        ("azure-lb-edge", "--profile azure-lb --nodes 50 --surge 1 --demand 600"),
        ("aws", "--profile aws --nodes 80 --demand 1000"),
        ("gcp-nothing-said", "--profile gcp"),
        ("azure-lb-nothing-said", "--profile azure-lb"),
    ] {
        let table = String::from_utf8(run(args).stdout).unwrap();
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
        insta::assert_snapshot!(name, table);
    }
}

/// Exercises the pages. If this fails, the README shows what is not so: paste the answer of the command into it.
#[test]
fn the_readme_and_the_page_show_what_is_printed() {
    let table = String::from_utf8(run("--profile gcp --nat-ips 1 --nodes 80").stdout).unwrap();
    for page in ["README.md", "deploy/docs/nat.md"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(page);
        assert!(std::fs::read_to_string(path).unwrap().contains(table.trim_end()), "{page}:\n{table}");
    }
}
