//! A node behind a NAT, for the tests of what it was given and what its findings tell people to do.
#![allow(dead_code, reason = "each test binary uses a part")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use headroom_core::findings::{Finding, FindingId};
use headroom_core::model::nat::{Described, Mode, NatSettings, Profile};
use headroom_core::report::Report;

use crate::node::{Node, counter};

/// The report on a node that holds so many ports to one destination.
pub(crate) fn report(nat: NatSettings, held: u64) -> Report {
    let mut node = Node::new();
    node.policy.nat = Some(nat);
    node.count(999, [counter(held, 0, 0, 0)]);
    node.report(1000)
}

pub(crate) fn finding(report: &Report, id: FindingId) -> Option<&Finding> {
    report.findings.iter().find(|finding| finding.id == id)
}

pub(crate) fn of(profile: Profile, described: Described) -> NatSettings {
    described.settings(profile).unwrap()
}

/// Cloud NAT, static, with one NAT IP.
pub(crate) fn static_ports() -> Described {
    Described { mode: Some(Mode::Static), nat_ips: Some(1), ..Described::default() }
}
