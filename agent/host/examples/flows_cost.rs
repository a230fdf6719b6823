//! What reading conntrack costs, beside `conntrack -L` on the same table: `cargo run --release --example flows_cost`.
//!
//! Needs root and conntrack-tools; works in network namespaces of its own.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement for developers")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use headroom_core::observe::Fact;
use headroom_host::root::HostRoot;
use headroom_host::source::Source;
use headroom_host::source::conntrack::{ConntrackSource, Options};
use headroom_host::source::sockets::SocketsSource;

#[path = "../tests/flows_live/network.rs"]
#[expect(dead_code, reason = "shared with the tests, which need more of it")]
mod network;

use network::{Node, on_a_node, send, sh};

const ENTRIES: u32 = 200_000;
const DUMPS: u32 = 10;

/// User and system time of this process (all threads), in milliseconds; the kernel counts in steps of 10 ms.
fn cpu_millis() -> (u64, u64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let mut words = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().skip(11);
    let mut next = || words.next().unwrap().parse::<u64>().unwrap() * 10;
    (next(), next())
}

fn measured<T>(what: &str, per: u32, unit: &str, work: impl FnOnce() -> T) -> T {
    let (user, system) = cpu_millis();
    let begun = Instant::now();
    let result = work();
    let wall = begun.elapsed();
    let (user_after, system_after) = cpu_millis();
    let each = |millis: u64| Duration::from_millis(millis) / per;
    println!(
        "{what}: per {unit} user {:?} system {:?} wall {:?}",
        each(user_after - user),
        each(system_after - system),
        wall / per
    );
    result
}

fn count(source: &mut ConntrackSource) -> usize {
    let mut flows = 0;
    source.observe(&mut |observation| {
        flows += usize::from(matches!(black_box(observation).fact, Fact::Flow(_) | Fact::FlowEnded(_)));
    });
    flows
}

fn measure(node: &Node) {
    let socket = node.pod_socket();
    send(&socket, 0..ENTRIES);
    println!("{} entries", sh("cat /proc/sys/net/netfilter/nf_conntrack_count").trim());
    println!(
        "conntrack -L: {}",
        sh("bash -c 'TIMEFORMAT=\"user %U system %S wall %R\"; time conntrack -L >/dev/null 2>&1' 2>&1").trim()
    );
    let mut flows = 0;
    measured("headroom, whole table", DUMPS, "dump", || {
        for _dump in 0..DUMPS {
            flows = count(&mut ConntrackSource::start(&HostRoot::live(), Options::events(Duration::ZERO)));
        }
    });
    println!("{flows} flows in the last dump");
    let mut source = ConntrackSource::start(&HostRoot::live(), Options::events(Duration::from_secs(3600)));
    count(&mut source);
    sh("conntrack -F 2>/dev/null");
    let rounds = 20;
    let (mut user, mut system, mut events) = (0, 0, 0);
    for round in 0..rounds {
        send(&socket, round * 10_000..(round + 1) * 10_000);
        let before = cpu_millis();
        events += count(&mut source);
        let after = cpu_millis();
        (user, system) = (user + after.0 - before.0, system + after.1 - before.1);
    }
    println!("{events} events in {rounds} rounds: user {user} ms system {system} ms");
    let mut sockets = SocketsSource::new(&HostRoot::live());
    let mut facts = 0;
    measured("headroom, socket tables", 20, "round", || {
        for _round in 0..20 {
            sockets.observe(&mut |observation| {
                black_box(observation);
                facts += 1;
            });
        }
    });
    println!("{} namespaces", sh("ls -Li /proc/*/ns/net 2>/dev/null | cut -d\" \" -f1 | sort -u | wc -l").trim());
}

fn main() {
    on_a_node(measure);
}
