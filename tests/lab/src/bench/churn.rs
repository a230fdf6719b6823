//! Whether the agent grows, and whether it loses anything, while many connections come and go: `headroom-lab bench-churn`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::network::Network;
use super::tools::Running;
use super::{meter, say};
use crate::lab::Lab;

/// Connections per second.
const RATE: u32 = 5_000;
/// What a connection that has ended stays in conntrack: they end at the rate at which they begin.
const ENDED_FOR: Duration = Duration::from_secs(10);
/// How long the load takes to end, in the slowest case.
const PATIENCE: Duration = Duration::from_secs(120);

/// Watch the agent while connections come and go for long; prints Markdown
#[derive(Debug, Clone, clap::Args)]
pub struct Churn {
    /// The headroom binary to measure
    #[arg(long, env = "HEADROOM_BIN", default_value = "headroom")]
    pub headroom: PathBuf,
    /// Half a minute, to see whether it works
    #[arg(long)]
    pub quick: bool,
}

/// The agent at one moment.
struct Moment {
    secs: u64,
    /// What it took of a CPU since the moment before.
    cpu_ratio: f64,
    resident_bytes: u64,
    entries: u32,
    opened: u64,
}

impl Churn {
    /// Ten minutes of load, looked at every minute.
    #[expect(clippy::print_stdout, reason = "its result")]
    pub fn run(&self) -> Result<ExitCode> {
        let (step, steps) = if self.quick { (Duration::from_secs(5), 6) } else { (Duration::from_secs(60), 10) };
        let lab = Lab::new()?;
        let mut network = Network::build(&lab)?;
        network.renew()?;
        network.remember(ENDED_FOR, ENDED_FOR)?;
        let running = Running::headroom(&network, &self.headroom)?;
        let total = u64::from(RATE) * step.as_secs() * steps;
        say(&format!("{total} connections, {RATE} a second"));
        let load = network.load_in_background(total, RATE.into())?;
        let mut moments = Vec::new();
        let (mut before, mut begun) = (meter::cpu(running.pid())?, Instant::now());
        for at in 1..=steps {
            std::thread::sleep(step);
            running.get("/metrics")?;
            let (cpu, took) = (meter::cpu(running.pid())?, begun.elapsed());
            let report = report(&running)?;
            moments.push(Moment {
                secs: step.as_secs() * at,
                cpu_ratio: cpu.saturating_sub(before).as_secs_f64() / took.as_secs_f64(),
                resident_bytes: meter::resident_bytes(running.pid())?.0,
                entries: network.node.sysctl("net.netfilter.nf_conntrack_count")?.parse().context("read the count")?,
                opened: opened(&report),
            });
            (before, begun) = (cpu, Instant::now());
        }
        let made = load.wait(PATIENCE)?;
        // The counters are read every quarter of a second, and may be told a second later.
        std::thread::sleep(Duration::from_secs(12));
        let last = report(&running)?;
        running.stop()?;
        print!("{}", markdown(&moments, made.opened, &last));
        Ok(ExitCode::SUCCESS)
    }
}

fn report(running: &Running) -> Result<serde_json::Value> {
    serde_json::from_str(&running.body("/report.json")?).context("read the agent's report")
}

/// Connections to the load's destinations; others, such as those of who asks the agent, have other ports.
fn opened(report: &serde_json::Value) -> u64 {
    let rows = report.pointer("/nat/destinations").and_then(serde_json::Value::as_array).into_iter().flatten();
    let loaded = rows.filter(|row| row["port"] == Network::PORT && row["protocol"] == "tcp");
    loaded.filter_map(|row| row["opened_total"].as_u64()).sum()
}

fn markdown(moments: &[Moment], made: u64, last: &serde_json::Value) -> String {
    let mut text = format!(
        "{RATE} connections a second, each closed at once and forgotten by conntrack {} s later.\n\n\
         | after, s | resident, MiB | CPU since then, % of a core | conntrack entries | opened, as the agent tells |\n\
         |---:|---:|---:|---:|---:|\n",
        ENDED_FOR.as_secs()
    );
    for it in moments {
        text.push_str(&format!(
            "| {} | {:.1} | {:.2} | {} | {} |\n",
            it.secs,
            meter::float(it.resident_bytes) / f64::from(1 << 20),
            it.cpu_ratio * 100.0,
            it.entries,
            it.opened
        ));
    }
    let lost = last.get("lost").map_or_else(|| "nothing is told of losses".to_owned(), ToString::to_string);
    text.push_str(&format!(
        "\nIn the end the generator had opened {made} connections, the agent told of {}; lost, as it says: `{lost}`.\n",
        opened(last)
    ));
    text
}
