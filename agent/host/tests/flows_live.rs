//! Flows against a real kernel: what `conntrack` shows, headroom shows. Needs root and conntrack-tools.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use headroom_core::ids::NetnsInode;
use headroom_core::observe::{
    ConntrackEntry, ConntrackTcpState, Fact, FlowKey, Loss, Observation, Outcome, Snapshot, Socket, SocketState,
};
use headroom_host::netlink::conntrack_stats;
use headroom_host::root::HostRoot;
use headroom_host::source::Source;
use headroom_host::source::conntrack::{ConntrackSource, Options, table};
use headroom_host::source::conntrack_use::{ConntrackUseSource, parse_stats};
use headroom_host::source::sockets::SocketsSource;

#[path = "flows_live/counted.rs"]
mod counted;
#[path = "flows_live/network.rs"]
mod network;

use network::{on_a_node, send, sh};

/// The simplest ledger that could work.
#[derive(Default)]
struct Table {
    entries: BTreeMap<(FlowKey, u32), ConntrackEntry>,
    bracket: Option<BTreeMap<(FlowKey, u32), ConntrackEntry>>,
    dumps: usize,
    began: usize,
    ended: usize,
    lost: u64,
    coverage: String,
}

impl Table {
    fn apply(&mut self, observation: Observation) {
        match observation.fact {
            Fact::Begin(Snapshot::Conntrack) => self.bracket = Some(BTreeMap::new()),
            Fact::End { snapshot: Snapshot::Conntrack, outcome } => {
                assert_eq!(outcome, Outcome::Complete);
                self.entries = self.bracket.take().unwrap();
                self.dumps += 1;
            }
            Fact::Flow(entry) => match &mut self.bracket {
                Some(bracket) => {
                    bracket.insert((entry.key, entry.id), entry);
                }
                None => {
                    self.began += 1;
                    self.entries.insert((entry.key, entry.id), entry);
                }
            },
            Fact::FlowEnded(entry) => {
                self.ended += 1;
                self.entries.remove(&(entry.key, entry.id));
            }
            Fact::Lost { what: Loss::ConntrackOverrun, total } => self.lost = total,
            Fact::Coverage(coverage) => self.coverage = format!("{coverage:?}"),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn observe(&mut self, source: &mut ConntrackSource) {
        source.observe(&mut |observation| self.apply(observation));
    }

    /// The same flows with the same ids as `conntrack -L` shows now.
    fn assert_same_as_conntrack(&self) {
        let shown = conntrack_shows();
        let missed: Vec<_> = shown.keys().filter(|key| !self.entries.contains_key(key)).collect();
        let left_over: Vec<_> = self.entries.keys().filter(|key| !shown.contains_key(key)).collect();
        let (some_missed, some_left) = (missed.first(), left_over.first());
        assert!(missed.is_empty(), "{} missed, one is {some_missed:?}", missed.len());
        assert!(left_over.is_empty(), "{} left over, one is {some_left:?}", left_over.len());
    }
}

/// What `conntrack -L` shows of the calling thread's namespace.
fn conntrack_shows() -> BTreeMap<(FlowKey, u32), ConntrackEntry> {
    let text = sh("conntrack -L -f ipv4 -o extended,id; conntrack -L -f ipv6 -o extended,id");
    let entry = |line: &str| {
        let (line, id) = line.rsplit_once(" id=").unwrap();
        let entry = table::parse_line(line.as_bytes()).unwrap_or_else(|| panic!("not understood: {line}"));
        let id = id.trim().parse().unwrap();
        ((entry.key, id), ConntrackEntry { id, ..entry })
    };
    text.lines().map(entry).collect()
}

/// Seconds pass between two readings.
fn without_time(entry: &ConntrackEntry) -> ConntrackEntry {
    ConntrackEntry { remaining_secs: None, ..*entry }
}

fn start(interval: Duration) -> ConntrackSource {
    ConntrackSource::start(&HostRoot::live(), Options::events(interval))
}

/// Exercises the decoder on entries of every protocol, translated and not. If this fails, flows are misread.
#[test]
fn a_dump_is_what_conntrack_shows() {
    on_a_node(|node| {
        let connections = node.connect(50);
        node.send_from_both_pods("198.51.100.1:53".parse().unwrap());
        sh("conntrack -I -p icmp --src 1.2.3.4 --dst 5.6.7.8 --icmp-type 8 --icmp-code 0 --icmp-id 77 -t 100
            conntrack -I -p icmpv6 --src fe80::1 --dst fe80::2 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 78 -t 100
            conntrack -I -p sctp --src 1.2.3.4 --dst 5.6.7.8 --sport 3 --dport 4 --state ESTABLISHED --orig-vtag 1 --reply-vtag 2 -t 100
            conntrack -I -p dccp --src 1.2.3.4 --dst 5.6.7.8 --sport 3 --dport 4 --state OPEN --role client -t 100 || true
            conntrack -I -p gre --src 1.2.3.4 --dst 5.6.7.8 --srckey 3 --dstkey 4 -t 100
            conntrack -I -p tcp --src 1.2.3.4 --dst 5.6.7.8 --sport 3 --dport 4 --state TIME_WAIT -t 100 -u ASSURED,SEEN_REPLY -w 5
            conntrack -I -p tcp --src fe80::1 --dst fe80::2 --sport 3 --dport 4 --state LAST_ACK -t 100");
        let mut source = start(Duration::ZERO);
        let mut seen = Table::default();
        seen.observe(&mut source);
        let shown = conntrack_shows();
        assert_eq!(seen.dumps, 1);
        assert!(shown.len() >= 58, "{shown:#?}");
        let plain = |entries: &BTreeMap<_, ConntrackEntry>| entries.values().map(without_time).collect::<Vec<_>>();
        assert_eq!(plain(&seen.entries), plain(&shown));
        for (key, entry) in &seen.entries {
            let (here, there) = (entry.remaining_secs.unwrap(), shown[key].remaining_secs.unwrap());
            assert!(here.abs_diff(there) < 10, "{entry:?} {there}");
        }
        // The same entries from the file that stands in for netlink, which knows no ids.
        let file = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
        let mut from_file: Vec<_> =
            file.lines().map(|line| without_time(&table::parse_line(line.as_bytes()).unwrap())).collect();
        from_file.sort_by_key(|entry| entry.key);
        let without_id = |entry: &ConntrackEntry| ConntrackEntry { id: 0, ..without_time(entry) };
        assert_eq!(from_file, seen.entries.values().map(without_id).collect::<Vec<_>>());
        // The two that left from the same port of two pods have different ports outside.
        let mut outside: Vec<u16> =
            seen.entries.values().filter(|e| e.key.source.port == 40000).map(|e| e.translated.port).collect();
        outside.dedup();
        assert_eq!(outside.len(), 2);
        assert!(outside.contains(&40000));
        let https = |e: &&ConntrackEntry| e.destination.port == 443 && e.tcp == Some(ConntrackTcpState::Established);
        assert_eq!(seen.entries.values().filter(https).count(), connections.len());
        assert!(seen.coverage.contains("dump and NEW/DESTROY events"), "{}", seen.coverage);
        assert!(seen.coverage.contains("degraded: None"), "{}", seen.coverage);
    });
}

/// Exercises the event socket. If this fails, flows between two dumps are missed.
#[test]
fn new_and_ended_flows_are_events_with_the_same_id() {
    on_a_node(|node| {
        let mut source = start(Duration::from_secs(3600));
        let mut seen = Table::default();
        seen.observe(&mut source);
        let _connections = node.connect(20);
        seen.observe(&mut source);
        assert_eq!((seen.dumps, seen.began, seen.ended), (1, 20, 0));
        seen.assert_same_as_conntrack();
        sh("conntrack -D -p tcp --dport 443");
        seen.observe(&mut source);
        assert_eq!((seen.dumps, seen.ended, seen.entries.len()), (1, 20, 0));
    });
}

/// Exercises dumps and events together under change. If this fails, flows are missed or stay for ever.
#[test]
fn nothing_is_missed_between_dumps_and_events_while_flows_come_and_go() {
    on_a_node(|node| {
        let socket = node.pod_socket();
        let mut source = start(Duration::ZERO);
        let mut seen = Table::default();
        seen.observe(&mut source);
        let (done, dumps, mut sent) = (AtomicBool::new(false), AtomicUsize::new(0), 0);
        std::thread::scope(|scope| {
            // These threads inherit the node's namespace; the socket belongs to the pod's.
            scope.spawn(|| {
                for round in 0..600 {
                    send(&socket, round * 1000..(round + 1) * 1000);
                    sent += 1000;
                    std::thread::sleep(Duration::from_millis(60));
                    if sent >= 30_000 && dumps.load(Ordering::Acquire) >= 5 {
                        break;
                    }
                }
                done.store(true, Ordering::Release);
            });
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    sh("conntrack -F");
                    std::thread::sleep(Duration::from_millis(300));
                }
            });
            while !done.load(Ordering::Acquire) {
                seen.observe(&mut source);
                dumps.store(seen.dumps, Ordering::Release);
            }
        });
        send(&socket, 700_000..701_000);
        seen.observe(&mut source);
        assert!(seen.dumps >= 5 && seen.ended >= 10_000, "{} {}", seen.dumps, seen.ended);
        assert_eq!(seen.began, sent + 1000);
        assert_eq!(seen.lost, 0);
        seen.assert_same_as_conntrack();
        println!("{} dumps, {} new, {} ended, {} left", seen.dumps, seen.began, seen.ended, seen.entries.len());
    });
}

/// Exercises an overrun of the event queue. If this fails, lost events go unnoticed and the picture stays wrong.
#[test]
fn lost_events_are_told_and_repaired_by_a_dump() {
    on_a_node(|node| {
        let socket = node.pod_socket();
        let mut source = start(Duration::from_secs(3600));
        let mut seen = Table::default();
        seen.observe(&mut source);
        // More than the queue holds; half of them are gone before anybody looks.
        send(&socket, 0..120_000);
        sh("conntrack -F");
        send(&socket, 120_000..130_000);
        let begun = Instant::now();
        seen.observe(&mut source);
        println!("lost {}, read {} + {}, {:?}", seen.lost, seen.began, seen.ended, begun.elapsed());
        assert!(seen.lost > 1000, "{}", seen.lost);
        assert!(seen.dumps >= 2);
        seen.assert_same_as_conntrack();
    });
}

/// Exercises the socket tables. If this fails, flows that existed before start are not seen where conntrack is missing.
#[test]
fn sockets_of_every_namespace_are_seen_and_accepted_ones_marked() {
    on_a_node(|node| {
        let mut connections = node.connect(30);
        // Closed by the pod first: TIME_WAIT is on its side.
        for (pod, outside) in connections.drain(..10) {
            drop(pod);
            std::thread::sleep(Duration::from_millis(5));
            drop(outside);
        }
        // The other end of these is not closed: the kernel keeps the pod's as TIME_WAIT sockets, shown as FIN_WAIT2.
        let half: Vec<_> = connections.drain(..5).map(|(pod, outside)| (drop(pod), outside)).collect();
        let mut sockets: Vec<Socket> = Vec::new();
        let mut outcome = None;
        SocketsSource::new(&HostRoot::live()).observe(&mut |observation| match observation.fact {
            Fact::Socket(socket) => sockets.push(socket),
            Fact::End { outcome: end, .. } => outcome = Some(end),
            _ => {}
        });
        assert_eq!(outcome, Some(Outcome::Complete));
        let of = |inode: u64| sockets.iter().filter(move |socket| socket.netns == NetnsInode(inode));
        let (pod, outside) = (node.pod_inode(), node.outside_inode());
        assert_eq!(of(pod).filter(|s| s.state == SocketState::Open).count(), 15);
        let waiting: Vec<_> = of(pod)
            .filter_map(|s| {
                if let SocketState::TimeWait { remaining_millis } = s.state { Some(remaining_millis) } else { None }
            })
            .collect();
        assert_eq!(waiting.len(), 10 + half.len());
        assert!(waiting.iter().all(|millis| (50_000..=60_000).contains(millis)), "{waiting:?}");
        assert!(of(pod).all(|s| !s.accepted && s.destination.port == 443));
        // The listener is gone, so nobody can tell any more that these came in.
        assert_eq!(of(outside).filter(|s| s.state == SocketState::Open).count(), 15 + half.len());
        // A dual-stack listener marks the IPv4 connections it accepted.
        let listener = std::net::TcpListener::bind("[::]:8443").unwrap();
        let dialled = std::net::TcpStream::connect("127.0.0.1:8443").unwrap();
        let accepted = listener.accept().unwrap().0;
        let mut found = Vec::new();
        SocketsSource::new(&HostRoot::live()).observe(&mut |observation| match observation.fact {
            Fact::Socket(socket) if [socket.source.port, socket.destination.port].contains(&8443) => found.push(socket),
            _ => {}
        });
        found.sort_by_key(|socket| socket.accepted);
        assert_eq!(found.iter().map(|socket| socket.accepted).collect::<Vec<_>>(), [false, true]);
        assert_eq!(found[0].source.port, dialled.local_addr().unwrap().port());
        assert_eq!(found[1].destination.port, accepted.peer_addr().unwrap().port());
    });
}

/// Exercises the sysctls of the calling thread's namespace. If this fails, a full table is not seen.
#[test]
fn the_size_of_the_table_is_what_conntrack_counts() {
    on_a_node(|node| {
        let _connections = node.connect(7);
        let mut facts = Vec::new();
        ConntrackUseSource::new(&HostRoot::live()).observe(&mut |observation| facts.push(observation.fact));
        let [Fact::ConntrackUse(usage), Fact::ConntrackTimeouts(timeouts), Fact::Coverage(coverage)] = facts.as_slice()
        else {
            panic!("{facts:?}")
        };
        assert_eq!(usage.entries.present(), Some(&7));
        assert!(*usage.max.present().unwrap() > 1000);
        assert_eq!(timeouts.tcp_close, 10);
        let coverage = coverage.present().unwrap();
        assert_eq!(coverage.degraded, None);
        assert!(coverage.how.contains("netlink"), "{}", coverage.how);
        // What netlink says is what /proc says, CPU by CPU, where the kernel has both.
        let netlink = conntrack_stats::of_cpus().unwrap();
        if let Ok(text) = std::fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack") {
            assert_eq!(netlink, parse_stats(&text).unwrap());
        }
        assert_eq!(conntrack_stats::of_table().unwrap().entries, Some(7));
        assert_eq!(usage.stats.present().map(|stats| stats.drop), Some(netlink.iter().map(|cpu| cpu.stats.drop).sum()));
    });
}
