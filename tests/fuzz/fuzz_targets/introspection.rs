//! What a server on ipamd's port answers: an HTTP response, and in it either of the two documents.
#![no_main]

use headroom_core::time::WallTime;
use headroom_fuzz::sow;
use headroom_host::source::aws_vpc_cni::{body, introspection};
use libfuzzer_sys::fuzz_target;

const SEEDS: [&[u8]; 3] = [
    b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"0\":{\"TotalIPs\":28,\"AssignedIPs\":1,\"ENIs\":{\"eni-1\":{\"IsPrimary\":true,\"DeviceNumber\":0,\"AvailableIPv4Cidrs\":{\"10.0.0.0/28\":{\"IPAddresses\":{\"10.0.0.5\":{\"IPAMKey\":{\"networkName\":\"aws-cni\"},\"UnassignedTime\":\"2026-01-01T00:00:00Z\"}},\"IsPrefix\":true}}}}}}",
    b"HTTP/1.0 200 OK\r\n\r\n{\"TotalIPs\":2,\"AssignedIPs\":1,\"ENIIPPools\":{\"eni-1\":{\"IPv4Addresses\":{\"10.0.0.5\":{\"Assigned\":true}}}}}",
    b"HTTP/1.0 200 OK\r\n\r\n{\"WARM_ENI_TARGET\":1,\"WARM_IP_TARGET\":\"5\",\"MINIMUM_IP_TARGET\":0}",
];

fuzz_target!(init: sow(SEEDS), |bytes: &[u8]| {
    if let Ok(body) = body(bytes) {
        drop(introspection::cards(body, WallTime::from_secs(1_767_226_200)));
        drop(introspection::targets(body));
    }
});
