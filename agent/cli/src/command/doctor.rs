//! `headroom doctor`: what this node lets us see, and why not.

use std::time::Duration;

use headroom_core::report::{CoverageReport, CoverageState, ProgramReport};
use headroom_host::act::{self, Prospect};
use headroom_host::ebpf;
use headroom_host::own_network;
use headroom_host::privileges::{self, Capability};
use serde::Serialize;

use crate::args::{DoctorArgs, Format, NatArgs};
use crate::command::{UsageError, restore};
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
    /// Whether this runs in the host's network namespace; absent if that cannot be told.
    pub host_network: Option<bool>,
    /// Why not.
    pub host_network_unknown: Option<String>,
    /// Capabilities that some source wants.
    pub capabilities: Vec<Capability>,
    /// Every source.
    pub coverage: Vec<CoverageReport>,
    /// Every eBPF program, as it ran while we looked.
    pub programs: Vec<ProgramReport>,
    /// Why their runs were not counted, if so.
    pub runs_not_counted: Option<String>,
    /// Whether leaked pod IPs are given back, and could be.
    pub cleaner: CleanerDiagnosis,
}

/// Whether leaked pod IPs are given back by the agent, and whether anybody could.
#[derive(Debug, Serialize)]
pub struct CleanerDiagnosis {
    /// How often, by this configuration and --clean-interval; absent: the agent's cleaner is off.
    pub interval_secs: Option<u64>,
    /// host-local's directories, as far as there are any.
    pub directories: Vec<Prospect>,
    /// Why none of them is looked at, if so.
    pub why: Option<String>,
}

impl CleanerDiagnosis {
    fn of(settings: &Settings) -> Self {
        let live = settings.root.is_live();
        let data_dirs = if live { restore::data_dirs(settings) } else { Vec::new() };
        Self {
            interval_secs: settings.clean.as_ref().map(|clean| clean.interval.as_secs()),
            directories: data_dirs.iter().filter_map(|data_dir| act::prospect(data_dir)).collect(),
            why: (!live).then(|| "a captured tree (--root) is not a node: nothing can be given back".to_owned()),
        }
    }

    /// It is switched on and cannot do its work.
    fn is_broken(&self) -> bool {
        self.interval_secs.is_some() && self.directories.iter().any(|directory| directory.why.is_some())
    }
}

/// How long the programs are watched.
const WATCH: Duration = Duration::from_secs(1);

/// Runs the command: exit code 0 if every source works or has nothing to see here, 3 otherwise, also where a cleaner
/// is switched on that cannot work.
///
/// # Errors
/// Wrong settings, threads that cannot be started, a closed stdout.
pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<u8> {
    let mut settings = Settings::new(&args.node, &NatArgs::default()).map_err(UsageError)?;
    if args.clean_interval.is_some() {
        settings.clean_every(args.clean_interval).map_err(UsageError)?;
    }
    let counting = ebpf::count_runs();
    let lanes = lanes::all(&settings, Pace::Once);
    let mut engine = Engine::start(settings.ledger(), settings.policy.clone(), lanes)?;
    engine.settle(DEADLINE);
    engine.watch(WATCH);
    let report = engine.report();
    let host_network = own_network::is_the_hosts(&settings.root);
    let diagnosis = Diagnosis {
        host_network: host_network.present().copied(),
        host_network_unknown: host_network.unknown().map(ToString::to_string),
        kernel: engine.ledger().platform().map_or_else(|| "unknown".to_owned(), |platform| platform.kernel.clone()),
        node: report.node,
        capabilities: privileges::wanted(),
        coverage: report.coverage,
        programs: report.programs,
        cleaner: CleanerDiagnosis::of(&settings),
        runs_not_counted: counting.as_ref().err().map(ToString::to_string),
    };
    match args.output {
        Format::Json => output::json(&diagnosis)?,
        Format::Table => output::print(&output::table::doctor::page(&diagnosis, Width::of_stdout()))?,
    }
    let unread = diagnosis.coverage.iter().any(|row| row.state == CoverageState::Unknown);
    Ok(if unread || diagnosis.cleaner.is_broken() { 3 } else { 0 })
}
