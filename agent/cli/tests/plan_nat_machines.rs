//! `headroom plan nat --from`, the real binary: gateways whose machines have ports already, each its own number.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use serde_json::{Value, json};

#[path = "plan/binary.rs"]
mod plan;

use plan::{notes, number, plan};

/// Files about a gateway.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, content: &Value) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, content.to_string()).unwrap();
        format!("--from {}", path.to_str().unwrap())
    }

    fn gateway(&self, settings: &Value) -> String {
        let mut gateway = json!({"name": "g", "natIps": ["a"], "natIpAllocateOption": "MANUAL_ONLY"});
        gateway.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        self.put("gateway.json", &gateway)
    }

    /// A mapping of so many machines with so many ports, one after the other on one NAT IP.
    fn mapping(&self, groups: &[(u32, u32)]) -> String {
        let (mut machines, mut next) = (Vec::new(), 1024);
        for (count, ports) in groups {
            for _machine in 0..*count {
                let range = format!("35.0.0.1:{next}-{}", next + ports - 1);
                let name = format!("n{}", machines.len());
                machines.push(json!({"instanceName": name, "interfaceNatMappings": [{"natIpPortRanges": [range]}]}));
                next += ports;
            }
        }
        self.put("mapping.json", &json!(machines))
    }

    /// What machines have used at most, the first ones of the mapping.
    fn used(&self, ports: &[u32]) -> String {
        self.used_by(ports, |index| json!({"instance_name": format!("n{index}")}))
    }

    fn used_by(&self, ports: &[u32], labels: fn(usize) -> Value) -> String {
        let series = ports.iter().enumerate().map(|(index, ports)| {
            json!({"metric": {"type": "compute.googleapis.com/nat/port_usage"}, "resource": {"labels": labels(index)},
                   "points": [{"value": {"int64Value": ports.to_string()}}]})
        });
        self.put("used.json", &json!({"timeSeries": series.collect::<Vec<_>>()}))
    }
}

fn dynamic() -> Value {
    json!({"enableDynamicPortAllocation": true, "minPortsPerVm": 64, "maxPortsPerVm": 1024})
}

/// Nodes that fit, nodes without ports, NAT IPs required, exit code.
fn answer(args: &str) -> (Option<u64>, Option<u64>, Option<u64>, i32) {
    let (answer, code) = plan(args);
    let number = |key| number(&answer, key);
    (number("capacity_nodes"), number("nodes_without_ports"), number("required_nat_ips"), code)
}

/// Exercises a pool that is all but given out. If this fails, nodes are said to fit that get no port.
#[test]
fn what_machines_have_of_a_dynamic_pool_is_not_given_out_again() {
    let files = Files::new();
    let gateway = files.gateway(&dynamic());
    let full = files.mapping(&[(62, 1024)]);
    // 64,512 - 62 × 1024 = 1024 = 16 × 64.
    let expected = (Some(78), Some(22), Some(2), 1);
    assert_eq!(answer(&format!("{gateway} {full} --nodes 100")), expected);
    // Where no file tells of the gateway, flags do.
    let flags = "--mode dynamic --min-ports 64 --max-ports 1024 --nat-ips 1";
    assert_eq!(answer(&format!("{full} {flags} --nodes 100")), expected);
    let (told, _) = plan(&format!("{gateway} {full} --nodes 100"));
    assert!(
        notes(&told)
            .contains("62 machines in the files have 63488 of 64512 ports; each further node is taken to have 64"),
        "{told:#}"
    );
    assert!(!notes(&told).contains("doubling"), "nothing was: {told:#}");
    // One more NAT IP is offered with what it really serves.
    assert_eq!(told["options"][0]["says"], "2 NAT IPs");
    assert_eq!(number(&told["options"][0], "capacity_nodes"), Some(62 + (2 * 64_512 - 63_488) / 64));
    assert_eq!(answer(&format!("{gateway} {full} --nodes 100 --nat-ips 2")), (Some(1086), Some(0), Some(2), 0));
    // What is asked for comes on top of it, and does not take its place.
    assert_eq!(answer(&format!("{gateway} {full} --nodes 100 --demand 600")), (Some(63), Some(37), Some(2), 1));
    assert_eq!(answer(&format!("{gateway} {full} --nodes 100 --demand 100")), (Some(70), Some(30), Some(2), 1));
    let some = files.mapping(&[(50, 1024), (200, 64)]);
    assert_eq!(answer(&format!("{gateway} {some} --nodes 400")), (Some(258), Some(142), Some(2), 1));
    assert_eq!(answer(&format!("{gateway} {some}")), (Some(258), Some(0), Some(1), 0));
}

/// Exercises machines that need more than they have. If this fails, those that are about to grow are counted as they are.
#[test]
fn a_machine_takes_what_it_has_or_will_need() {
    let files = Files::new();
    let gateway = files.gateway(&dynamic());
    let mapping = files.mapping(&[(2, 1024), (2, 64)]);
    let used = files.used(&[100, 100, 500, 20]);
    // 1024 + 1024 + 512 + 64, then each as the one in the middle: 100 of 128.
    assert_eq!(answer(&format!("{gateway} {mapping} {used}")).0, Some(4 + (64_512 - 2624) / 128));
    // Settings that are being tried: it has grown to 1024, so that it keeps them; what it began with was the minimum.
    let (tried, _) = plan(&format!("{gateway} {mapping} --min-ports 32"));
    assert_eq!(number(&tried, "capacity_nodes"), Some(2 + (64_512 - 2 * 1024) / 32), "{tried:#}");
    let (tried, _) = plan(&format!("{gateway} {mapping} --max-ports 512"));
    assert!(notes(&tried).contains("machines have up to 1024 ports now, and 512 at most then"), "{tried:#}");
    assert_eq!(number(&tried, "capacity_nodes"), Some(4 + (64_512 - 2 * 512 - 128) / 64), "{tried:#}");
}

/// Exercises series of machines' numbers beside a mapping of their names. If this fails, each machine is counted twice.
#[test]
fn machines_with_a_number_and_a_name_are_counted_once() {
    let files = Files::new();
    let gateway = files.gateway(&dynamic());
    let mapping = files.mapping(&[(2, 64), (2, 1024)]);
    let used = files.used_by(&[20, 500, 100, 100], |index| json!({"instance_id": format!("77{index}")}));
    let (told, _) = plan(&format!("{gateway} {mapping} {used}"));
    assert_eq!(number(&told, "nodes"), Some(4), "{told:#}");
    // 500 of 1024, 100 of 1024, 100 of 128 and 20 of 64.
    let left = 64_512 - 2 * 1024 - 128 - 64;
    assert_eq!(number(&told, "capacity_nodes"), Some(4 + left / 128), "{told:#}");
    assert!(notes(&told).contains("those that use most are taken to be those that have most"), "{told:#}");
    // Numbers without names are machines of their own.
    assert_eq!(number(&plan(&format!("{gateway} {used}")).0, "nodes"), Some(4));
}

/// Exercises the ordinary mix: nodes of GKE with the floor of alias ranges, and plain machines. If this fails, a gateway that
/// serves them all is said to be too small.
#[test]
fn machines_with_a_static_allocation_each_count_with_their_own() {
    let files = Files::new();
    let gateway = files.gateway(&json!({}));
    let mix = files.mapping(&[(50, 1024), (200, 64)]);
    for from in [mix.clone(), format!("{gateway} {mix}")] {
        let (told, code) = plan(&from);
        assert_eq!(
            (number(&told, "nodes"), code, told["basis"].as_str()),
            (Some(250), 0, Some("observed")),
            "{told:#}"
        );
        assert_eq!(answer(&from), (Some(250), Some(0), Some(1), 0));
        let note = "250 machines in the files have 64000 of 64512 ports; each further node is taken to have 1024";
        assert!(notes(&told).contains(note), "{told:#}");
    }
    assert_eq!(answer(&format!("{gateway} {mix} --nodes 255")), (Some(250), Some(5), Some(2), 1));
    assert_eq!(answer(&format!("{gateway} {mix} --nodes 255 --nat-ips 2")), (Some(313), Some(0), Some(2), 0));
    // Another minimum is one for all, the floor one for those with alias ranges.
    let (tried, _) = plan(&format!("{gateway} {mix} --min-ports 32"));
    assert_eq!(number(&tried, "capacity_nodes"), Some(250 + (64_512 - 50 * 1024 - 200 * 32) / 1024), "{tried:#}");
    // A plain machine is not helped by what others have.
    let used = files.used(&[&[10; 50][..], &[500]].concat());
    let (told, code) = plan(&format!("{gateway} {mix} {used}"));
    assert!(code == 1 && notes(&told).contains("needs 500 ports to one destination gets 64"), "{told:#}");
    let option = &told["options"][0];
    assert!(option["says"].as_str().unwrap().starts_with("at least 512 ports for each node"), "{told:#}");
    // 50 × 1024 + 200 × 512 take three NAT IPs, not 250 × 1024 four.
    assert_eq!(number(option, "nat_ips"), Some(3), "{told:#}");
}

/// Exercises a smaller cluster than the one in the file. If this fails, machines that are to go are counted, or the wrong ones.
#[test]
fn of_more_machines_than_are_wanted_those_with_most_are_counted() {
    let files = Files::new();
    let gateway = files.gateway(&dynamic());
    let mix = files.mapping(&[(40, 64), (50, 1024)]);
    let (told, code) = plan(&format!("{gateway} {mix} --nodes 10"));
    assert_eq!((number(&told, "capacity_nodes"), code), (Some(10 + (64_512 - 10 * 1024) / 64), 0), "{told:#}");
    assert!(notes(&told).contains("10 nodes are wanted") && notes(&told).contains("has 90 machines"), "{told:#}");
    // More of them than fit: as many as do.
    let flags = "--mode dynamic --min-ports 64 --max-ports 2048 --nat-ips 1";
    assert_eq!(answer(&format!("{mix} {flags} --demand 2048")).0, Some(31));
    assert_eq!(answer(&format!("{mix} {flags} --demand 100,90x2000")), (Some(31), Some(59), Some(3), 1));
}

/// Exercises a machine that the gateway has left out although it has enough. If this fails, "it fits" is told of a machine without
/// any port.
#[test]
fn a_machine_without_ports_does_not_fit_whatever_the_sum_is() {
    let files = Files::new();
    let machine = |name: &str, ranges: &[&str]| json!({"instanceName": name, "interfaceNatMappings": [{"natIpPortRanges": ranges}]});
    let one = files.put("mapping.json", &json!([machine("a", &["35.0.0.1:1024-2047"]), machine("b", &[])]));
    let (told, code) = plan(&one);
    let got = (number(&told, "nodes_without_ports"), told["fits"].as_bool(), code);
    assert_eq!(got, (Some(1), Some(false), 1), "{told:#}");
    assert!(notes(&told).contains("by these numbers all fit, yet 1 machine has no ports"), "{told:#}");
    assert!(told["options"].as_array().unwrap().is_empty(), "why it is so, nobody knows: {told:#}");
    // Another gateway, or other settings, are another question.
    assert_eq!(plan(&format!("{one} --nat-ips 2")).1, 0);
    assert_eq!(plan(&format!("{one} --min-ports 2048")).1, 0);
}

/// Exercises what machines show anyway. If this fails, saying it once more takes away what was observed.
#[test]
fn to_say_what_machines_show_tries_nothing() {
    let files = Files::new();
    let basis = |args: &str| plan(args).0["basis"].as_str().unwrap().to_owned();
    let gke = files.mapping(&[(62, 1024)]);
    let gateway = files.gateway(&json!({}));
    for from in [gke.clone(), format!("{gateway} {gke}")] {
        assert_eq!(basis(&format!("{from} --alias-ranges true")), "observed", "{from}");
    }
    assert_eq!(basis(&format!("{gateway} {gke} --alias-ranges false")), "configured");
    let plain = files.mapping(&[(62, 64)]);
    assert_eq!(basis(&format!("{plain} --alias-ranges false")), "observed");
    assert_ne!(basis(&format!("{plain} --alias-ranges true")), "observed");
}
