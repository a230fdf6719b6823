//! Pods that talk to themselves through a Service, and the entries they leave behind.

use std::cmp::Reverse;

use crate::flow::Protocol;
use crate::ledger::{Hairpin, HairpinKey, Ledger};
use crate::model::holders::Holders;
use crate::observe::{ConntrackTimeouts, SourceId};
use crate::report::{CiliumHairpinReport, CiliumReport, HairpinReport};

/// An entry that a packet keeps for no longer than this ends by itself, as those in `TIME_WAIT` do.
const ENDS_SOON_SECS: u32 = 120;
/// Pairs listed at most.
const MAX_LISTED: usize = 50;

/// Those in the node's own table, and how many are not listed.
pub(super) fn report(ledger: &Ledger, holders: &Holders<'_>) -> (Vec<HairpinReport>, u64) {
    let mut rows = ledger.conntrack().hairpins().iter().peekable();
    if ledger.conntrack_doubt().is_some() || rows.peek().is_none() {
        return (Vec::new(), 0);
    }
    // What a degraded source does not show may be open.
    let seen = ledger.has_read(SourceId::Sockets);
    // Without them nobody knows what is silent, nor what lasts.
    let timeouts = ledger.conntrack_timeouts();
    let mut listed: Vec<HairpinReport> = rows.map(|(key, row)| hairpin(key, row, seen, timeouts, holders)).collect();
    listed.sort_by_key(|row| Reverse((row.left_behind, row.open, row.entries)));
    let omitted = listed.split_off(listed.len().min(MAX_LISTED)).len();
    (listed, u64::try_from(omitted).unwrap_or(u64::MAX))
}

fn hairpin(
    key: &HairpinKey,
    row: &Hairpin,
    sockets_seen: bool,
    timeouts: Option<&ConntrackTimeouts>,
    holders: &Holders<'_>,
) -> HairpinReport {
    let pod = holders.pod(key.address);
    let dialled = key.dialled.endpoint;
    let sockets = row.sockets.filter(|_| sockets_seen && key.dialled.protocol == Protocol::TCP);
    HairpinReport {
        namespace: pod.map(|pod| pod.namespace.clone()),
        name: pod.map(|pod| pod.name.clone()),
        address: key.address,
        host: pod.is_none() && holders.is_host(key.address),
        protocol: key.dialled.protocol,
        service_address: dialled.address,
        service_port: dialled.port,
        entries: row.entries,
        open: row.open,
        silent: row.silent,
        longest_silence_secs: row.longest_secs,
        sockets,
        left_behind: sockets.zip(timeouts).map(|(sockets, timeouts)| left_behind(row, sockets, timeouts)),
        half_closed: row.half_closed,
    }
}

/// Silent entries that no socket has, of those that do not end soon. Which entry a socket has is not known; it may be any of the
/// silent ones.
fn left_behind(row: &Hairpin, sockets: u64, timeouts: &ConntrackTimeouts) -> u64 {
    let (open, silent) = if half_closed_lasts(timeouts) {
        (row.open, row.silent)
    } else {
        (row.open.saturating_sub(row.half_closed), row.silent.saturating_sub(row.half_closed_silent))
    };
    silent.min(open.saturating_sub(sockets))
}

/// Whether the kernel keeps entries that one side has closed for long: kube-proxy has it do so for an hour.
pub(super) fn half_closed_lasts(timeouts: &ConntrackTimeouts) -> bool {
    timeouts.tcp_close_wait > ENDS_SOON_SECS
}

/// Cilium's maps of TCP.
const TCP: [&str; 2] = ["cilium_ct4_global", "cilium_ct6_global"];

/// Those in Cilium's maps.
pub(super) fn cilium(ledger: &Ledger, holders: &Holders<'_>) -> Option<CiliumReport> {
    let (read, began) = ledger.cilium_conntrack()?;
    let listed = read.hairpins.iter().take(MAX_LISTED);
    let omitted = read.hairpins.len().saturating_sub(MAX_LISTED);
    let tcp = TCP.into_iter().find_map(|name| read.maps.iter().find(|map| map.name == name));
    Some(CiliumReport {
        entries: tcp.map(|map| map.entries),
        max: tcp.map(|map| map.max),
        complete: read.is_whole(),
        maps: read.maps.clone(),
        left_behind: read.left_behind(),
        left_behind_at_start: began,
        broken: read.broken(),
        hairpins: listed
            .map(|counts| {
                let pod = holders.pod(counts.address);
                CiliumHairpinReport {
                    namespace: pod.map(|pod| pod.namespace.clone()),
                    name: pod.map(|pod| pod.name.clone()),
                    counts: *counts,
                }
            })
            .collect(),
        hairpins_omitted: read.hairpins_omitted.saturating_add(u64::try_from(omitted).unwrap_or(u64::MAX)),
    })
}
