//! What it takes to say who fills a large conntrack table: `headroom-lab bench-conntrack`.
//!
//! A whole `headroom check` over the table, from its start to its end, in turns with one over an empty table. The kernel's dump is
//! system time; what headroom does with it is user time.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

use super::meter::{self, Spread};
use super::network::Network;
use super::{say, this_binary};
use crate::lab::Lab;

/// Entries of the table: what a kernel gives a node with more than 4 GiB of memory.
const ENTRIES: u32 = 262_144;
/// As many as a busy node has.
const DESTINATIONS: u32 = 10_000;

/// Measure what an analysis of a large conntrack table takes; prints Markdown
#[derive(Debug, Clone, clap::Args)]
pub struct Analysis {
    /// The headroom binary to measure
    #[arg(long, env = "HEADROOM_BIN", default_value = "headroom")]
    pub headroom: PathBuf,
    /// How many rounds; medians are reported
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// A smaller table, to see whether it works
    #[arg(long)]
    pub quick: bool,
}

/// Run a program and print what it took
#[derive(Debug, Clone, clap::Args)]
pub struct Measure {
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub command: Vec<String>,
}

/// What a program took, from its start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Took {
    user_ms: f64,
    system_ms: f64,
    wall_ms: f64,
    resident_kib: i64,
    exit_code: i32,
}

impl Measure {
    /// Runs it with nothing to see; one line of JSON tells what it took. It is the only child there is.
    #[expect(clippy::print_stdout, reason = "its result")]
    pub fn run(&self) -> Result<ExitCode> {
        let (program, args) = self.command.split_first().context("no program was given")?;
        let begun = Instant::now();
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().with_context(|| format!("run `{program}`"))?;
        let wall_ms = begun.elapsed().as_secs_f64() * 1000.0;
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("ask for the child's usage")?;
        let (user, system) = meter::children_cpu()?;
        let millis = |time: Duration| time.as_secs_f64() * 1000.0;
        let took = Took {
            user_ms: millis(user),
            system_ms: millis(system),
            wall_ms,
            resident_kib: usage.max_rss(),
            exit_code: status.code().unwrap_or(-1),
        };
        println!("{}", serde_json::to_string(&took).context("write the result")?);
        Ok(ExitCode::SUCCESS)
    }
}

impl Analysis {
    /// Fills a table, measures, prints.
    #[expect(clippy::print_stdout, reason = "its result")]
    pub fn run(&self) -> Result<ExitCode> {
        let (entries, destinations) = if self.quick { (20_000, 1_000) } else { (ENTRIES, DESTINATIONS) };
        let lab = Lab::new()?;
        let mut network = Network::build(&lab)?;
        let long = Duration::from_secs(3600);
        network.renew()?;
        network.remember(long, long)?;
        let empty: Vec<Took> = (0..self.rounds).map(|_| self.check(&network)).collect::<Result<_>>()?;
        say(&format!("filling the table with {entries} entries towards {destinations} destinations"));
        network.fill(entries, destinations)?;
        say("analysing it");
        let full: Vec<Took> = (0..self.rounds).map(|_| self.check(&network)).collect::<Result<_>>()?;
        let there: u32 = network.node.sysctl("net.netfilter.nf_conntrack_count")?.parse().context("read the count")?;
        let told = self.told(&network)?;
        network.flush()?;
        print!("{}", markdown(&empty, &full, there, &told));
        Ok(ExitCode::SUCCESS)
    }

    fn check(&self, network: &Network) -> Result<Took> {
        let (lab, headroom) = (this_binary()?, self.headroom.to_string_lossy().into_owned());
        let text = network.node.exec(&lab, &["measure", &headroom, "check", "-o", "json"])?;
        let took: Took = serde_json::from_str(&text).with_context(|| format!("understand `{text}`"))?;
        if !(0..=3).contains(&took.exit_code) {
            bail!("`{headroom} check` ended with {}", took.exit_code);
        }
        Ok(took)
    }

    /// What headroom says of the table: entries, and the largest source's.
    fn told(&self, network: &Network) -> Result<String> {
        let command = network.node.command(&self.headroom, &["check", "-o", "json"]);
        let said = network.node.spawn(command)?.wait(Duration::from_secs(60))?;
        let report: serde_json::Value = serde_json::from_str(&said.stdout).context("read headroom's JSON")?;
        let number = |path: &str| report.pointer(path).and_then(serde_json::Value::as_u64);
        // What it does not count exactly is too much to be counted.
        let shown = |path: &str| number(path).map_or("very many".to_owned(), |count| count.to_string());
        let entries = number("/conntrack/census/entries").context("headroom's JSON has no census")?;
        Ok(format!(
            "{entries} entries, {} destinations, {} entries of the largest source",
            shown("/conntrack/census/destinations_total"),
            shown("/conntrack/census/sources/0/entries")
        ))
    }
}

fn markdown(empty: &[Took], full: &[Took], entries: u32, told: &str) -> String {
    let spread = |rounds: &[Took], of: fn(&Took) -> f64, digits: usize| {
        Spread::of(rounds.iter().map(of)).map_or("–".to_owned(), |it| {
            format!("{:.digits$} ({:.digits$}–{:.digits$})", it.median, it.least, it.greatest)
        })
    };
    #[expect(clippy::cast_precision_loss, reason = "kibibytes of a process")]
    let resident: fn(&Took) -> f64 = |took| took.resident_kib as f64 / 1024.0;
    let median = |of: fn(&Took) -> f64| Spread::of(full.iter().map(of)).map_or(f64::NAN, |it| it.median);
    let verdict = |met: bool| if met { "yes" } else { "**no**" };
    let (user, mib) = (median(|took| took.user_ms), median(resident));
    let row = |what: &str, rounds: &[Took]| {
        format!(
            "| {what} | {} | {} | {} | {} |\n",
            spread(rounds, |took| took.user_ms, 0),
            spread(rounds, |took| took.system_ms, 0),
            spread(rounds, |took| took.wall_ms, 0),
            spread(rounds, resident, 1)
        )
    };
    format!(
        "{}, {} rounds each; medians, and least to greatest in brackets.\n\n\
         | what | budget | measured | met |\n|---|---|---|---|\n\
         | user CPU of a whole `headroom check` over {entries} entries | ≤ 300 ms | {user:.0} ms | {} |\n\
         | its resident memory at most | ≤ 60 MiB | {mib:.1} MiB | {} |\n\n\
         | table | user, ms | system, ms | wall, ms | resident at most, MiB |\n|---|---|---|---|---|\n{}{}\n\
         headroom told of {told}.\n",
        super::table::today(),
        full.len(),
        verdict(user <= 300.0),
        verdict(mib <= 60.0),
        row("empty", empty),
        row(&format!("{entries} entries"), full),
    )
}
