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
mod counters;
mod demand;
mod flows;
mod full_map;
mod inability;
mod kernel;
mod load;
mod modules;
mod network;
mod programs;
mod results;
mod tcp;
mod tcp_failures;

use check::Check;
use network::Scene;
use results::Results;

#[derive(Debug, Parser)]
#[command(about = "headroom's eBPF programs on this kernel, against ground truth")]
struct Arguments {
    /// Where to write the results, a JSON object per line
    #[arg(required_unless_present = "watch")]
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
    /// Instead of checking anything, be an agent to be killed, which says when it has seen a part of so many flows
    #[arg(long)]
    watch: Option<u64>,
}

/// All checks, by subject. A subject that has programs of its own adds its table here.
/// `counters` also compares what those before it made.
const SUBJECTS: [&[Check]; 7] = [
    &tcp::CHECKS,
    &tcp_failures::CHECKS,
    &flows::CHECKS,
    &counters::CHECKS,
    &full_map::CHECKS,
    &conntrack::CHECKS,
    &demand::CHECKS,
];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    give_up_after(Duration::from_secs(arguments.limit_secs));
    if let Some(flows) = arguments.watch {
        return conntrack::watch(flows);
    }
    let mut results = Results::create(&arguments.results.context("where to write the results is not said")?)?;
    let ran = run(&mut results, arguments.connections, arguments.may_unload);
    if let Err(error) = &ran {
        results.broken(error)?;
    }
    ran
}

/// Runs every check. An error is not a check's but the scene's, and ends it.
fn run(results: &mut Results, connections: u64, may_unload: bool) -> Result<()> {
    let kernel = kernel::running(may_unload)?;
    results.kernel(&kernel)?;
    let scene = Scene::build(connections)?;
    for (name, outcome) in programs::all(&scene)? {
        results.check(&kernel, &name, outcome, &[], Duration::ZERO)?;
    }
    for check in SUBJECTS.into_iter().flatten() {
        let (outcome, took) = check.run(&scene);
        results.check(&kernel, check.name, outcome, &scene.take_notes(), took)?;
    }
    drop(scene);
    let start = Instant::now();
    let outcome = modules::run(may_unload);
    results.check(&kernel, modules::NAME, outcome, &[], start.elapsed())?;
    results.end()
}

/// Ends the process when it hangs: what was written is there, and the missing last line tells.
fn give_up_after(limit: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        std::process::exit(124);
    });
}
