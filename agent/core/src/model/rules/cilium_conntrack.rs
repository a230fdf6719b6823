//! Rules on Cilium's conntrack maps: with Dataplane V2 they fill, not the node's own table.

use super::conntrack::NEARLY_FULL_PERCENT;
use crate::findings::{Evidence, Finding, FindingId, Severity};
use crate::model::View;
use crate::observe::{CiliumMap, SourceId};
use crate::report::Report;

/// Maps that are nearly full.
pub(super) fn cilium_conntrack(view: &View<'_>, report: &Report) -> Vec<Finding> {
    let maps = report.conntrack.cilium.iter().flat_map(|cilium| &cilium.maps);
    maps.filter_map(|map| low(map, u64::from(view.policy.low_percent))).collect()
}

fn low(map: &CiliumMap, low_percent: u64) -> Option<Finding> {
    // Of a map that was read in part there may be more, never less.
    let share = map.entries.saturating_mul(100).checked_div(map.max)?;
    if share < low_percent {
        return None;
    }
    let at_least = if map.complete { "" } else { "at least " };
    let full = if map.lru {
        "it is an LRU map: a full one evicts the entries that were not used for longest, and of a connection that lives and is \
         silent the next packet is taken for the first of a new one: a network policy may drop it, and the way back to its \
         Service is lost"
    } else {
        "it evicts nothing: a full one takes no new connection (`CT: Map insertion failed`)"
    };
    Some(Finding {
        id: FindingId::ConntrackLow,
        // The kernel hands free entries to its CPUs in batches (`kernel/bpf/bpf_lru_list.c`): it evicts before the last is taken.
        severity: if share >= NEARLY_FULL_PERCENT { Severity::Critical } else { Severity::Warning },
        title: format!(
            "Cilium's conntrack map {} holds {at_least}{} of {} entries ({share} %)",
            map.name, map.entries, map.max
        ),
        subject: map.name.clone(),
        evidence: vec![Evidence::seen(SourceId::CiliumConntrack, map.to_string()), Evidence::given(full)],
        remedy: remedy(map),
    })
}

/// The exact setting. Cilium makes a map of another size anew, without its entries.
fn remedy(map: &CiliumMap) -> String {
    let wanted = map.max.saturating_mul(2);
    let (flag, value) = if map.is_of_tcp() {
        ("bpf-ct-global-tcp-max", "bpf.ctTcpMax")
    } else {
        ("bpf-ct-global-any-max", "bpf.ctAnyMax")
    };
    format!(
        "reuse connections, or make room, where Cilium's settings are yours: `{flag}: {wanted}` in its ConfigMap (Helm: {value}), or, \
         where its maps are sized by the node's memory, twice the `bpf-map-dynamic-size-ratio` (Helm: bpf.mapDynamicSizeRatio, 0.0025 \
         unless set otherwise); the map is then made anew and open connections break once: do it node by node"
    )
}
