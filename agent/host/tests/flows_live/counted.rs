//! conntrack as the kernel counts it, against `conntrack -L`: on kernels with kprobes the counters, on others what stands in
//! for them. Needs root, conntrack-tools and iptables.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use headroom_core::findings::{Finding, FindingId, Severity};
use headroom_core::flow::{Destination, Endpoint, Protocol};
use headroom_core::ledger::{Ledger, LedgerLimits};
use headroom_core::model::policy::Policy;
use headroom_core::model::{Memory, evaluate};
use headroom_core::observe::{Fact, Loss, Outcome, Snapshot};
use headroom_core::ports::PortRange;
use headroom_core::time::NodeTime;
use headroom_host::clock;
use headroom_host::ebpf::{CT_DELETE, CT_INSERT};
use headroom_host::netlink::socket::EVENT_BUFFER_BYTES;
use headroom_host::root::HostRoot;
use headroom_host::source::Source as _;
use headroom_host::source::conntrack::{ConntrackSource, DUMPING, Options};
use headroom_host::source::conntrack_use::ConntrackUseSource;

use crate::network::{Node, on_a_node, send, sh};

/// The agent's side of a test.
struct Agent {
    source: ConntrackSource,
    ledger: Ledger,
    lost: BTreeMap<Loss, u64>,
    coverage: String,
    /// Dumps that ended well, of whatever part of the table.
    dumps: u32,
}

impl Agent {
    fn start(options: Options) -> Self {
        let source = ConntrackSource::start(&HostRoot::live(), options);
        let mut agent = Self {
            source,
            ledger: Ledger::new(LedgerLimits::default()),
            lost: BTreeMap::new(),
            coverage: String::new(),
            dumps: 0,
        };
        agent.look();
        agent
    }

    /// Whether entries are counted in the kernel, as they have to be wherever the kernel has kprobes.
    fn counts(&self) -> bool {
        let programs = self.source.programs();
        let attached = |name| programs.iter().any(|program| program.row.name == name && program.attached.is_ok());
        let counts = attached(CT_INSERT.name) && attached(CT_DELETE.name);
        assert_eq!(counts, Path::new("/sys/bus/event_source/devices/kprobe/type").exists(), "{programs:#?}");
        counts
    }

    fn look(&mut self) {
        let (ledger, lost, coverage) = (&mut self.ledger, &mut self.lost, &mut self.coverage);
        let dumps = &mut self.dumps;
        self.source.observe(&mut |observation| {
            if let Fact::Lost { what, total } = observation.fact {
                lost.insert(what, total);
            }
            if let Fact::Coverage(said) = &observation.fact {
                *coverage = format!("{said:?}");
            }
            if let Fact::End { snapshot: Snapshot::Conntrack | Snapshot::ConntrackUdp, outcome: Outcome::Complete } =
                &observation.fact
            {
                *dumps += 1;
            }
            ledger.apply(observation);
        });
    }

    /// Looks until it sees so many entries in all.
    fn expect(&mut self, live: u64) {
        self.until(&format!("{live} entries"), |agent| agent.ledger.conntrack().live() == live);
    }

    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let until = Instant::now() + Duration::from_secs(15);
        while !holds(self) {
            assert!(Instant::now() < until, "{} entries, not {what}", self.ledger.conntrack().live());
            std::thread::sleep(Duration::from_millis(100));
            self.look();
        }
    }

    fn live(&self, destination: Destination) -> u64 {
        let rows = self.ledger.conntrack().iter().filter(|(pair, _)| pair.destination == destination);
        rows.map(|(_, cohorts)| cohorts.live()).sum()
    }

    fn no_port(&self, destination: Destination) -> u64 {
        let now = NodeTime::from_nanos(clock::node_time().as_nanos());
        let rows = self.ledger.no_ports().iter(now, Duration::from_secs(60));
        rows.filter(|(other, ..)| *other == destination).map(|(_, _, lately, _)| lately).sum()
    }
}

/// Everything. Events have a dump only at the start: what is seen later was told by them. Counters are compared with a dump every ten
/// seconds all the same; what they count by themselves is checked in `tests/kernels/src/counters.rs`.
const OPTIONS: Options = Options {
    dump_interval: Duration::from_secs(3600),
    dumping: DUMPING,
    tcp_is_counted: false,
    node_ports: PortRange::NODE_PORTS,
    max_keys: 8192,
    event_buffer_bytes: EVENT_BUFFER_BYTES,
};

fn entries() -> u64 {
    sh("conntrack -C").trim().parse().unwrap()
}

fn udp(address: &str, port: u16) -> Destination {
    let address: IpAddr = address.parse().unwrap();
    Destination { protocol: Protocol::UDP, endpoint: Endpoint::new(address, port) }
}

/// Exercises entries that come and go, translated and not, of both families. If this fails, UDP and forwarded flows are
/// miscounted.
#[test]
fn entries_that_come_and_go_are_counted_per_destination() {
    on_a_node(|node| {
        let before = node.pod_socket();
        send(&before, 0..20);
        let mut agent = Agent::start(OPTIONS);
        agent.expect(20);
        let counts = agent.counts();
        let socket = node.pod_socket();
        send(&socket, 5000..5300);
        let connections = node.connect(30);
        sh(
            "ip -6 addr add fd00::1/64 dev lo; for port in 1 2 3 4 5; do echo x > /dev/udp/::1/$port; done 2>/dev/null || true",
        );
        agent.expect(entries());
        assert_eq!(agent.live(udp("198.51.100.1", 6001)), 1);
        let to: SocketAddr = "192.0.2.2:443".parse().unwrap();
        assert_eq!(agent.live(Destination::tcp(Endpoint::new(to.ip(), to.port()))), 30);
        assert_eq!(agent.ledger.conntrack().drift().is_some(), counts);

        // Some go by hand, some by a reset.
        sh("conntrack -D -p udp --dport 6001 2>/dev/null; conntrack -D -p udp --dport 6002 2>/dev/null");
        agent.expect(entries());
        assert_eq!(agent.live(udp("198.51.100.1", 6001)), 0);
        drop(connections);
        sh("conntrack -F 2>/dev/null");
        // Entries from before somebody listened may leave without an event: only a dump would tell.
        if counts {
            agent.expect(0);
        } else {
            agent.until("no entry of those that came later", |agent| agent.ledger.conntrack().live() <= 20);
            assert_eq!(agent.live(udp("198.51.100.1", 6003)), 0);
        }
        assert_eq!(agent.lost.get(&Loss::ConntrackReadFailed).copied().unwrap_or(0), 0);
    });
}

/// Exercises a node that is its own NAT and runs out. If this fails, connections that the kernel itself drops stay a riddle.
#[test]
fn what_found_no_port_is_counted_per_destination() {
    on_a_node(|node| {
        sh("iptables -w -t nat -F POSTROUTING
            iptables -w -t nat -A POSTROUTING -p udp -o out0 -j MASQUERADE --to-ports 40000-40007");
        let mut agent = Agent::start(OPTIONS);
        let to: SocketAddr = "198.51.100.1:53".parse().unwrap();
        let sockets: Vec<_> = (0..12).map(|_| node.pod_socket()).collect();
        for socket in &sockets {
            socket.send_to(b"x", to).unwrap();
        }
        agent.expect(8);
        std::thread::sleep(Duration::from_millis(1100));
        agent.look();
        let reasons = sh("grep -c netfilter_reason /dev/null || true; uname -r");
        let destination = udp("198.51.100.1", 53);
        match agent
            .source
            .programs()
            .iter()
            .find(|program| program.row.name == "ct_no_port")
            .map(|p| p.attached.clone())
        {
            Some(Ok(())) => assert_eq!(agent.no_port(destination), 4),
            // Kernels before 5.18 do not say why they drop a packet.
            Some(Err(why)) => {
                assert!(why.as_str().contains("since Linux 5.18") && reasons.contains("5.10."), "{why} {reasons}");
            }
            None => panic!("the program is not listed"),
        }
        // A packet that a rule drops is not one that found no port.
        sh("iptables -w -A FORWARD -p udp --dport 99 -j DROP");
        sockets.first().unwrap().send_to(b"x", "198.51.100.1:99").unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        agent.look();
        assert_eq!(agent.no_port(udp("198.51.100.1", 99)), 0);
    });
}

/// Exercises a firewall that sees packets after their source was translated. If this fails, its drops are a critical want of ports.
#[test]
fn what_a_rule_drops_behind_the_translation_is_no_want_of_ports() {
    on_a_node(|node| {
        sh("nft 'add table ip behind
                 add chain ip behind after { type filter hook postrouting priority 300; }
                 add rule ip behind after udp dport 7800 drop'");
        let mut agent = Agent::start(OPTIONS);
        let mut table = ConntrackUseSource::new(&HostRoot::live());
        let mut look = |agent: &mut Agent| {
            std::thread::sleep(Duration::from_millis(1100));
            agent.look();
            table.observe(&mut |observation| agent.ledger.apply(observation));
        };
        look(&mut agent);
        for _ in 0..50 {
            node.pod_socket().send_to(b"x", "198.51.100.1:7800").unwrap();
        }
        look(&mut agent);
        look(&mut agent);
        assert_eq!(agent.live(udp("198.51.100.1", 7800)), 0);
        let report = evaluate(&agent.ledger, &mut Memory::default(), &Policy::default(), clock::now());
        let of_rules = |found: &&Finding| found.id == FindingId::ConntrackInsertFailed;
        let found: Vec<_> = report.findings.iter().filter(of_rules).collect();
        let as_told = |found: &&Finding| {
            found.severity == Severity::Info && found.title.starts_with("a rule behind the translation")
        };
        assert!(found.iter().all(as_told), "{found:#?}");
    });
}

/// Exercises translated ports inside the NodePort range. If this fails, live collisions are not seen.
#[test]
fn ports_translated_into_the_nodeport_range_are_counted() {
    on_a_node(|node| {
        sh("iptables -w -t nat -F POSTROUTING
            iptables -w -t nat -A POSTROUTING -p udp -o out0 -j MASQUERADE --to-ports 30000-30100");
        let mut agent = Agent::start(OPTIONS);
        send(&node.pod_socket(), 0..40);
        agent.expect(40);
        assert_eq!(agent.ledger.conntrack().translated(), (40, 40));
        sh("conntrack -F 2>/dev/null");
        agent.expect(0);
        assert_eq!(agent.ledger.conntrack().translated(), (0, 0));
    });
}

/// Exercises the filter on events. If this fails, every TCP connection costs the agent two messages for nothing, or UDP is lost.
#[test]
fn events_of_tcp_are_left_out_where_tcp_is_counted() {
    on_a_node(|node: &Node| {
        let mut agent = Agent::start(Options { tcp_is_counted: true, max_keys: 0, ..OPTIONS });
        let _connections = node.connect(10);
        send(&node.pod_socket(), 0..10);
        sh("ip addr add fd00::1/64 dev lo; ip6tables -w -A INPUT -m conntrack --ctstate NEW -j ACCEPT
            python3 -c \"import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.sendto(b'x', ('fd00::1', 9))\"");
        // What came as an event; dumps, in their brackets, show everything.
        let (mut heard, mut in_dump) = (Vec::new(), false);
        let until = Instant::now() + Duration::from_secs(15);
        while heard.len() < 11 && Instant::now() < until {
            agent.source.observe(&mut |observation| match observation.fact {
                Fact::Begin(_) => in_dump = true,
                Fact::End { .. } => in_dump = false,
                Fact::Flow(entry) if !in_dump => heard.push(entry.key.protocol),
                _ => {}
            });
        }
        assert_eq!(heard, [Protocol::UDP; 11]);
        assert_eq!(entries(), 21);
    });
}

/// Exercises a node with so many connections that hearing of each costs too much. If this fails, the agent slows the node down,
/// or never listens again.
#[test]
fn events_are_left_alone_while_very_many_connections_close() {
    on_a_node(|node: &Node| {
        // 600 connections in TIME_WAIT, which the kernel would keep for a second.
        sh("echo 1 > /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait
            for port in $(seq 1 600); do
                conntrack -I -p tcp --src 1.2.3.4 --dst 5.6.7.8 --sport $port --dport 4 --state TIME_WAIT -t 100 \\
                    -u ASSURED,SEEN_REPLY >/dev/null 2>&1
            done");
        let often = Duration::from_millis(200);
        let mut agent = Agent::start(Options { tcp_is_counted: true, max_keys: 0, dump_interval: often, ..OPTIONS });
        agent.until("only dumps", |agent| agent.coverage.contains("as of the last dump"));
        sh("conntrack -F 2>/dev/null");
        send(&node.pod_socket(), 0..10);
        agent.expect(10);
        agent.until("events again", |agent| agent.coverage.contains("NEW/DESTROY"));
        send(&node.pod_socket(), 20..30);
        agent.expect(20);
    });
}

/// Exercises another namespace's conntrack. If this fails, pods with conntrack of their own are counted twice.
#[test]
fn entries_of_other_namespaces_do_not_count() {
    on_a_node(|node: &Node| {
        node.track_in_the_pod();
        let mut agent = Agent::start(OPTIONS);
        send(&node.pod_socket(), 0..25);
        agent.expect(25);
    });
}

/// Exercises keys that stand still. If this fails, the map fills up for good and later destinations are not counted.
#[test]
fn a_nearly_full_map_gives_room_to_new_destinations() {
    on_a_node(|node: &Node| {
        let mut agent = Agent::start(Options { max_keys: 512, ..OPTIONS });
        if !agent.counts() {
            // Events need no room in the kernel.
            send(&node.pod_socket(), 0..300);
            return agent.expect(300);
        }
        let socket = node.pod_socket();
        for round in 0..20 {
            send(&socket, round * 30..(round + 1) * 30);
            // On a slow machine the first ones have timed out by now.
            agent.until("what the table has", |agent| agent.ledger.conntrack().live() == entries());
            // Two readings further it is known which keys stand still.
            for _ in 0..2 {
                std::thread::sleep(Duration::from_millis(1100));
                agent.look();
            }
        }
        sh("conntrack -F 2>/dev/null");
        agent.expect(0);
        assert_eq!(agent.lost.get(&Loss::ConntrackMapFull).copied().unwrap_or(0), 0);
    });
}

/// Exercises a map that is too small. If this fails, opens that nobody attributes are hidden, or ends and the NodePort range are taken
/// for opens.
#[test]
fn a_full_map_says_how_many_opens_found_no_room() {
    on_a_node(|node: &Node| {
        sh("iptables -w -t nat -F POSTROUTING
            iptables -w -t nat -A POSTROUTING -p udp -o out0 -j MASQUERADE --to-ports 30000-30100
            echo 900 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout");
        let mut agent = Agent::start(Options { max_keys: 4, dump_interval: Duration::from_millis(200), ..OPTIONS });
        if !agent.counts() {
            return;
        }
        let lost = |agent: &Agent, what| agent.lost.get(&what).copied().unwrap_or(0);
        let opens = |agent: &Agent| lost(agent, Loss::ConntrackMapFull);
        send(&node.pod_socket(), 0..40);
        agent.until("36 opens without room", |agent| opens(agent) == 36);
        assert_eq!(lost(&agent, Loss::ConntrackMapFullEnds), 0);
        // The table has them.
        agent.expect(40);
        sh("conntrack -F 2>/dev/null");
        agent.until("their ends", |agent| lost(agent, Loss::ConntrackMapFullEnds) > 0);
        assert_eq!(opens(&agent), 36);
        agent.expect(0);
    });
}

/// Exercises a burst of new flows with a receive buffer that holds a few hundred of them. If this fails, a node where events are
/// lost shows fewer flows than it has until the next regular dump, or hides that it lost any.
#[test]
fn a_burst_that_overruns_a_small_buffer_is_repaired_by_one_dump() {
    const FLOWS: u32 = 100_000;
    const AT_MOST: u32 = 200_000;
    on_a_node(|node: &Node| {
        // No entry leaves on a slow machine.
        sh("echo 900 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout");
        let mut agent =
            Agent::start(Options { tcp_is_counted: true, max_keys: 0, event_buffer_bytes: 128 << 10, ..OPTIONS });
        let socket = node.pod_socket();
        let (began, mut sent) = (Instant::now(), 0);
        std::thread::scope(|scope| {
            let burst = scope.spawn(|| {
                while sent < FLOWS || (began.elapsed() < Duration::from_secs(1) && sent < AT_MOST) {
                    send(&socket, sent..sent + 1000);
                    sent += 1000;
                }
                began.elapsed()
            });
            while !burst.is_finished() {
                std::thread::sleep(Duration::from_millis(100));
                agent.look();
            }
            println!("sending took {:?}", burst.join().unwrap());
        });
        let (kernel, dumps) = (entries(), agent.dumps);
        assert!(kernel >= u64::from(FLOWS), "{kernel} entries");
        agent.until("a dump", |agent| agent.dumps > dumps);
        println!("{sent} flows, {} dumps meanwhile, lost {:?}", dumps, agent.lost);
        assert_eq!(agent.ledger.conntrack().live(), kernel);
        assert_eq!(agent.ledger.conntrack().live(), entries());
        let report = evaluate(&agent.ledger, &mut Memory::default(), &Policy::default(), clock::now());
        assert!(report.lost.get("conntrack_overrun").is_some_and(|lost| *lost > 0), "{:?}", report.lost);
    });
}
