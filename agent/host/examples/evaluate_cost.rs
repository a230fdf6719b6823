//! What an evaluation costs on a large node: `cargo xtask bench evaluate`, which writes the result down.
//!
//! 50,000 destinations and 200 pods; prints Markdown. Each scene has a process of its own, so that its memory is what it takes.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement for developers")]

use std::hint::black_box;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use headroom_core::flow::{Destination, Endpoint, Protocol};
use headroom_core::ids::{ContainerId, PodName};
use headroom_core::known::Known;
use headroom_core::ledger::{Ledger, LedgerLimits};
use headroom_core::model::nat::{Basis, NatSettings, Profile};
use headroom_core::model::policy::Policy;
use headroom_core::model::{Memory, evaluate};
use headroom_core::observe::{
    ConntrackEntry, ConntrackTcpState, CoverageDetail, Fact, FlowKey, Observation, Outcome, Sandbox, Snapshot,
    SourceId, TcpCounter,
};
use headroom_core::time::{NodeTime, Now, WallTime};

const DESTINATIONS: u32 = 50_000;
const PODS: u32 = 200;
/// Pairs of destination and source that the kernel's maps have room for.
const PAIRS: u32 = 65_536;
const EVALUATIONS: usize = 50;

/// What a node is made of.
#[derive(Clone, Copy)]
struct Scene {
    name: &'static str,
    /// Pairs counted by the TCP counters.
    tcp: u32,
    /// Pairs in the conntrack table, with two flows each.
    conntrack: u32,
}

const SCENES: [Scene; 3] = [
    Scene { name: "TCP, counted in the kernel", tcp: PAIRS, conntrack: 0 },
    Scene { name: "half TCP, half UDP; conntrack sees both", tcp: PAIRS / 2, conntrack: PAIRS },
    Scene { name: "conntrack alone", tcp: 0, conntrack: PAIRS },
];

/// Every pod, one of them for most destinations; the first 78 destinations are dialled by all 200.
fn pair(number: u32) -> (Destination, IpAddr) {
    let crowded = (PAIRS - DESTINATIONS) / (PODS - 1);
    let (destination, pod) = match number.checked_sub(crowded * PODS) {
        None => (number / PODS, number % PODS),
        Some(rest) => ((crowded + rest) % DESTINATIONS, rest % PODS),
    };
    let [_, second, third, fourth] = (0xcb_00_00_00 + destination).to_be_bytes();
    let protocol = if number.is_multiple_of(2) { Protocol::TCP } else { Protocol::UDP };
    let endpoint = Endpoint::new(IpAddr::from([203, second, third, fourth]), 443);
    (Destination { protocol, endpoint }, address(pod))
}

fn address(pod: u32) -> IpAddr {
    IpAddr::from([10, 64, 0, u8::try_from(pod + 2).unwrap()])
}

fn observation(source: SourceId, fact: Fact) -> Observation {
    Observation { at: NodeTime::from_secs(10_000), source, fact }
}

fn fill(ledger: &mut Ledger, scene: Scene) {
    let mut put = |source, fact| ledger.apply(observation(source, fact));
    let works = || {
        Fact::Coverage(Known::Present(CoverageDetail { how: "made up".to_owned(), degraded: None, as_of_dump: false }))
    };
    let end = |snapshot| Fact::End { snapshot, outcome: Outcome::Complete };
    put(SourceId::Cri, works());
    put(SourceId::Cri, Fact::Begin(Snapshot::Runtime));
    for pod in 0..PODS {
        put(
            SourceId::Cri,
            Fact::Sandbox(Sandbox {
                id: ContainerId(format!("{pod:064x}")),
                pod: PodName { namespace: "shop".to_owned(), name: format!("checkout-7d9f6c5b8-{pod:05}") },
                uid: format!("{pod:032x}"),
                ready: true,
                host_network: false,
                addresses: Known::Present(vec![address(pod)]),
            }),
        );
    }
    put(SourceId::Cri, end(Snapshot::Runtime));
    if scene.tcp > 0 {
        put(SourceId::Tcp, works());
        for round in 1..=4_u64 {
            put(SourceId::Tcp, Fact::Begin(Snapshot::TcpCounters));
            for (destination, source) in (0..scene.tcp).map(|number| pair(number * (PAIRS / scene.tcp.max(1)))) {
                put(SourceId::Tcp, Fact::TcpCounter(counter(destination.endpoint, source, round)));
            }
            put(SourceId::Tcp, end(Snapshot::TcpCounters));
        }
    }
    if scene.conntrack > 0 {
        put(SourceId::Conntrack, works());
        put(SourceId::Conntrack, Fact::Begin(Snapshot::Conntrack));
        for number in 0..scene.conntrack {
            for port in [40_000, 40_001] {
                put(SourceId::Conntrack, Fact::Flow(entry(number, port)));
            }
        }
        put(SourceId::Conntrack, end(Snapshot::Conntrack));
    }
}

fn counter(destination: Endpoint, source: IpAddr, round: u64) -> TcpCounter {
    let zero = TcpCounter::zero(destination, source);
    TcpCounter { attempted: 2 * round, opened: 2 * round, closed: round, ..zero }
}

fn entry(number: u32, port: u16) -> ConntrackEntry {
    let (destination, source) = pair(number);
    let source = Endpoint::new(source, port);
    let tcp = destination.protocol == Protocol::TCP;
    ConntrackEntry {
        key: FlowKey { protocol: destination.protocol, zone: 0, source, dialled: destination.endpoint },
        id: number * 2 + u32::from(port),
        destination: destination.endpoint,
        translated: Endpoint::new(IpAddr::from([10, 0, 0, 2]), port),
        replied: true,
        assured: true,
        tcp: tcp.then_some(ConntrackTcpState::Established),
        remaining_secs: Some(if tcp { 431_990 } else { 110 }),
    }
}

/// Resident memory of this process: now and at most, in KiB.
fn resident() -> (u64, u64) {
    let status = procfs::process::Process::myself().unwrap().status().unwrap();
    (status.vmrss.unwrap(), status.vmhwm.unwrap())
}

fn measure(scene: Scene) {
    let policy = Policy { nat: Some(NatSettings::of(Profile::Gcp, Basis::Configured)), ..Policy::default() };
    let (before, _) = resident();
    let mut ledger = Ledger::new(LedgerLimits::default());
    fill(&mut ledger, scene);
    let (filled, _) = resident();
    let mut memory = Memory::default();
    let mut times: Vec<Duration> = (10_001_u64..)
        .take(EVALUATIONS)
        .map(|second| {
            let now = Now { node: NodeTime::from_secs(second), wall: WallTime::from_secs(1_800_000_000) };
            let begun = Instant::now();
            let report = black_box(evaluate(&ledger, &mut memory, &policy, now));
            let took = begun.elapsed();
            let weighed = report.nat.destinations.len() as u64 + report.nat.omitted.destinations;
            assert!(weighed >= u64::from(DESTINATIONS) / 2, "{weighed} destinations were weighed");
            took
        })
        .collect();
    let (_, most) = resident();
    times.sort_unstable();
    let millis = |index: usize| times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1000.0);
    println!(
        "| {} | {} | {:.1} ({:.1}–{:.1}) | {:.1} | {:.1} |",
        scene.name,
        scene.tcp.max(scene.conntrack),
        millis(times.len() / 2),
        millis(0),
        millis(times.len() - 1),
        mib(filled - before),
        mib(most)
    );
}

fn main() {
    if let Some(scene) = std::env::args().nth(1).and_then(|number| SCENES.get(number.parse::<usize>().ok()?)) {
        measure(*scene);
        return;
    }
    println!(
        "| {DESTINATIONS} destinations, {PODS} pods | pairs | one evaluation, ms | ledger, MiB | whole process at most, MiB |"
    );
    println!("|---|---|---|---|---|");
    for number in 0..SCENES.len() {
        let status = Command::new(std::env::current_exe().unwrap()).arg(number.to_string()).status().unwrap();
        assert!(status.success(), "scene {number}: {status}");
    }
}

fn mib(kib: u64) -> f64 {
    f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0
}
