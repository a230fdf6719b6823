//! Where the source ports of up to a hundred thousand really translated flows land, against the share that the report tells of the
//! rules that translated them. Needs root and iptables; works in network namespaces of its own.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;

use headroom_core::flow::Protocol;
use headroom_core::model::policy::Policy;
use headroom_core::ports::PortRange;
use headroom_core::report::ShareReport;
use headroom_host::netlink::conntrack::{Content, content};
use headroom_host::netlink::message::Messages;
use headroom_host::netlink::socket::{DATAGRAM_BYTES, Dump, Received};
use nix::sched::{CloneFlags, unshare};

#[path = "rules_live/judged.rs"]
mod judged;
#[path = "rules_live/sets.rs"]
mod sets;

const MANY: u32 = 100_000;
/// Enough where what is wrong would be wrong by far.
const SOME: u32 = 30_000;
/// Some six for each port that connect() hands out first.
const SOME_TCP: u32 = 10_000;

fn sh(script: &str) {
    assert!(Command::new("sh").args(["-ec", script]).status().unwrap().success(), "{script}");
}

/// A namespace with a pod's address and a way out on which packets vanish, and some rules. Gives the source ports with which
/// flows left, and the share that the report tells for UDP.
fn measure(rules: &str, own_ports: &str, flows: u32) -> (Vec<u16>, f64) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter_a_namespace(rules, own_ports);
            let fixed = UdpSocket::bind("10.48.0.2:0").unwrap();
            for number in 0..flows {
                let [.., host, port_high, port_low] = number.to_be_bytes();
                let to = (Ipv4Addr::new(198, 51, 100, host), u16::from_be_bytes([port_high, port_low]).max(1));
                // Every flow draws a port of its own, as the next one would.
                let fresh = (own_ports != DEFAULT).then(|| UdpSocket::bind("10.48.0.2:0").unwrap());
                fresh.as_ref().unwrap_or(&fixed).send_to(b"x", to).unwrap();
            }
            let ports = translated_ports();
            assert!(ports.len() + 100 > usize::try_from(flows).unwrap(), "{} flows", ports.len());
            (ports, share())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn enter_a_namespace(rules: &str, own_ports: &str) {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    sh(&format!(
        "ip link set lo up; ip address add 10.48.0.2/32 dev lo
         ip link add out0 type veth peer name out1; ip link set out0 arp off; ip link set out1 up
         ip address add 192.0.2.1/24 dev out0; ip link set out0 up
         ip route add 198.51.0.0/16 dev out0 src 10.48.0.2
         echo '{own_ports}' > /proc/sys/net/ipv4/ip_local_port_range
         {rules}"
    ));
}

/// Begins connections, each to a destination of its own, which does not answer. `bound`: they have a port before they say where to.
fn connect(flows: u32, bound: bool) {
    use socket2::{Domain, Socket, Type};
    for number in 0..flows {
        let [.., host, port_high, port_low] = number.to_be_bytes();
        let to = SocketAddr::from(([198, 51, 100, host], u16::from_be_bytes([port_high, port_low]).max(1)));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        if bound {
            socket.bind(&SocketAddr::from(([10, 48, 0, 2], 0)).into()).unwrap();
        }
        assert_eq!(socket.connect(&to.into()).unwrap_err().raw_os_error(), Some(libc::EINPROGRESS));
    }
}

const DEFAULT: &str = "32768 60999";

fn translated_ports() -> Vec<u16> {
    let dump = Dump::request(1, None).unwrap();
    let (mut buffer, mut ports) = (vec![0; DATAGRAM_BYTES], Vec::new());
    loop {
        let Received::Bytes(length) = dump.receive(&mut buffer).unwrap() else { continue };
        for message in Messages::new(buffer.get(..length).unwrap()) {
            match content(&message.unwrap()).unwrap() {
                Content::Entry(entry) => ports.push(entry.translated.port),
                Content::Done { .. } => return ports,
                _ => {}
            }
        }
    }
}

fn shares() -> Vec<ShareReport> {
    judged::report().overlap.shares
}

/// The share of UDP.
fn share() -> f64 {
    let rows: Vec<_> = shares().into_iter().filter(|row| row.protocol == Protocol::UDP).collect();
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.first().unwrap().share.unwrap()
}

/// The measured part must be within four standard deviations of the told one: once in 16,000 runs it is not by chance.
#[track_caller]
fn assert_agrees(ports: &[u16], range: PortRange, share: f64) {
    let all = u32::try_from(ports.len()).unwrap();
    let inside = u32::try_from(ports.iter().filter(|port| range.contains(**port)).count()).unwrap();
    let (measured, all) = (f64::from(inside) / f64::from(all), f64::from(all));
    let deviation = (share * (1.0 - share) / all).sqrt();
    assert!((measured - share).abs() <= 4.0 * deviation, "measured {measured:.5}, told {share:.5} +- {deviation:.5}");
}

/// Exercises the share of `--random-fully`, and why it is not 2,768 of 64,512: the first 1,024 ports come twice as often.
#[test]
fn random_ports_land_in_the_range_as_often_as_told() {
    let (ports, share) =
        measure("iptables-nft -t nat -A POSTROUTING -o out0 -j MASQUERADE --random-fully", DEFAULT, MANY);
    assert!((share - 2768.0 / 65_536.0).abs() < 1e-9);
    assert_agrees(&ports, PortRange::NODE_PORTS, share);
    assert_agrees(&ports, PortRange::new(1024, 2047).unwrap(), 2048.0 / 65_536.0);
}

/// Exercises a range of which 65,536 is far from being a multiple: drawn evenly it would be 13.8 %, and it is 12.7 %.
#[test]
fn ports_of_a_given_range_are_not_drawn_evenly_and_that_is_told() {
    let rule = "iptables-legacy -t nat -A POSTROUTING -p udp -j MASQUERADE --to-ports 20000-40000 --random-fully";
    let (ports, share) = measure(rule, DEFAULT, SOME);
    assert!((share - 3.0 * 2768.0 / 65_536.0).abs() < 1e-9);
    assert_agrees(&ports, PortRange::NODE_PORTS, share);
}

/// Exercises a split by chance, of native rules, half of which lands in the range.
#[test]
fn a_split_by_chance_lands_as_often_as_told() {
    let rules = "nft -f - <<'END'
table ip mine {
    chain out {
        type nat hook postrouting priority srcnat
        meta l4proto udp numgen random mod 100 < 46 masquerade to :1024-29999 fully-random
        meta l4proto udp masquerade to :29000-31999 fully-random
    }
}
END";
    let (ports, share) = measure(rules, DEFAULT, SOME);
    // 65,536 = 21 x 3,000 + 2,536: of these ports the first 2,536 come up 22 times.
    assert!((share - 0.54 * (1536.0 * 22.0 + 464.0 * 21.0) / 65_536.0).abs() < 1e-9, "{share}");
    assert_agrees(&ports, PortRange::NODE_PORTS, share);
}

/// Exercises the fix: not one connection.
#[test]
fn with_ports_beside_the_node_ports_none_lands_in_the_range() {
    let (ports, share) =
        measure(&format!("iptables-nft-restore <<'END'\n{}END", sets::IP_MASQ_AGENT_2_12), DEFAULT, SOME);
    assert!(share.abs() < 1e-9);
    assert!(!ports.iter().any(|port| PortRange::NODE_PORTS.contains(*port)));
    // Both ranges are used, in the proportion of their sizes.
    assert_agrees(&ports, PortRange::new(1024, 29_999).unwrap(), 0.4693);
}

/// Exercises the rule sets of programs of nodes: the share of each, for TCP and UDP, as both backends tell them.
#[test]
fn rules_of_nodes_have_the_share_that_their_ports_say() {
    let drawn = 2768.0 / 65_536.0;
    for (set, rules, expected) in [
        // Kept ports are those of the namespace's own range, none of which is a NodePort.
        ("ip-masq-agent 2.9", sets::IP_MASQ_AGENT_2_9, 0.0),
        ("ip-masq-agent 2.10", sets::IP_MASQ_AGENT_2_10, drawn),
        ("ip-masq-agent 2.12", sets::IP_MASQ_AGENT_2_12, 0.0),
        ("kube-proxy, iptables", sets::KUBE_PROXY_IPTABLES, drawn),
        ("Cilium", sets::CILIUM, drawn),
    ] {
        for backend in ["legacy", "nft"] {
            assert_shares(set, &format!("iptables-{backend}-restore <<'END'\n{rules}END"), expected);
        }
    }
    assert_shares("kube-proxy, nftables", &format!("nft -f - <<'END'\n{}END", sets::KUBE_PROXY_NFTABLES), drawn);
}

fn assert_shares(set: &str, rules: &str, expected: f64) {
    let rows = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            sh(&format!("echo '{DEFAULT}' > /proc/sys/net/ipv4/ip_local_port_range\n{rules}"));
            shares()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    for protocol in [Protocol::TCP, Protocol::UDP] {
        let told: Vec<_> = rows.iter().filter(|row| row.protocol == protocol).map(|row| row.share).collect();
        assert!(
            matches!(told.as_slice(), [Some(share)] if (share - expected).abs() < 1e-9),
            "{set}, {protocol}: {told:?}, not {expected}: {rows:?}"
        );
    }
}

/// Exercises kept ports: they land where the pods draw theirs.
#[test]
fn kept_ports_land_as_often_as_pods_draw_them() {
    let (ports, share) = measure("iptables-nft -t nat -A POSTROUTING -o out0 -j MASQUERADE", "1024 65535", SOME);
    assert!((share - 2768.0 / 64_512.0).abs() < 1e-9);
    assert_agrees(&ports, PortRange::NODE_PORTS, share);
}

/// Exercises ports that TCP keeps: connect() hands out every second one first, bind() the others. If this fails, allocated NodePorts are
/// told to be hit half as often as they are, or although they are not.
#[test]
fn kept_ports_of_tcp_are_those_that_connect_hands_out_first() {
    let told = |first: u16| {
        let allocated = (first..).step_by(2).take(200).map(|port| (Protocol::TCP, port)).collect();
        let policy = Policy { allocated_node_ports: allocated, ..Policy::default() };
        let shares = judged::report_under(&policy).overlap.shares;
        let row = shares.into_iter().find(|row| row.protocol == Protocol::TCP).unwrap();
        (row.share.unwrap(), row.share_allocated.unwrap())
    };
    let run = |bound: bool| {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter_a_namespace("iptables-nft -t nat -A POSTROUTING -o out0 -j MASQUERADE", "29000 31999");
                connect(SOME_TCP, bound);
                (translated_ports(), told(30_000), told(30_001))
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    };
    let (ports, even, odd) = run(false);
    assert!(ports.len() + 100 > usize::try_from(SOME_TCP).unwrap(), "{} flows", ports.len());
    assert_agrees(&ports, PortRange::NODE_PORTS, even.0);
    assert!((even.1 - 200.0 / 1500.0).abs() < 1e-9 && odd.1.abs() < 1e-9, "{even:?} {odd:?}");
    let hit = |parity: u16| -> Vec<u16> { ports.iter().copied().filter(|port| port % 2 == parity).collect() };
    let first_200 = PortRange::new(30_000, 30_399).unwrap();
    assert_agrees(&ports, first_200, even.1);
    assert!(hit(1).is_empty(), "{:?}", hit(1));
    let (ports, ..) = run(true);
    assert!(ports.len() > 1000 && ports.iter().all(|port| port % 2 == 1), "{ports:?}");
}
