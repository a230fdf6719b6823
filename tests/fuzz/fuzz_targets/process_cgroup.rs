//! `/proc/<pid>/cgroup`, and what is read out of its paths: a container may have a cgroup namespace and names of its own.
#![no_main]

use headroom_core::observe::Owner;
use headroom_fuzz::sow;
use headroom_host::source::sockets::owners::cgroup_of;
use libfuzzer_sys::fuzz_target;

const SEEDS: [&[u8]; 3] = [
    b"0::/system.slice/docker.service\n",
    b"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f6d1e0a_3b1c_4c7e_9d9c_2f1f2b3c4d5e.slice/cri-containerd-ab.scope\n",
    b"5:pids:/kubepods/burstable/pod0f6d1e0a-3b1c-4c7e-9d9c-2f1f2b3c4d5e/abcdef\n1:name=systemd:/\n",
];

fuzz_target!(init: sow(SEEDS), |bytes: &[u8]| {
    let cgroup = cgroup_of(&String::from_utf8_lossy(bytes));
    let owner = Owner { process: String::new(), cgroup };
    let _read = (owner.unit(), owner.pod_uid());
});
