//! The TCP counters against connections made here, in the running kernel: exact, because nobody else dials these ports.
//!
//! Needs root, a kernel that loads raw tracepoint programs, and `ip`. Compiled only with the feature `kernel-tests`.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use headroom_core::flow::Endpoint;
use headroom_core::ids::NetnsInode;
use headroom_core::known::Known;
use headroom_core::observe::{Fact, Loss, Outcome, Snapshot, TcpCounter};
use headroom_core::ports::PortRange;
use headroom_host::btf::Btf;
use headroom_host::ebpf::TCP;
use headroom_host::root::HostRoot;
use headroom_host::source::Source as _;
use headroom_host::source::sockets::SocketsSource;
use headroom_host::source::tcp::TcpSource;

mod retired;
mod skipped;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn start() -> TcpSource {
    let source = TcpSource::start(&HostRoot::live(), 8192);
    for program in source.programs() {
        assert_eq!(program.attached, Ok(()), "{}", program.row.name);
    }
    source
}

fn facts(source: &mut TcpSource) -> Vec<Fact> {
    let mut facts = Vec::new();
    source.observe(&mut |observation| facts.push(observation.fact));
    facts
}

fn counters(source: &mut TcpSource) -> Vec<TcpCounter> {
    let facts = facts(source);
    let end = Fact::End { snapshot: Snapshot::TcpCounters, outcome: Outcome::Complete };
    let after = facts.iter().skip_while(|fact| **fact != end);
    let coverage: Vec<_> = after.filter(|fact| matches!(fact, Fact::Coverage(_))).collect();
    assert!(matches!(coverage[..], [Fact::Coverage(Known::Present(how))] if how.degraded.is_none()), "{coverage:?}");
    facts
        .into_iter()
        .filter_map(
            |fact| if let Fact::TcpCounter(counter) = fact { Some(TcpCounter { born: 0, ..counter }) } else { None },
        )
        .collect()
}

fn nothing(destination: SocketAddr, source: IpAddr) -> TcpCounter {
    TcpCounter::zero(Endpoint::new(destination.ip(), destination.port()), source)
}

/// Waits until the counter of a destination is as expected: the last state changes happen after our calls return.
fn expect(source: &mut TcpSource, expected: TcpCounter) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let seen: Vec<_> =
            counters(source).into_iter().filter(|counter| counter.destination == expected.destination).collect();
        if seen == [expected] {
            return;
        }
        assert!(Instant::now() < deadline, "expected {expected:?}, counted {seen:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// What a client does after it was accepted, and the server with it.
#[derive(Clone, Copy)]
enum End {
    ClientFirst,
    ServerFirst,
    ClientResets,
}

fn connections(listener: &TcpListener, count: u32, end: End) {
    for _ in 0..count {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        match end {
            End::ClientFirst => {
                drop(client);
                assert_eq!(server.read(&mut [0]).unwrap(), 0);
            }
            End::ServerFirst => {
                drop(server);
                assert_eq!(client.read(&mut [0]).unwrap(), 0);
            }
            End::ClientResets => {
                server.write_all(b"x").unwrap();
                // Closing with unread bytes sends RST.
                while client.peek(&mut [0]).unwrap() == 0 {}
                drop(client);
                server.read(&mut [0]).unwrap_err();
            }
        }
    }
}

/// A port that nobody listens on.
fn closed_port(address: IpAddr) -> SocketAddr {
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap()
}

/// Runs in a new network namespace with loopback up; gives its inode along.
fn in_new_namespace<T: Send>(run: impl FnOnce(NetnsInode) -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            // A child of this thread starts in its namespace.
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            run(NetnsInode(std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()))
        };
        scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn exact_counts(address: IpAddr) {
    let mut source = start();
    let listener = TcpListener::bind((address, 0)).unwrap();
    let destination = listener.local_addr().unwrap();
    connections(&listener, 20, End::ClientFirst);
    connections(&listener, 30, End::ServerFirst);
    connections(&listener, 7, End::ClientResets);
    let still_open: Vec<_> = (0..5).map(|_| TcpStream::connect(destination).unwrap()).collect();
    expect(
        &mut source,
        TcpCounter { attempted: 62, opened: 62, closed: 50, reset: 7, ..nothing(destination, address) },
    );
    drop(listener);
    drop(still_open);
    expect(
        &mut source,
        TcpCounter { attempted: 62, opened: 62, closed: 50, reset: 12, ..nothing(destination, address) },
    );

    let refused = closed_port(address);
    for _ in 0..9 {
        TcpStream::connect(refused).unwrap_err();
    }
    expect(&mut source, TcpCounter { attempted: 9, refused: 9, ..nothing(refused, address) });
    let losses = facts(&mut source);
    assert!(losses.contains(&Fact::Lost { what: Loss::TcpReadFailed, total: 0 }));
    assert!(losses.contains(&Fact::Lost { what: Loss::TcpMapFull, total: 0 }));
}

/// Exercises every transition that counts over IPv4. If this fails, held ports are wrong.
#[test]
fn ipv4_connections_are_counted_exactly() {
    exact_counts(V4);
}

/// Exercises the same over IPv6. If this fails, IPv6 destinations are wrong or missing.
#[test]
fn ipv6_connections_are_counted_exactly() {
    exact_counts(V6);
}

/// Exercises a socket of the IPv6 family that dials an IPv4 address. If this fails, one destination appears twice.
#[test]
fn an_ipv4_mapped_address_is_counted_as_ipv4() {
    let mut source = start();
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mapped = IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped());
    drop(TcpStream::connect((mapped, port)).unwrap());
    drop(listener.accept().unwrap());
    let expected = TcpCounter { attempted: 1, opened: 1, closed: 1, ..nothing(SocketAddr::new(V4, port), V4) };
    expect(&mut source, expected);
}

/// Exercises pods. If this fails, only the node's own connections are seen.
#[test]
fn other_network_namespaces_are_counted_exactly() {
    in_new_namespace(|_| {
        exact_counts(V4);
        exact_counts(V6);
    });
}

/// Exercises the port range read through the socket. If this fails, a pod's overlap with NodePorts is unknown without
/// CAP_SYS_ADMIN.
#[test]
fn the_port_range_of_a_namespace_is_seen_when_it_dials() {
    let mut source = start();
    in_new_namespace(|inode| {
        let range = |source: &mut TcpSource| {
            let ranges = source.local_ports();
            let found = ranges.present().unwrap().iter().find(|(other, _)| *other == inode).map(|(_, range)| *range);
            found.unwrap()
        };
        let default = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        TcpStream::connect(closed_port(V4)).unwrap_err();
        assert_eq!(range(&mut source), headroom_core::ports::parse_port_range(&default).unwrap());
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "20001 20100").unwrap();
        TcpStream::connect(closed_port(V6)).unwrap_err();
        assert_eq!(range(&mut source), PortRange::new(20_001, 20_100).unwrap());
    });
}

/// Exercises EADDRNOTAVAIL. If this fails, exhausted ephemeral ports look like an unreachable destination.
#[test]
fn connects_without_a_local_port_are_told_from_failed_ones() {
    let mut source = start();
    in_new_namespace(|_| {
        let listener = TcpListener::bind((V4, 0)).unwrap();
        let destination = listener.local_addr().unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "20002 20005").unwrap();
        let open: Vec<_> = (0..4).map(|_| TcpStream::connect(destination).unwrap()).collect();
        for _ in 0..6 {
            TcpStream::connect(destination).unwrap_err();
        }
        expect(&mut source, TcpCounter { attempted: 10, opened: 4, no_local_port: 6, ..nothing(destination, V4) });
        drop(open);
    });
}

/// Exercises `tcp_retransmit_skb`. If this fails, a NAT that drops SYNs goes unnoticed.
#[test]
fn a_syn_without_an_answer_is_counted_when_it_goes_out_again() {
    let mut source = start();
    in_new_namespace(|_| {
        // A full accept queue makes the kernel drop SYNs.
        std::fs::write("/proc/sys/net/core/somaxconn", "1").unwrap();
        let listener = TcpListener::bind((V4, 0)).unwrap();
        let destination = listener.local_addr().unwrap();
        let dial = || TcpStream::connect_timeout(&destination, Duration::from_millis(1500));
        let answered: Vec<_> = std::iter::from_fn(|| dial().ok()).take(8).collect();
        let opened = u64::try_from(answered.len()).unwrap();
        assert!(opened < 8, "the accept queue never filled");
        expect(
            &mut source,
            TcpCounter { attempted: opened + 1, opened, given_up: 1, syn_retransmitted: 1, ..nothing(destination, V4) },
        );
    });
}

/// Exercises seeding. If this fails, ports held since before the agent's start are held for ever.
#[test]
fn the_close_of_a_seeded_connection_is_counted() {
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let destination = listener.local_addr().unwrap();
    let client = TcpStream::connect(destination).unwrap();
    let mut source = start();
    let key = (Endpoint::new(V4, destination.port()), V4);
    source.seed([key, key].into_iter());
    expect(&mut source, nothing(destination, V4));
    drop(client);
    drop(listener.accept().unwrap());
    expect(&mut source, TcpCounter { closed: 1, ..nothing(destination, V4) });
}

/// Exercises the accepting side. If this fails, every server appears to hold ports towards its clients.
#[test]
fn accepted_connections_are_not_counted_as_dialled() {
    let mut source = start();
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let dialled_from = client.local_addr().unwrap().port();
    drop(listener.accept().unwrap());
    drop(client);
    thread::sleep(Duration::from_millis(100));
    assert!(counters(&mut source).iter().all(|counter| counter.destination.port != dialled_from));
}

/// Exercises a full map. If this fails, connections that are not counted go unmentioned.
#[test]
fn a_full_map_is_counted_as_loss() {
    let mut source = TcpSource::start(&HostRoot::live(), 4);
    let port = closed_port(V4).port();
    for last in 1..=40 {
        TcpStream::connect((Ipv4Addr::new(127, 0, 7, last), port)).unwrap_err();
    }
    let seen = counters(&mut source);
    assert!(seen.len() <= 4, "{seen:?}");
    let ours = u64::try_from(seen.iter().filter(|counter| counter.destination.port == port).count()).unwrap();
    let lost = facts(&mut source).into_iter().find_map(|fact| match fact {
        Fact::Lost { what: Loss::TcpMapFull, total } => Some(total),
        _ => None,
    });
    assert!(lost.unwrap() >= 40 - ours, "{lost:?} lost, {ours} of 40 in the map");
}

/// Exercises seeding again and again. If this fails, the losses of a full map grow with time, not with what was lost.
#[test]
fn pairs_without_room_are_counted_once_however_often_they_are_seeded() {
    let mut source = TcpSource::start(&HostRoot::live(), 4);
    let address = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 8));
    let seed =
        |source: &mut TcpSource, ports: u16| source.seed((1..=ports).map(|port| (Endpoint::new(address, port), V4)));
    let lost = |source: &mut TcpSource| {
        let total = facts(source).into_iter().find_map(|fact| match fact {
            Fact::Lost { what: Loss::TcpMapFull, total } => Some(total),
            _ => None,
        });
        total.unwrap()
    };
    seed(&mut source, 2000);
    let once = lost(&mut source);
    assert!(once >= 1990, "{once}");
    (0..5).for_each(|_| seed(&mut source, 2000));
    let again = lost(&mut source);
    // Others on this machine may dial meanwhile.
    assert!(again < once + 1000, "{once}, then {again}");
}

/// Exercises batches. If this fails, large maps are reported with holes or twice.
#[test]
fn every_one_of_many_entries_is_read_once() {
    let mut source = start();
    let address = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
    source.seed((1..=6000).map(|port| (Endpoint::new(address, port), V4)));
    let mut seen: Vec<_> = counters(&mut source)
        .into_iter()
        .filter(|counter| counter.destination.address == address && counter.source == V4)
        .map(|counter| counter.destination)
        .collect();
    assert_eq!(seen.len(), 6000);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 6000);
}

/// Exercises the prototypes quoted in the programs. If this fails, a kernel changed a tracepoint.
#[test]
fn the_tracepoints_pass_what_the_programs_read() {
    let btf = Btf::of_kernel(&HostRoot::live()).unwrap();
    for program in TCP {
        let arguments = btf.tracepoint_arguments(program.hook).unwrap();
        assert!(arguments >= program.arguments, "{} has {arguments}", program.hook);
    }
}

/// Exercises the reader on a real kernel. If this fails, nothing is counted on it.
#[test]
fn the_kernels_own_types_are_read() {
    let btf = Btf::of_kernel(&HostRoot::live()).unwrap();
    let state = btf.member(&["sock", "__sk_common", "skc_state"]).unwrap();
    assert_eq!(state.width_bytes(), Some(1));
}

/// Exercises `sk_err`. If this fails, a destination that is dead cannot be told from one that refuses.
#[test]
fn connects_that_fail_are_told_apart_by_their_cause() {
    let mut source = start();
    in_new_namespace(|_| {
        let set = |name: &str, value: &str| std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value);
        set("tcp_syn_retries", "1").unwrap();
        // Since 6.5.
        drop(set("tcp_syn_linear_timeouts", "0"));
        let ip = |arguments: &str| {
            assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
        };
        ip("link add left type veth peer name right");
        ip("addr add 10.99.0.1/24 dev left");
        ip("link set left up");
        ip("link set right up");
        set("neigh/left/mcast_solicit", "1").unwrap();
        set("neigh/left/retrans_time_ms", "100").unwrap();
        // Nobody answers ARP for one; the other is a neighbour that takes every packet and says nothing.
        ip("neigh add 10.99.0.3 lladdr 02:00:00:00:00:03 dev left");
        let (absent, silent) = (SocketAddr::from(([10, 99, 0, 2], 80)), SocketAddr::from(([10, 99, 0, 3], 80)));
        let own = IpAddr::from([10, 99, 0, 1]);
        thread::scope(|scope| {
            scope.spawn(|| TcpStream::connect(absent).unwrap_err());
            scope.spawn(|| TcpStream::connect(silent).unwrap_err());
        });
        expect(&mut source, TcpCounter { attempted: 1, unreachable: 1, ..nothing(absent, own) });
        let timed_out = TcpCounter { attempted: 1, timed_out: 1, syn_retransmitted: 1, ..nothing(silent, own) };
        expect(&mut source, timed_out);
    });
}

/// Exercises namespaces that are gone. If this fails, a new namespace with the inode of an old one is said to have its range.
#[test]
fn the_port_range_of_a_namespace_goes_with_it() {
    let mut source = start();
    let inode = in_new_namespace(|inode| {
        TcpStream::connect(closed_port(V4)).unwrap_err();
        inode
    });
    let dialled_from = source.namespaces();
    assert!(dialled_from.contains(&inode));
    // A namespace is taken down a moment after its last process.
    let deadline = Instant::now() + Duration::from_secs(5);
    while source.namespaces().contains(&inode) {
        assert!(Instant::now() < deadline, "{inode} is still there");
        let mut sockets = SocketsSource::new(&HostRoot::live());
        sockets.observe(&mut |_| {});
        source.forget_namespaces(dialled_from.difference(sockets.namespaces().unwrap()));
    }
    let own = NetnsInode(std::fs::metadata("/proc/self/ns/net").unwrap().ino());
    TcpStream::connect(closed_port(V4)).unwrap_err();
    let dialled_from = source.namespaces();
    let mut sockets = SocketsSource::new(&HostRoot::live());
    sockets.observe(&mut |_| {});
    source.forget_namespaces(dialled_from.difference(sockets.namespaces().unwrap()));
    assert!(source.namespaces().contains(&own));
}
