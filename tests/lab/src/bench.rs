//! What headroom costs a node, beside what others cost that look at the same events: `headroom-lab bench-overhead`.
//!
//! Everything is measured in one run on one machine, in rounds whose order turns, and compared within its round: what a
//! machine does in a second differs from day to day, ratios do so less. The result is Markdown on stdout, misses included.

mod analysis;
mod churn;
mod ipam;
mod meter;
mod network;
mod others;
mod steady;
mod table;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use headroom_host::root::HostRoot;
use headroom_host::source::Source as _;
use headroom_host::source::conntrack::{ConntrackSource, Options};

pub use analysis::{Analysis, Measure};
pub use churn::Churn;

use crate::lab::Lab;
pub use ipam::Ipam;
use meter::Counted;
use network::Network;
use steady::Steady;
use tools::Tool;

/// Measure what headroom costs, beside other tools on the same events; prints Markdown
#[derive(Debug, Clone, clap::Args)]
pub struct Overhead {
    /// The headroom binary to measure
    #[arg(long, env = "HEADROOM_BIN", default_value = "headroom")]
    pub headroom: PathBuf,
    /// A short run, to see whether it works: its numbers mean little
    #[arg(long)]
    pub quick: bool,
    /// How many rounds; medians are reported
    #[arg(long)]
    pub rounds: Option<usize>,
}

/// Read the conntrack table of this network namespace once, as the agent does
#[derive(Debug, Clone, clap::Args)]
pub struct Dump {}

impl Dump {
    /// One dump; prints how many facts it gave.
    #[expect(clippy::print_stdout, reason = "its result")]
    pub fn run(&self) -> Result<ExitCode> {
        let mut facts = 0_u64;
        ConntrackSource::start(&HostRoot::live(), Options::events(Duration::ZERO)).observe(&mut |fact| {
            std::hint::black_box(fact);
            facts += 1;
        });
        println!("{facts}");
        Ok(ExitCode::SUCCESS)
    }
}

/// How much of everything.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    rounds: usize,
    /// Further rounds of nobody and the agent alone: the ratio that has a budget is nearer to 1 than a machine is steady.
    pairs: usize,
    /// Connections of each of those: half a minute, so that what the agent does once a minute has its share.
    pair_connections: u64,
    /// Connections before one measurement of speed: a tool that watches a node has been watching it for long.
    warm_up: u64,
    /// Connections of one measurement of speed.
    connections: u64,
    /// Connections of one measurement of BPF time.
    bpf_connections: u64,
    /// How long a tool has to begin.
    begin: Duration,
    /// How long the agent is watched in one state: what it does now and then, it does once a minute, or more seldom where that
    /// takes long.
    watch: Duration,
    /// How long before that a state has to last: sockets are in TIME_WAIT for a minute.
    settle: Duration,
    /// Connections per second of the rate-limited load.
    rate: u32,
    /// Destinations of the big table: half TCP, half UDP.
    destinations: u32,
    /// Entries of the big table.
    entries: u32,
    /// Entries of the table that is dumped.
    dumped: u32,
}

impl Sizes {
    const FULL: Self = Self {
        rounds: 5,
        pairs: 6,
        pair_connections: 800_000,
        warm_up: 100_000,
        connections: 200_000,
        bpf_connections: 20_000,
        begin: Duration::from_secs(3),
        watch: Duration::from_secs(120),
        settle: Duration::from_secs(60),
        rate: 5_000,
        destinations: 50_000,
        entries: 250_000,
        dumped: 200_000,
    };
    const QUICK: Self = Self {
        rounds: 1,
        pairs: 1,
        pair_connections: 6_000,
        warm_up: 2_000,
        connections: 6_000,
        bpf_connections: 3_000,
        begin: Duration::from_secs(2),
        watch: Duration::from_secs(4),
        settle: Duration::from_secs(4),
        rate: 2_000,
        destinations: 5_000,
        entries: 25_000,
        dumped: 20_000,
    };
}

/// What a tool did to the machine in one round.
#[derive(Debug, Clone, Copy)]
struct Cost {
    per_sec: f64,
    /// Of all processes and interrupts.
    machine_cpu_us: f64,
    /// Of the tool's own process, in user and kernel.
    own_cpu_us: f64,
    /// Runs of its BPF programs, and their time, per connection.
    bpf_runs: f64,
    bpf_ns: f64,
}

/// All rounds of one tool, or why there are none.
struct Row {
    tool: Tool,
    costs: std::result::Result<Vec<Cost>, String>,
}

/// All there is to tell.
struct Results {
    sizes: Sizes,
    /// `None` first.
    rows: Vec<Row>,
    steady: Steady,
}

/// How long the table remembers what has ended while speed is measured: some 25,000 connections come in a second.
const ENDED_FOR: Duration = Duration::from_secs(5);

impl Overhead {
    /// Measures everything, then prints the table.
    #[expect(clippy::print_stdout, reason = "its result")]
    pub fn run(&self) -> Result<ExitCode> {
        let mut sizes = if self.quick { Sizes::QUICK } else { Sizes::FULL };
        sizes.rounds = self.rounds.unwrap_or(sizes.rounds).max(1);
        let lab = Lab::new()?;
        let mut network = Network::build(&lab)?;
        // Entries end while others begin, and never fill the table.
        network.remember(ENDED_FOR, ENDED_FOR)?;
        let rows = self.rounds(&mut network, &sizes)?;
        let steady = Steady::measure(&mut network, &self.headroom, &sizes)?;
        print!("{}", table::markdown(&Results { sizes, rows, steady }));
        Ok(ExitCode::SUCCESS)
    }

    fn rounds(&self, network: &mut Network, sizes: &Sizes) -> Result<Vec<Row>> {
        let mut rows: Vec<Row> =
            Tool::ALL.into_iter().map(|tool| Row { tool, costs: tool.missing().map_or(Ok(Vec::new()), Err) }).collect();
        // The first connections of a namespace pay for its routes, neighbours and slabs.
        network.burst(sizes.bpf_connections, 0.0)?;
        let all = sizes.rounds + sizes.pairs;
        for round in 0..all {
            // The order turns, so that none is always the first.
            match round < sizes.rounds {
                true => rows.rotate_left(usize::from(round > 0)),
                false => rows.reverse(),
            }
            for row in &mut rows {
                let Ok(costs) = &mut row.costs else { continue };
                if round >= sizes.rounds && row.tool.is_peer() {
                    continue;
                }
                say(&format!("round {} of {all}: {}", round + 1, row.tool.name()));
                let connections = if round < sizes.rounds { sizes.connections } else { sizes.pair_connections };
                match self.cost(network, sizes, row.tool, connections) {
                    Ok(cost) => costs.push(cost),
                    // Without the bare machine and headroom there is nothing to compare.
                    Err(error) if row.tool.is_peer() => row.costs = Err(format!("{error:#}")),
                    Err(error) => return Err(error.context(format!("measure {}", row.tool.name()))),
                }
            }
        }
        rows.sort_by_key(|row| row.tool);
        Ok(rows)
    }

    /// One tool in one round: speed first, without the kernel's own counting, then BPF time.
    fn cost(&self, network: &mut Network, sizes: &Sizes, tool: Tool, connections: u64) -> Result<Cost> {
        network.renew()?;
        let running = tool.start(network, &self.headroom)?;
        // What a tool does to begin with is not what it costs.
        std::thread::sleep(sizes.begin);
        network.burst(sizes.warm_up, 0.0)?;
        let cpu =
            |running: &Option<tools::Running>| running.as_ref().map_or(Ok(Duration::ZERO), |it| meter::cpu(it.pid()));
        let (machine, own) = (meter::machine_cpu()?, cpu(&running)?);
        let burst = network.burst(connections, 0.0)?;
        let (machine, own) = (meter::machine_cpu()?.saturating_sub(machine), cpu(&running)?.saturating_sub(own));
        let connections = meter::float(burst.opened);

        let counted = match &running {
            Some(running) => {
                let counting = meter::count_bpf()?;
                let before = meter::bpf(running.pid())?;
                network.burst(sizes.bpf_connections, 0.0)?;
                let counted = meter::bpf(running.pid())?.since(before);
                drop(counting);
                counted
            }
            None => Counted::default(),
        };
        if let Some(running) = running {
            running.stop()?;
        }
        let per = meter::float(sizes.bpf_connections);
        Ok(Cost {
            per_sec: connections / burst.elapsed_secs,
            machine_cpu_us: machine.as_secs_f64() * 1e6 / connections,
            own_cpu_us: own.as_secs_f64() * 1e6 / connections,
            bpf_runs: meter::float(counted.runs) / per,
            bpf_ns: meter::float(counted.time_ns) / per,
        })
    }
}

/// Progress, so that nobody wonders.
#[expect(clippy::print_stderr, reason = "stdout is the result")]
fn say(text: &str) {
    eprintln!("── {text}");
}

/// Where the lab's own binary is.
fn this_binary() -> Result<String> {
    crate::traffic::binary()?.into_os_string().into_string().ok().context("the path of headroom-lab is not UTF-8")
}
