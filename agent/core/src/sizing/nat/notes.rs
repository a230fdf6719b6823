//! What to know besides the numbers of a plan.

use super::{LINUX_FULL_PERCENT, LINUX_TRIES, Question, Sums, automatic_azure_lb, ips_assumed};
use crate::model::nat::remedy::nat_ips;
use crate::model::nat::{AZURE_LB_TIERS, Basis, Mode, NatSettings, Profile, Sharing, azure_lb_tier};
use crate::words::counted;

/// Addresses of a public AWS gateway, unless somebody has asked for more.
const AWS_DEFAULT_QUOTA: u32 = 2;

pub(super) fn notes(question: &Question, sums: &Sums) -> Vec<String> {
    let nat = &question.nat;
    let mut notes = nat.notes.clone();
    given(&mut notes, nat, sums);
    match nat.profile {
        Profile::Gcp => gcp(&mut notes, question, sums),
        Profile::AzureLb => azure_lb(&mut notes, nat, sums),
        Profile::Aws => aws(&mut notes, nat, sums),
        Profile::AzureNatgw | Profile::Linux | Profile::None => {}
    }
    demand(&mut notes, nat, sums);
    left_out(&mut notes, sums);
    notes
}

/// Machines without ports on a gateway that has enough for them.
fn left_out(notes: &mut Vec<String>, sums: &Sums) {
    if sums.left_out > 0 && sums.room() {
        let machines = counted(sums.left_out, "machine");
        let have = if sums.left_out == 1 { "has" } else { "have" };
        notes.push(format!(
            "by these numbers all fit, yet {machines} {have} no ports: see whether the gateway serves the subnetwork, and lacks NAT IPs \
             (`gcloud compute routers get-status`)"
        ));
    }
}

/// What was assumed, and limits on the number of IPs.
fn given(notes: &mut Vec<String>, nat: &NatSettings, sums: &Sums) {
    if nat.auto_ips {
        notes.push(format!("the gateway adds NAT IPs by itself, up to {} of them", sums.ips));
    } else if ips_assumed(nat) {
        let verb = if sums.ips == 1 { "is" } else { "are" };
        notes.push(format!("{} {verb} assumed: say how many there are with --nat-ips", nat_ips(sums.ips)));
    }
    if let Some(missing) = nat.missing_ips {
        notes.push(format!("the gateway itself says that it lacks {} now", nat_ips(missing)));
    }
    if sums.nodes.is_none() {
        notes.push("say how many nodes there are with --nodes to know whether they fit".to_owned());
    }
    if let (Some(most), Some(required)) = (nat.max_ips(), sums.required_nat_ips)
        && required > most
    {
        let gateways = required.div_ceil(most);
        notes.push(format!(
            "{required} NAT IPs are not reachable with one gateway ({most} at most): at least {gateways} gateways"
        ));
    }
}

fn gcp(notes: &mut Vec<String>, question: &Question, sums: &Sums) {
    let nat = &question.nat;
    match nat.mode {
        Mode::Static => {
            let asked = nat.min_ports.filter(|min| *min != 0 && !min.is_power_of_two());
            if let Some(asked) = asked.filter(|asked| *asked > 32_768)
                && sums.ports.basis != Basis::Observed
            {
                notes.push(format!(
                    "{asked} is above 32768: its power of two is more than the {} ports of a NAT IP, so that a node is taken to \
                     have all of one",
                    sums.each
                ));
            } else if let Some(asked) = asked
                && sums.ports.basis != Basis::Observed
            {
                notes.push(format!(
                    "{asked} is no power of two: at least {} ports are reserved for each node; what Cloud NAT really gave \
                     is in `gcloud compute routers get-nat-mapping-info`",
                    sums.each
                ));
            }
        }
        Mode::Dynamic => {
            let at_max = counted(sums.pool / u64::from(sums.ports.ports.max(1)), "node");
            notes.push(format!(
                "ports double from {} to {} as a node needs them, which takes time: packets may drop meanwhile; {at_max} at \
                 most when all of them need the maximum",
                sums.ports.reserved, sums.ports.ports
            ));
            minimum(notes, sums);
        }
    }
    machines(notes, question, sums);
    // Of nodes that are alike.
    let per_ip = u64::from(sums.capacity.ports_per_ip) / u64::from(sums.each.max(1));
    let one_ip_each = nat.without_surge(u64::from(sums.ips) * per_ip);
    if let Some(capacity) = sums.capacity_nodes.filter(|capacity| *capacity > one_ip_each)
        && sums.ips > 1
        && question.demand.others.is_empty()
    {
        notes.push(format!(
            "{capacity} nodes where a node's ports may lie on two IPs, {one_ip_each} where they may not"
        ));
    }
}

/// Why nodes do not fit that together need less than there is.
fn minimum(notes: &mut Vec<String>, sums: &Sums) {
    let (Some(needed), Some(total)) = (sums.needed, sums.total) else { return };
    if needed > sums.pool || total <= sums.pool {
        return;
    }
    let (pool, min) = (sums.pool, sums.ports.reserved);
    notes.push(if sums.largest > min {
        format!(
            "the sum of what the nodes need would fit ({needed} of {pool} ports), but ports are given by doubling: together \
             the nodes take {total}"
        )
    } else {
        format!(
            "each node has the minimum of {min} ports reserved at least, whether it needs them or not: together the nodes \
             take {total} of {pool}"
        )
    });
}

/// What machines have that are not all alike, or grow.
fn machines(notes: &mut Vec<String>, question: &Question, sums: &Sums) {
    let have = question.demand.others.iter().filter(|some| some.has > 0);
    let nodes = have.clone().map(|some| some.nodes).fold(0, u32::saturating_add);
    if nodes == 0 || question.nat.mode == Mode::Static && have.clone().all(|some| some.has == sums.each) {
        return;
    }
    let ports = question.demand.sum_of_others(|some| some.has);
    let have = match (question.nat.observed.is_some(), nodes) {
        (true, 1) => "has",
        (true, _) => "have",
        (false, _) => "would have",
    };
    notes.push(format!(
        "{} in the files {have} {ports} of {} ports; each further node is taken to have {}",
        counted(nodes, "machine"),
        sums.pool,
        sums.each
    ));
}

fn aws(notes: &mut Vec<String>, nat: &NatSettings, sums: &Sums) {
    if !nat.regional && sums.required_nat_ips.is_some_and(|ips| ips > AWS_DEFAULT_QUOTA) {
        notes.push(format!(
            "a public gateway has {AWS_DEFAULT_QUOTA} addresses at most unless the quota (Elastic IP addresses per public NAT \
             gateway) has been raised"
        ));
    }
}

fn azure_lb(notes: &mut Vec<String>, nat: &NatSettings, sums: &Sums) {
    if !automatic_azure_lb(nat) {
        notes.push("each load-balancing rule and inbound NAT rule takes 8 ports of a frontend IP besides".to_owned());
        if sums.required_nat_ips.is_some_and(|required| required > sums.ips) {
            notes.push(
                "Azure refuses to allocate more than there is: InvalidLoadBalancerProfileAllocatedOutboundPorts"
                    .to_owned(),
            );
        }
        if sums.surge == 0 && sums.nodes.is_some_and(|nodes| sums.capacity_nodes == Some(nodes)) {
            notes.push("no room is left for the nodes that an upgrade adds (AKS: 1 for each pool): --surge".to_owned());
        }
        return;
    }
    let Some(nodes) = sums.nodes else {
        let tiers = AZURE_LB_TIERS.iter().map(|(most, ports)| format!("{ports} up to {most} nodes"));
        notes.push(format!(
            "the more nodes there are, the fewer ports each has for each frontend IP: {}",
            tiers.collect::<Vec<_>>().join(", ")
        ));
        return;
    };
    let pool = nodes.saturating_add(sums.surge);
    // What is not known says why.
    let Some(ports) = azure_lb_tier(pool) else { return };
    if let Some(before) = azure_lb_tier(nodes).filter(|before| *before > ports) {
        notes.push(format!(
            "an upgrade that adds {} crosses an edge of Azure's table: every node falls from {before} to {ports} ports for \
             each frontend IP, and connections are reset",
            if sums.surge == 1 { "a node".to_owned() } else { format!("{} nodes", sums.surge) }
        ));
    }
    let edge = AZURE_LB_TIERS.iter().position(|(most, _)| pool <= *most);
    let next = edge.and_then(|index| Some((AZURE_LB_TIERS.get(index)?.0, AZURE_LB_TIERS.get(index + 1)?.1)));
    if let Some((most, then)) = next {
        notes.push(format!(
            "from node {} on every node has {then} ports for each frontend IP instead of {ports}; connections are reset when \
             the pool grows beyond {most}",
            most + 1
        ));
    }
}

/// Demand against what a node can have at all.
fn demand(notes: &mut Vec<String>, nat: &NatSettings, sums: &Sums) {
    let independent = nat.endpoint_independent == Some(true);
    let to_one = if independent { "" } else { " to one destination" };
    if let Some(short) = sums.short.filter(|_| sums.known) {
        notes.push(format!(
            "a node that needs {}{to_one} gets {}: connections beyond that fail",
            counted(short.needs, "port"),
            short.gets
        ));
    }
    if independent {
        notes.push(
            "with endpoint-independent mapping a port is taken by one source address and port for all destinations: count \
             those, not connections to one destination; the rate is that of new sources"
                .to_owned(),
        );
    }
    if sums.capacity.sharing == Sharing::PerDestination {
        notes.push(format!(
            "no ports are reserved for a node: all nodes together have {} {} at a time{}",
            sums.pool,
            if independent { "for all destinations" } else { "to each destination" },
            if sums.largest == 0 { "; say what a node needs with --demand" } else { "" }
        ));
    }
    if nat.profile == Profile::Linux && u64::from(sums.ports.ports) > sums.pool {
        let why = if sums.pool == u64::from(sums.ips) * LINUX_TRIES {
            format!("the kernel tries {LINUX_TRIES} ports for a connection, and then fewer: of {}", sums.ports.ports)
        } else {
            format!("the kernel's search for a free port begins to fail when some {LINUX_FULL_PERCENT} % are taken:")
        };
        notes.push(format!("{why} no more than {}{to_one} are counted on", sums.pool));
    }
}
