//! The lab tested by itself: what it builds is what it says, and nothing of it stays.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use headroom_lab::conntrack::Protocol;
use headroom_lab::image::{self, ContainerSpec, HostMount, ImageFile};
use headroom_lab::netns::veth;
use headroom_lab::pods::{Leak, PodSpec};
use headroom_lab::traffic::{Connect, Event, Generator, Mode, Serve, Server};
use headroom_lab::{Lab, NatLab, NatOptions, Netns, Node, NodeOptions};

/// Everything on this machine that carries a prefix, one line each.
fn leftovers(prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for dir in ["/run/netns", "/tmp"] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(prefix)).map(str::to_owned));
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let text = ["environ", "cgroup", "cmdline"]
            .map(|file| String::from_utf8_lossy(&fs::read(entry.path().join(file)).unwrap_or_default()).into_owned());
        if text.concat().contains(prefix) {
            found.push(format!("{} {}", entry.path().display(), text[2]));
        }
    }
    let cgroups = Command::new("find").args(["/sys/fs/cgroup", "-name", &format!("{prefix}*")]).output().unwrap();
    found.extend(String::from_utf8(cgroups.stdout).unwrap().lines().map(str::to_owned));
    let results = Command::new("grep").args(["-rl", prefix, "/var/lib/cni"]).output().unwrap();
    found.extend(String::from_utf8(results.stdout).unwrap().lines().map(str::to_owned));
    found
}

/// Waits for a condition that comes true a moment later (a count of another process, a dying process).
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Exercises links, addresses, sysctls and threads inside namespaces. If this fails, nothing else of the lab can work.
#[test]
fn two_namespaces_joined_by_a_link_reach_each_other_and_keep_their_own_sysctls() {
    let lab = Lab::new().unwrap();
    let (one, two) = (Netns::add(&lab, "one").unwrap(), Netns::add(&lab, "two").unwrap());
    veth((&one, "a"), (&two, "b")).unwrap();
    one.add_address("a", "10.9.0.1/24").unwrap();
    two.add_address("b", "10.9.0.2/24").unwrap();
    one.set_sysctl("net.ipv4.ip_local_port_range", "40000 40099").unwrap();
    assert_eq!(one.sysctl("net.ipv4.ip_local_port_range").unwrap(), "40000\t40099");
    assert_ne!(two.sysctl("net.ipv4.ip_local_port_range").unwrap(), "40000\t40099");

    let to: SocketAddr = "10.9.0.2:80".parse().unwrap();
    let server = Server::start(&two, &Serve { mode: Mode::Close, ..Serve::tcp([to]) }).unwrap();
    let talk = Connect { talk: true, ..Connect::tcp(to, 3, Duration::from_secs(5)) };
    let done = Generator::start(&one, &talk).unwrap().wait(Duration::from_secs(10)).unwrap();
    assert_eq!((done.opened, done.closed_by_peer), (3, 3), "{done:?}");
    let refused = Connect::tcp("10.9.0.2:81".parse().unwrap(), 2, Duration::ZERO);
    let done = Generator::start(&one, &refused).unwrap().wait(Duration::from_secs(10)).unwrap();
    assert_eq!((done.attempted, done.refused), (2, 2), "{done:?}");
    assert_eq!(server.stop().unwrap(), Event::Served { accepted: 3, closed: 3, datagrams: 0 });
    let source = one.run(|| Ok(std::net::TcpStream::connect("10.9.0.2:81").is_err())).unwrap();
    assert!(source);
}

/// Exercises the gateway. If this fails, "64 of 64" in every other test is not the truth.
#[test]
fn the_gateway_holds_as_many_ports_as_it_has_per_destination_and_protocol() {
    let lab = Lab::new().unwrap();
    let nat = NatLab::build(&lab, &NatOptions::default()).unwrap();
    let one: SocketAddr = "203.0.113.7:443".parse().unwrap();
    let two: SocketAddr = "198.51.100.9:53".parse().unwrap();
    let server = Serve { udp: vec![two], ..Serve::tcp([one, two]) };
    let _server = Server::start(&nat.outside, &server).unwrap();

    let hold = Duration::from_secs(60);
    let every = Some(Duration::from_millis(100));
    let dry = Connect { progress: every, timeout: Duration::from_secs(2), ..Connect::tcp(one, 80, hold) };
    let dry = Generator::start(&nat.pods[0].netns, &dry).unwrap();
    let calm = Connect { progress: every, ..Connect::tcp(two, 7, hold) };
    let calm = Generator::start(&nat.pods[1].netns, &calm).unwrap();
    let datagrams = Connect { progress: every, ..Connect::udp(two, 9, hold) };
    let datagrams = Generator::start(&nat.pods[1].netns, &datagrams).unwrap();
    eventually("16 time-outs", || dry.progress().is_ok_and(|done| (done.opened, done.timed_out) == (64, 16)));
    eventually("7 connections", || calm.progress().is_ok_and(|done| done.holding == 7));
    eventually("9 UDP answers", || datagrams.progress().is_ok_and(|done| done.holding == 9));

    assert_eq!(nat.gateway_held(Protocol::Tcp, one).unwrap().ports, nat.gateway_ports());
    assert_eq!(nat.gateway_held(Protocol::Tcp, two).unwrap().ports, 7);
    assert_eq!(nat.gateway_held(Protocol::Udp, two).unwrap().ports, 9);
    let node = nat.node_held(Protocol::Tcp, two).unwrap();
    assert_eq!(node.sources.keys().collect::<Vec<_>>(), [&nat.pods[1].address]);

    // Closed connections hold their ports on (once the server's FIN has passed, too).
    calm.stop().unwrap();
    // Which of the closing states they are in is the peers' matter: on a busy machine a reset may overtake a FIN.
    eventually("7 closed", || !nat.gateway_held(Protocol::Tcp, two).unwrap().states.contains_key("ESTABLISHED"));
    let closed = nat.gateway_held(Protocol::Tcp, two).unwrap();
    assert_eq!(closed.ports, 7, "{closed:?}");
    nat.flush_gateway().unwrap();
    assert_eq!(nat.gateway_held(Protocol::Udp, two).unwrap().ports, 0);
}

/// Exercises pods and every way to leak. If this fails, the tests on leaks look at something that nodes do not have.
#[test]
fn pods_reserve_addresses_and_each_kind_of_leak_leaves_one_that_the_runtime_does_not_know() {
    let lab = Lab::new().unwrap();
    let node = Node::start(&Netns::add(&lab, "node").unwrap(), NodeOptions::default()).unwrap();
    let pod = node.run_pod("shop", "checkout-1").unwrap();
    let other = node.run_pod("shop", "catalog-1").unwrap();
    assert_eq!(node.reservations().unwrap(), [pod.address.unwrap(), other.address.unwrap()]);
    let file = node.store().join(pod.address.unwrap().to_string());
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{}\r\neth0", pod.sandbox_id));
    assert!(node.cached_result(&pod.sandbox_id).exists());
    node.remove_pod(&other).unwrap();
    assert_eq!(node.reservations().unwrap(), [pod.address.unwrap()]);

    let stays = node.run_pod("shop", "stays-1").unwrap();
    let leaked = node.leak(&pod).unwrap();
    assert_eq!((Some(leaked.address), &leaked.container_id), (pod.address, &pod.sandbox_id));
    assert!(!Path::new(&format!("/proc/{}", pod.pid)).exists(), "the leaked pod's process is gone");
    assert_eq!(node.sandboxes().unwrap(), [stays.sandbox_id.as_str()], "the other pod survived the restarts");
    let after_add = node.make_leak("shop", "late-1", Leak::KilledAfterAdd).unwrap();
    let mounted = node.make_leak("shop", "late-2", Leak::KilledAfterAddNamespaceStays).unwrap();
    assert_eq!(node.reservations().unwrap().len(), 4);
    assert_ne!(after_add.address, mounted.address);

    node.set_reservation_age(leaked.address, Duration::from_secs(86_400)).unwrap();
    let age = SystemTime::now().duration_since(fs::metadata(&file).unwrap().modified().unwrap()).unwrap();
    assert!(age.as_secs().abs_diff(86_400) < 5, "{age:?}");
    assert_eq!(node.sandboxes().unwrap(), [stays.sandbox_id.as_str()]);
    let prefix = lab.prefix().to_owned();
    drop((node, stays, pod, other, lab));
    assert_eq!(leftovers(&prefix), Vec::<String>::new());
}

/// Exercises containers. If this fails, the DaemonSet's image cannot be tried.
#[test]
fn a_container_runs_with_the_capabilities_mounts_and_namespaces_it_was_given() {
    let lab = Lab::new().unwrap();
    let node = Node::start(&Netns::add(&lab, "node").unwrap(), NodeOptions::default()).unwrap();
    let (archive, marker) = (lab.dir().join("image.tar"), lab.dir().join("marker"));
    fs::write(&marker, "from the machine").unwrap();
    image::build(&lab, &archive, "headroom.lab/test:1", &[ImageFile::new(&marker, "/inside")], &["/usr/bin/sh"])
        .unwrap();
    assert_eq!(node.import_image(&archive).unwrap(), ["headroom.lab/test:1"]);
    let mount = |from: &str, to: &str| HostMount {
        host_path: from.into(),
        container_path: to.into(),
        read_only: true,
        follows_host: false,
    };
    let script = "cat /inside /marker; echo; grep -E 'CapEff|Seccomp:' /proc/self/status; readlink /proc/self/ns/net; \
                  tr '\\0' ' ' < /proc/1/cmdline; echo; echo oops >&2; touch /marker || exit 7";
    let spec = ContainerSpec {
        name: "probe".into(),
        image: "headroom.lab/test:1".into(),
        args: vec!["-c".into(), script.into()],
        mounts: vec![
            mount("/usr", "/usr"),
            mount("/usr/lib", "/lib"),
            mount("/usr/lib64", "/lib64"),
            mount(&marker.to_string_lossy(), "/marker"),
        ],
        seccomp_runtime_default: true,
        add_capabilities: vec!["NET_ADMIN".into(), "BPF".into()],
        ..ContainerSpec::default()
    };
    let host = PodSpec { namespace: "kube-system".into(), name: "agent".into(), host_network: true, host_pid: true };
    let pod = node.run_pod_with(&host).unwrap();
    assert_eq!(pod.address, None);
    let said = node.run_container(&pod, &spec).unwrap().wait(Duration::from_secs(20)).unwrap();
    assert_eq!(said.exit_code, 7, "{said:?}");
    assert!(said.stderr.starts_with("oops\n"), "{said:?}");
    let lines: Vec<_> = said.stdout.lines().collect();
    assert_eq!(lines[0], "from the machinefrom the machine");
    assert_eq!(lines[1], format!("CapEff:\t{:016x}", (1_u64 << 12) | (1 << 39)));
    assert_eq!(lines[2], "Seccomp:\t2");
    assert_eq!(lines[3], format!("net:[{}]", node.netns().inode().unwrap()));
    let init = fs::read_to_string("/proc/1/cmdline").unwrap().replace('\0', " ");
    assert_eq!(lines[4].trim(), init.trim());
}

/// Exercises the guards in a panic. If this fails, a failed test litters the machine.
#[test]
fn a_panic_leaves_nothing_behind() {
    let (send, prefix) = std::sync::mpsc::channel();
    let result = std::thread::spawn(move || {
        let lab = Lab::new().unwrap();
        send.send(lab.prefix().to_owned()).unwrap();
        let nat = NatLab::build(&lab, &NatOptions::default()).unwrap();
        let node = Node::start(&nat.node, NodeOptions::default()).unwrap();
        let pod = node.run_pod("shop", "checkout-1").unwrap();
        assert_eq!(pod.address, Some(Ipv4Addr::LOCALHOST), "this panic is the test's own");
    })
    .join();
    assert!(result.is_err());
    let prefix = prefix.recv().unwrap();
    eventually("nothing left", || leftovers(&prefix).is_empty());
}

/// Exercises the signal handler and the sweep at several moments of a lab's life. If this fails, an impatient user's
/// ctrl-C (or the kernel's OOM killer) litters the machine.
#[test]
fn a_signal_leaves_nothing_behind_and_what_a_kill_leaves_the_sweep_removes() {
    for (signal, after_ms) in [("-INT", 150), ("-INT", 700), ("-TERM", 2000), ("-INT", 3500), ("-KILL", 3500)] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_headroom-lab"))
            .args(["nat-exhaustion", "--headroom", "/bin/sleep", "--", "30"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id().to_string();
        std::thread::sleep(Duration::from_millis(after_ms));
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        let status = child.wait().unwrap();
        assert!(!status.success());
        let prefix = format!("hrlab{pid}-");
        if signal == "-KILL" {
            assert!(!leftovers(&prefix).is_empty(), "the kill came too early to leave anything");
            // Any lab sweeps first.
            drop(Lab::new().unwrap());
        }
        eventually("nothing left", || leftovers(&prefix).is_empty());
    }
}

/// Exercises what a bench changes of the machine. If this fails, a node is left with a larger conntrack table than it had.
#[test]
fn a_setting_of_the_machine_is_raised_and_put_back_also_after_a_crash() {
    const KEY: &str = "net.netfilter.nf_conntrack_max";
    let now = || fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap().trim().parse::<u64>().unwrap();
    let before = now();
    let lab = Lab::new().unwrap();
    lab.raise_machine_setting(KEY, before - 1).unwrap();
    assert_eq!(now(), before, "what is large enough stays");
    lab.raise_machine_setting(KEY, before + 1).unwrap();
    lab.raise_machine_setting(KEY, before + 2).unwrap();
    assert_eq!(now(), before + 2);
    drop(lab);
    assert_eq!(now(), before, "not what it was raised to first");

    // What a killed lab leaves: its directory, named after a process that is gone.
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let (crashed, lab) = (std::env::temp_dir().join(format!("hrlab{}-0-d", gone.id())), Lab::new().unwrap());
    lab.raise_machine_setting(KEY, before + 3).unwrap();
    let (note, copy) = (lab.dir().join("machine-settings"), crashed.join("machine-settings"));
    fs::create_dir_all(&copy).unwrap();
    fs::copy(note.join(KEY), copy.join(KEY)).unwrap();
    fs::remove_dir_all(note).unwrap();
    drop(lab);
    assert_eq!(now(), before + 3, "it is not the dropped lab's to put back");
    let swept = Lab::sweep().unwrap();
    assert_eq!(now(), before);
    assert!(swept.contains(&format!("machine's {KEY}")), "{swept:?}");
}
