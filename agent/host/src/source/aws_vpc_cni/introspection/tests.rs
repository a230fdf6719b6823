//! Every shape that was ever answered, as literals.

use super::*;

/// `/v1/enis` of v1.23: two interfaces, one pod, one address cooling.
const CARDS: &str = r#"{"0":{"TotalIPs":28,"AssignedIPs":1,"ENIs":{
  "eni-0def":{"ID":"eni-0def","IsPrimary":false,"IsTrunk":false,"IsEFA":false,"DeviceNumber":1,
    "AvailableIPv4Cidrs":{"10.0.0.9/32":{"Cidr":{"IP":"10.0.0.9","Mask":"/////w=="},"IPAddresses":{},"IsPrefix":false,"AddressFamily":""}},
    "IPv6Cidrs":{},"IsExcludedForPodIPs":false,"RouteTableID":0,"SubnetID":""},
  "eni-0abc":{"ID":"eni-0abc","IsPrimary":true,"IsTrunk":false,"IsEFA":false,"DeviceNumber":0,
    "AvailableIPv4Cidrs":{
      "10.0.0.5/32":{"Cidr":{"IP":"10.0.0.5","Mask":"/////w=="},
        "IPAddresses":{"10.0.0.5":{"Address":"10.0.0.5",
          "IPAMKey":{"networkName":"aws-cni","containerID":"","ifName":""},
          "IPAMMetadata":{"k8sPodNamespace":"default","k8sPodName":"web-1"},
          "AssignedTime":"2026-01-01T00:00:00Z","UnassignedTime":"0001-01-01T00:00:00Z"}},
        "IsPrefix":false,"AddressFamily":""},
      "10.0.0.6/32":{"Cidr":{"IP":"10.0.0.6","Mask":"/////w=="},
        "IPAddresses":{"10.0.0.6":{"Address":"10.0.0.6",
          "IPAMKey":{"networkName":"","containerID":"","ifName":""},"IPAMMetadata":{},
          "AssignedTime":"2026-01-01T00:00:00Z","UnassignedTime":"2026-01-01T00:09:40.5Z"}},
        "IsPrefix":false,"AddressFamily":""},
      "10.0.0.7/32":{"Cidr":{"IP":"10.0.0.7","Mask":"/////w=="},"IPAddresses":{},"IsPrefix":false,"AddressFamily":""}},
    "IPv6Cidrs":{},"IsExcludedForPodIPs":false,"RouteTableID":0,"SubnetID":""}}}}"#;

/// 2026-01-01T00:10:00Z.
const NOW: WallTime = WallTime::from_secs(1_767_226_200);

#[test]
fn every_card_tells_its_interfaces_their_pods_and_what_cools() {
    let cards = cards(CARDS.as_bytes(), NOW).unwrap();
    let [card] = cards.as_slice() else { panic!("{cards:?}") };
    assert_eq!((card.index, card.pool.total, card.pool.assigned, card.pool.cooling), (0, 28, 1, 1));
    let counted: Vec<_> =
        card.pool.interfaces.iter().map(|one| (one.id.as_str(), one.primary, one.total, one.assigned)).collect();
    assert_eq!(counted, [("eni-0abc", true, 3, 1), ("eni-0def", false, 1, 0)]);
    let [web] = card.reservations.as_slice() else { panic!("{card:?}") };
    assert_eq!(web.pod.as_ref().unwrap().to_string(), "default/web-1");
    assert_eq!(web.modified, Known::Present(WallTime::from_secs(1_767_225_600)));
    assert!(web.holder.unknown().unwrap().as_str().contains("for which container"), "scrubbed since v1.23");
    // Thirty seconds after it was given back it is free again.
    let later = super::cards(CARDS.as_bytes(), WallTime::from_secs(1_767_226_211)).unwrap();
    assert_eq!(later[0].pool.cooling, 0);
}

#[test]
fn the_flat_shape_before_v1_20_is_the_first_card() {
    let flat = r#"{"TotalIPs":14,"AssignedIPs":1,"ENIs":{"eni-0abc":{"ID":"eni-0abc","IsPrimary":true,"DeviceNumber":0,
        "AvailableIPv4Cidrs":{"10.0.0.5/32":{"IPAddresses":{"10.0.0.5":{"Address":"10.0.0.5",
          "IPAMKey":{"networkName":"aws-cni","containerID":"abc","ifName":"eth0"}}},"IsPrefix":false}}}}}"#;
    let cards = cards(flat.as_bytes(), NOW).unwrap();
    assert_eq!((cards[0].index, cards[0].pool.total), (0, 14));
    assert_eq!(cards[0].reservations[0].holder.present().unwrap().container.0, "abc");
}

#[test]
fn the_oldest_shape_tells_who_is_assigned_in_so_many_words() {
    let old = r#"{"TotalIPs":2,"AssignedIPs":1,"ENIIPPools":{"eni-1":{"IsPrimary":true,
        "IPv4Addresses":{"10.0.0.5":{"Assigned":true},"10.0.0.6":{"Assigned":false}}}}}"#;
    let cards = cards(old.as_bytes(), NOW).unwrap();
    let interface = &cards[0].pool.interfaces[0];
    assert_eq!((interface.total, interface.assigned, cards[0].reservations.len()), (2, 1, 1));
}

#[test]
fn a_prefix_counts_all_its_addresses_whatever_was_handed_out() {
    let prefixes = r#"{"0":{"TotalIPs":32,"AssignedIPs":1,"ENIs":{"eni-1":{"IsPrimary":true,"AvailableIPv4Cidrs":{
        "10.0.1.0/28":{"Cidr":{"IP":"10.0.1.0","Mask":"////8A=="},"IPAddresses":{"10.0.1.1":{"IPAMKey":{"networkName":"aws-cni"}}},"IsPrefix":true},
        "10.0.1.16/28":{"IPAddresses":null,"IsPrefix":true}}}}}}"#;
    let cards = cards(prefixes.as_bytes(), NOW).unwrap();
    assert!(cards[0].pool.prefixes);
    assert_eq!(cards[0].pool.interfaces[0].total, 32);
}

#[test]
fn cards_beyond_the_first_are_told_apart() {
    let two = r#"{"1":{"TotalIPs":5,"AssignedIPs":0,"ENIs":{}},"0":{"TotalIPs":14,"AssignedIPs":2,"ENIs":null}}"#;
    assert!(cards(two.as_bytes(), NOW).is_err(), "an interface list that is null");
    let two = two.replace("null", "{}");
    let cards = cards(two.as_bytes(), NOW).unwrap();
    assert_eq!(cards.iter().map(|card| (card.index, card.pool.total)).collect::<Vec<_>>(), [(0, 14), (1, 5)]);
}

#[test]
fn other_servers_on_that_port_are_not_believed() {
    for other in
        ["", "{}", "[]", r#"{"AvailableCommands":["/v1/enis"]}"#, r#"{"x":{"TotalIPs":1,"AssignedIPs":0}}"#, "<html>"]
    {
        assert!(cards(other.as_bytes(), NOW).is_err(), "{other}");
    }
    assert!(cards(r#"{"TotalIPs":-1,"AssignedIPs":0}"#.as_bytes(), NOW).is_err());
}

#[test]
fn targets_are_known_only_if_all_of_them_are_told() {
    let known = targets(
        br#"{"WARM_ENI_TARGET":1,"WARM_IP_TARGET":"5","MINIMUM_IP_TARGET":20,"ENABLE_PREFIX_DELEGATION":"true"}"#,
    );
    let expected = WarmTargets {
        warm_eni: Some(1),
        warm_ip: Some(5),
        minimum_ip: Some(20),
        warm_prefix: None,
        prefix_delegation: true,
    };
    assert_eq!(known, Known::Present(expected));
    let why = targets(br#"{"AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG":false,"WARM_ENI_TARGET":1,"WARM_IP_TARGET":0}"#);
    assert!(why.unknown().unwrap().as_str().starts_with("WARM_ENI_TARGET=1, WARM_IP_TARGET=0, MINIMUM"), "{why:?}");
    assert!(targets(b"nonsense").unknown().is_some());
}
