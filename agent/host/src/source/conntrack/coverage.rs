//! What this source can say of conntrack, and what it lacks.

use std::path::Path;

use headroom_core::known::Why;
use headroom_core::observe::Fact;
use headroom_core::time::NodeTime;

use super::{ACCOUNT_EVERY, Access, ConntrackSource};
use crate::source::{as_of_dump, degraded, unreadable, works};
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
        let told = match self.access {
            Access::Events(_) => self.silent().is_none(),
            Access::NotNeeded => true,
            Access::Dumps | Access::Closed { .. } => false,
        };
        if told { self.ability() } else { as_of_dump(self.ability()) }
    }

    fn ability(&self) -> Fact {
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
                degraded(how(HOW_TABLE), [Some(between), lacks].into_iter().flatten().collect::<Vec<_>>().join("; "))
            }
            (Access::Events(_) | Access::Dumps, Some(why)) => unreadable(why),
            (Access::Dumps, None) => {
                let per_sec = self.closes_per_sec();
                let late = format!(
                    "UDP and forwarded flows are as of the last dump: {per_sec} connections a second had closed before it, and \
                     hearing of each flow would cost the node too much"
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
        if self.silence.looked.is_none_or(|looked| now.since(looked) >= ACCOUNT_EVERY) {
            let path = Path::new("/proc/sys/net/netfilter/nf_conntrack_events");
            let switched_off = bounded::read_line_in(&self.root, path, 64).is_ok_and(|value| value == "0");
            if self.silence.looked_at(switched_off, now) {
                // What came and went meanwhile nobody tells of but a dump.
                self.schedule.lost();
                self.schedule.hurry();
            }
        }
    }

    /// Why the kernel sends no events at all, or what happened meanwhile is missing, if so.
    pub(super) fn silent(&self) -> Option<String> {
        self.silence.why().map(str::to_owned)
    }
}

/// Whether the kernel sends events.
#[derive(Debug, Default)]
pub(super) struct Silence {
    off: bool,
    looked: Option<NodeTime>,
    /// It sends some again, but no dump has shown what it was silent about.
    missed: bool,
    /// A dump that will show it has begun.
    mending: bool,
}

impl Silence {
    /// Whether it was switched on again.
    fn looked_at(&mut self, off: bool, now: NodeTime) -> bool {
        let again = self.off && !off;
        (self.off, self.looked) = (off, Some(now));
        // One that began before may lack what came until now.
        (self.missed, self.mending) = (self.missed || off || again, self.mending && !off && !again);
        again
    }

    /// A dump of everything begins.
    pub(super) fn dump_begins(&mut self) {
        self.mending = !self.off;
    }

    /// It has ended, well or not.
    pub(super) fn dump_ended(&mut self, well: bool) {
        if std::mem::take(&mut self.mending) && well {
            self.missed = false;
        }
    }

    fn why(&self) -> Option<&'static str> {
        match (self.off, self.missed) {
            (true, _) => Some("there are no events: net.netfilter.nf_conntrack_events is 0"),
            (false, true) => Some(
                "what came and went while net.netfilter.nf_conntrack_events was 0 is missing until the table was read whole again",
            ),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises events that are switched off and on, with dumps before, across and behind it. If this fails, numbers from before
    /// look like those of now.
    #[test]
    fn events_that_come_again_leave_a_gap_until_a_dump_has_ended() {
        let mut silence = Silence::default();
        let at = NodeTime::from_secs;
        let said = |silence: &Silence| {
            silence.why().map_or("", |why| if why.starts_with("there are no") { "off" } else { "missing" })
        };
        assert!(!silence.looked_at(false, at(1)));
        assert_eq!(said(&silence), "");
        assert!(!silence.looked_at(true, at(2)));
        silence.dump_begins();
        silence.dump_ended(true);
        assert_eq!(said(&silence), "off");
        silence.dump_begins();
        assert!(silence.looked_at(false, at(3)));
        silence.dump_ended(true);
        assert_eq!(said(&silence), "missing", "that one began before");
        silence.dump_begins();
        silence.dump_ended(false);
        assert_eq!(said(&silence), "missing", "and that one failed");
        silence.dump_begins();
        assert!(!silence.looked_at(false, at(4)));
        assert_eq!(said(&silence), "missing");
        silence.dump_ended(true);
        assert_eq!(said(&silence), "");
    }
}
