//! What runs on each kernel: headroom's own eBPF object, loaded through `headroom-host`, against connections that are made
//! and counted here. `cargo xtask kernels` boots the kernels and runs it in each, and on the machine's own kernel.
//!
//! One file per subject, each with its table of checks; [`inability`] has what a kernel cannot do, and why. Every check
//! writes one JSON line to a file, because a guest's console can get lost; the last line says that it came to the end.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;

mod check;
mod conntrack;
mod cost;
mod counters;
mod demand;
mod deployed;
mod ends;
mod flows;
mod full_map;
mod inability;
mod kernel;
mod load;
mod modules;
mod network;
mod pair;
mod programs;
mod results;
mod tcp;
mod tcp_failures;
mod tcp_restart;
mod timers;

use check::Check;
use network::Scene;
use results::Results;

#[derive(Debug, Parser)]
#[command(about = "headroom's eBPF programs on this kernel, against ground truth")]
struct Arguments {
    /// Where to write the results, a JSON object per line
    #[arg(required_unless_present_any = ["watch", "dial", "follow", "agent"])]
    results: Option<PathBuf>,
    /// How many TCP connections and how many UDP flows the large checks make
    #[arg(long, default_value_t = 20_000)]
    connections: u64,
    /// When to give up, in seconds
    #[arg(long, default_value_t = 240)]
    limit_secs: u64,
    /// The machine is thrown away: modules of its kernel may be unloaded
    #[arg(long)]
    may_unload: bool,
    /// Only the checks with this in their names
    #[arg(long, default_value = "")]
    check: String,
    /// Instead of checking anything, be an agent to be killed, which says when it has seen a part of so many flows
    #[arg(long)]
    watch: Option<u64>,
    /// Instead of checking anything, dial there
    #[arg(long)]
    dial: Option<std::net::SocketAddr>,
    /// Instead of checking anything, be an agent that says what it sees
    #[arg(long)]
    follow: bool,
    /// Instead of checking anything, measure what conntrack costs an agent
    #[arg(long)]
    cost: bool,
    /// Instead of checking anything, be such an agent, with so much room for counters
    #[arg(long)]
    agent: Option<u32>,
}

/// All checks, by subject. A subject that has programs of its own adds its table here.
/// `counters` also compares what those before it made.
const SUBJECTS: [&[Check]; 9] = [
    &tcp::CHECKS,
    &tcp_failures::CHECKS,
    &tcp_restart::CHECKS,
    &flows::CHECKS,
    &counters::CHECKS,
    &full_map::CHECKS,
    &conntrack::CHECKS,
    &demand::CHECKS,
    &ends::CHECKS,
];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    give_up_after(Duration::from_secs(arguments.limit_secs));
    if let Some(flows) = arguments.watch {
        return conntrack::watch(flows);
    }
    if let Some(to) = arguments.dial {
        return tcp_restart::dial(to);
    }
    if arguments.follow {
        return deployed::follow();
    }
    if let Some(max_keys) = arguments.agent {
        return cost::agent(max_keys);
    }
    let mut results = Results::create(&arguments.results.context("where to write the results is not said")?)?;
    let ran = if arguments.cost {
        measure(&mut results)
    } else {
        run(&mut results, arguments.connections, arguments.may_unload, &arguments.check)
    };
    if let Err(error) = &ran {
        results.broken(error)?;
    }
    ran
}

/// Runs every check with that in its name. An error is not a check's but the scene's, and ends it.
fn run(results: &mut Results, connections: u64, may_unload: bool, only: &str) -> Result<()> {
    let kernel = kernel::running(may_unload)?;
    results.kernel(&kernel)?;
    let scene = Scene::build(connections, may_unload)?;
    for (name, outcome) in programs::all(&scene)? {
        results.check(&kernel, &name, outcome, &[], Duration::ZERO)?;
    }
    for check in SUBJECTS.into_iter().flatten().filter(|check| check.name.contains(only)) {
        let (outcome, took) = check.run(&scene);
        results.check(&kernel, check.name, outcome, &scene.take_notes(), took)?;
    }
    drop(scene);
    if modules::NAME.contains(only) {
        let start = Instant::now();
        let outcome = modules::run(may_unload);
        results.check(&kernel, modules::NAME, outcome, &[], start.elapsed())?;
    }
    results.end()
}

/// Measures what conntrack costs.
fn measure(results: &mut Results) -> Result<()> {
    let kernel = kernel::running(false)?;
    results.kernel(&kernel)?;
    let start = Instant::now();
    let (outcome, mut notes) =
        cost::measure().map_or_else(|error| (Err(error), Vec::new()), |(told, notes)| (Ok(told), notes));
    notes.extend(outcome.as_ref().ok().cloned());
    results.check(&kernel, cost::NAME, outcome, &notes, start.elapsed())?;
    results.end()
}

/// Ends the process when it hangs: what was written is there, and the missing last line tells.
fn give_up_after(limit: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        std::process::exit(124);
    });
}
