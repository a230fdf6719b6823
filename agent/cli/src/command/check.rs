//! `headroom check`: observe, evaluate, print once.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use headroom_core::findings::exit_code;

use crate::args::{CheckArgs, Format};
use crate::command::UsageError;
use crate::engine::Engine;
use crate::lanes::{self, DEADLINE, Pace};
use crate::output::{self, table::Width};
use crate::settings::Settings;

/// Demand is sampled this often while watching, so that peaks and trends are seen.
const SAMPLE: Duration = Duration::from_secs(1);

/// Runs the command.
///
/// # Errors
/// Wrong settings, threads that cannot be started, a closed stdout.
pub(super) fn run(args: &CheckArgs) -> anyhow::Result<u8> {
    let settings = Settings::new(&args.node, &args.nat).map_err(UsageError)?;
    let started = Instant::now();
    let lanes = lanes::all(&settings, Pace::Once);
    let mut engine = Engine::start(settings.ledger(), settings.policy.clone(), lanes)?;
    engine.settle(DEADLINE);
    let mut report = engine.report();
    let progress = std::io::stderr().is_terminal();
    let watch = args.watch.unwrap_or_default();
    while let Some(left) = watch.checked_sub(started.elapsed()).filter(|left| !left.is_zero()) {
        if progress {
            output::progress(&format!("watching for another {} s ", left.as_secs() + 1));
        }
        engine.watch(left.min(SAMPLE));
        report = engine.report();
    }
    if progress && !watch.is_zero() {
        output::progress("");
    }
    match args.output {
        Format::Json => output::json(&report)?,
        Format::Table => output::print(&output::table::report(&report, args.watch, Width::of_stdout()))?,
    }
    Ok(exit_code(&report.findings))
}
