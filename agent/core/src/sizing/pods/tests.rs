//! The documented tables, and what was published about clusters that ran out.

use super::*;

fn ask(pod_ranges: &[&str], node_range: Option<&str>, max_pods: u32) -> Question {
    Question {
        pod_ranges: pod_ranges.iter().map(|range| range.parse().unwrap()).collect(),
        node_range: node_range.map(|range| range.parse().unwrap()),
        max_pods,
        nodes: None,
        pods_per_node: None,
    }
}

fn max_nodes(pod_ranges: &[&str], node_range: Option<&str>, max_pods: u32) -> (u64, Binding) {
    let plan = plan(&ask(pod_ranges, node_range, max_pods)).unwrap();
    (plan.max_nodes.unwrap(), plan.binding.unwrap())
}

/// The table of the documentation. One that is passed around has /26 for 33 to 64 pods, which is wrong.
#[test]
fn a_node_gets_at_least_twice_as_many_addresses_as_pods() {
    for (pods, prefix, count) in [
        (8, 28, 16),
        (9, 27, 32),
        (16, 27, 32),
        (17, 26, 64),
        (32, 26, 64),
        (33, 25, 128),
        (64, 25, 128),
        (65, 24, 256),
        (110, 24, 256),
        (128, 24, 256),
        (129, 23, 512),
        (256, 23, 512),
    ] {
        assert_eq!((node_prefix(pods), addresses(node_prefix(pods))), (prefix, count), "{pods}");
    }
}

#[test]
fn documented_clusters_come_out_as_documented() {
    let k1 = plan(&ask(&["10.0.0.0/14"], None, 110)).unwrap();
    assert_eq!((k1.node_prefix, k1.max_nodes, k1.max_pods_total), (24, Some(1024), Some(112_640)));
    assert_eq!(max_nodes(&[], Some("10.0.0.0/20"), 110), (4092, Binding::NodeRange));
    assert_eq!(max_nodes(&[], Some("10.0.0.0/16"), 110), (65_532, Binding::NodeRange));
    assert_eq!(max_nodes(&["10.0.0.0/14"], Some("10.128.0.0/20"), 110), (1024, Binding::PodRange));
    // The addresses of Services are all to be had.
    assert_eq!(addresses(20), 4096);
    assert_eq!(max_nodes(&["10.0.0.0/17"], None, 110), (128, Binding::PodRange));
    for (range, nodes) in [("10.0.0.0/29", 4), ("10.0.0.0/28", 12), ("10.0.0.0/24", 252)] {
        assert_eq!(max_nodes(&[], Some(range), 110).0, nodes);
    }
    // Autopilot's defaults.
    assert_eq!(max_nodes(&["10.0.0.0/17"], Some("10.128.0.0/23"), 32), (508, Binding::NodeRange));
    assert_eq!(max_nodes(&["10.0.0.0/25"], None, 110), (0, Binding::PodRange));
    assert_eq!(max_nodes(&["10.0.0.0/28"], Some("10.128.0.0/28"), 8).1, Binding::PodRange);
}

#[test]
fn a_node_with_one_pod_uses_one_of_256_addresses() {
    let one = plan(&Question { pods_per_node: Some(1), ..ask(&["10.0.0.0/14"], None, 110) }).unwrap();
    assert!((one.used_ratio.unwrap() - 0.003_906_25).abs() < 1e-12);
    assert!(one.notes[0].contains("255 of a node's 256"), "{:?}", one.notes);
    assert!(one.notes[1].contains("the bill grows"), "{:?}", one.notes);
    let suggestion = one.suggestion.unwrap();
    assert!(suggestion.contains("maximum of 8 pods per node") && suggestion.contains("a new one"), "{suggestion}");
    // 110 to 32 pods: a quarter of the addresses.
    let lower = plan(&Question { pods_per_node: Some(20), ..ask(&["10.0.0.0/20"], None, 32) }).unwrap();
    assert_eq!((lower.addresses_per_node, lower.max_nodes, lower.suggestion), (64, Some(64), None));
    assert_eq!(max_nodes(&["10.0.0.0/20"], None, 110).0, 16);
    assert_eq!(max_nodes(&["10.0.0.0/20", "10.4.0.0/20"], None, 110).0, 32);
}

#[test]
fn what_does_not_fit_is_told_what_would() {
    let wanted = |nodes| Question { nodes: Some(nodes), ..ask(&["10.0.0.0/14"], Some("10.128.0.0/20"), 110) };
    assert_eq!(plan(&wanted(1024)).unwrap().fits, Some(true));
    let many = plan(&wanted(15_000)).unwrap();
    let suggestion = many.suggestion.unwrap();
    assert_eq!(many.fits, Some(false));
    assert!(suggestion.contains("3840000 pod addresses: a /10 (4194304 addresses)"), "{suggestion}");
    assert!(suggestion.contains("15004 addresses in the node range: a /18"), "{suggestion}");
    assert!(many.notes.iter().any(|note| note.contains("quota")), "{:?}", many.notes);
    let some = plan(&wanted(2000)).unwrap().suggestion.unwrap();
    assert!(some.contains("or a maximum of 64 pods per node (/25)"), "{some}");
    let impossible = plan(&wanted(9_999_999)).unwrap();
    assert!(impossible.suggestion.unwrap().contains("a /0 (4294967296"), "the whole of IPv4");
}

/// If this fails, nodes without any range "fit".
#[test]
fn without_a_range_nothing_fits_and_what_is_needed_is_told() {
    let asked = plan(&Question { nodes: Some(15_000), ..ask(&[], None, 110) }).unwrap();
    assert_eq!((asked.fits, asked.max_nodes), (None, None));
    let needed = "15000 nodes at /24 need 3840000 pod addresses: a /10 (4194304 addresses)";
    assert_eq!(asked.suggestion.as_deref(), Some(needed));
    let tested = "at most 1650000 pods run then: Kubernetes is tested with 150000 in a cluster";
    assert!(asked.notes.iter().any(|note| note == tested), "{:?}", asked.notes);
    // As many as the ranges carry: 2048 nodes.
    let most = plan(&ask(&["10.0.0.0/13"], None, 110)).unwrap();
    assert!(most.notes.iter().any(|note| note.starts_with("at most 225280 pods")), "{:?}", most.notes);
    assert_eq!(plan(&ask(&["10.0.0.0/14"], None, 110)).unwrap().notes, Vec::<String>::new(), "112,640 pods");
    assert_eq!(plan(&ask(&[], None, 110)).unwrap().fits, None);
}

#[test]
fn what_gke_does_not_accept_is_refused() {
    let error = |question: &Question| plan(question).unwrap_err().to_string();
    assert!(error(&ask(&[], None, 7)).contains("8 to 256"));
    assert!(error(&ask(&[], None, 257)).contains("not 257"));
    assert!(error(&ask(&["10.0.0.0/14", "10.1.0.0/20"], None, 110)).contains("10.0.0.0/14 and 10.1.0.0/20 overlap"));
    assert!(error(&ask(&["10.0.0.0/14"], Some("10.0.0.0/14"), 110)).contains("overlap"));
    assert!(error(&Question { pods_per_node: Some(111), ..ask(&[], None, 110) }).contains("larger --max-pods"));
    assert!(error(&Question { nodes: Some(0), ..ask(&[], None, 110) }).contains("0 nodes"));
    let sloppy = plan(&ask(&["10.0.0.77/20"], None, 110)).unwrap();
    assert_eq!(sloppy.notes, ["10.0.0.77/20 is taken as 10.0.0.0/20"]);
}
