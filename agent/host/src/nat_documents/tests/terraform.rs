//! What `terraform show -json` prints of each cloud's resources.

use std::time::Duration;

use headroom_core::model::nat::Profile;

use super::{Said, read, said};

#[test]
fn a_terraform_plan_does_not_know_addresses_that_are_yet_to_be_made() {
    let said = said(
        r#"{"format_version":"1.2","planned_values":{"root_module":{"resources":[
            {"address":"google_compute_router_nat.nat","mode":"managed","type":"google_compute_router_nat",
             "values":{"name":"nat","nat_ip_allocate_option":"MANUAL_ONLY","min_ports_per_vm":null}}]}},
            "resource_changes":[{"address":"google_compute_router_nat.nat",
             "change":{"before":null,"after":{},"after_unknown":{"nat_ips":true}}}]}"#,
    );
    assert_eq!((said.described.nat_ips, said.described.min_ports), (None, None));
    assert!(said.described.ip_notes.iter().any(|note| note.contains("after the plan was applied")));
    let aws = read(
        br#"{"format_version":"1.2","values":{"root_module":{"resources":[{"mode":"managed","type":"aws_nat_gateway",
            "values":{"id":"nat-1","allocation_id":"eipalloc-1","secondary_allocation_ids":["eipalloc-2"]}}]}}}"#,
        None,
    );
    assert_eq!(aws.unwrap().described.nat_ips, Some(2));
}

#[test]
fn azures_ways_out_are_found_in_terraform() {
    let state = |kind: &str, values: &str| {
        said(&format!(
            r#"{{"format_version":"1.0","values":{{"root_module":{{"resources":[
                {{"mode":"managed","type":"{kind}","values":{values}}}]}}}}}}"#
        ))
        .described
    };
    let lb = state(
        "azurerm_kubernetes_cluster",
        r#"{"name":"aks","resource_group_name":"rg","network_profile":[{"outbound_type":"loadBalancer",
            "load_balancer_profile":[{"outbound_ports_allocated":4000,"managed_outbound_ip_count":7,
            "idle_timeout_in_minutes":30,"effective_outbound_ips":[]}],"nat_gateway_profile":[]}]}"#,
    );
    assert_eq!((lb.profile, lb.min_ports, lb.nat_ips), (Some(Profile::AzureLb), Some(4000), Some(7)));
    assert_eq!(lb.names.cluster.as_deref(), Some("aks"));
    let gateway = state("azurerm_nat_gateway", r#"{"name":"nat","idle_timeout_in_minutes":10}"#);
    assert_eq!((gateway.profile, gateway.nat_ips), (Some(Profile::AzureNatgw), None));
    assert_eq!(gateway.times.tcp_established_idle, Some(Duration::from_secs(600)));
}

/// A state with such resources: type and values.
fn state(resources: &[(&str, &str)]) -> Said {
    let resources = resources.iter().map(|(kind, values)| {
        format!(r#"{{"address":"{kind}.x","mode":"managed","type":"{kind}","values":{values}}}"#)
    });
    said(&format!(
        r#"{{"format_version":"1.0","values":{{"root_module":{{"resources":[{}]}}}}}}"#,
        resources.collect::<Vec<_>>().join(",")
    ))
}

/// Exercises a rule that somebody has made next to his cluster. If this fails, a state with a way out has none.
#[test]
fn an_outbound_rule_is_read() {
    let rule = state(&[(
        "azurerm_lb_outbound_rule",
        r#"{"name":"out","allocated_outbound_ports":1024,"idle_timeout_in_minutes":15,
            "loadbalancer_id":"/subscriptions/s/resourceGroups/rg/providers/Microsoft.Network/loadBalancers/lb",
            "frontend_ip_configuration":[{"name":"a"},{"name":"b"}]}"#,
    )]);
    let got = &rule.described;
    assert_eq!((got.profile, got.min_ports, got.nat_ips), (Some(Profile::AzureLb), Some(1024), Some(2)));
    assert_eq!(got.times.tcp_established_idle, Some(Duration::from_secs(900)));
    assert_eq!((got.names.gateway.as_deref(), got.names.group.as_deref()), (Some("out"), Some("rg")));
    assert_eq!(rule.places["min-ports"], "values.root_module.resources[0].values.allocated_outbound_ports");
}

/// Exercises addresses that other resources give a gateway. If this fails, one is assumed where the state lists more, or a gateway has
/// those of another.
#[test]
fn addresses_that_are_associated_with_a_gateway_are_counted() {
    const GATEWAY: &str = "azurerm_nat_gateway";
    const ADDRESS: &str = "azurerm_nat_gateway_public_ip_association";
    const PREFIX: &str = "azurerm_nat_gateway_public_ip_prefix_association";
    let ips = |resources: &[(&str, &str)]| state(resources).described.nat_ips;
    let (one, two) = (r#"{"id":"/n/A"}"#, r#"{"nat_gateway_id":"/N/a"}"#);
    assert_eq!(ips(&[(GATEWAY, one), (ADDRESS, two), (ADDRESS, two)]), Some(2));
    assert_eq!(
        ips(&[(ADDRESS, "{}"), (GATEWAY, "{}"), (ADDRESS, "{}")]),
        Some(2),
        "a plan knows no ids, but one gateway"
    );
    assert_eq!(ips(&[(GATEWAY, one), (ADDRESS, two), (ADDRESS, r#"{"nat_gateway_id":"/n/b"}"#)]), Some(1));
    let none = state(&[(GATEWAY, one)]);
    assert!(none.described.nat_ips.is_none() && none.described.ip_notes[0].contains("--nat-ips"), "{none:?}");
    let prefix = state(&[(GATEWAY, one), (ADDRESS, two), (PREFIX, two)]);
    assert!(prefix.described.nat_ips.is_none() && prefix.described.ip_notes[0].contains("prefixes"), "{prefix:?}");
    let several = [(GATEWAY, r#"{"name":"x"}"#), (GATEWAY, r#"{"name":"x"}"#), (ADDRESS, "{}")];
    assert_eq!(ips(&several), None, "of which of them is not known");
}

#[test]
fn gateways_of_aws_say_where_they_lie() {
    let private =
        state(&[("aws_nat_gateway", r#"{"id":"nat-1","connectivity_type":"private","private_ip":"10.0.0.4"}"#)]);
    assert!(private.notes.iter().any(|note| note.contains("between networks")), "{:?}", private.notes);
    assert_eq!(private.described.nat_ips, Some(1));
    let zone = |zone: &str| format!(r#"{{"availability_zone_id":"{zone}","status":"succeeded"}}"#);
    let regional = |addresses: &str| {
        let values = format!(r#"{{"availability_mode":"regional","regional_nat_gateway_address":[{addresses}]}}"#);
        state(&[("aws_nat_gateway", &values)])
    };
    let three = regional(&[zone("a"), zone("b"), zone("c")].join(","));
    assert!(three.described.regional && three.described.nat_ips == Some(1), "{three:?}");
    let planned = regional("");
    assert!(planned.described.nat_ips.is_none() && planned.described.ip_notes[0].contains("--nat-ips"), "{planned:?}");
}

/// Exercises a plan. If this fails, what nobody knows yet is told as configured.
#[test]
fn what_a_plan_does_not_know_yet_is_told() {
    let plan = |kind: &str, unknown: &str| {
        said(&format!(
            r#"{{"format_version":"1.2","planned_values":{{"root_module":{{"child_modules":[{{"resources":[
                {{"address":"module.m.{kind}.x","mode":"managed","type":"{kind}","values":{{}}}}]}}]}}}},
                "resource_changes":[{{"address":"module.other.{kind}.x","change":{{"after_unknown":{{"max_ports_per_vm":true}}}}}},
                {{"address":"module.m.{kind}.x","change":{{"after_unknown":{unknown}}}}}]}}"#
        ))
        .notes
        .into_iter()
        .find(|note| note.starts_with("known only after the plan was applied"))
    };
    let google = |unknown| plan("google_compute_router_nat", unknown);
    let note =
        google(r#"{"min_ports_per_vm":true,"udp_idle_timeout_sec":true,"id":true,"max_ports_per_vm":false}"#).unwrap();
    assert!(note.ends_with(": min_ports_per_vm, udp_idle_timeout_sec; give --min-ports, --udp-idle"), "{note}");
    let nested = google(r#"{"subnetwork":[{"name":true,"source_ip_ranges_to_nat":[true]}]}"#).unwrap();
    assert!(nested.contains("source_ip_ranges_to_nat; give --alias-ranges"), "{nested}");
    assert_eq!(google(r#"{"id":true,"log_config":[{"enable":true}]}"#), None);
    let aks = plan(
        "azurerm_kubernetes_cluster",
        r#"{"network_profile":[{"load_balancer_profile":[{"outbound_ports_allocated":true}]}]}"#,
    );
    assert!(aks.unwrap().ends_with("outbound_ports_allocated; give --min-ports"));
}
