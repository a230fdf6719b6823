//! `headroom plan nat`: NAT sizes.

use anyhow::{Context, bail};
use headroom_core::model::nat::{ALIAS_FLOOR, Described, ObservedPorts, SetTimes};
use headroom_core::sizing::nat::{Demand, NodesDemand, Question, plan};
use headroom_core::words::counted;
use headroom_host::clock;

use crate::args::Format;
use crate::args::plan::PlanNatArgs;
use crate::command::UsageError;
use crate::output::{self, table::Width};
use crate::settings::documents::{self, Documents};
use crate::settings::nat::same_nat;

/// Runs the command.
///
/// # Errors
/// Settings that contradict each other or would be refused; a closed stdout.
pub(super) fn run(args: &PlanNatArgs) -> anyhow::Result<u8> {
    let question = question(args).map_err(UsageError)?;
    let plan = plan(&question).map_err(|nothing| UsageError(nothing.into()))?;
    match args.output {
        Format::Json => output::json(&plan)?,
        Format::Table => output::print(&output::table::plan::nat(&plan, Width::of_stdout()))?,
    }
    Ok(super::exit_code(plan.fits))
}

fn question(args: &PlanNatArgs) -> anyhow::Result<Question> {
    let mut documents = documents::read(&args.from, args.gateway.as_deref())?;
    let flags = args.described();
    same_nat(flags.profile, documents.described.profile)?;
    let what_if = [flags.min_ports, flags.max_ports, flags.nat_ips].iter().any(Option::is_some)
        || flags.mode.is_some()
        || flags.alias_ranges.is_some();
    let demand = machines(&mut documents, what_if);
    let described = flags.clone().or(documents.described);
    let profile = described
        .profile
        .context("which NAT? Add `--profile gcp` (or aws, azure-natgw, azure-lb, linux), or `--from FILE`")?;
    let mut nat = described.settings(profile).map_err(|bad| documents.places.blame(bad, &flags))?;
    nat.notes.extend(nat.told_allocation_failed(clock::now().wall));
    let nodes = nat.nodes.map(|nodes| nodes.saturating_add(nat.surge.unwrap_or(0)));
    if let (Some(nodes), Some(demand)) = (nodes, &args.demand)
        && demand.other_nodes() > nodes
    {
        bail!(
            "`--demand` is that of {} nodes, but there are {nodes}: raise --nodes or leave some out",
            demand.other_nodes()
        );
    }
    Ok(Question {
        nat,
        demand: args.demand.clone().or(demand).unwrap_or_default(),
        lifetime: args.lifetime.unwrap_or_default(),
    })
}

/// What files tell of single machines: how many there are, what they have (unless something else is being tried), what they
/// need.
fn machines(documents: &mut Documents, what_if: bool) -> Option<Demand> {
    let Documents { described, instances, machines_from, ports_at, .. } = documents;
    if what_if {
        described.missing_ips = None;
    }
    if instances.is_empty() {
        return None;
    }
    let from = machines_from.join(", ");
    let count = instances.len();
    described.nodes = described.nodes.or(u32::try_from(count).ok());
    let without: Vec<&str> =
        instances.iter().filter(|(_, machine)| machine.ports == Some(0)).map(|(name, _)| name.as_str()).collect();
    if let Some(first) = without.first() {
        let more = if without.len() > 1 { format!(" and {} more", without.len() - 1) } else { String::new() };
        let have = if without.len() == 1 { "has" } else { "have" };
        let machines = counted(count, "machine");
        described.notes.push(format!("{} of {machines} {have} no ports now: {first}{more}", without.len()));
    }
    let ports = || instances.values().filter_map(|machine| machine.ports).filter(|ports| *ports > 0);
    // They show it, whatever is being tried with them.
    if ports().max().is_some_and(|most| most < ALIAS_FLOOR) {
        described.alias_ranges = described.alias_ranges.or(Some(false));
    }
    if let (Some(least), Some(most)) = (ports().min(), ports().max())
        && !what_if
    {
        let range = if least == most { String::new() } else { format!(" ({least} to {most})") };
        let why = format!("as {from} has it for {}{range}", counted(count, "machine"));
        // The oldest of them tells how far all can be relied on.
        let observed = ObservedPorts { ports: most, why, at: ports_at.values().min().copied() };
        described.notes.extend(observed.told_age(clock::now().wall).map(|age| format!("what machines have is {age}")));
        described.observed = Some(observed);
    }
    let mut used: Vec<u32> = instances.values().filter_map(|machine| machine.used).collect();
    used.sort_unstable();
    let median = used.get(used.len() / 2).copied()?;
    described.notes.push(format!(
        "demand as {from} has it for {}: {median} ports in the middle, {} at most; further machines are taken to \
         need what the one in the middle does",
        counted(used.len(), "machine"),
        used.last().unwrap_or(&median)
    ));
    let others = used.into_iter().map(|ports| NodesDemand { nodes: 1, ports }).collect();
    Some(Demand { each: median, others })
}

impl PlanNatArgs {
    fn described(&self) -> Described {
        Described {
            profile: self.profile.map(Into::into),
            mode: self.mode.map(Into::into),
            min_ports: self.min_ports,
            max_ports: self.max_ports,
            nat_ips: self.nat_ips,
            nodes: self.nodes,
            surge: self.surge,
            alias_ranges: self.alias_ranges,
            endpoint_independent: self.endpoint_independent,
            port_range: self.port_range,
            times: SetTimes { tcp_time_wait: self.tcp_time_wait, ..SetTimes::default() },
            ..Described::default()
        }
    }
}
