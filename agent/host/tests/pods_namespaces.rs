//! Network namespaces of a real kernel: with a process, without one, and when both are gone. Needs root and iproute2.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use headroom_core::known::Known;
use headroom_core::observe::{Fact, Namespace, Outcome};
use headroom_core::ports::PortRange;
use headroom_host::clock;
use headroom_host::netlink::route::{NotTold, Rtnetlink};
use headroom_host::root::HostRoot;
use headroom_host::source::Source;
use headroom_host::source::namespaces::NamespacesSource;

/// A namespace that is gone when this is.
struct Netns(String);

impl Netns {
    fn new(name: &str) -> Self {
        let name = format!("hr-{name}-{}", std::process::id());
        ip(&["netns", "add", &name]);
        Self(name)
    }

    fn command(&self, command: &[&str]) -> Command {
        let mut ip = Command::new("ip");
        ip.args(["netns", "exec", &self.0]).args(command).stdin(Stdio::null());
        ip
    }

    fn run(&self, command: &[&str]) {
        assert!(self.command(command).status().unwrap().success(), "{command:?}");
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.0]);
    }
}

fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
}

fn observe() -> (Vec<Namespace>, Outcome) {
    let (mut namespaces, mut outcome) = (vec![], None);
    NamespacesSource::new(HostRoot::live()).observe(&mut |observation| match observation.fact {
        Fact::Namespace(namespace) => namespaces.push(namespace),
        Fact::End { outcome: how, .. } => outcome = Some(how),
        _other => {}
    });
    (namespaces, outcome.unwrap())
}

fn with_address<'a>(namespaces: &'a [Namespace], address: &str) -> Option<&'a Namespace> {
    let address: IpAddr = address.parse().unwrap();
    namespaces.iter().find(|namespace| namespace.addresses.present().is_some_and(|all| all.contains(&address)))
}

fn sleeper(netns: &Netns) -> Child {
    let child = netns.command(&["sleep", "60"]).spawn().unwrap();
    // `ip` becomes `sleep` once it is inside.
    let comm = format!("/proc/{}/comm", child.id());
    let started = Instant::now();
    while std::fs::read_to_string(&comm).unwrap() != "sleep\n" {
        assert!(started.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

/// Exercises all ways into a namespace. If this fails, live addresses are thought to be leaked or port ranges are mixed up.
#[test]
fn a_namespace_shows_its_addresses_and_ports_as_long_as_anything_keeps_it() {
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let netns = Netns::new("kept");
    netns.run(&["ip", "link", "set", "lo", "up"]);
    netns.run(&["ip", "address", "add", "10.213.77.9/32", "dev", "lo"]);
    netns.run(&["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer0"]);
    netns.run(&["ip", "address", "add", "fd00:213::9/64", "dev", "eth0", "nodad"]);
    netns.run(&["ip", "link", "set", "eth0", "up"]);
    netns.run(&["sysctl", "-qw", "net.ipv4.ip_local_port_range=20000 20999"]);
    netns.run(&["sysctl", "-qw", "net.ipv4.ip_local_reserved_ports=20100,20200-20299"]);

    let (namespaces, _outcome) = observe();
    let by_mount = with_address(&namespaces, "10.213.77.9").unwrap_or_else(|| panic!("{namespaces:?}")).clone();
    assert_eq!((by_mount.host, by_mount.pid), (false, None));
    let ports = by_mount.ports.present().unwrap();
    assert_eq!(ports.ephemeral, PortRange::new(20_000, 20_999).unwrap());
    assert_eq!(ports.usable(), 899);
    assert!(by_mount.addresses.present().unwrap().contains(&"fd00:213::9".parse().unwrap()));

    let mut child = sleeper(&netns);
    let (namespaces, _outcome) = observe();
    let by_process = with_address(&namespaces, "10.213.77.9").unwrap();
    assert_eq!(by_process.pid, Some(child.id()));
    assert_eq!(Namespace { pid: None, ..by_process.clone() }, by_mount, "both ways show the same");
    let host = namespaces.iter().find(|namespace| namespace.host).unwrap();
    assert_ne!(host.ports, by_mount.ports);
    assert!(matches!(host.ports, Known::Present(_)));

    child.kill().unwrap();
    child.wait().unwrap();
    drop(netns);
    let (namespaces, _outcome) = observe();
    assert!(with_address(&namespaces, "10.213.77.9").is_none());
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), own, "the agent's thread has not moved");
}

/// Exercises a node's worth of processes. If this fails, a round costs more than the agent may take.
#[test]
fn many_processes_cost_milliseconds() {
    let mut children: Vec<Child> =
        (0..400).map(|_| Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap()).collect();
    let started = Instant::now();
    let (namespaces, _outcome) = observe();
    let took = started.elapsed();
    println!("{took:?} for more than 400 processes, {} namespaces", namespaces.len());
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// Exercises what the DaemonSet has to do without CAP_SYS_ADMIN. If this fails, one namespace without a process keeps every
/// reservation of a node undetermined.
#[test]
fn a_namespace_without_a_process_tells_its_addresses_without_being_entered() {
    let netns = Netns::new("outside");
    let veth = format!("hrv{}", std::process::id() % 1_000_000);
    let open = || std::fs::File::open(format!("/run/netns/{}", netns.0)).unwrap();
    let rtnetlink = || Rtnetlink::open(clock::node_time().after(Duration::from_secs(5))).unwrap();
    let mut before = rtnetlink();
    before.peered().unwrap();
    assert!(matches!(before.addresses_in(open()), Err(NotTold::NoNumber)), "nothing leads into it yet");

    ip(&["link", "add", &veth, "type", "veth", "peer", "name", "eth0", "netns", &netns.0]);
    ip(&["link", "set", &veth, "up"]);
    netns.run(&["ip", "address", "add", "10.213.7.2/26", "dev", "eth0"]);
    netns.run(&["ip", "address", "add", "fd00:213::2/64", "dev", "eth0", "nodad"]);
    netns.run(&["ip", "link", "set", "eth0", "up"]);
    netns.run(&["ip", "link", "set", "lo", "up"]);
    ip(&["route", "add", "10.213.7.2/32", "dev", &veth, "scope", "host"]);

    let mut rtnetlink = rtnetlink();
    let peered = rtnetlink.peered().unwrap();
    let link = peered.values().find(|link| link.name == veth).unwrap();
    let mut found = rtnetlink.addresses_in(open()).unwrap();
    found.sort();
    assert_eq!(found, ["10.213.7.2", "fd00:213::2"].map(|text| text.parse::<IpAddr>().unwrap()));
    let routes = rtnetlink.on_link().unwrap();
    assert!(routes.iter().any(|route| route.index == link.index && route.address == found[0]), "{routes:?}");

    // The source says the same of the route; it goes with the namespace.
    let routed = || {
        let mut routed = Vec::new();
        NamespacesSource::new(HostRoot::live()).observe(&mut |observation| {
            if let Fact::PodRoute(route) = observation.fact {
                routed.push((route.address, route.interface));
            }
        });
        routed
    };
    assert!(routed().contains(&(found[0], veth.clone())));
    drop(netns);
    let started = Instant::now();
    while routed().iter().any(|(_, interface)| *interface == veth) {
        assert!(started.elapsed() < Duration::from_secs(10), "the interface outlives its namespace");
        std::thread::sleep(Duration::from_millis(50));
    }
}
