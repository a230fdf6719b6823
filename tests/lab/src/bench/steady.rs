//! The agent by itself: idle, at a rate, with a big table; and reading that table beside `conntrack -L`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::meter::{self, Spread};
use super::network::Network;
use super::others;
use super::tools::Running;
use super::{Sizes, say, this_binary};

/// How often the agent is asked for its metrics and its report while it is watched.
const SCRAPE: Duration = Duration::from_secs(5);

/// How often each way of reading the table is measured. The kernel's half of it varies by a tenth from one to the next.
const READINGS: usize = 12;

/// How many of the agent's threads are shown.
const THREADS: usize = 3;

/// The agent in one state.
#[derive(Debug, Clone)]
pub(super) struct Agent {
    /// CPU time per time.
    pub(super) cpu_ratio: f64,
    /// The threads that take most, and what of a CPU each.
    pub(super) threads: Vec<(String, f64)>,
    pub(super) resident_bytes: u64,
    pub(super) resident_highest_bytes: u64,
    /// What `/metrics` and `/report.json` answered last.
    pub(super) metrics_bytes: usize,
    pub(super) report_bytes: usize,
}

/// One way to read a table, over its repetitions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) user_ms: Spread,
    pub(super) system_ms: Spread,
    pub(super) wall_ms: Spread,
}

/// All that.
#[derive(Debug, Clone)]
pub(super) struct Steady {
    pub(super) idle: Agent,
    /// Time of its programs for all events of a connection that was accepted, which are not its to count.
    pub(super) accepted_ns: Spread,
    pub(super) at_rate: Agent,
    /// The rate that was reached.
    pub(super) reached_per_sec: f64,
    pub(super) full: Agent,
    /// headroom's dump, `conntrack -L`, and their ratios pair by pair.
    pub(super) dump: Reading,
    pub(super) list: Reading,
    pub(super) user_ratio: Spread,
    pub(super) wall_ratio: Spread,
}

impl Steady {
    pub(super) fn measure(network: &mut Network, headroom: &Path, sizes: &Sizes) -> Result<Self> {
        network.renew()?;
        let long = Duration::from_secs(3600);

        say("the agent, idle");
        let running = Running::headroom(network, headroom)?;
        std::thread::sleep(sizes.settle);
        let idle = watch(&running, sizes.watch)?;
        let accepted_ns = others::accepted_ns(running.pid())?;
        running.stop()?;

        say(&format!("the agent at {} connections/s", sizes.rate));
        network.renew()?;
        // Entries end at the rate at which they begin: the agent hears of both.
        network.remember(Duration::from_secs(10), long)?;
        let running = Running::headroom(network, headroom)?;
        let total = (sizes.settle + sizes.watch).as_secs() + 2;
        let load = network.load_in_background(total * u64::from(sizes.rate), f64::from(sizes.rate))?;
        std::thread::sleep(sizes.settle);
        let at_rate = watch(&running, sizes.watch)?;
        let reached = load.wait(Duration::from_secs(120))?;
        running.stop()?;

        say(&format!("the agent with {} entries, {} destinations", sizes.entries, sizes.destinations));
        network.renew()?;
        network.remember(long, long)?;
        let running = Running::headroom(network, headroom)?;
        network.fill(sizes.entries, sizes.destinations)?;
        std::thread::sleep(sizes.settle);
        let full = watch(&running, sizes.watch)?;
        running.stop()?;

        say(&format!("reading {} entries", sizes.dumped));
        network.renew()?;
        network.fill(sizes.dumped, sizes.destinations)?;
        let (dump, list, user_ratio, wall_ratio) = read_table(network)?;
        network.flush()?;
        let reached_per_sec = meter::float(reached.opened) / reached.elapsed_secs;
        Ok(Self { idle, accepted_ns, at_rate, reached_per_sec, full, dump, list, user_ratio, wall_ratio })
    }
}

/// Watches the agent for a time, asking it for everything now and then as Prometheus and people do.
fn watch(running: &Running, how_long: Duration) -> Result<Agent> {
    let (begun, before) = (Instant::now(), meter::cpu_by_thread(running.pid())?);
    let (mut metrics_bytes, mut report_bytes) = (0, 0);
    while begun.elapsed() < how_long {
        (metrics_bytes, report_bytes) = (running.get("/metrics")?, running.get("/report.json")?);
        std::thread::sleep(SCRAPE.min(how_long.saturating_sub(begun.elapsed())));
    }
    let (took, after) = (begun.elapsed(), meter::cpu_by_thread(running.pid())?);
    let (resident_bytes, resident_highest_bytes) = meter::resident_bytes(running.pid())?;
    let share = |(name, cpu): (String, Duration)| {
        let cpu = cpu.saturating_sub(before.get(&name).copied().unwrap_or_default());
        (name, cpu.as_secs_f64() / took.as_secs_f64())
    };
    let mut threads: Vec<(String, f64)> = after.into_iter().map(share).collect();
    threads.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let cpu_ratio = threads.iter().map(|(_, ratio)| ratio).sum();
    threads.truncate(THREADS);
    Ok(Agent { cpu_ratio, threads, resident_bytes, resident_highest_bytes, metrics_bytes, report_bytes })
}

/// Both ways in turns; what each whole process takes from its start to its end.
fn read_table(network: &Network) -> Result<(Reading, Reading, Spread, Spread)> {
    let lab = this_binary()?;
    let one = |arguments: &[&str]| -> Result<[f64; 3]> {
        let (user, system) = meter::children_cpu()?;
        let begun = Instant::now();
        network.node.exec("sh", &[&["-c", r#"exec "$@" >/dev/null 2>&1"#, "sh"], arguments].concat())?;
        let wall = begun.elapsed();
        let (user_after, system_after) = meter::children_cpu()?;
        let millis = |time: Duration| time.as_secs_f64() * 1000.0;
        Ok([millis(user_after.saturating_sub(user)), millis(system_after.saturating_sub(system)), millis(wall)])
    };
    let (mut dumps, mut lists) = (Vec::new(), Vec::new());
    for round in 0..READINGS {
        if round % 2 == 0 {
            dumps.push(one(&[&lab, "dump"])?);
            lists.push(one(&["conntrack", "-L"])?);
        } else {
            lists.push(one(&["conntrack", "-L"])?);
            dumps.push(one(&[&lab, "dump"])?);
        }
    }
    let spread = |values: Vec<f64>| Spread::of(values).unwrap_or(Spread { median: 0.0, least: 0.0, greatest: 0.0 });
    let reading = |all: &[[f64; 3]]| {
        let column = |at: fn(&[f64; 3]) -> f64| spread(all.iter().map(at).collect());
        Reading { user_ms: column(|it| it[0]), system_ms: column(|it| it[1]), wall_ms: column(|it| it[2]) }
    };
    let ratio =
        |at: fn(&[f64; 3]) -> f64| spread(dumps.iter().zip(&lists).map(|(dump, list)| at(dump) / at(list)).collect());
    Ok((reading(&dumps), reading(&lists), ratio(|it| it[0]), ratio(|it| it[2])))
}
