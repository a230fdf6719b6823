//! `headroom plan nat --from`, the real binary: what tools of a cloud have printed, and what people make of it.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

#[path = "plan/binary.rs"]
mod plan;

use plan::{notes, number, plan, run};

/// Exercises settings of files that no NAT would have. If this fails, people look for the mistake in their flags.
#[test]
fn what_a_file_has_wrong_is_named_by_its_place_there() {
    let folder = tempfile::tempdir().unwrap();
    let nat =
        r#"{"name":"nat","natIpAllocateOption":"AUTO_ONLY","enableDynamicPortAllocation":true,"minPortsPerVm":100}"#;
    let gcloud = file(&folder, "nat.json", nat);
    let routers =
        file(&folder, "routers.json", &format!(r#"[{{"name":"r","nats":[]}},{{"name":"s","nats":[{nat}]}}]"#));
    let independent = r#"{"name":"nat","natIpAllocateOption":"AUTO_ONLY","enableEndpointIndependentMapping":true}"#;
    let independent = file(&folder, "independent.json", independent);
    let terraform = |kind: &str, values: &str| {
        let resource = format!(r#"{{"type":"{kind}","name":"n","address":"{kind}.n","values":{values}}}"#);
        let text = format!(r#"{{"format_version":"1.0","values":{{"root_module":{{"resources":[{resource}]}}}}}}"#);
        file(&folder, &format!("{kind}.json"), &text)
    };
    let state = terraform(
        "google_compute_router_nat",
        r#"{"name":"n","enable_dynamic_port_allocation":true,"min_ports_per_vm":128,"max_ports_per_vm":64}"#,
    );
    let aks = terraform(
        "azurerm_kubernetes_cluster",
        r#"{"name":"c","network_profile":[{"load_balancer_profile":[{"outbound_ports_allocated":1001}]}]}"#,
    );
    let rule = r#"[{"name":"r","type":"Microsoft.Network/loadBalancers/outboundRules","allocatedOutboundPorts":1001}]"#;
    let rule = file(&folder, "rule.json", rule);
    let shown = r#"{"name":"c","networkProfile":{"loadBalancerProfile":{"allocatedOutboundPorts":1001}},"agentPoolProfiles":[]}"#;
    let shown = file(&folder, "aks.json", shown);
    for (args, words) in [
        (format!("--from {rule}"), "(`min-ports` is `allocatedOutboundPorts` of `"),
        (format!("--from {shown}"), "is `networkProfile.loadBalancerProfile.allocatedOutboundPorts` of `"),
        (format!("--from {gcloud}"), "`min-ports` is 100"),
        (format!("--from {gcloud}"), "(`min-ports` is `minPortsPerVm` of `"),
        (format!("--from {routers}"), "(`min-ports` is `[1].nats[0].minPortsPerVm` of `"),
        (format!("--from {gcloud} --min-ports 48"), "`min-ports` is 48: Cloud NAT takes a power of two"),
        (
            format!("--from {independent} --mode dynamic"),
            "(`endpoint-independent` is `enableEndpointIndependentMapping` of",
        ),
        (format!("--from {state}"), "`max-ports` is `values.root_module.resources[0].values.max_ports_per_vm` of"),
        (format!("--from {state}"), "`min-ports` is `values.root_module.resources[0].values.min_ports_per_vm` of"),
        (format!("--from {aks}"), "network_profile[0].load_balancer_profile[0].outbound_ports_allocated` of"),
    ] {
        let output = run(&args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{args}: {said}");
        assert!(said.split_whitespace().collect::<Vec<_>>().join(" ").contains(words), "{args}: {said}");
    }
    let said = String::from_utf8_lossy(&run(&format!("--from {gcloud} --min-ports 48")).stderr).into_owned();
    assert!(!said.contains("nat.json"), "the flag is wrong, not the file: {said}");
    // A value that is new to headroom is an assumption, and said to be one.
    let unknown = file(&folder, "new.json", r#"{"name":"nat","natIpAllocateOption":"MIXED","natIps":["a"]}"#);
    let (answer, _) = plan(&format!("--from {unknown}"));
    assert!(notes(&answer).contains("`MIXED` of NAT IPs is not known: taken as MANUAL_ONLY"), "{answer:#}");
}

/// A file with that text; it goes with the folder.
fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

const MANUAL: &str = r#"{"name":"nat-gke","natIpAllocateOption":"MANUAL_ONLY","natIps":["https://x/addresses/a"],
    "sourceSubnetworkIpRangesToNat":"LIST_OF_SUBNETWORKS","subnetworks":[{"sourceIpRangesToNat":["ALL_IP_RANGES"]}]}"#;

#[test]
fn a_file_describes_the_nat_and_flags_win_over_it() {
    let folder = tempfile::tempdir().unwrap();
    let nat = file(&folder, "nat.json", MANUAL);
    let (answer, code) = plan(&format!("--from {nat} --nodes 80"));
    assert_eq!((number(&answer, "capacity_nodes"), code), (Some(63), 1));
    let gcloud = answer["options"][0]["changes"][1]["text"].as_str().unwrap();
    assert!(gcloud.contains("nats update nat-gke --router=ROUTER"), "{gcloud}");
    let what_if = format!("--from {nat} --nodes 80 --mode dynamic --min-ports 64 --max-ports 1024");
    assert_eq!(number(&plan(&what_if).0, "capacity_nodes"), Some(1008));
    let other = run(&format!("--from {nat} --profile aws"));
    assert_eq!(other.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&other.stderr).contains("about Cloud NAT"));
    let automatic = file(&folder, "auto.json", &MANUAL.replace("MANUAL_ONLY", "AUTO_ONLY"));
    let (answer, code) = plan(&format!("--from {automatic} --nodes 80"));
    assert_eq!((number(&answer, "required_nat_ips"), number(&answer, "nat_ips"), code), (Some(2), None, 0));
}

#[test]
fn what_machines_were_given_wins_over_what_the_settings_mean() {
    let folder = tempfile::tempdir().unwrap();
    let nat = file(&folder, "nat.json", MANUAL);
    let machine = |name: usize, ports: &str| {
        format!(r#"{{"instanceName":"n{name}","interfaceNatMappings":[{{"natIpPortRanges":[{ports}]}}]}}"#)
    };
    let machines: Vec<String> = (1..=4)
        .map(|number| machine(number, &format!("\"35.0.0.1:{}-{}\"", 1024 * number, 1024 * number + 511)))
        .chain([machine(5, "")])
        .collect();
    let mapping = file(&folder, "mapping.json", &format!("[{}]", machines.join(",")));
    let (answer, _) = plan(&format!("--from {nat} --from {mapping}"));
    assert_eq!((number(&answer, "ports_per_node"), number(&answer, "nodes")), (Some(512), Some(5)));
    assert_eq!((answer["basis"].as_str(), number(&answer, "capacity_nodes")), (Some("observed"), Some(126)));
    assert!(notes(&answer).contains("1 of 5 machines has no ports now: n5"), "{answer:#}");
    // Nodes with less than the floor of alias ranges have none; that holds for other settings, too.
    let (tried, _) = plan(&format!("--from {mapping} --min-ports 128"));
    assert_eq!(
        (number(&tried, "ports_per_node"), tried["basis"].as_str()),
        (Some(128), Some("configured")),
        "{tried:#}"
    );
    let (alone, _) = plan(&format!("--from {mapping}"));
    assert_eq!((number(&alone, "nat_ips"), alone["nat_ips_assumed"].as_bool()), (Some(1), Some(true)), "{alone:#}");
    assert!(notes(&alone).contains("at least so many") && notes(&alone).contains("taken as static"), "{alone:#}");
    let series = r#"{"timeSeries":[{"metric":{"type":"compute.googleapis.com/nat/port_usage"},
        "resource":{"labels":{"instance_id":"7"}},"points":[{"value":{"int64Value":"3000"}}]}]}"#;
    let series = file(&folder, "series.json", series);
    let (answer, code) = plan(&format!("--from {nat} --from {series}"));
    assert!(code == 1 && notes(&answer).contains("needs 3000 ports to one destination gets 1024"), "{answer:#}");
}

#[test]
fn the_gateways_own_word_on_what_it_lacks_counts() {
    let folder = tempfile::tempdir().unwrap();
    let status =
        r#"{"result":{"natStatus":[{"name":"nat-gke","userAllocatedNatIps":["1.2.3.4"],"minExtraNatIpsNeeded":1}]}}"#;
    let status = file(&folder, "status.json", status);
    let nat = file(&folder, "nat.json", MANUAL);
    let (answer, code) = plan(&format!("--from {nat} --from {status} --nodes 10"));
    assert_eq!((number(&answer, "required_nat_ips"), code), (Some(2), 1));
    assert!(notes(&answer).contains("lacks 1 NAT IP now"), "{answer:#}");
    assert_eq!(plan(&format!("--from {nat} --from {status} --nodes 10 --nat-ips 2")).1, 0, "trying something else");
}

/// Exercises times that a gateway may well have. If this fails, it cannot be planned with, or is watched with less than it holds.
#[test]
fn a_time_that_is_too_long_to_remember_is_named_with_its_file_where_it_matters() {
    let folder = tempfile::tempdir().unwrap();
    for (field, setting) in [("tcpTimeWaitTimeoutSec", "tcp-time-wait"), ("udpIdleTimeoutSec", "udp-idle")] {
        let nat = file(&folder, "nat.json", &MANUAL.replacen('{', &format!(r#"{{"{field}":7200,"#), 1));
        assert_eq!(plan(&format!("--from {nat} --nodes 63")).1, 0, "{field}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_headroom"));
        let output = command.args(["check", "--nat-from", &nat]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(
            flat.contains(&format!("`{setting}` is more than an hour, which is what headroom remembers")),
            "{said}"
        );
        assert!(flat.contains(&format!("`{setting}` is `{field}` of `")), "{said}");
    }
}

/// Exercises a gateway that adds NAT IPs by itself, and says how many it has now. If this fails, the present number is taken for
/// the most it can have.
#[test]
fn ips_that_a_gateway_has_added_by_itself_limit_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let nat = file(&folder, "nat.json", &MANUAL.replace("MANUAL_ONLY", "AUTO_ONLY"));
    let status = |missing: &str| {
        let text = format!(
            r#"{{"result":{{"natStatus":[{{"name":"nat-gke","autoAllocatedNatIps":["1.2.3.4"]{missing}}}]}}}}"#
        );
        file(&folder, "status.json", &text)
    };
    let (answer, code) = plan(&format!("--from {nat} --from {} --nodes 2000", status("")));
    assert_eq!((number(&answer, "nat_ips"), code), (None, 0), "{answer:#}");
    assert!(notes(&answer).contains("1 NAT IP is in use now"), "{answer:#}");
    let (answer, code) = plan(&format!("--from {nat} --from {} --nodes 20", status(r#","minExtraNatIpsNeeded":2"#)));
    assert_eq!(code, 1);
    let options = answer["options"].as_array().unwrap();
    assert!(options.iter().all(|option| option["says"] != "" && !option.to_string().contains("ip-pool")), "{answer:#}");
}

/// Exercises shares of a cluster that is to grow. If this fails, its upgrade crosses an edge of Azure's table unannounced.
#[test]
fn the_surge_of_a_cluster_grows_with_its_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = |surge: &str| {
        let text = format!(
            r#"{{"name":"c","networkProfile":{{"loadBalancerProfile":{{"managedOutboundIPs":{{"count":1}}}}}},
                "agentPoolProfiles":[{{"count":48,"upgradeSettings":{{"maxSurge":"{surge}"}}}}]}}"#
        );
        file(&folder, "aks.json", &text)
    };
    let share = cluster("10%");
    assert_eq!(number(&plan(&format!("--from {share}")).0, "ports_per_node"), Some(512), "48 and 5");
    assert_eq!(number(&plan(&format!("--from {share} --nodes 90")).0, "ports_per_node"), Some(512), "90 and 9");
    assert_eq!(number(&plan(&format!("--from {share} --nodes 95")).0, "ports_per_node"), Some(256), "95 and 10");
    assert_eq!(
        number(&plan(&format!("--from {share} --nodes 95 --surge 5")).0, "ports_per_node"),
        Some(512),
        "as said"
    );
    // So many fit that they and their share do: 909 and 91 of 1000, 62 and 62 of 125 by hand.
    assert_eq!(number(&plan(&format!("--from {share}")).0, "capacity_nodes"), Some(909));
    let by_hand = format!("--from {} --min-ports 1024 --nat-ips 2", cluster("100%"));
    assert_eq!(number(&plan(&format!("{by_hand} --nodes 62")).0, "capacity_nodes"), Some(62));
    assert_eq!(number(&plan(&format!("{by_hand} --nodes 63")).0, "nodes_without_ports"), Some(1));
    let all = run(&format!("--from {}", cluster("101%")));
    assert!(all.status.code() == Some(64), "{all:?}");
    assert!(String::from_utf8_lossy(&all.stderr).contains("`101%` is more than 100%"), "{all:?}");
    let lots = run(&format!("--from {}", cluster("lots")));
    let said = String::from_utf8_lossy(&lots.stderr);
    let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        lots.status.code() == Some(64) && flat.contains("`agentPoolProfiles[0].upgradeSettings.maxSurge`"),
        "{said}"
    );
}

/// Exercises flags that take the point of a file away. If this fails, they are refused, or what they replace is still told.
#[test]
fn what_a_flag_replaces_is_neither_refused_nor_told() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = r#"{"name":"g","natIps":["a"],"natIpAllocateOption":"MANUAL_ONLY","enableDynamicPortAllocation":true,
        "minPortsPerVm":64,"maxPortsPerVm":2048}"#;
    let (told, code) = plan(&format!("--mode static --from {}", file(&folder, "nat.json", gateway)));
    assert_eq!((number(&told, "ports_per_node"), code), (Some(1024), 0), "{told:#}");
    assert!(notes(&told).contains("`max-ports` 2048 is left out"), "{told:#}");
    let zone = |zone: &str| format!(r#"{{"PublicIp":"1.1.1.1","Status":"succeeded","AvailabilityZone":"{zone}"}}"#);
    let regional = format!(
        r#"{{"NatGateways":[{{"NatGatewayId":"n","State":"available","AvailabilityMode":"regional",
            "NatGatewayAddresses":[{},{}]}}]}}"#,
        zone("a"),
        zone("b")
    );
    let from = format!("--from {}", file(&folder, "aws.json", &regional));
    let counted = |args: &str| notes(&plan(&format!("{from} {args}")).0).contains("counted are one zone");
    assert!(counted("") && !counted("--nat-ips 3"));
}

#[test]
fn files_that_say_nothing_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    for (text, words) in [
        ("", "is empty"),
        ("nonsense", "no JSON"),
        (r#"{"natIpAllocateOption":"X","minPortsPerVm":-1}"#, "has a bad `minPortsPerVm`"),
        (r#"{"apiVersion":"v1","kind":"List"}"#, "looks like Kubernetes objects"),
        (
            r#"{"natIpAllocateOption":"X","enableDynamicPortAllocation":true,"enableEndpointIndependentMapping":true}"#,
            "exclude each other",
        ),
        (r#"{"natIpAllocateOption":"X","enableDynamicPortAllocation":true,"minPortsPerVm":100}"#, "power of two"),
    ] {
        let path = file(&folder, "bad.json", text);
        let output = run(&format!("--from {path}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{text}: {said}");
        assert!(said.contains(words) && !said.contains('\u{1b}'), "{text}: {said}");
    }
    let large = folder.path().join("large.json");
    std::fs::File::create(&large).unwrap().set_len((16 << 20) + 1).unwrap();
    let output = run(&format!("--from {}", large.display()));
    assert!(String::from_utf8_lossy(&output.stderr).contains("16777216"), "{output:?}");
}

#[test]
fn standard_input_is_a_file_like_any_other() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_headroom"))
        .args(["plan", "nat", "--from", "-", "-o", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(MANUAL.as_bytes()).unwrap();
    let answer: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(number(&answer, "capacity_nodes"), Some(63));
}

/// Exercises a gateway whose last NAT IP was taken away. If this fails, nodes are said to fit that reach nothing.
#[test]
fn behind_a_gateway_without_a_nat_ip_nothing_fits() {
    let folder = tempfile::tempdir().unwrap();
    let none = MANUAL.replace(r#""natIps":["https://x/addresses/a"]"#, r#""natIps":[]"#);
    for (name, text, args, required) in [
        ("static.json", none.clone(), "", None),
        ("static.json", none.clone(), " --nodes 64", Some(2)),
        ("dynamic.json", none.replacen('{', r#"{"enableDynamicPortAllocation":true,"#, 1), " --nodes 2017", Some(2)),
    ] {
        let path = file(&folder, name, &text);
        let (answer, code) = plan(&format!("--from {path}{args}"));
        assert_eq!((number(&answer, "nat_ips"), number(&answer, "ports_per_node")), (Some(0), Some(0)), "{answer:#}");
        assert_eq!((number(&answer, "capacity_nodes"), code), (Some(0), 1), "{args}: {answer:#}");
        assert_eq!(number(&answer, "required_nat_ips"), required.or(Some(1)), "{args}: {answer:#}");
        assert!(notes(&answer).contains("nothing is translated"), "{answer:#}");
        let option = answer["options"][0].to_string();
        assert!(option.contains("NAT IP") && option.contains("ADDRESS-1"), "{option}");
    }
    let path = file(&folder, "static.json", &none);
    assert_eq!(plan(&format!("--from {path} --nodes 63 --nat-ips 1")).1, 0, "trying one");
}

/// Exercises the basis. If this fails, numbers that nobody has set or seen pass for the gateway's settings.
#[test]
fn defaults_are_assumed_and_settings_are_configured() {
    let folder = tempfile::tempdir().unwrap();
    let nat = file(&folder, "nat.json", MANUAL);
    for (args, basis, why) in [
        (
            "--profile gcp",
            "assumed",
            "static with 64 ports by default, raised to 1024 as nodes are taken to have alias",
        ),
        ("--profile gcp --nat-ips 2 --nodes 9", "assumed", "by default"),
        ("--profile gcp --alias-ranges false", "assumed", "static with 64 ports by default"),
        ("--profile gcp --mode static", "configured", "static, default of 64, raised to 1024"),
        ("--profile gcp --min-ports 128", "configured", "static, minimum of 128, raised to 1024"),
        ("--profile gcp --mode dynamic", "configured", "dynamic, 32 (default) to 65536 (default) ports per node"),
        ("--profile gcp --mode dynamic --min-ports 64", "configured", "dynamic, 64 to 65536 (default) ports per node"),
        ("--profile aws", "assumed", "1 IP assumed"),
        ("--profile aws --nat-ips 1", "configured", "1 IP"),
        ("--profile azure-lb --nat-ips 1", "assumed", "at most 50 nodes assumed"),
        ("--profile azure-lb --nat-ips 1 --nodes 3", "configured", "with 3 nodes"),
        ("--profile linux", "configured", "1 IP as masquerading has"),
        (&format!("--from {nat}"), "configured", "static, default of 64, raised to 1024"),
    ] {
        let (answer, _) = plan(args);
        assert_eq!(answer["basis"], basis, "{args}: {answer:#}");
        assert!(answer["why"].as_str().unwrap().contains(why), "{args}: {answer:#}");
    }
}

/// Exercises the age of what was saved. If this fails, somebody plans with the ports of last week.
#[test]
fn what_machines_had_is_told_with_its_age() {
    let folder = tempfile::tempdir().unwrap();
    let mapping = r#"[{"instanceName":"n1","interfaceNatMappings":[{"natIpPortRanges":["35.0.0.1:64-127"]}]}]"#;
    let path = file(&folder, "mapping.json", mapping);
    assert!(notes(&plan(&format!("--from {path}")).0).contains(" s old"));
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(5 * 3600 + 60);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    let notes = notes(&plan(&format!("--from {path}")).0);
    assert!(notes.contains("what machines have is 5 h old: the NAT may have given something else since"), "{notes}");
}
