//! `headroom plan nat`, the real binary: why a plan does not fit, and what it offers then.

#[path = "plan/binary.rs"]
mod plan;

use plan::{notes, number, plan};

/// Exercises nodes that have much. If this fails, what is offered does what its own caution warns of.
#[test]
fn dynamic_allocation_is_offered_with_what_nodes_have_now() {
    for (min, max) in [(1024, 1024), (4096, 4096), (3000, 4096), (57_344, 65_536)] {
        let (answer, _) = plan(&format!("--profile gcp --min-ports {min} --nat-ips 1 --nodes 70"));
        let options = answer["options"].as_array().unwrap();
        let dynamic = format!("dynamic allocation with 64 to {max} ports");
        assert!(options.iter().any(|option| option["says"].as_str().unwrap().contains(&dynamic)), "{min}: {answer:#}");
    }
}

#[test]
fn dynamic_pools_may_not_fit_although_the_sum_does() {
    let args = "--profile gcp --mode dynamic --min-ports 64 --max-ports 1024 --nat-ips 1 --nodes 100 --demand 600";
    let (answer, code) = plan(args);
    assert_eq!((number(&answer, "capacity_nodes"), number(&answer, "required_nat_ips"), code), (Some(63), Some(2), 1));
    assert!(notes(&answer).contains("would fit (60000 of 64512 ports)") && notes(&answer).contains("take 102400"));
    // Where nothing was doubled, the minimum is what takes the ports.
    let (answer, _) = plan("--profile gcp --mode dynamic --min-ports 1024 --nat-ips 1 --nodes 1000");
    assert!(
        notes(&answer).contains("minimum of 1024 ports reserved at least, whether it needs them or not"),
        "{answer:#}"
    );
    assert!(notes(&answer).contains("take 1024000 of 64512") && !notes(&answer).contains("doubling"), "{answer:#}");
    let (answer, _) = plan(&format!("{args},2x5000"));
    assert!(notes(&answer).contains("needs 5000 ports to one destination gets 1024"), "{answer:#}");
}

/// Exercises a few nodes that need more than there is. If this fails, all the others are said to get nothing.
#[test]
fn nodes_that_take_little_fit_whatever_others_need() {
    for (args, fit, without) in [
        // 997 take 64 each; one of the others would take 65,536.
        ("--profile gcp --mode dynamic --min-ports 64 --nodes 1000 --demand 10,3x40000", 997, 3),
        ("--profile gcp --mode dynamic --min-ports 64 --nodes 1100 --demand 10,3x40000", 1008, 92),
        ("--profile aws --nat-ips 1 --nodes 80 --demand 10,3x40000", 78, 2),
    ] {
        let (answer, code) = plan(args);
        let got = (number(&answer, "capacity_nodes"), number(&answer, "nodes_without_ports"), code);
        assert_eq!(got, (Some(fit), Some(without), 1), "{args}: {answer:#}");
    }
}

/// Exercises every offer. If this fails, somebody changes a gateway in vain.
#[test]
fn what_is_offered_fits() {
    for (args, offers) in [
        ("--profile gcp --nodes 80", 2),
        ("--profile gcp --nodes 80 --demand 1500", 2),
        // As many NAT IPs with a smaller minimum.
        ("--profile gcp --mode dynamic --min-ports 64 --max-ports 1024 --nodes 100 --demand 600", 1),
        ("--profile gcp --mode dynamic --min-ports 512 --max-ports 1024 --nodes 200 --demand 100", 2),
        ("--profile gcp --mode dynamic --nodes 10 --max-ports 64 --demand 100", 1),
        ("--profile azure-lb --nodes 80 --demand 600", 2),
        ("--profile azure-lb --nodes 100 --min-ports 4000 --demand 100", 2),
        ("--profile aws --nodes 80 --demand 1000", 1),
        ("--profile aws --nodes 80 --demand 10000", 0),
        ("--profile azure-natgw --nodes 80 --demand 1000", 1),
        ("--profile linux --nodes 80 --demand 1000", 1),
    ] {
        let (answer, code) = plan(args);
        assert_eq!(code, 1, "{args}");
        let options = answer["options"].as_array().unwrap();
        assert_eq!(options.len(), offers, "{args}: {answer:#}");
        for option in options {
            assert!(!option["says"].as_str().unwrap().is_empty(), "{args}: {option:#}");
            assert!(!option["changes"].as_array().unwrap().is_empty(), "{args}: {option:#}");
            let nodes = number(option, "capacity_nodes").unwrap();
            assert!(nodes >= number(&answer, "nodes").unwrap(), "{args}: {option:#}");
        }
    }
}

/// Exercises masquerading that was given few ports. If this fails, addresses are bought where a range was to be widened.
#[test]
fn a_wider_range_is_offered_where_it_does() {
    let offers = |demand: u32| {
        let (answer, _) = plan(&format!("--profile linux --port-range 1024-2047 --demand {demand}"));
        let says = |option: &serde_json::Value| option["says"].as_str().unwrap().to_owned();
        answer["options"].as_array().unwrap().iter().map(says).collect::<Vec<_>>()
    };
    assert_eq!(offers(2000), ["3 NAT IPs", "--to-ports 32768-65535"]);
    assert_eq!(offers(40_000), ["43 NAT IPs", "--to-ports 1024-65535"]);
    assert_eq!(offers(65_000), ["69 NAT IPs", "--to-ports 1024-65535 and 2 NAT IPs"]);
}

/// Exercises minima that leave nothing to others. If this fails, more NAT IPs are bought than it takes.
#[test]
fn the_largest_minimum_that_fits_is_offered() {
    for (args, says, nodes, ips) in [
        ("--min-ports 1024 --nodes 1000", "at least 64 ports for each node", 1008, 1),
        ("--min-ports 1024 --nodes 1009", "at least 32 ports for each node", 2016, 1),
        ("--min-ports 512 --nodes 250 --demand 200", "at least 256 ports for each node", 252, 1),
        // None that fits: the smallest there is, with as many NAT IPs as it takes.
        ("--min-ports 1024 --nodes 3000", "at least 32 ports for each node and 2 NAT IPs", 4032, 2),
    ] {
        let (answer, code) = plan(&format!("--profile gcp --mode dynamic --nat-ips 1 {args}"));
        let options = answer["options"].as_array().unwrap();
        let option = options.iter().find(|option| option["says"] == says).unwrap_or(&answer);
        let got = (number(option, "capacity_nodes"), number(option, "nat_ips"), code);
        assert_eq!(got, (Some(nodes), Some(ips), 1), "{args}: {answer:#}");
    }
}

/// Exercises what is offered at a price. If this fails, somebody cuts connections unawares.
#[test]
fn fewer_ports_than_nodes_have_are_offered_with_a_caution() {
    let (answer, _) = plan("--profile azure-lb --min-ports 1024 --nodes 100");
    let caution = |says: &str| {
        let options = answer["options"].as_array().unwrap();
        options.iter().find(|option| option["says"] == says).unwrap_or_else(|| panic!("{answer:#}"))["caution"].as_str()
    };
    assert!(caution("640 ports allocated by hand").unwrap().contains("fewer than the 1024 ports that nodes have now"));
    assert_eq!(caution("2 NAT IPs"), None);
}
