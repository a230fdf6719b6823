//! AKS clusters, NAT gateways and outbound rules, as `az` shows them.

use std::time::Duration;

use headroom_core::model::nat::{Described, Profile};

use super::{refused, said};

#[test]
fn an_aks_cluster_tells_its_way_out_and_its_nodes() {
    let cluster = |network: &str| {
        format!(
            r#"{{"name":"aks","resourceGroup":"rg","agentPoolProfiles":[{{"count":3,"upgradeSettings":{{"maxSurge":"33%"}}}},
                {{"count":2,"maxCount":10,"enableAutoScaling":true,"upgradeSettings":null}}],"networkProfile":{network}}}"#
        )
    };
    let lb = said(&cluster(
        r#"{"outboundType":"loadBalancer","loadBalancerProfile":{"allocatedOutboundPorts":4000,"idleTimeoutInMinutes":30,
            "effectiveOutboundIPs":[{"id":"a"},{"id":"b"}],"managedOutboundIPs":{"count":2}}}"#,
    ));
    let got = &lb.described;
    assert_eq!((got.profile, got.min_ports, got.nat_ips), (Some(Profile::AzureLb), Some(4000), Some(2)));
    let settings = got.clone().settings(Profile::AzureLb).unwrap();
    assert_eq!((settings.nodes, settings.surge_of(13)), (Some(13), 2));
    assert_eq!(settings.surge_of(26), 3, "a share grows with the nodes");
    assert_eq!(got.times.tcp_established_idle, Some(Duration::from_secs(1800)));
    let own = said(&cluster(
        r#"{"outboundType":"loadBalancer","loadBalancerProfile":{"outboundIPs":{"publicIPs":[{"id":"a"},{"id":"b"}]}}}"#,
    ));
    assert_eq!(own.described.nat_ips, Some(2), "addresses of the user's own");
    let gateway = said(&cluster(
        r#"{"outboundType":"managedNATGateway","natGatewayProfile":{"idleTimeoutInMinutes":4,
            "managedOutboundIpProfile":{"count":3}}}"#,
    ));
    assert_eq!((gateway.described.profile, gateway.described.nat_ips), (Some(Profile::AzureNatgw), Some(3)));
    let settings = gateway.described.settings(Profile::AzureNatgw).unwrap();
    assert_eq!((settings.nodes, settings.surge_of(13)), (Some(13), 0));
    assert!(refused(&cluster(r#"{"outboundType":"userDefinedRouting"}"#)).contains("`userDefinedRouting`"));
}

/// Exercises a cluster that may grow. If this fails, a node is told that it is out of ports which it still has, and a remedy for
/// that takes most of them away.
#[test]
fn a_node_is_judged_by_the_nodes_that_there_are_and_a_plan_by_those_there_may_be() {
    let cluster = |pools: &str, ports: u32| {
        said(&format!(
            r#"{{"name":"aks","resourceGroup":"rg","agentPoolProfiles":[{pools}],"networkProfile":{{"outboundType":"loadBalancer",
                "loadBalancerProfile":{{"managedOutboundIPs":{{"count":1}},"allocatedOutboundPorts":{ports}}}}}}}"#
        ))
        .described
    };
    let given = |described: &Described, now: bool| {
        let described = described.clone();
        let settings =
            if now { described.settings_now(Profile::AzureLb) } else { described.settings(Profile::AzureLb) };
        let settings = settings.unwrap();
        let ports = settings.node_ports().unwrap();
        (settings.nodes, ports.ports, settings.notes.iter().any(|note| note.contains("each node gets 128 ports")))
    };
    let growing = r#"{"count":20,"enableAutoScaling":true,"maxCount":300,"upgradeSettings":{"maxSurge":"10%"}}"#;
    let automatic = cluster(growing, 0);
    assert_eq!(given(&automatic, true), (Some(20), 1024, true));
    assert_eq!(given(&automatic, false), (Some(300), 128, false));
    // An upgrade would add one more than Azure gives 1024 ports to.
    let edge = cluster(r#"{"count":50,"upgradeSettings":{"maxSurge":"1"}}"#, 0);
    assert_eq!((given(&edge, true).1, given(&edge, false).1), (1024, 512));
    // Somebody who says how many there are knows it better.
    let told = Described { nodes: Some(60), ..automatic };
    assert_eq!(given(&told, true), (Some(60), 512, false));
    // By hand every node has the same, and those that are not there lack nothing.
    let by_hand = cluster(growing, 640);
    assert_eq!(given(&by_hand, true), (Some(20), 640, false));
    let stopped = cluster(&format!(r#"{growing},{{"count":40,"powerState":{{"code":"Stopped"}}}}"#), 0);
    assert_eq!(given(&stopped, true), (Some(20), 1024, true));
}

#[test]
fn azures_network_resources_are_read() {
    let rules = said(
        r#"[{"allocatedOutboundPorts":0,"enableTcpReset":true,"frontendIPConfigurations":[{"id":"a"}],
            "idleTimeoutInMinutes":30,"name":"aksOutboundRule","protocol":"All","resourceGroup":"MC_x",
            "type":"Microsoft.Network/loadBalancers/outboundRules"}]"#,
    );
    assert_eq!((rules.described.min_ports, rules.described.nat_ips), (Some(0), Some(1)));
    let gateway = said(
        r#"{"idleTimeoutInMinutes":10,"name":"natgw","publicIpAddresses":[{"id":"a"}],"publicIpPrefixes":null,
            "sku":{"name":"Standard"},"type":"Microsoft.Network/natGateways"}"#,
    );
    assert_eq!((gateway.described.profile, gateway.described.nat_ips), (Some(Profile::AzureNatgw), Some(1)));
    assert_eq!(gateway.described.times.tcp_established_idle, Some(Duration::from_secs(600)));
}
