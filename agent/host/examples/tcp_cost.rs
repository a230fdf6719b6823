//! What a TCP connection costs in the kernel, beside a one-line bpftrace map count on the same events.
//!
//! `unshare -m sh -c 'mount -t tracefs none /sys/kernel/tracing; cargo run --release --example tcp_cost'`
//!
//! Needs root, `ip` and bpftrace. Rounds of connections over loopback in a network namespace of its own, with both programs
//! attached, so that both see the same events. The kernel counts the time of each (`BPF_ENABLE_STATS`), without the dispatch.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement for developers")]

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use headroom_core::flow::Endpoint;
use headroom_core::observe::Fact;
use headroom_host::root::HostRoot;
use headroom_host::source::Source as _;
use headroom_host::source::tcp::TcpSource;

const PEER: &str = "tracepoint:sock:inet_sock_set_state { @[args->newstate, args->dport] = count(); }";
const ROUNDS: u32 = 6;
const CONNECTIONS: u32 = 20_000;
/// How many addresses are dialled.
const DESTINATIONS: u32 = 100;

/// What the programs of a process cost so far.
#[derive(Clone, Copy, Default)]
struct Spent {
    runs: u64,
    nanos: u64,
    missed: u64,
}

impl Spent {
    /// Sums up the programs that a process holds.
    fn of(pid: u32) -> Self {
        let mut sum = Self::default();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap() {
            let Ok(text) = std::fs::read_to_string(entry.unwrap().path()) else { continue };
            let number = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.and_then(|number| number.trim().parse::<u64>().ok())
            };
            if let (Some(runs), Some(nanos)) = (number("run_cnt"), number("run_time_ns")) {
                sum.runs += runs;
                sum.nanos += nanos;
                sum.missed += number("recursion_misses").unwrap_or(0);
            }
        }
        sum
    }

    fn since(self, before: Self) -> Self {
        Self { runs: self.runs - before.runs, nanos: self.nanos - before.nanos, missed: self.missed - before.missed }
    }

    fn each(self) -> f64 {
        self.nanos as f64 / self.runs.max(1) as f64
    }
}

/// bpftrace, until dropped.
struct Peer(Child);

impl Peer {
    fn start() -> Self {
        let child = Command::new("bpftrace").args(["-e", PEER]).stdout(Stdio::null()).spawn().unwrap();
        let peer = Self(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while Spent::of(peer.0.id()).runs == 0 {
            assert!(Instant::now() < deadline, "bpftrace does not count; is tracefs mounted?");
            drop(TcpStream::connect((Ipv4Addr::LOCALHOST, 1)));
            thread::sleep(Duration::from_millis(50));
        }
        peer
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Connects, and closes from the client's side first.
fn connections(listener: &TcpListener, count: u32) {
    let port = listener.local_addr().unwrap().port();
    for number in 0..count {
        let [.., third, fourth] = (256 + number % DESTINATIONS).to_be_bytes();
        let destination = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, third, fourth)), port);
        let client = TcpStream::connect(destination).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        drop(client);
        server.read_exact(&mut [0]).unwrap_err();
    }
}

fn measure() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535").unwrap();
    let _stats = aya::sys::enable_stats(aya::sys::Stats::RunTime).unwrap();
    let begun = Instant::now();
    let mut source = TcpSource::start(&HostRoot::live(), 65_536);
    println!("loaded and attached in {:?}", begun.elapsed());
    for program in source.programs() {
        assert_eq!(program.attached, Ok(()), "{}", program.row.name);
    }
    let peer = Peer::start();
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    connections(&listener, 1000);
    let (mut ours, mut theirs) = (Spent::default(), Spent::default());
    for round in 1..=ROUNDS {
        let before = (Spent::of(std::process::id()), Spent::of(peer.0.id()));
        connections(&listener, CONNECTIONS);
        let one = Spent::of(std::process::id()).since(before.0);
        let other = Spent::of(peer.0.id()).since(before.1);
        println!(
            "round {round}: {CONNECTIONS} connections, headroom {} events of {:.0} ns, bpftrace {} events of {:.0} ns: {:.3}",
            one.runs,
            one.each(),
            other.runs,
            other.each(),
            one.nanos as f64 / other.nanos as f64
        );
        ours.nanos += one.nanos;
        theirs.nanos += other.nanos;
        ours.missed += one.missed;
        theirs.missed += other.missed;
    }
    let connections = f64::from(ROUNDS * CONNECTIONS);
    println!(
        "per connection: headroom {:.0} ns, bpftrace {:.0} ns: {:.3}",
        ours.nanos as f64 / connections,
        theirs.nanos as f64 / connections,
        ours.nanos as f64 / theirs.nanos as f64
    );
    // The last close is a softirq away.
    let port = listener.local_addr().unwrap().port();
    let expected = u64::from(ROUNDS * CONNECTIONS + 1000);
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut ended = 0;
    while ended < expected && Instant::now() < deadline {
        ended = 0;
        source.observe(&mut |observation| {
            if let Fact::TcpCounter(counter) = observation.fact
                && counter.destination.port == port
            {
                ended += counter.closed + counter.reset;
            }
        });
    }
    println!("{} of {expected} closes were counted", ended);
    reading(&mut source);
    println!("missed: headroom {}, bpftrace {}", ours.missed, theirs.missed);
    // Also before the first round.
    let missed = Spent::of(std::process::id()).missed;
    assert!(expected - ended <= missed, "closes were lost, and only {missed} events missed");
}

/// What a round of reading takes with 50,000 pairs.
fn reading(source: &mut TcpSource) {
    let address = |number: u32| IpAddr::from(Ipv4Addr::from(0xcb00_0000 + number));
    source.seed((0..50_000).map(|number| (Endpoint::new(address(number), 443), IpAddr::V4(Ipv4Addr::LOCALHOST))));
    let rounds = 20;
    let mut read = 0_u32;
    source.observe(&mut |_| {});
    let begun = Instant::now();
    for _ in 0..rounds {
        source.observe(&mut |observation| read += u32::from(matches!(observation.fact, Fact::TcpCounter(_))));
    }
    let took = begun.elapsed() / rounds;
    println!("{} pairs read in {took:?}, {:?} each", read / rounds, took / (read / rounds));
}

fn main() {
    thread::spawn(measure).join().unwrap();
}
