//! `headroom doctor`: what this node lets us see, and why not.

use std::time::Duration;

use headroom_core::report::{CoverageReport, CoverageState, ProgramReport};
use headroom_host::ebpf;
use headroom_host::privileges::{self, Capability};
use serde::Serialize;

use crate::args::{DoctorArgs, Format, NatArgs};
use crate::command::UsageError;
use crate::engine::Engine;
use crate::lanes::{self, DEADLINE, Pace};
use crate::output::{self, table::Width};
use crate::settings::Settings;

/// What `doctor` found out.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    /// The node.
    pub node: String,
    /// Kernel release.
    pub kernel: String,
    /// Capabilities that some source wants.
    pub capabilities: Vec<Capability>,
    /// Every source.
    pub coverage: Vec<CoverageReport>,
    /// Every eBPF program, as it ran while we looked.
    pub programs: Vec<ProgramReport>,
    /// Why their runs were not counted, if so.
    pub runs_not_counted: Option<String>,
}

/// How long the programs are watched.
const WATCH: Duration = Duration::from_secs(1);

/// Runs the command: exit code 0 if every source works or has nothing to see here, 3 otherwise.
///
/// # Errors
/// Wrong settings, threads that cannot be started, a closed stdout.
pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<u8> {
    let settings = Settings::new(&args.node, &NatArgs::default()).map_err(UsageError)?;
    let counting = ebpf::count_runs();
    let lanes = lanes::all(&settings, Pace::Once);
    let mut engine = Engine::start(settings.ledger(), settings.policy.clone(), lanes)?;
    engine.settle(DEADLINE);
    engine.watch(WATCH);
    let report = engine.report();
    let diagnosis = Diagnosis {
        kernel: engine.ledger().platform().map_or_else(|| "unknown".to_owned(), |platform| platform.kernel.clone()),
        node: report.node,
        capabilities: privileges::wanted(),
        coverage: report.coverage,
        programs: report.programs,
        runs_not_counted: counting.as_ref().err().map(ToString::to_string),
    };
    match args.output {
        Format::Json => output::json(&diagnosis)?,
        Format::Table => output::print(&output::table::doctor::page(&diagnosis, Width::of_stdout()))?,
    }
    let unread = diagnosis.coverage.iter().any(|row| row.state == CoverageState::Unknown);
    Ok(if unread { 3 } else { 0 })
}
