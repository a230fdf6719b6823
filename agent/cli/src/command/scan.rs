//! `headroom ipam scan`: every reservation with a verdict.

use headroom_core::ledger::Ledger;
use headroom_core::model::{self, ipam};
use headroom_core::observe::SourceId;
use headroom_core::report::{CoverageState, VerdictCounts};
use headroom_host::clock;

use crate::args::{Format, NatArgs, ScanArgs};
use crate::command::UsageError;
use crate::engine::Engine;
use crate::lanes::{self, DEADLINE};
use crate::output::{self, table::Width};
use crate::settings::Settings;

/// Runs the command.
///
/// # Errors
/// Wrong settings, threads that cannot be started, a closed stdout.
pub(super) fn run(args: &ScanArgs) -> anyhow::Result<u8> {
    let settings = Settings::new(&args.node, &NatArgs::default()).map_err(UsageError)?;
    let lanes = lanes::reservations(&settings);
    let mut engine = Engine::start(Ledger::new(settings.limits), settings.policy.clone(), lanes)?;
    engine.settle(DEADLINE);
    // Not a whole report: that would judge everything twice, and much that nobody asked for.
    let (ledger, now) = (engine.ledger(), clock::now());
    let networks = ipam::networks(ledger, &settings.policy, now);
    let coverage = model::coverage(ledger, now.node);
    let node = ledger.platform().map_or("unknown", |platform| platform.node.as_str());
    let scan = output::table::Scan { node, time: &now.wall.to_string(), coverage: &coverage, networks: &networks };
    match args.output {
        Format::Json => output::json(&scan)?,
        Format::Table => output::print(&output::table::scan(&scan, Width::of_stdout()))?,
    }
    let any = |count: fn(&VerdictCounts) -> u64| networks.iter().any(|network| count(&network.counts) > 0);
    let unread = coverage.iter().any(|row| match row.source {
        SourceId::HostLocal => matches!(row.state, CoverageState::Unknown | CoverageState::Degraded),
        SourceId::AwsVpcCni | SourceId::AzureCni | SourceId::Cilium => row.state == CoverageState::Unknown,
        // Where nothing is reserved, only a runtime that was named is missed.
        SourceId::Cri => settings.cri_socket.is_some() && row.state == CoverageState::Unknown,
        _others => false,
    });
    Ok(match () {
        () if any(|counts| counts.leaked) => 1,
        () if unread || any(|counts| counts.undetermined) => 3,
        () => 0,
    })
}
