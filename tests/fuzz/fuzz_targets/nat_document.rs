//! What a cloud's tool printed about a NAT, as somebody saved it.
#![no_main]

use headroom_fuzz::sow;
use headroom_host::nat_documents::read;
use libfuzzer_sys::fuzz_target;

const SEEDS: [&[u8]; 8] = [
    br#"{"name":"n","natIpAllocateOption":"MANUAL_ONLY","natIps":["a"],"minPortsPerVm":64,"subnetworks":[{"sourceIpRangesToNat":["PRIMARY_IP_RANGE"]}]}"#,
    br#"[{"name":"r","region":"x/y","nats":[{"name":"a"},{"name":"b","enableDynamicPortAllocation":true}]}]"#,
    br#"[{"instanceName":"n","interfaceNatMappings":[{"sourceVirtualIp":"10.0.0.4","natIpPortRanges":["35.0.0.1:1024-1535"]}]}]"#,
    br#"{"timeSeries":[{"metric":{"type":"x/allocated_ports","labels":{"nat_ip":"1"}},"resource":{"labels":{"instance_id":"7"}},"points":[{"interval":{"endTime":"t"},"value":{"int64Value":"64"}}]}]}"#,
    br#"{"format_version":"1.0","values":{"root_module":{"child_modules":[{"resources":[{"type":"aws_nat_gateway","values":{"secondary_allocation_ids":["e"]}}]}]}}}"#,
    br#"{"NatGateways":[{"NatGatewayId":"nat-1","State":"available","NatGatewayAddresses":[{"Status":"succeeded"}]}]}"#,
    br#"{"agentPoolProfiles":[{"count":3,"upgradeSettings":{"maxSurge":"33%"}}],"networkProfile":{"outboundType":"loadBalancer","loadBalancerProfile":{"allocatedOutboundPorts":8}}}"#,
    br#"{"result":{"natStatus":[{"name":"n","minExtraNatIpsNeeded":1,"userAllocatedNatIps":["a"]}]}}"#,
];

fuzz_target!(init: sow(SEEDS), |bytes: &[u8]| {
    match read(bytes, None) {
        Ok(said) => assert!(said.instances.values().all(|machine| machine.addresses.len() <= bytes.len())),
        Err(error) => assert!(error.to_string().chars().count() < 8192, "an error stays short"),
    }
});
