//! Documents as tools print them, and as people spoil them.

use std::time::Duration;

use headroom_core::model::nat::{Mode, Profile};
use proptest::prelude::*;

use super::{BadDocument, Said, read};

mod aws;
mod azure;
mod terraform;

fn said(text: &str) -> Said {
    read(text.as_bytes(), None).unwrap()
}

fn refused(text: &str) -> String {
    read(text.as_bytes(), None).unwrap_err().to_string()
}

/// A gateway at its defaults, as gcloud prints it: fields at their default are not there.
const DEFAULTS: &str = r#"{"name":"nat-gw","autoNetworkTier":"PREMIUM","endpointTypes":["ENDPOINT_TYPE_VM"],
 "sourceSubnetworkIpRangesToNat":"ALL_SUBNETWORKS_ALL_IP_RANGES","natIpAllocateOption":"AUTO_ONLY",
 "logConfig":{"enable":false,"filter":"ALL"},"enableEndpointIndependentMapping":false}"#;

#[test]
fn a_gateway_at_its_defaults_sets_nothing() {
    let said = said(DEFAULTS);
    let got = &said.described;
    assert_eq!((got.profile, got.mode), (Some(Profile::Gcp), Some(Mode::Static)));
    assert_eq!((got.min_ports, got.max_ports, got.nat_ips, got.auto_ips), (None, None, None, Some(true)));
    assert_eq!((got.endpoint_independent, got.alias_ranges), (Some(false), None));
    assert_eq!(got.names.gateway.as_deref(), Some("nat-gw"));
}

#[test]
fn every_field_of_a_gateway_is_taken() {
    let said = said(
        r#"[{"name":"nat","natIps":["https://x/addresses/a","https://x/addresses/b","https://x/addresses/a"],
            "natIpAllocateOption":"MANUAL_ONLY","sourceSubnetworkIpRangesToNat":"LIST_OF_SUBNETWORKS",
            "subnetworks":[{"name":"s","sourceIpRangesToNat":["PRIMARY_IP_RANGE"]}],
            "minPortsPerVm":64,"maxPortsPerVm":1024,"enableDynamicPortAllocation":true,
            "udpIdleTimeoutSec":31,"icmpIdleTimeoutSec":32,"tcpEstablishedIdleTimeoutSec":1201,
            "tcpTransitoryIdleTimeoutSec":33,"tcpTimeWaitTimeoutSec":34,"rules":[{"ruleNumber":1}]}]"#,
    );
    let got = &said.described;
    assert_eq!(
        (got.mode, got.min_ports, got.max_ports, got.nat_ips),
        (Some(Mode::Dynamic), Some(64), Some(1024), Some(2)),
        "an address that is there twice counts once"
    );
    assert_eq!(got.alias_ranges, Some(false), "only primary ranges pass");
    assert_eq!(got.endpoint_independent, None, "not said is not known");
    let secs = [31, 32, 1201, 33, 34].map(|secs| Some(Duration::from_secs(secs)));
    let times = got.times;
    assert_eq!(
        [times.udp_idle, times.icmp_idle, times.tcp_established_idle, times.tcp_transitory, times.tcp_time_wait],
        secs
    );
    assert!(said.notes.iter().any(|note| note.contains("NAT rules")));
}

/// Exercises a gateway whose list of addresses is empty. If this fails, one NAT IP is assumed where nothing is translated.
#[test]
fn a_gateway_without_a_nat_ip_is_told_from_one_whose_ips_are_not_known() {
    let gateway = |rest: &str| said(&format!(r#"{{"name":"nat","natIpAllocateOption":"MANUAL_ONLY"{rest}}}"#));
    for (rest, none, words) in [
        (r#","natIps":[]"#, true, "nothing is translated"),
        (r#","natIps":[],"drainNatIps":["https://x/addresses/a"]"#, true, "serve old connections only"),
        ("", false, "their number is not known"),
        (r#","natIps":null"#, false, "their number is not known"),
    ] {
        let said = gateway(rest);
        assert_eq!((said.described.no_ips, said.described.nat_ips), (none, None), "{rest}");
        let mut notes = said.notes.iter().chain(&said.described.ip_notes);
        assert!(notes.any(|note| note.contains(words)), "{rest}: {said:?}");
    }
    let served = gateway(r#","natIps":["a"]"#);
    assert!(!served.described.no_ips && served.notes.is_empty(), "{served:?}");
    let automatic = said(&DEFAULTS.replacen('{', r#"{"natIps":[],"#, 1));
    assert!(!automatic.described.no_ips && automatic.notes.is_empty(), "it adds them by itself: {automatic:?}");
    let azure = |lists: &str| {
        said(&format!(r#"{{"name":"n","type":"Microsoft.Network/natGateways","idleTimeoutInMinutes":4{lists}}}"#))
    };
    assert!(azure(r#","publicIpAddresses":[]"#).notes[0].contains("no public IP address"));
    assert!(!azure(r#","publicIpAddresses":[],"publicIpPrefixes":[{"id":"p"}]"#).described.no_ips);
    assert!(!azure("").described.no_ips);
}

/// Exercises lists of addresses of which none serves. If this fails, one is assumed, and what is cut off is said to fit.
#[test]
fn lists_of_addresses_without_one_that_serves_are_no_addresses() {
    let aws = |state: &str, addresses: &str| {
        let gateway = format!(r#"{{"NatGatewayId":"nat-1","State":"{state}"{addresses}}}"#);
        said(&format!(r#"{{"NatGateways":[{gateway}]}}"#))
    };
    let list = |status: &str| format!(r#","NatGatewayAddresses":[{{"PublicIp":"1.1.1.2","Status":"{status}"}}]"#);
    let empty = r#","NatGatewayAddresses":[]"#;
    let rule = |rest: &str| {
        said(&format!(
            r#"[{{"name":"r","type":"Microsoft.Network/loadBalancers/outboundRules","idleTimeoutInMinutes":4{rest}}}]"#
        ))
    };
    let aks = |state: &str, network: &str| {
        let profile = format!(r#""networkProfile":{{{network}}}"#);
        said(&format!(r#"{{"name":"c","provisioningState":"{state}",{profile},"agentPoolProfiles":[{{"count":48}}]}}"#))
    };
    let lb = r#""loadBalancerProfile":{"effectiveOutboundIPs":[],"managedOutboundIPs":{"count":2}}"#;
    let natgw = |kind: &str| format!(r#""outboundType":"{kind}","natGatewayProfile":{{"effectiveOutboundIPs":[]}}"#);
    for (said, none, ips) in [
        (aws("available", &list("failed")), true, None),
        (aws("available", empty), true, None),
        (aws("pending", empty), false, None),
        (aws("pending", &list("failed")), false, None),
        (aws("available", &list("associating")), false, None),
        (aws("available", &list("succeeded")), false, Some(1)),
        (aws("available", ""), false, None),
        (rule(r#","frontendIPConfigurations":[]"#), true, None),
        (rule(r#","frontendIPConfigurations":null"#), false, None),
        (aks("Succeeded", lb), true, None),
        (aks("Creating", lb), false, Some(2)),
        (aks("Succeeded", r#""loadBalancerProfile":{"managedOutboundIPs":{"count":0}}"#), false, None),
        (aks("Succeeded", &natgw("managedNATGateway")), true, None),
        (aks("Succeeded", &natgw("userAssignedNATGateway")), false, None),
    ] {
        assert_eq!((said.described.no_ips, said.described.nat_ips), (none, ips), "{said:?}");
        assert_eq!(said.notes.iter().any(|note| note.contains("nothing is translated")), none, "{said:?}");
    }
}

#[test]
fn one_of_several_gateways_is_chosen_by_its_name() {
    let router = r#"{"kind":"compute#router","name":"r","region":"https://x/regions/asia-northeast1","nats":[
        {"name":"a","natIpAllocateOption":"MANUAL_ONLY","natIps":["1"]},
        {"name":"b","natIpAllocateOption":"MANUAL_ONLY","natIps":["1","2"],"minPortsPerVm":128}]}"#;
    let error = refused(router);
    assert!(error.contains("2 NATs that differ") && error.contains("--gateway (a, b)"), "{error}");
    let b = read(router.as_bytes(), Some("b")).unwrap().described;
    assert_eq!((b.min_ports, b.nat_ips, b.names.router.as_deref()), (Some(128), Some(2), Some("r")));
    assert_eq!(b.names.region.as_deref(), Some("asia-northeast1"));
    assert!(read(router.as_bytes(), Some("c")).unwrap_err().to_string().contains("called `c`; there are a, b"));
    let alike = r#"[{"nats":[{"name":"a","natIpAllocateOption":"AUTO_ONLY"}]},{},
        {"nats":[{"name":"b","natIpAllocateOption":"AUTO_ONLY"}]}]"#;
    assert!(said(alike).notes.iter().any(|note| note.contains("2 NATs that are alike")));
}

/// Exercises the mapping of Google's own example. If this fails, a node seems to have twice its ports.
#[test]
fn ports_of_a_machine_are_the_union_of_its_ranges() {
    let said = said(
        r#"[{"instanceName":"gke-node-1","interfaceNatMappings":[
            {"sourceVirtualIp":"10.0.0.4","sourceAliasIpRange":"","numTotalNatPorts":1024,
             "natIpPortRanges":["35.0.0.1:1024-1535","35.0.0.2:1024-1535"]},
            {"sourceVirtualIp":"10.0.0.4","sourceAliasIpRange":"192.168.5.0/24","numTotalNatPorts":1024,
             "natIpPortRanges":["35.0.0.1:1024-1535","35.0.0.2:1280-1600"]}]},
           {"instanceName":"gke-node-2","interfaceNatMappings":[{"natIpPortRanges":["35.0.0.1:64-127"]}]},
           {"instanceName":"gke-node-3"}]"#,
    );
    let ports = |name: &str| said.instances[name].ports;
    assert_eq!(ports("gke-node-1"), Some(512 + 577));
    assert_eq!(ports("gke-node-2"), Some(64), "both ends are inclusive");
    assert_eq!(ports("gke-node-3"), Some(0), "listed without ports is none");
    assert_eq!((said.described.nat_ips, said.described.least_ips), (None, Some(2)), "others may serve other machines");
    assert!(said.instances["gke-node-1"].addresses.contains(&"10.0.0.4".parse().unwrap()));
    // The API itself wraps the list.
    let wrapped = super::read(br#"{"kind":"x","result":[{"instanceName":"n"}]}"#, None).unwrap();
    assert_eq!(wrapped.instances["n"].ports, Some(0));
}

#[test]
fn a_status_tells_what_the_gateway_lacks() {
    let said = said(
        r#"{"kind":"compute#routerStatusResponse","result":{"network":"x","natStatus":[
            {"name":"nat","userAllocatedNatIps":["1.2.3.4"],"minExtraNatIpsNeeded":1,"numVmEndpointsWithNatMappings":63}]}}"#,
    );
    assert_eq!((said.missing_ips, said.described.nat_ips), (Some(1), Some(1)));
    assert!(said.notes[0].contains("63"));
}

#[test]
fn monitoring_series_are_added_over_nat_ips_and_the_latest_point_counts() {
    let said = said(
        r#"{"timeSeries":[
          {"metric":{"type":"compute.googleapis.com/nat/allocated_ports","labels":{"nat_ip":"35.0.0.1"}},
           "resource":{"type":"gce_instance","labels":{"instance_id":"77"}},"metadata":{"systemLabels":{"name":"n1"}},
           "points":[{"interval":{"endTime":"2026-01-01T00:01:00Z"},"value":{"int64Value":"512"}},
                     {"interval":{"endTime":"2026-01-01T00:00:00Z"},"value":{"int64Value":"64"}}]},
          {"metric":{"type":"compute.googleapis.com/nat/allocated_ports","labels":{"nat_ip":"35.0.0.2"}},
           "resource":{"labels":{"instance_id":"77"}},"metadata":{"systemLabels":{"name":"n1"}},
           "points":[{"interval":{"endTime":"2026-01-01T00:01:00Z"},"value":{"int64Value":"512"}}]},
          {"metric":{"type":"compute.googleapis.com/nat/port_usage","labels":{"ip_protocol":"6"}},
           "resource":{"labels":{"instance_id":"77"}},"metadata":{"systemLabels":{"name":"n1"}},
           "points":[{"value":{"int64Value":"300"}},{"value":{"doubleValue":400.5}}]},
          {"metric":{"type":"compute.googleapis.com/nat/dropped_sent_packets_count",
                     "labels":{"reason":"ENDPOINT_INDEPENDENT_CONFLICT"}},
           "resource":{"labels":{"instance_id":"78"}},"points":[{"value":{"int64Value":"5"}}]}]}"#,
    );
    let n1 = &said.instances["n1"];
    assert_eq!((n1.ports, n1.used), (Some(1024), Some(401)));
    assert_eq!(n1.at.as_deref(), Some("2026-01-01T00:01:00Z"));
    assert!(said.notes[0].contains("dropped 5 packets: ENDPOINT_INDEPENDENCE_CONFLICT"));
    assert!(refused(r#"{"timeSeries":[]}"#).contains("allocated_ports"));
}

#[test]
fn an_allocation_that_failed_is_no_number_of_missing_ips() {
    let series = |gateway: &str, points: &str| {
        format!(
            r#"{{"metric":{{"type":"router.googleapis.com/nat/nat_allocation_failed"}},
                "resource":{{"type":"nat_gateway","labels":{{"gateway_name":"{gateway}"}}}},"points":[{points}]}}"#
        )
    };
    let point = |end: &str, failed: bool| {
        format!(r#"{{"interval":{{"endTime":"2026-11-22T{end}Z"}},"value":{{"boolValue":{failed}}}}}"#)
    };
    let two = format!("{},{}", series("a", &point("14:01:00", true)), series("b", &point("14:00:00", true)));
    let failed = said(&format!("[{two}]"));
    assert_eq!(failed.missing_ips, None);
    assert_eq!(failed.allocation_failed.unwrap().at.as_deref(), Some("2026-11-22T14:01:00Z"));
    let over = series("a", &format!("{},{}", point("14:00:00", true), point("14:05:00", false)));
    assert_eq!(said(&format!("[{over}]")).allocation_failed, None, "it works again");
}

/// One series of ports given to machine 7 on that NAT IP.
fn allocated(ip: &str, labels: &str, end: &str, value: &str) -> String {
    format!(
        r#"{{"metric":{{"type":"compute.googleapis.com/nat/allocated_ports","labels":{{"nat_ip":"{ip}"}}}},
            "resource":{{"type":"gce_instance","labels":{{{labels}}}}},
            "points":[{{"interval":{{"endTime":"{end}"}},"value":{{{value}}}}}]}}"#
    )
}

/// Exercises a NAT IP that a machine has left. If this fails, a node is told to have ports that it has no more.
#[test]
fn series_that_ended_are_no_part_of_the_present_allocation() {
    let seven = r#""instance_id":"7""#;
    let old = |end: &str| allocated("1.1.1.1", seven, end, r#""int64Value":"1024""#);
    let new = allocated("1.1.1.2", seven, "2026-11-22T10:00:00Z", r#""int64Value":"64""#);
    for (end, ports) in [("2026-11-22T09:57:59Z", 64), ("2026-11-22T09:58:00Z", 1088), ("2026-11-22T10:00:00.5Z", 1088)]
    {
        let said = said(&format!(r#"{{"timeSeries":[{},{new}]}}"#, old(end)));
        assert_eq!(said.instances["7"].ports, Some(ports), "{end}");
    }
}

/// Exercises values that are none. If this fails, a node is told to have no ports although nobody has said so.
#[test]
fn what_is_not_known_is_not_zero_ports() {
    let end = "2026-11-22T10:00:00Z";
    let one = |labels: &str, value: &str| format!(r#"{{"timeSeries":[{}]}}"#, allocated("1.1.1.1", labels, end, value));
    let seven = r#""instance_id":"7""#;
    assert!(said(&one(seven, "")).instances.is_empty());
    let negative = refused(&one(seven, r#""doubleValue":-5"#));
    assert!(negative.contains("`timeSeries[0].points[0].value.doubleValue`"), "{negative}");
    let sum = said(&one("", r#""int64Value":"6400""#));
    assert!(sum.instances.is_empty() && sum.notes[0].contains("sums over machines"), "{sum:?}");
    let rules = r#""ruleMappings":[{"ruleNumber":1,"natIpPortRanges":["35.0.0.1:1024-1087"]}]"#;
    for (row, ports, notes) in [
        (format!(r#""numTotalNatPorts":1024,{rules}"#), None, 1),
        (rules.to_owned(), None, 1),
        (format!(r#""natIpPortRanges":["35.0.0.1:64-127"],{rules}"#), Some(64), 1),
        (r#""numTotalNatPorts":64"#.to_owned(), None, 0),
        (r#""numTotalNatPorts":0"#.to_owned(), Some(0), 0),
    ] {
        let said = said(&format!(r#"[{{"instanceName":"n","interfaceNatMappings":[{{{row}}}]}}]"#));
        assert_eq!((said.instances["n"].ports, said.notes.len()), (ports, notes), "{row}");
    }
}

/// A gateway in a state, as Terraform prints it: a default is a zero or a null.
const STATE: &str = r#"{"format_version":"1.0","terraform_version":"1.5.7","values":{"root_module":{"resources":[],
  "child_modules":[{"address":"module.a","child_modules":[{"address":"module.a.module.nat","resources":[
   {"address":"module.a.module.nat.google_compute_router_nat.nat","mode":"managed","type":"google_compute_router_nat",
    "name":"nat","values":{"drain_nat_ips":null,"enable_dynamic_port_allocation":false,
    "enable_endpoint_independent_mapping":false,"icmp_idle_timeout_sec":30,"id":"proj/asia-northeast1/router/nat",
    "log_config":[],"max_ports_per_vm":0,"min_ports_per_vm":0,"name":"nat","nat_ip_allocate_option":"MANUAL_ONLY",
    "nat_ips":["https://www.googleapis.com/compute/v1/projects/proj/regions/r/addresses/a"],"project":"proj",
    "region":"asia-northeast1","router":"router","rules":[],"source_subnetwork_ip_ranges_to_nat":"LIST_OF_SUBNETWORKS",
    "subnetwork":[{"name":"s","secondary_ip_range_names":[],"source_ip_ranges_to_nat":["ALL_IP_RANGES"]}],
    "tcp_established_idle_timeout_sec":1200,"tcp_time_wait_timeout_sec":120,"tcp_transitory_idle_timeout_sec":30,
    "timeouts":null,"udp_idle_timeout_sec":30}}]}]}]}}}"#;

#[test]
fn terraform_modules_are_searched_however_deep() {
    let got = said(STATE).described;
    assert_eq!((got.profile, got.mode, got.nat_ips), (Some(Profile::Gcp), Some(Mode::Static), Some(1)));
    assert_eq!((got.min_ports, got.max_ports, got.alias_ranges), (Some(0), None, None));
    let names = got.names;
    assert_eq!(
        [names.gateway.as_deref(), names.router.as_deref(), names.region.as_deref(), names.group.as_deref()],
        [Some("nat"), Some("router"), Some("asia-northeast1"), Some("proj")]
    );
}

/// Exercises what translates IPv6 to IPv4. If this fails, flows through NAT64 are counted behind a gateway that has none.
#[test]
fn nat64_is_what_the_settings_say_and_off_where_they_do_not() {
    for (field, on) in [
        ("", false),
        (r#","sourceSubnetworkIpRangesToNat64":"ALL_IPV6_SUBNETWORKS""#, true),
        (r#","sourceSubnetworkIpRangesToNat64":"LIST_OF_IPV6_SUBNETWORKS","nat64Subnetworks":[{"name":"s"}]"#, true),
        (r#","sourceSubnetworkIpRangesToNat64":"NAT64_OPTION_UNSPECIFIED""#, false),
        (r#","sourceSubnetworkIpRangesToNat64":"""#, false),
    ] {
        let gcloud = said(&format!(r#"{{"name":"g","natIpAllocateOption":"AUTO_ONLY"{field}}}"#));
        assert_eq!(gcloud.described.nat64, Some(on), "{field}");
        let values = field.replace("sourceSubnetworkIpRangesToNat64", "source_subnetwork_ip_ranges_to_nat64");
        let state = format!(
            r#"{{"format_version":"1.0","values":{{"root_module":{{"resources":[{{"address":"a","mode":"managed",
                "type":"google_compute_router_nat","name":"n","values":{{"name":"g"{values}}}}}]}}}}}}"#
        );
        assert_eq!(said(&state).described.nat64, Some(on), "{state}");
    }
    let status = said(r#"{"result":{"natStatus":[{"name":"g","userAllocatedNatIps":["a"]}]}}"#);
    assert_eq!(status.described.nat64, None, "a status has no settings");
}

/// Exercises spoilt fields. If this fails, somebody searches a long file for what is wrong in it.
#[test]
fn a_bad_field_is_named_with_its_path() {
    let nat = |field: &str| format!(r#"{{"natIpAllocateOption":"MANUAL_ONLY",{field}}}"#);
    let surge = |max: &str| {
        format!(
            r#"{{"networkProfile":{{}},"agentPoolProfiles":[{{"upgradeSettings":{{"maxSurge":""}}}},
                {{"upgradeSettings":{{"maxSurge":{max}}}}}]}}"#
        )
    };
    for (text, path, why) in [
        (nat(r#""minPortsPerVm":-1"#), "`minPortsPerVm`", "-1"),
        (nat(r#""minPortsPerVm":18446744073709551615"#), "`minPortsPerVm`", "18446744073709551615"),
        (nat(r#""minPortsPerVm":18446744073709551616"#), "`minPortsPerVm`", "floating point"),
        (nat(r#""minPortsPerVm":64.5"#), "`minPortsPerVm`", "64.5"),
        (nat(r#""minPortsPerVm":"many""#), "`minPortsPerVm`", "whole number"),
        (nat(r#""natIps":"a""#), "`natIps`", "sequence"),
        (nat(r#""subnetworks":[{},{"sourceIpRangesToNat":[1]}]"#), "`subnetworks[1].sourceIpRangesToNat[0]`", "string"),
        (r#"{"nats":[{},{"minPortsPerVm":[]}]}"#.to_owned(), "`nats[1].minPortsPerVm`", "sequence"),
        (r#"{"nats":{"a":1}}"#.to_owned(), "`nats`", "map"),
        (
            r#"[{"instanceName":"n","interfaceNatMappings":[{"natIpPortRanges":["1.2.3.4:9-1"]}]}]"#.to_owned(),
            "`[0].interfaceNatMappings[0].natIpPortRanges[0]`",
            "1.2.3.4:9-1",
        ),
        (r#"[{"interfaceNatMappings":[]}]"#.to_owned(), "`[0].instanceName`", "missing"),
        (surge(r#""lots""#), "`agentPoolProfiles[1].upgradeSettings.maxSurge`", "`lots` is neither a number"),
        (surge(r#""-1%""#), "`agentPoolProfiles[1].upgradeSettings.maxSurge`", "`-1%` is neither a number"),
        (surge(r#""4294967296""#), "`agentPoolProfiles[1].upgradeSettings.maxSurge`", "`4294967296`"),
        (surge("[]"), "`agentPoolProfiles[1].upgradeSettings.maxSurge`", "string"),
        (r#"{"NatGateways":[{"NatGatewayAddresses":{}}]}"#.to_owned(), "`NatGateways[0].NatGatewayAddresses`", "map"),
        (
            STATE.replace(r#""min_ports_per_vm":0"#, r#""min_ports_per_vm":-2"#),
            "resources[0].values.min_ports_per_vm`",
            "-2",
        ),
        (STATE.replace(r#""format_version":"1.0""#, r#""format_version":"2.0""#), "`format_version`", "2.0"),
        (
            STATE.replace(r#""format_version":"1.0""#, r#""format_version":1.0"#),
            "`format_version`",
            "`1.0` is no string",
        ),
    ] {
        let error = refused(&text);
        assert!(error.contains(path) && error.contains(why), "{text}: {error}");
    }
}

#[test]
fn a_document_of_another_kind_is_called_what_it_is() {
    for (text, what) in [
        ("", "empty"),
        (" \n", "empty"),
        ("{", "no JSON"),
        ("natIpAllocateOption: AUTO_ONLY\nname: nat\n", "--format=json"),
        ("resource \"google_compute_router_nat\" \"nat\" {\n}", "terraform show -json"),
        ("ERROR: (gcloud.compute) not found", "printed an error"),
        ("12", "a single JSON value"),
        ("[]", "an empty list"),
        (r#"{"version":4,"terraform_version":"1.5.7","serial":1,"lineage":"x","resources":[]}"#, "raw Terraform state"),
        (r#"{"apiVersion":"v1","kind":"List","items":[]}"#, "Kubernetes objects"),
        (r#"{"Reservations":[]}"#, "describe-instances"),
        (r#"{"result":[{"natName":"n","natIpInfoMappings":[{"natIp":"1.1.1.1"}]}]}"#, "get-nat-ip-info"),
        (r#"[{"natName":"n","natIpInfoMappings":[]}]"#, "get-nat-ip-info"),
        (r#"{"result":[{"natName":"n"}]}"#, "get-nat-ip-info"),
        (r#"{"kind":"compute#router","name":"r"}"#, "no NAT in it"),
        (r#"{"format_version":"1.0"}"#, "no NAT in it"),
        (r#"[{"zone":"a","machineType":"b"}]"#, "a list of objects with machineType, zone"),
        (r#"{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1}"#, "an object with a, b, c, d, e, …"),
    ] {
        let error = refused(text);
        assert!(error.contains(what), "{text}: {error}");
    }
    let deep = "[".repeat(200_000);
    assert!(matches!(read(deep.as_bytes(), None), Err(BadDocument::NotJson { .. })), "depth is bounded");
}

#[test]
fn unknown_fields_are_passed_over_and_nulls_are_defaults() {
    let got = said(
        r#"{"natIpAllocateOption":null,"sourceSubnetworkIpRangesToNat":null,"minPortsPerVm":null,"natIps":null,
        "subnetworks":null,"rules":null,"fieldOfTomorrow":{"a":[1]}}"#,
    );
    assert_eq!((got.described.min_ports, got.described.nat_ips), (None, None));
}

proptest! {
    /// Whatever a file holds, it is answered, not panicked over, and error texts stay short.
    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = read(&bytes, None) {
            prop_assert!(error.to_string().len() < 2000);
        }
    }

    /// Ports of a machine are never more than all its ranges together, nor more than its NAT IPs have.
    #[test]
    fn the_union_of_ranges_is_bounded(ranges in proptest::collection::vec((0_u16..3, any::<u16>(), any::<u16>()), 0..30)) {
        let texts: Vec<String> = ranges
            .iter()
            .map(|(ip, a, b)| format!("\"35.0.0.{ip}:{}-{}\"", a.min(b), a.max(b)))
            .collect();
        let text = format!(
            r#"[{{"instanceName":"n","interfaceNatMappings":[{{"natIpPortRanges":[{}]}}]}}]"#, texts.join(",")
        );
        let ports = read(text.as_bytes(), None).unwrap().instances["n"].ports.unwrap();
        let sum: u64 = ranges.iter().map(|(_, a, b)| u64::from(a.abs_diff(*b)) + 1).sum();
        prop_assert!(u64::from(ports) <= sum && ports <= 3 * 65_536);
    }
}
