//! `headroom plan nat`: NAT sizes.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use anyhow::{Context, bail};
use headroom_core::model::nat::{ALIAS_FLOOR, Described, Mode, NatSettings, ObservedPorts, SetTimes};
use headroom_core::sizing::nat::{Demand, NodesDemand, Question, plan};
use headroom_core::words::counted;
use headroom_host::clock;
use headroom_host::nat_documents::Instance;

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
    name_once(&mut documents);
    let tried = tried(&flags, &documents);
    if tried || flags.nat_ips.is_some() {
        documents.described.missing_ips = None;
    }
    let left_out = machines(&mut documents, tried);
    let left_out = if flags.nat_ips.is_some() { 0 } else { left_out };
    let said = documents.described.clone();
    let described = flags.clone().or(said.clone());
    let profile = described
        .profile
        .context("which NAT? Add `--profile gcp` (or aws, azure-natgw, azure-lb, linux), or `--from FILE`")?;
    let mut nat = described.settings(profile).map_err(|bad| documents.places.blame(bad, &flags))?;
    nat.notes.extend(nat.told_allocation_failed(clock::now().wall));
    let nodes = nat.nodes.map(|nodes| nat.with_surge(nodes));
    if let (Some(nodes), Some(demand)) = (nodes, &args.demand)
        && demand.other_nodes() > nodes
    {
        bail!(
            "`--demand` is that of {} nodes, but there are {nodes}: raise --nodes or leave some out",
            demand.other_nodes()
        );
    }
    let demand = demand(&documents, args.demand.as_ref(), &mut nat);
    // What machines have they were given by the gateway that the files tell of.
    let before = match said.mode {
        Some(mode) => NatSettings { mode, min_ports: said.min_ports, ..nat.clone() },
        None => nat.clone(),
    };
    let demand = if tried {
        nat.notes.extend(cut(&demand, &nat));
        demand.after(&before, &nat)
    } else {
        demand
    };
    Ok(Question { nat, demand, left_out, lifetime: args.lifetime.unwrap_or_default() })
}

/// Whether flags give a node other ports than the gateway in the files does. Where these tell of machines alone, flags say
/// what the gateway is that serves them; what static allocation gave them they tell themselves.
fn tried(flags: &Described, documents: &Documents) -> bool {
    let said = &documents.described;
    let other = |flag: Option<u32>, said: Option<u32>| flag.is_some() && flag != said;
    // Machines show whether they have alias ranges: who says the same tries nothing.
    let most = documents.instances.values().filter_map(|machine| machine.ports).max();
    let shown = said.alias_ranges.unwrap_or(most.is_none_or(|most| most >= ALIAS_FLOOR));
    let alias = flags.alias_ranges.is_some_and(|flag| flag != shown && (flag || said.mode.is_some()));
    let ports = other(flags.min_ports, said.min_ports) || other(flags.max_ports, said.max_ports) || alias;
    match said.mode {
        Some(mode) => ports || flags.mode.is_some_and(|flag| flag != mode),
        None => ports && flags.mode != Some(Mode::Dynamic),
    }
}

/// What settings do to machines that have more.
fn cut(demand: &Demand, nat: &NatSettings) -> Option<String> {
    let most = demand.others.iter().map(|machine| machine.has).max()?;
    let ports = nat.node_ports()?.ports;
    (ports < most).then(|| {
        format!("machines have up to {most} ports now, and {ports} at most then: connections beyond them would be cut")
    })
}

/// Machines that series name by number and a mapping by name are the same ones; who is who is not said.
fn name_once(documents: &mut Documents) {
    let numbered = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit());
    let instances = std::mem::take(&mut documents.instances);
    let (numbers, mut names): (BTreeMap<_, _>, BTreeMap<_, _>) =
        instances.into_iter().partition(|(name, _)| numbered(name));
    if !numbers.is_empty() && !names.is_empty() {
        documents.described.notes.push(
            "machines are named by number in one file and by name in another: those that use most are taken to be those \
             that have most"
                .to_owned(),
        );
    }
    let mut numbers: Vec<(String, Instance)> = numbers.into_iter().collect();
    numbers.sort_by_key(|(_, machine)| Reverse(machine.used.max(machine.ports)));
    let mut numbers = numbers.into_iter();
    let mut named: Vec<&mut Instance> = names.values_mut().collect();
    named.sort_by_key(|machine| Reverse(machine.ports.max(machine.used)));
    for (machine, (_, number)) in named.into_iter().zip(&mut numbers) {
        machine.ports = machine.ports.or(number.ports);
        machine.used = machine.used.max(number.used);
    }
    names.extend(numbers);
    documents.instances = names;
}

/// What files tell of single machines: how many there are, and what they have (unless something else is being tried). How many of
/// them have no ports then.
fn machines(documents: &mut Documents, tried: bool) -> u32 {
    let Documents { described, instances, machines_from, ports_at, .. } = documents;
    if instances.is_empty() {
        return 0;
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
        && !tried
    {
        let range = if least == most { String::new() } else { format!(" ({least} to {most})") };
        let why = format!("as {from} has it for {}{range}", counted(count, "machine"));
        // The oldest of them tells how far all can be relied on.
        let observed = ObservedPorts { ports: most, why, at: ports_at.values().min().copied() };
        described.notes.extend(observed.told_age(clock::now().wall).map(|age| format!("what machines have is {age}")));
        described.observed = Some(observed);
    }
    if tried { 0 } else { u32::try_from(without.len()).unwrap_or(u32::MAX) }
}

/// What nodes need and have: as asked for, otherwise as files tell it of single machines.
fn demand(documents: &Documents, asked: Option<&Demand>, nat: &mut NatSettings) -> Demand {
    let from = documents.machines_from.join(", ");
    let mut machines: Vec<&Instance> = documents.instances.values().collect();
    if let Some(nodes) = nat.nodes.and_then(|nodes| usize::try_from(nodes).ok())
        && machines.len() > nodes
    {
        nat.notes.push(format!(
            "{} are wanted, {from} has {}: those that take most are counted",
            counted(nodes, "node"),
            counted(machines.len(), "machine")
        ));
        machines.sort_by_key(|machine| Reverse(machine.ports.max(machine.used)));
        machines.truncate(nodes);
    }
    let has = |machine: &Instance| machine.ports.unwrap_or(0);
    if let Some(asked) = asked {
        return asked.clone().of_nodes_that_have(machines.into_iter().map(has).collect());
    }
    let mut used: Vec<u32> = machines.iter().filter_map(|machine| machine.used).collect();
    used.sort_unstable();
    let each = used.get(used.len() / 2).copied();
    if let Some(median) = each {
        nat.notes.push(format!(
            "demand as {from} has it for {}: {median} ports in the middle, {} at most; further machines are taken to \
             need what the one in the middle does",
            counted(used.len(), "machine"),
            used.last().unwrap_or(&median)
        ));
    }
    let each = each.unwrap_or(0);
    let told = machines.into_iter().filter(|machine| machine.used.is_some() || has(machine) > 0);
    let others = told.map(|machine| NodesDemand { nodes: 1, ports: machine.used.unwrap_or(each), has: has(machine) });
    Demand { each, others: others.collect() }
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
