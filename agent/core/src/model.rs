//! From what is known to what it means. Pure: `evaluate(view, policy, now)`.

use std::collections::BTreeMap;

use crate::known::Known;
use crate::ledger::Ledger;
use crate::model::demand::{Account, Demand};
use crate::model::holders::Holders;
use crate::model::nat::remedy::Need;
use crate::model::nat::{NatSettings, NodePorts};
use crate::model::policy::Policy;
use crate::observe::{CoverageDetail, Program, SourceId};
use crate::report::{CoverageReport, IpamReport, ProgramReport, Report, SCHEMA};
use crate::time::{NodeTime, Now, WallTime};

pub mod demand;
mod freshness;
mod hairpin;
mod holders;
pub mod ipam;
pub mod leak;
mod memory;
pub mod nat;
mod needs;
pub mod overlap;
pub mod policy;
mod pressure;
mod rules;

pub use memory::Memory;

/// Everything a rule may look at.
struct View<'a> {
    ledger: &'a Ledger,
    /// What each source can do, with the age of its numbers.
    coverage: &'a BTreeMap<SourceId, Known<CoverageDetail>>,
    policy: &'a Policy,
    nat: &'a NatSettings,
    node_ports: Option<&'a NodePorts>,
    demand: &'a Demand,
    accounts: &'a [Account],
    holders: &'a Holders<'a>,
    /// What this node needs, whatever is told to be changed.
    need: Need,
    lost_lately: bool,
    now: WallTime,
}

/// Makes the report of this moment.
pub fn evaluate(ledger: &Ledger, memory: &mut Memory, policy: &Policy, now: Now) -> Report {
    let nat = demand::of_own_rules(policy.nat_on(ledger.platform()), ledger);
    let node_ports = nat.node_ports_at(now.wall);
    let demand = demand::of(ledger, nat.hold, &policy.scope(&nat), now.node);
    memory.note(ledger, &demand.accounts, node_ports.as_ref(), now.node);

    let holders = Holders::of(ledger);
    let coverage = freshness::coverage(ledger, now.node);
    let mut report = Report {
        schema: SCHEMA.to_owned(),
        node: ledger.platform().map_or_else(|| "unknown".to_owned(), |platform| platform.node.clone()),
        time: now.wall.to_string(),
        coverage: freshness::report(ledger, &coverage, now.node),
        programs: ledger.programs().values().map(program).collect(),
        lost: ledger.lost().into_iter().map(|(what, total)| (what.name().to_owned(), total)).collect(),
        nat: needs::report(ledger, memory, policy, &holders, (&nat, node_ports.as_ref()), &demand, now),
        overlap: overlap::report(ledger, policy, &holders, now),
        ipam: IpamReport { networks: ipam::networks(ledger, policy, now), cleaner: None },
        conntrack: pressure::report(ledger, &holders, now),
        findings: Vec::new(),
    };
    memory.reserved.note(&mut report.ipam.networks, now.node);
    let view = View {
        ledger,
        coverage: &coverage,
        policy,
        nat: &nat,
        node_ports: node_ports.as_ref(),
        demand: &demand,
        accounts: &demand.accounts,
        holders: &holders,
        need: needs::need((&nat, node_ports.as_ref()), &demand.accounts, &report.nat.demand, policy),
        lost_lately: memory.lost_lately(now.node),
        now: now.wall,
    };
    report.findings = rules::findings(&view, &report);
    overlap::shorten(&mut report.overlap);
    for network in &mut report.ipam.networks {
        ipam::shorten(network, policy.max_reservations);
    }
    report
}

fn program(program: &Program) -> ProgramReport {
    let runs = program.runs.present();
    ProgramReport {
        name: program.name.clone(),
        hook: program.hook.clone(),
        attached: runs.is_some(),
        why: match &program.runs {
            Known::Unknown(why) => Some(why.to_string()),
            Known::Present(_) | Known::Absent => None,
        },
        lost_without: program.lost_without.clone(),
        runs: runs.map(|runs| runs.count),
        time_ns: runs.map(|runs| runs.time_ns),
        missed: runs.and_then(|runs| runs.missed),
    }
}

/// What every source can do here.
pub fn coverage(ledger: &Ledger, now: NodeTime) -> Vec<CoverageReport> {
    freshness::report(ledger, &freshness::coverage(ledger, now), now)
}
