//! Subject `tcp`: connects that are answered, and what the programs learn on the way.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use headroom_core::flow::Endpoint;
use headroom_core::observe::{Fact, Loss, TcpCounter};
use headroom_core::ports::parse_port_range;
use headroom_host::btf::Btf;
use headroom_host::ebpf::TCP;
use headroom_host::root::HostRoot;
use headroom_host::source::tcp::TcpSource;

use crate::check::Check;
use crate::load;
use crate::network::{NODE_V6, OUTSIDE, Scene, facts, lost, port_range};

pub(crate) const CHECKS: [Check; 6] = [
    Check { name: "tcp: tracepoints pass what the programs read", run: arguments },
    Check { name: "tcp: IPv4 connections through two NATs are counted", run: ipv4 },
    Check { name: "tcp: IPv6 connections are counted", run: ipv6 },
    Check { name: "tcp: the port range of a namespace is seen", run: range },
    Check { name: "tcp: every entry of a large map is read once", run: batches },
    Check { name: "tcp: a full map counts what it lost", run: full },
];

/// The large checks go round this many ports, so that source ports do not run out.
pub(crate) const PORTS: u16 = 10;

/// The destinations of the large IPv4 check.
pub(crate) fn destinations(address: IpAddr) -> Vec<SocketAddr> {
    (0..PORTS).map(|port| SocketAddr::new(address, 7100 + port)).collect()
}

fn arguments(_: &Scene) -> Result<String> {
    let btf = Btf::of_kernel(&HostRoot::live())?;
    for program in TCP {
        let there = btf.tracepoint_arguments(program.hook)?;
        ensure!(there >= program.arguments, "{} has {there} arguments, not {}", program.hook, program.arguments);
    }
    Ok(format!("{} hooks", TCP.len()))
}

fn ipv4(scene: &Scene) -> Result<String> {
    connections(scene, OUTSIDE.into(), scene.connections)
}

fn ipv6(scene: &Scene) -> Result<String> {
    connections(scene, NODE_V6.into(), scene.connections / 10)
}

/// Opens and closes that many, and compares every counter.
fn connections(scene: &Scene, address: IpAddr, count: u64) -> Result<String> {
    let each = count / u64::from(PORTS);
    let before = load::syns_sent_again(scene.pod())?;
    let destinations = destinations(address);
    for &destination in &destinations {
        let ports = load::open_and_close(scene.pod(), scene.server_of(address), destination, each)?;
        scene.remember(destination, ports);
    }
    // Each was answered at once, unless the machine was very slow: then the kernel's own count tells where to look.
    let again = load::syns_sent_again(scene.pod())? - before;
    let expected: Vec<_> = destinations
        .iter()
        .map(|&destination| TcpCounter { attempted: each, opened: each, closed: each, ..scene.nothing(destination) })
        .collect();
    scene.expect(&expected).with_context(|| format!("{again} SYNs were sent again"))?;
    Ok(format!("{} of {}", each * u64::from(PORTS), each * u64::from(PORTS)))
}

fn range(scene: &Scene) -> Result<String> {
    // A namespace is met when it dials somewhere new.
    let dial = |port| load::try_all(scene.pod(), SocketAddr::new(OUTSIDE.into(), port), 1, load::SOON);
    let sysctl = "net.ipv4.ip_local_port_range";
    let default = scene.pod().sysctl(sysctl)?;
    dial(7200)?;
    let seen = port_range(scene, scene.pod())?;
    ensure!(seen == Some(parse_port_range(&default)?), "`{default}` was seen as {seen:?}");
    scene.pod().set_sysctl(sysctl, "20001 60100")?;
    dial(7201)?;
    let changed = port_range(scene, scene.pod())?;
    scene.pod().set_sysctl(sysctl, &default)?;
    ensure!(changed == Some(parse_port_range("20001 60100")?), "`20001 60100` was seen as {changed:?}");
    Ok(format!("{default}, then 20001 60100"))
}

fn batches(_: &Scene) -> Result<String> {
    let mut source = TcpSource::start(&HostRoot::live(), 8192);
    let address = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 207));
    let count = 6000;
    source.seed((1..=count).map(|port| (Endpoint::new(address, port), address)));
    let mut seen: Vec<_> = facts(&mut source)
        .into_iter()
        .filter_map(|fact| if let Fact::TcpCounter(counter) = fact { Some(counter.destination) } else { None })
        .filter(|destination| destination.address == address)
        .collect();
    seen.sort();
    let all: Vec<_> = (1..=count).map(|port| Endpoint::new(address, port)).collect();
    if seen != all {
        bail!("of {count} entries {} were read", seen.len());
    }
    Ok(format!("{count} of {count}"))
}

fn full(scene: &Scene) -> Result<String> {
    let mut source = TcpSource::start(&HostRoot::live(), 4);
    let dialled = 40;
    for port in 0..dialled {
        load::try_all(scene.pod(), SocketAddr::new(OUTSIDE.into(), 7300 + port), 1, load::SOON)?;
    }
    let lost = lost(&mut source, Loss::TcpMapFull)?;
    let kept = facts(&mut source).iter().filter(|fact| matches!(fact, Fact::TcpCounter(_))).count();
    ensure!(kept <= 4, "{kept} entries in a map for four");
    // Others may dial on this machine meanwhile.
    ensure!(lost + 4 >= u64::from(dialled), "{lost} lost and {kept} kept of {dialled}");
    Ok(format!("{dialled} destinations, room for 4"))
}
