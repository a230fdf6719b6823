//! Rules on connections that fall silent: what the NAT drops while the node still believes in it, and keepalive that comes too
//! late to prevent it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::{holder_name, pod_name};
use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::flow::{Destination, Protocol};
use crate::ledger::KeepaliveTally;
use crate::model::View;
use crate::model::demand::Account;
use crate::model::nat::Profile;
use crate::model::nat::remedy::{self, Remedy};
use crate::observe::SourceId;
use crate::report::{PodShare, Report};
use crate::words::counted;

/// Destinations told of at most.
const MAX_FINDINGS: usize = 10;

/// Connections that the NAT forgets before anything keeps them alive.
pub(super) fn idle(view: &View<'_>, report: &Report) -> Vec<Finding> {
    if view.nat.profile == Profile::None {
        return Vec::new();
    }
    let silent = view.accounts.iter().filter(|account| {
        let tcp = account.in_scope && account.destination.protocol == Protocol::TCP;
        tcp && (dropped(account) > 0 || account.silent > 0)
    });
    let mut worth: Vec<&Account> = silent.collect();
    worth.sort_by_key(|account| (std::cmp::Reverse((dropped(account), account.silent)), account.destination));
    worth.into_iter().take(MAX_FINDINGS).filter_map(|account| idle_of(account, view, report)).collect()
}

/// Open on both sides, and silent for longer than the NAT waits. What is closed on one side is not kept for so long, whatever sends
/// probes: its program has not closed its socket.
fn dropped(account: &Account) -> u32 {
    account.forgotten.saturating_sub(account.half_forgotten)
}

fn idle_of(account: &Account, view: &View<'_>, report: &Report) -> Option<Finding> {
    let (destination, dropped) = (account.destination, dropped(account));
    let idle = view.nat.hold.tcp_established_idle;
    let keepalive = keepalive(view, destination);
    let sources: BTreeSet<IpAddr> = account.by_source.iter().map(|(address, _)| address).collect();
    let late = sysctls(view, report, &sources, idle);
    // Half of the time has passed in silence: a warning only once the NAT has dropped something, and no word at all where
    // keepalive will come in time.
    let in_time = keepalive.off == 0 && u64::from(keepalive.next_secs) < idle.as_secs() / 2 && late.is_empty();
    if dropped == 0 && in_time {
        return None;
    }
    let open = account.active.saturating_add(dropped);
    let secs = idle.as_secs();
    let title = if dropped > 0 {
        format!("the NAT has dropped {dropped} of {open} connections to {destination}: silent for more than {secs} s")
    } else {
        format!(
            "{} of {open} connections to {destination} are silent; the NAT drops them after {secs} s",
            account.silent
        )
    };
    let mut silence = Vec::new();
    if dropped > 0 {
        silence.push(format!(
            "{dropped} silent for more than {secs} s: the node takes them for open, and their next packet will be dropped or \
             answered with a reset"
        ));
    }
    if account.silent > 0 {
        silence.push(format!("{} silent for more than half of the {secs} s", account.silent));
    }
    if account.half_forgotten > 0 {
        let half = counted(account.half_forgotten, "connection");
        silence.push(format!(
            "{half} closed on one side alone and silent: not among these, the program has not closed its socket"
        ));
    }
    let mut evidence = vec![Evidence::seen(SourceId::Conntrack, silence.join("; "))];
    evidence.extend(holders(account, report));
    evidence.extend(probes(keepalive));
    evidence.extend(late.into_iter().take(3).map(|said| Evidence::seen(SourceId::Namespaces, said)));
    Some(Finding {
        id: FindingId::NatIdleTimeoutExceedsKeepalive,
        severity: if dropped > 0 { Severity::Warning } else { Severity::Info },
        title,
        subject: destination.to_string(),
        evidence,
        remedy: remedy(view, idle),
    })
}

/// Keepalive of the sockets to one destination.
fn keepalive(view: &View<'_>, destination: Destination) -> KeepaliveTally {
    view.ledger.tcp().tables_to(destination.endpoint).fold(KeepaliveTally::default(), |sum, (_, table)| {
        KeepaliveTally {
            off: sum.off.saturating_add(table.keepalive.off),
            on: sum.on.saturating_add(table.keepalive.on),
            next_secs: sum.next_secs.max(table.keepalive.next_secs),
        }
    })
}

fn probes(keepalive: KeepaliveTally) -> Option<Evidence> {
    let said = match (keepalive.off, keepalive.on) {
        (0, 0) => return None,
        (off, 0) => format!("{off} of its sockets send no keepalive probes (SO_KEEPALIVE is off)"),
        (0, on) => format!("{on} of its sockets send keepalive probes, the next in up to {} s", keepalive.next_secs),
        (off, on) => format!(
            "{off} of its sockets send no keepalive probes (SO_KEEPALIVE is off), {on} do, the next in up to {} s",
            keepalive.next_secs
        ),
    };
    Some(Evidence::seen(SourceId::Sockets, said))
}

fn holders(account: &Account, report: &Report) -> Vec<Evidence> {
    let destination = account.destination;
    let row = report.nat.destinations.iter().find(|row| {
        (row.protocol, row.address, row.port)
            == (destination.protocol, destination.endpoint.address, destination.endpoint.port)
    });
    let mut pods: Vec<&PodShare> =
        row.map(|row| row.pods.iter().filter(|pod| pod.forgotten > 0).collect()).unwrap_or_default();
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.forgotten));
    let said =
        pods.into_iter().take(3).map(|pod| format!("{} ({}): {} dropped", pod_name(pod), pod.address, pod.forgotten));
    said.map(|said| Evidence::seen(SourceId::Conntrack, said)).collect()
}

/// Of whom net.ipv4.tcp_keepalive_time is known to be too long, in words.
fn sysctls(view: &View<'_>, report: &Report, sources: &BTreeSet<IpAddr>, idle: Duration) -> Vec<String> {
    let namespaces = view.ledger.occupants().namespaces().iter();
    let of_sources = namespaces.filter_map(|namespace| {
        let address = namespace.addresses.present()?.iter().find(|address| sources.contains(*address))?;
        Some((address, namespace.keepalive.present()?.time_secs))
    });
    let too_long = of_sources.filter(|(_, time)| u64::from(*time) >= idle.as_secs());
    too_long
        .map(|(address, time)| {
            let pod = report.nat.pods.iter().find(|pod| pod.address == *address);
            let name = pod.map_or_else(|| address.to_string(), holder_name);
            format!("net.ipv4.tcp_keepalive_time of {name} is {time} s: the first probe comes too late")
        })
        .collect()
}

fn remedy(view: &View<'_>, idle: Duration) -> String {
    // What the NAT waits longer for holds a port for longer.
    let spare = !view.need.short;
    let changes = if spare { remedy::longer_idle(view.nat) } else { Vec::new() };
    let raise = match (view.nat.profile, changes.is_empty()) {
        (_, true) if !spare => format!(
            "; {} is not to wait longer, since silent connections would hold ports, and these run low",
            view.nat.profile.title()
        ),
        (_, false) => format!("; or let {} wait longer", view.nat.profile.title()),
        (Profile::Aws, true) => " (350 s are fixed on an AWS NAT gateway)".to_owned(),
        (_, true) => String::new(),
    };
    let says = format!(
        "have the application turn SO_KEEPALIVE on, and set net.ipv4.tcp_keepalive_time={} (sysctl -w on the node, \
         spec.securityContext.sysctls in a pod; TCP_KEEPIDLE for one socket){raise}",
        (idle.as_secs() / 2).max(1)
    );
    Remedy { says, changes, ..Remedy::default() }.text()
}
