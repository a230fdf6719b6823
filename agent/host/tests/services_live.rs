//! Sets of NodePorts that `ipset` made, and maps of Services pinned as Cilium pins them. Needs root, ipset and bpftool.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use headroom_core::flow::Protocol;
use headroom_core::observe::{RuleFamily, ServiceProxy};
use headroom_core::ports::PortRange;
use headroom_host::ebpf::maps::Pinned;
use headroom_host::root::HostRoot;
use headroom_host::source::services::{ipvs, read};
use nix::sched::{CloneFlags, unshare};

#[path = "services_live/connections.rs"]
mod connections;

fn sh(script: &str) {
    assert!(Command::new("sh").args(["-ec", script]).status().unwrap().success(), "{script}");
}

/// Exercises kube-proxy's sets in ipvs mode. If this fails, every Service of IPVS with a high port is taken for a NodePort.
#[test]
fn node_ports_of_ipvs_are_those_in_the_sets_of_kube_proxy() {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let sets = || ipvs::sets(&HostRoot::live(), Instant::now() + Duration::from_secs(5));
        let none = sets();
        // More elements than fit into one message.
        sh("ipset create KUBE-NODE-PORT-TCP bitmap:port range 0-65535; ipset add KUBE-NODE-PORT-TCP 30000-32000
            ipset create KUBE-NODE-PORT-UDP bitmap:port range 0-65535; ipset add KUBE-NODE-PORT-UDP 30053
            ipset create KUBE-NODE-PORT-SCTP-HASH hash:ip,port; ipset add KUBE-NODE-PORT-SCTP-HASH 192.0.2.1,sctp:31000
            ipset create KUBE-6-NODE-PORT-UDP bitmap:port range 0-65535; ipset add KUBE-6-NODE-PORT-UDP 30054
            ipset create KUBE-CLUSTER-IP hash:ip,port; ipset add KUBE-CLUSTER-IP 10.96.0.1,tcp:443");
        (none, sets())
    });
    let (none, sets) = thread.join().unwrap();
    assert_eq!(none, Ok(None));
    let ports = sets.unwrap().unwrap();
    assert_eq!(ports.iter().filter(|(_, protocol, _)| *protocol == Protocol::TCP).count(), 2001);
    let others: Vec<_> = ports.iter().filter(|(_, protocol, _)| *protocol != Protocol::TCP).copied().collect();
    let (v4, v6) = (RuleFamily::Ip, RuleFamily::Ip6);
    assert_eq!(others, [(v4, Protocol::UDP, 30_053), (v4, Protocol::SCTP, 31_000), (v6, Protocol::UDP, 30_054)]);
}

/// What is said of a tree that holds nothing but a bpffs.
const NO_IPVS: &str = "`/proc/net/ip_vs` is not in this tree: IPVS may have Services";

/// A bpffs, unmounted when dropped.
struct Bpffs(tempfile::TempDir);

impl Bpffs {
    fn mount() -> Self {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("sys/fs/bpf");
        sh(&format!("mkdir -p {0}; mount -t bpf bpf {0}; mkdir -p {0}/tc/globals", folder.display()));
        Self(place)
    }

    fn map(&self, name: &str) -> String {
        self.0.path().join("sys/fs/bpf/tc/globals").join(name).display().to_string()
    }

    fn root(&self) -> HostRoot {
        HostRoot::at(self.0.path())
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let folder: &Path = &self.0.path().join("sys/fs/bpf");
        assert!(Command::new("umount").arg(folder).status().is_ok_and(|status| status.success()));
    }
}

/// Exercises Cilium's map. If this fails, collisions with the NodePorts of Dataplane V2 are not seen, or another version's
/// map is misread.
#[test]
fn node_ports_of_cilium_are_those_of_its_map_and_a_map_of_other_sizes_is_refused() {
    let bpffs = Bpffs::mount();
    let nothing = read(&bpffs.root(), PortRange::NODE_PORTS);
    assert!(nothing.seen.is_empty() && nothing.proxies.is_empty(), "{nothing:?}");
    assert_eq!(nothing.missing, [NO_IPVS]);

    let map = bpffs.map("cilium_lb4_services_v2");
    // 0.0.0.0:30080/tcp and one of its Endpoints, 192.0.2.10:30053 of any protocol, 10.96.0.1:443.
    sh(&format!(
        "bpftool map create {map} type hash key 12 value 12 entries 1024 name cilium_lb4_ser flags 1
         put() {{ bpftool map update pinned {map} key hex $1 value hex $2; }}
         put '00 00 00 00 75 80 00 00 06 00 00 00' '00 00 00 00 01 00 07 00 02 00 00 00'
         put '00 00 00 00 75 80 01 00 06 00 00 00' '09 00 00 00 00 00 07 00 02 00 00 00'
         put 'c0 00 02 0a 75 65 00 00 00 00 00 00' '00 00 00 00 01 00 08 00 42 00 00 00'
         put '0a 60 00 01 01 bb 00 00 06 00 00 00' '00 00 00 00 01 00 09 00 00 00 00 00'"
    ));
    let reading = read(&bpffs.root(), PortRange::NODE_PORTS);
    let ports: Vec<_> = reading.node_ports.iter().map(|port| (port.protocol, port.port)).collect();
    assert_eq!(ports, [(Protocol::TCP, 30_053), (Protocol::TCP, 30_080), (Protocol::UDP, 30_053)]);
    assert_eq!(
        (reading.proxies.as_slice(), reading.missing.as_slice()),
        (&[ServiceProxy::Cilium][..], &[NO_IPVS.to_owned()][..])
    );

    sh(&format!("rm {map}; bpftool map create {map} type hash key 16 value 12 entries 1024 name cilium_lb4_ser"));
    let reading = read(&bpffs.root(), PortRange::NODE_PORTS);
    assert!(reading.node_ports.is_empty() && reading.proxies.is_empty());
    assert!(reading.missing[1].contains("keys of 16 bytes"), "{:?}", reading.missing);
}

/// Exercises the bounds of maps that others have made. If this fails, half a map is taken for the whole, or a large one holds
/// the agent up.
#[test]
fn a_pinned_map_is_read_for_as_long_as_the_reader_wants_and_half_of_it_is_not_all() {
    let bpffs = Bpffs::mount();
    let map = bpffs.map("many");
    let entries: String = (0..20_000)
        .map(|key| format!("map update pinned {map} key hex {} value hex 00 00 00 00\n", hex(key)))
        .collect();
    std::fs::write(bpffs.0.path().join("batch"), entries).unwrap();
    let batch = bpffs.0.path().join("batch").display().to_string();
    sh(&format!(
        "bpftool map create {map} type hash key 4 value 4 entries 20000 name many; bpftool batch file {batch}"
    ));
    let read = |limit: usize| {
        let mut count = 0;
        let mut pinned = Pinned::<4, 4>::open(Path::new(&map)).unwrap();
        let all = pinned.for_each(|_key, _value| count += 1, |seen| seen < limit).unwrap();
        (all, count)
    };
    assert_eq!(read(usize::MAX), (true, 20_000));
    // What one call brings is shown whole: 4,096 entries at most.
    let (all, count) = read(10_000);
    assert!(!all && (10_000..10_000 + 4096).contains(&count), "{count}");
    let (all, count) = read(0);
    assert!(!all && count <= 4096, "{count}");
}

fn hex(key: u32) -> String {
    key.to_ne_bytes().map(|byte| format!("{byte:02x}")).join(" ")
}
