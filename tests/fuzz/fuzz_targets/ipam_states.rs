//! The state files of IPAMs and of libcni: the first byte picks the parser.
#![no_main]

use headroom_fuzz::sow;
use headroom_host::source::aws_vpc_cni::checkpoint;
use headroom_host::source::azure_cni::state;
use headroom_host::source::{cilium::endpoint, cni, cni_cache};
use libfuzzer_sys::fuzz_target;

const SEEDS: [&[u8]; 7] = [
    br#"0{"version":"vpc-cni-ipam/1","allocations":[{"networkName":"aws-cni","containerID":"a1","ifName":"eth0","ipv4":"10.0.0.5","allocationTimestamp":1700000000000000000,"metadata":{"k8sPodNamespace":"default","k8sPodName":"web-1"}}]}"#,
    br#"1{"IPAM":{"AddressSpaces":{"local":{"Pools":{"10.0.0.0/24":{"Addresses":{"10.0.0.5":{"ID":"a1","InUse":true}}}}}}}}"#,
    br#"2{"Network":{"ExternalInterfaces":{"eth0":{"Networks":{"azure":{"Endpoints":{"a1-eth0":{"IfName":"eth0","ContainerID":"a1","PODName":"web-1","PODNameSpace":"default","IPAddresses":[{"IP":"10.0.0.5","Mask":"//8AAA=="}]}}}}}}}}"#,
    br#"3{"Endpoints":{"a1":{"PodName":"web-1","PodNamespace":"default","IfnameToIPMap":{"eth0":{"IPv4":[{"IP":"10.0.0.5"}],"IPv6":[{"IP":"fd00::5"}]}}}}}"#,
    br#"4{"ID":7,"dockerID":"a1","IPv4":"10.0.0.5","IPv6":"fd00::5","K8sPodName":"web-1","K8sNamespace":"default"}"#,
    b"5 * CILIUM_BASE64_dg==:eyJJRCI6N30=\n",
    br#"6{"kind":"cniCacheV1","containerId":"a1","ifName":"eth0","cniArgs":[["K8S_POD_NAMESPACE","default"],["K8S_POD_NAME","web-1"]],"result":{"ips":[{"address":"10.0.0.5/26"}]}}"#,
];

fuzz_target!(init: sow(SEEDS), |bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 8 {
        0 => drop(checkpoint::parse(bytes)),
        1 => drop(state::ipam(bytes)),
        2 => drop(state::vnet(bytes)),
        3 => drop(state::endpoints(bytes)),
        4 => drop(endpoint::of_json(bytes)),
        5 => drop(endpoint::of_header(bytes)),
        6 => drop(cni_cache::parse(bytes)),
        _ => drop(cni::elsewhere("f", bytes)),
    }
});
