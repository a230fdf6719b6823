//! A sandbox's status, as a container runtime sends it.
#![no_main]

use headroom_fuzz::sow;
use headroom_host::source::cri::addresses;
use k8s_cri::v1::{PodIp, PodSandboxNetworkStatus, PodSandboxStatus};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fn seed() -> Vec<u8> {
    let additional_ips = vec![PodIp { ip: "fd00::4".to_owned() }, PodIp { ip: String::new() }];
    let network = Some(PodSandboxNetworkStatus { ip: "::ffff:10.48.131.4".to_owned(), additional_ips });
    PodSandboxStatus { id: "0a1b".to_owned(), network, ..PodSandboxStatus::default() }.encode_to_vec()
}

fuzz_target!(init: sow([&*seed()]), |bytes: &[u8]| {
    if let Ok(status) = PodSandboxStatus::decode(bytes) {
        let _addresses = addresses(&status);
    }
});
