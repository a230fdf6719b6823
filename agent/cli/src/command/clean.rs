//! `headroom ipam clean`: what is leaked and would go, and with `--apply` goes.

use std::time::Duration;

use headroom_core::model::policy::Policy;
use headroom_core::model::{Memory, evaluate};
use headroom_core::observe::SourceId;
use headroom_core::plan::clean::{Limits, Plan, plan};
use headroom_core::report::{CoverageState, Report};
use headroom_host::act::{self, Cleaned, Eyes, journal};
use headroom_host::clock;
use headroom_host::source::platform::PlatformSource;

use crate::args::{CleanArgs, Format, NatArgs};
use crate::command::UsageError;
use crate::output::table::{CleanAnswer, Width};
use crate::output::{self, table};
use crate::settings::Settings;

/// A shorter grace period has to be wanted: a pod that starts slowly is not far from it.
const LEAST_GRACE: Duration = Duration::from_secs(60);

/// Runs the command.
///
/// # Errors
/// Wrong settings, a closed stdout.
pub(super) fn run(args: &CleanArgs) -> anyhow::Result<u8> {
    let settings = Settings::new(&args.node, &NatArgs::default()).map_err(UsageError)?;
    let grace = settings.policy.leak_grace;
    if args.apply && !settings.root.is_live() {
        return Err(
            UsageError(anyhow::anyhow!("a captured tree (--root) is not a node: nothing can be given back")).into()
        );
    }
    if args.apply && grace < LEAST_GRACE && !args.force {
        let least = LEAST_GRACE.as_secs();
        let why = anyhow::anyhow!(
            "a grace period of less than {least} s can take the address of a pod that is starting; add --force"
        );
        return Err(UsageError(why).into());
    }
    let limits = Limits {
        max: args.limits.max.unwrap_or(Limits::MAX),
        max_why: None,
        percent: args.limits.max_percent.unwrap_or(Limits::PERCENT),
        force: args.force,
        network: args.network.clone(),
    };
    let mut eyes =
        eyes(&settings).with(Box::new(PlatformSource::new(settings.root.clone(), settings.node_name.clone())));
    let (report, plan) = look(&mut eyes, &limits, &settings.policy);
    if let Some(name) = &args.network
        && eyes.ledger().reservations().networks().iter().all(|network| network.name != *name)
    {
        let names: Vec<&str> =
            eyes.ledger().reservations().networks().iter().map(|network| network.name.as_str()).collect();
        return Err(UsageError(anyhow::anyhow!("no network `{name}` here; there are: {}", names.join(", "))).into());
    }
    let cleaned = if args.apply { apply(&plan, &mut eyes, grace) } else { Cleaned::default() };
    let answer = CleanAnswer::new(&report, args.apply, plan, cleaned);
    match args.output {
        Format::Json => output::json(&answer)?,
        Format::Table => output::print(&table::clean(&answer, Width::of_stdout()))?,
    }
    Ok(exit_code(&answer))
}

/// The sources that the cleaner looks with.
pub(crate) fn eyes(settings: &Settings) -> Eyes {
    Eyes::on(&settings.root, settings.stores(), settings.cri_socket.clone())
}

/// Looks twice, and plans.
pub(crate) fn look(eyes: &mut Eyes, limits: &Limits, policy: &Policy) -> (Report, Plan) {
    eyes.look_twice();
    let now = clock::now();
    let report = evaluate(eyes.ledger(), &mut Memory::default(), policy, now);
    (report, plan(eyes.ledger(), limits, policy.leak_grace, now))
}

/// Carries the plan out.
pub(crate) fn apply(plan: &Plan, eyes: &mut Eyes, grace: Duration) -> Cleaned {
    let run = journal::run_name(clock::now().wall, std::process::id());
    act::clean(plan, eyes, grace, &run, &mut |_| {})
}

/// What the answer comes to.
fn exit_code(answer: &CleanAnswer) -> u8 {
    use headroom_core::model::leak::Verdict;
    let unread = answer.coverage.iter().any(|row| {
        row.source == SourceId::HostLocal && matches!(row.state, CoverageState::Unknown | CoverageState::Degraded)
    });
    let to_do = if answer.apply { 0 } else { answer.plan.len() };
    let refused = |verdict: Verdict| answer.refused.iter().any(|refused| refused.verdict == verdict);
    match () {
        () if to_do > 0 || refused(Verdict::Leaked) => 1,
        () if unread || refused(Verdict::Undetermined) => 3,
        () => 0,
    }
}
