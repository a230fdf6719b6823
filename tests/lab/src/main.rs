//! `headroom-lab`: scenarios to look at, and the traffic the lab's namespaces make.

use anyhow::{Context, Result};
use clap::Parser;
use headroom_lab::bench::{Analysis, Churn, Dump, Ipam, Measure, Overhead};
use headroom_lab::scenario::{
    self, HairpinLeak, IpLeak, IpStorm, NatDynamic, NatExhaustion, NatIdle, NodeportCollision,
};
use headroom_lab::traffic::{Burst, Connect, Serve, Sink};

#[derive(Debug, Parser)]
#[command(version, about = "A Kubernetes-like node on one machine, and what can go wrong on it")]
enum Command {
    /// A pod uses up the ports of the node's NAT; what does headroom say, and what the gateway?
    NatExhaustion(NatExhaustion),
    NatDynamic(NatDynamic),
    NatIdle(NatIdle),
    /// Pod IPs leak until the node is full; headroom gives them back and the next pod starts
    IpLeak(IpLeak),
    NodeportCollision(NodeportCollision),
    #[command(name = "hairpin")]
    Hairpin(HairpinLeak),
    /// ADD and DEL of the real host-local in a storm, while headroom cleans
    IpStorm(IpStorm),
    Serve(Serve),
    Connect(Connect),
    Burst(Burst),
    Sink(Sink),
    BenchOverhead(Overhead),
    BenchConntrack(Analysis),
    #[command(hide = true)]
    Measure(Measure),
    BenchIpam(Ipam),
    BenchChurn(Churn),
    #[command(hide = true)]
    Dump(Dump),
    /// Remove what crashed labs left behind
    Sweep,
}

fn main() -> Result<std::process::ExitCode> {
    match Command::parse() {
        Command::NatExhaustion(scenario) => scenario.run(),
        Command::NatDynamic(scenario) => scenario.run(),
        Command::NatIdle(scenario) => scenario.run(),
        Command::IpLeak(scenario) => scenario.run(),
        Command::NodeportCollision(scenario) => scenario.run(),
        Command::Hairpin(scenario) => scenario.run(),
        Command::IpStorm(scenario) => scenario.run(),
        Command::Serve(serve) => block_on(serve.run()),
        Command::Connect(connect) => block_on(connect.run()),
        Command::Burst(burst) => burst.run().map(|()| std::process::ExitCode::SUCCESS),
        Command::Sink(sink) => sink.run().map(|()| std::process::ExitCode::SUCCESS),
        Command::BenchOverhead(bench) => bench.run(),
        Command::BenchConntrack(bench) => bench.run(),
        Command::Measure(measure) => measure.run(),
        Command::BenchIpam(bench) => bench.run(),
        Command::BenchChurn(bench) => bench.run(),
        Command::Dump(dump) => dump.run(),
        Command::Sweep => scenario::sweep(),
    }
}

fn block_on(mode: impl Future<Output = Result<()>>) -> Result<std::process::ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(mode)?;
    Ok(std::process::ExitCode::SUCCESS)
}
