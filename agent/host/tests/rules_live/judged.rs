//! What the report says of the rules of the calling thread's network namespace.

use headroom_core::known::Known;
use headroom_core::ledger::{Ledger, LedgerLimits};
use headroom_core::model::policy::Policy;
use headroom_core::model::{Memory, evaluate};
use headroom_core::observe::{Fact, Observation, SourceId};
use headroom_core::report::Report;
use headroom_core::time::{NodeTime, Now, WallTime};
use headroom_host::root::HostRoot;
use headroom_host::source::Source as _;
use headroom_host::source::namespaces::NamespacesSource;
use headroom_host::source::rules::RulesSource;

pub(crate) fn report() -> Report {
    report_under(&Policy::default())
}

/// With what a user gives.
pub(crate) fn report_under(policy: &Policy) -> Report {
    let root = HostRoot::live();
    let mut ledger = Ledger::new(LedgerLimits::default());
    RulesSource::new(&root, std::time::Duration::ZERO).observe(&mut |fact| ledger.apply(fact));
    // Of the machine's namespaces only this one matters.
    NamespacesSource::new(root).observe(&mut |observation: Observation| {
        let mine = match &observation.fact {
            Fact::Namespace(namespace) => namespace.host,
            _ => true,
        };
        if mine {
            ledger.apply(observation);
        }
    });
    assert!(matches!(ledger.coverage().get(&SourceId::Rules), Some(Known::Present(_))), "{:?}", ledger.coverage());
    let now = Now { node: NodeTime::from_secs(1), wall: WallTime::from_secs(1) };
    evaluate(&ledger, &mut Memory::default(), policy, now)
}
