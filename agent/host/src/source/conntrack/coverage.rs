//! What this source can say of conntrack, and what it lacks.

use std::path::Path;

use headroom_core::known::Why;
use headroom_core::observe::Fact;

use super::{ACCOUNT_EVERY, Access, ConntrackSource};
use crate::source::{degraded, unreadable, works};
use crate::{bounded, clock};

/// How it works, when all is well.
const HOW: &str = "dump and NEW/DESTROY events";
/// How it works with counters in the kernel.
const HOW_COUNTED: &str = "eBPF counters on conntrack's insert and delete, compared with dumps";
/// How it works without netlink.
const HOW_TABLE: &str = "/proc/net/nf_conntrack";
/// How it works where hearing of every flow would cost too much.
const HOW_DUMPS: &str = "dumps";

impl ConntrackSource {
    pub(super) fn coverage(&self) -> Fact {
        let blind = |why: &Why| format!("connections that this node itself found no port for are not seen: {why}");
        let no_port = self.counters.no_port_unknown().map(blind).filter(|_| self.options.max_keys > 0);
        let counts = self.counters.count_entries();
        let how = |how: &str| match &counts {
            Err(why) if self.options.max_keys > 0 => format!("{how} (not counted in the kernel: {why})"),
            _ => how.to_owned(),
        };
        let lacks = self.dump_lacks.clone();
        match (&self.access, &self.dump_failed) {
            (Access::NotNeeded, Some(why)) => degraded(
                HOW_COUNTED,
                format!("flows from before the start, and whether the counts are right, are not known: {why}"),
            ),
            (Access::NotNeeded, None) => {
                let inexact = self.counters.shortcoming().map(str::to_owned);
                let missing: Vec<String> = [inexact, lacks, no_port].into_iter().flatten().collect();
                if missing.is_empty() { works(HOW_COUNTED) } else { degraded(HOW_COUNTED, missing.join("; ")) }
            }
            (Access::Closed { why, .. }, Some(also)) => unreadable(format!("{why}; {also}")),
            (Access::Closed { why, .. }, None) => {
                let between = format!("flows between two readings are not seen: {why}");
                degraded(HOW_TABLE, [Some(between), lacks].into_iter().flatten().collect::<Vec<_>>().join("; "))
            }
            (Access::Events(_) | Access::Dumps, Some(why)) => unreadable(why),
            (Access::Dumps, None) => {
                let per_sec = self.closes_per_sec();
                let late = format!(
                    "UDP and forwarded flows are as of the last dump: with {per_sec} connections closing in a second, hearing of \
                     each flow would cost the node too much"
                );
                degraded(
                    how(HOW_DUMPS),
                    [Some(late), lacks, no_port].into_iter().flatten().collect::<Vec<_>>().join("; "),
                )
            }
            (Access::Events(events), None) => {
                let missing: Vec<String> =
                    [events.shortcoming.clone(), self.losses.blind.clone(), self.silent(), lacks, no_port]
                        .into_iter()
                        .flatten()
                        .collect();
                let how = how(HOW);
                if missing.is_empty() { works(how) } else { degraded(how, missing.join("; ")) }
            }
        }
    }

    /// Looks now and then whether the kernel sends events.
    pub(super) fn listen_for_silence(&mut self) {
        let now = clock::node_time();
        if self.silent.1.is_none_or(|looked| now.since(looked) >= ACCOUNT_EVERY) {
            let path = Path::new("/proc/sys/net/netfilter/nf_conntrack_events");
            let switched_off = bounded::read_line_in(&self.root, path, 64).is_ok_and(|value| value == "0");
            self.silent = (switched_off, Some(now));
        }
    }

    /// Why the kernel sends no events at all, if so.
    pub(super) fn silent(&self) -> Option<String> {
        self.silent.0.then(|| "there are no events: net.netfilter.nf_conntrack_events is 0".to_owned())
    }
}
