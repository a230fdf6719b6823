//! The conntrack table of the agent's own network namespace: a dump now and then, and what comes and goes in between.
//!
//! What comes and goes is told by the first of these that works here (chosen at start, and again when a module of netfilter is
//! loaded or unloaded):
//!
//! 1. counters in the kernel (kprobes on conntrack), read before and after every dump, which they bracket; as long as dumps bear
//!    them out (`plausible.rs`), and again half a minute after they could not be read;
//! 2. NEW and DESTROY events over netlink. The groups are joined before the first dump is asked for, and events are drained
//!    after a dump has ended, so that whatever happens during a dump arrives behind its [`Fact::End`]. Flows that existed
//!    before somebody subscribed give no DESTROY event (`nf_conntrack_events = 2`, the default since 6.1): those leave with
//!    a later dump. Lost events are noticed (`/proc/net/netlink`, column `Drops`), told as [`Fact::Lost`] and repaired by a
//!    dump. Where the TCP counters work, the kernel is asked to leave out the events of TCP: they are most of all, and
//!    whoever counts connects and closes does not need them. The kernel makes them all the same, some 4 µs a flow: where that
//!    adds up, dumps alone have to do until it is calmer;
//!    Dumps are of everything seldom then, and of UDP alone (`dump.rs`) where a loss has to be repaired or nothing is heard;
//! 3. `/proc/net/nf_conntrack` (no CAP_NET_ADMIN, no such kernel, a captured tree), which tells nothing of flows that come
//!    and go between two readings.
//!
//! One round takes at most about 45 s (two dumps of 20 s in an emergency, and draining); on a table of 200,000
//! entries it is a third of a second. Nothing is written; subscribing may make the kernel load `nf_conntrack_netlink` on
//! its own.

use std::path::Path;
use std::time::Duration;

use headroom_core::known::Why;
use headroom_core::observe::{Fact, Outcome, Snapshot, SourceId};
use headroom_core::ports::PortRange;
use headroom_core::time::NodeTime;

use crate::bounded;
use crate::clock;
use crate::ebpf::ProgramStatus;
use crate::netlink::socket::{EVENT_BUFFER_BYTES, Events};
use crate::root::HostRoot;
use crate::source::connections::READING;
use crate::source::share::Share;
use crate::source::{Sink, Source, observation};

mod counters;
mod coverage;
mod dump;
mod events;
mod lost;
mod modules;
mod plausible;
mod schedule;
pub mod table;
mod told;

use counters::Counters;
use coverage::Silence;
use dump::{DumpEnd, Reader, What};
use events::{Buffer, Losses};
use modules::Modules;
use plausible::Plausible;
use schedule::Schedule;

const ID: SourceId = SourceId::Conntrack;
/// How often opening is tried again.
const REOPEN_AFTER: Duration = Duration::from_secs(30);

/// More TCP connections that close in a second than this, and events cost more than half a percent of a CPU, nearly all of it for
/// TCP that others count.
const WORTH_HEARING: u64 = 500;
/// Dumps of everything come at least so far apart where nothing is heard of so many connections …
const DUMPS_ALONE_EVERY: Duration = Duration::from_secs(60);
/// … and dumps of UDP, which has to be told by them.
const UDP_ALONE_EVERY: Duration = Duration::from_secs(1);

/// Losses are looked for this often where nothing is heard.
const ACCOUNT_EVERY: Duration = Duration::from_secs(1);
/// How often the counters are read, and those of what found no port; or less often, if that takes more than its part of the time.
const COUNTERS_EVERY: Duration = Duration::from_secs(1);
/// Dumps are compared with the counters this often at least. The counters need none to stay true, but do not tell what falls silent.
const COMPARE_EVERY: Duration = Duration::from_secs(10);

/// The part of the time that dumps may take on a node. (Even one of an empty table of 262,144 buckets takes 12 ms; with half of this
/// UDP is known too late to be counted to two ports.)
pub const DUMPING: Share = Share::one_in(160);

/// How long to wait after a reading of the counters that took so much of a CPU.
fn pause_after(took: Duration) -> Duration {
    COUNTERS_EVERY.max(READING.pause_after(took))
}

/// How to look.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// From one dump to the next, where events or counters tell what happens in between.
    pub dump_interval: Duration,
    /// The part of the time that dumps may take ([`DUMPING`]): what they cost decides how rare they get.
    pub dumping: Share,
    /// TCP connections are counted elsewhere: their events are not needed.
    pub tcp_is_counted: bool,
    /// The NodePort range.
    pub node_ports: PortRange,
    /// Pairs of destination and source counted in the kernel at the same time; 0 to count nothing there.
    pub max_keys: u32,
    /// Room for events that wait to be read ([`EVENT_BUFFER_BYTES`]).
    pub event_buffer_bytes: usize,
}

impl Options {
    /// Dumps and events of every protocol, and nothing counted in the kernel.
    pub fn events(dump_interval: Duration) -> Self {
        Self {
            dump_interval,
            dumping: DUMPING,
            tcp_is_counted: false,
            node_ports: PortRange::NODE_PORTS,
            max_keys: 0,
            event_buffer_bytes: EVENT_BUFFER_BYTES,
        }
    }
}

/// Reads conntrack.
#[derive(Debug)]
pub struct ConntrackSource {
    root: HostRoot,
    options: Options,
    counters: Counters,
    /// No reading of the counters before.
    counters_next: NodeTime,
    plausible: Plausible,
    /// The ledger was told that counters tell what happens.
    counted: bool,
    modules: Modules,
    access: Access,
    schedule: Schedule,
    /// Entries in the table at the last look.
    entries: u64,
    /// Of dumps of UDP alone.
    udp_schedule: Schedule,
    reader: Reader,
    buffer: Buffer,
    losses: Losses,
    /// Why the last dump failed, if it did.
    dump_failed: Option<String>,
    /// What may be missing in the last dump, or in one of UDP since.
    dump_lacks: Option<String>,
    /// When losses were counted last.
    accounted: NodeTime,
    silence: Silence,
}

/// What there is to read from.
#[derive(Debug)]
enum Access {
    Events(Events),
    /// The counters tell what happens; dumps are asked for one by one.
    NotNeeded,
    /// Events are not worth their price at present.
    Dumps,
    /// No netlink, because … until the next attempt.
    Closed {
        why: String,
        next_attempt: NodeTime,
    },
}

impl ConntrackSource {
    /// Subscribes to events. What does not work is told in every round, and tried again now and then.
    pub fn start(root: &HostRoot, options: Options) -> Self {
        let mut source = Self {
            root: root.clone(),
            options,
            counters: Counters::none(),
            counters_next: NodeTime::default(),
            plausible: Plausible::default(),
            counted: false,
            modules: Modules::new(root),
            access: Access::Closed { why: String::new(), next_attempt: NodeTime::default() },
            schedule: Schedule::new(options.dump_interval, options.dumping),
            entries: 0,
            udp_schedule: Schedule::seldom(UDP_ALONE_EVERY, options.dumping),
            reader: Reader::new(root),
            buffer: Buffer::default(),
            losses: Losses::default(),
            dump_failed: None,
            dump_lacks: None,
            accounted: NodeTime::default(),
            silence: Silence::default(),
        };
        source.choose();
        source
    }

    /// Chooses who tells what comes and goes.
    fn choose(&mut self) {
        self.counters = match self.options.max_keys {
            0 => Counters::none(),
            max_keys => self.counters.start_anew(&self.root, self.options.node_ports, max_keys),
        };
        self.fall_back();
    }

    /// Goes on with what the counters leave to be told.
    fn fall_back(&mut self) {
        if self.counters.count_entries().is_ok() {
            self.access = Access::NotNeeded;
            self.start_over();
        } else {
            self.open();
        }
    }

    fn open(&mut self) {
        let opened = if self.root.is_live() {
            Events::subscribe(self.options.tcp_is_counted, self.options.event_buffer_bytes)
                .map_err(|error| error.sentence())
        } else {
            Err("a captured tree has no netlink".to_owned())
        };
        match opened {
            Ok(events) => {
                self.access = Access::Events(events);
                self.losses.drops = 0;
                self.start_over();
            }
            Err(why) => self.close(why),
        }
    }

    /// What is read from has changed: whatever was known of it before says nothing.
    fn start_over(&mut self) {
        let Options { dump_interval, dumping: share, .. } = self.options;
        let counted = self.counters.count_entries().is_ok();
        let interval = if counted { dump_interval.min(COMPARE_EVERY) } else { dump_interval };
        self.schedule = if self.options.tcp_is_counted {
            Schedule::sooner_at_first(interval, share)
        } else {
            Schedule::new(interval, share)
        };
        self.udp_schedule = Schedule::seldom(UDP_ALONE_EVERY, share);
        self.plausible = Plausible::default();
        (self.dump_failed, self.dump_lacks) = (None, None);
    }

    fn close(&mut self, why: String) {
        if matches!(self.access, Access::Events(_) | Access::Dumps) {
            self.start_over();
        }
        self.access = Access::Closed { why, next_attempt: clock::node_time().after(REOPEN_AFTER) };
    }

    fn dump(&mut self, what: What, sink: Sink<'_>) {
        let schedule = if what == What::Udp { &mut self.udp_schedule } else { &mut self.schedule };
        schedule.begins();
        if what == What::Everything {
            self.silence.dump_begins();
        }
        let began = clock::thread_cpu();
        // To find nothing in a large empty table takes the kernel as long as to find little.
        let end = if self.count() == Some(0) { self.reader.nothing(what, sink) } else { self.reader.dump(what, sink) };
        self.dump_ended(what, began, end);
    }

    fn dump_ended(&mut self, what: What, began: Duration, end: DumpEnd) {
        self.note_lacks(what, &end);
        self.dump_failed = match end {
            DumpEnd::Complete | DumpEnd::Interrupted | DumpEnd::Holes(_) => None,
            DumpEnd::Failed(why) => Some(why),
            DumpEnd::Refused(why) => return self.close(why),
        };
        let took = clock::thread_cpu().saturating_sub(began);
        let (now, well) = (clock::node_time(), self.dump_failed.is_none());
        if what == What::Everything {
            self.silence.dump_ended(well);
            self.schedule.ended(took, now, well);
        }
        // What shows everything shows UDP.
        self.udp_schedule.ended(took, now, well);
    }

    /// What a dump of UDP alone does not lack may still be missing of the rest.
    fn note_lacks(&mut self, what: What, end: &DumpEnd) {
        let lacks = end.lacks();
        if what == What::Everything || lacks.is_some() {
            self.dump_lacks = lacks;
        }
    }

    fn observe_events(&mut self, sink: Sink<'_>) {
        // What waits is older than the dump that may follow: told first, it keeps its place in time.
        let now = clock::node_time();
        // Whoever hears nothing may have lost everything, which shows a second later.
        let second = now.since(self.accounted) >= ACCOUNT_EVERY;
        if self.drain(sink) > 0 || second {
            self.account(sink);
        }
        if second {
            self.accounted = now;
            self.look_at_size();
        }
        if matches!(self.access, Access::Events(_))
            && let Some(what) = self.due(clock::node_time())
        {
            self.dump(what, sink);
            self.drain(sink);
            self.account(sink);
            if self.options.tcp_is_counted
                && matches!(self.access, Access::Events(_))
                && self.closes_per_sec() > WORTH_HEARING
            {
                tracing::info!("so many connections close that conntrack's events are not listened to at present");
                self.access = Access::Dumps;
                self.schedule.slow_down(DUMPS_ALONE_EVERY);
            }
        }
    }

    /// Where the table grows fast, a dump tells whether listening is still worth its price.
    fn look_at_size(&mut self) {
        if let Some(entries) = self.count() {
            if self.options.tcp_is_counted && entries > self.entries.saturating_add(WORTH_HEARING) {
                self.schedule.hurry();
            }
            self.entries = entries;
        }
    }

    /// How many entries the table has, those included that no dump shows yet or any more.
    fn count(&self) -> Option<u64> {
        let path = Path::new("/proc/sys/net/netfilter/nf_conntrack_count");
        bounded::read_line_in(&self.root, path, 64).ok()?.parse().ok()
    }

    /// What to dump now.
    fn due(&self, now: NodeTime) -> Option<What> {
        let tcp_is_counted = self.options.tcp_is_counted;
        // A loss is one of UDP where TCP is not listened to.
        let everything = self.schedule.regular(now) || (!tcp_is_counted && self.schedule.due(now));
        let unheard = !matches!(self.access, Access::Events(_)) || self.silent().is_some();
        let udp = self.udp_schedule.due(now) && (unheard || !self.udp_schedule.regular(now));
        everything.then_some(What::Everything).or((tcp_is_counted && udp).then_some(What::Udp))
    }

    /// How many TCP connections close in a second, as the table shows: each stays in TIME_WAIT for a known while.
    fn closes_per_sec(&self) -> u64 {
        let path = Path::new("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait");
        let secs = bounded::read_line_in(&self.root, path, 64).ok().and_then(|text| text.parse().ok()).unwrap_or(120);
        self.reader.time_waits / std::cmp::max(secs, 1)
    }

    fn observe_dumps(&mut self, sink: Sink<'_>) {
        if let Some(what) = self.due(clock::node_time()) {
            self.dump(what, sink);
            self.account(sink);
            if matches!(self.access, Access::Dumps) && self.closes_per_sec() < WORTH_HEARING / 2 {
                self.open();
            }
        }
    }

    fn observe_table(&mut self, sink: Sink<'_>) {
        if self.schedule.due(clock::node_time()) {
            self.schedule.begins();
            let began = clock::thread_cpu();
            let end = self.reader.table(sink);
            self.dump_ended(What::Everything, began, end);
            self.account(sink);
        }
    }

    /// Reads the counters, and compares them with a dump now and then.
    fn observe_counters(&mut self, sink: Sink<'_>) {
        let counted = self.counters.count_entries().is_ok();
        let now = clock::node_time();
        let compare = counted && self.schedule.due(now);
        if !compare && now < self.counters_next {
            return;
        }
        let began = clock::thread_cpu();
        let mut read = self.counters.read(sink);
        let took = clock::thread_cpu().saturating_sub(began);
        self.counters_next = now.after(pause_after(took));
        if compare && read.is_ok() {
            let before = self.counters.moved();
            self.schedule.begins();
            let began = clock::thread_cpu();
            let mut end = self.reader.dump(What::Everything, sink);
            if matches!(end, DumpEnd::Refused(_) | DumpEnd::Failed(_)) {
                end = self.reader.table(sink);
            }
            read = self.counters.read(sink);
            if read.is_ok()
                && matches!(end, DumpEnd::Complete)
                && let Err(why) = self.plausible.compare(before, self.reader.entries, self.counters.moved())
            {
                self.counters.disbelieve(Why::new(why.clone()));
                read = Err(Why::new(why));
            }
            self.note_lacks(What::Everything, &end);
            // Counting goes on without a comparison.
            let failed = match end {
                DumpEnd::Complete | DumpEnd::Interrupted | DumpEnd::Holes(_) => None,
                DumpEnd::Failed(why) | DumpEnd::Refused(why) => Some(why),
            };
            let took = clock::thread_cpu().saturating_sub(began);
            self.schedule.ended(took, clock::node_time(), failed.is_none());
            self.dump_failed = failed;
            self.account(sink);
        }
        if read.is_err() && counted {
            self.fall_back();
        }
        match self.counters.count_entries() {
            Ok(()) => self.counted = true,
            Err(why) => self.no_longer_counted(why, sink),
        }
    }

    /// Counts anew where a reading failed: what ended it may be over.
    fn count_again(&mut self) {
        let now = clock::node_time();
        if !self.counters.is_due_again(now) {
            return;
        }
        let anew = self.counters.start_anew(&self.root, self.options.node_ports, self.options.max_keys);
        if !anew.runs() {
            return self.counters.try_again_later(now);
        }
        self.counters = anew;
        if self.counters.count_entries().is_ok() {
            self.fall_back();
        }
    }

    /// Tells the ledger, if it was told that counters tell what happens, that they did no more.
    fn no_longer_counted(&mut self, why: Why, sink: Sink<'_>) {
        if std::mem::take(&mut self.counted) {
            sink(observation(ID, Fact::Begin(Snapshot::ConntrackCounters)));
            sink(observation(ID, Fact::End { snapshot: Snapshot::ConntrackCounters, outcome: Outcome::Failed(why) }));
        }
    }

    /// What became of each eBPF program.
    pub fn programs(&self) -> Vec<ProgramStatus> {
        self.counters.programs()
    }
}

impl Source for ConntrackSource {
    fn id(&self) -> SourceId {
        ID
    }

    fn observe(&mut self, sink: Sink<'_>) {
        if self.root.is_live() && self.modules.changed() {
            tracing::info!("netfilter's modules have changed: choosing anew how to read conntrack");
            // Before anything else is told: a dump would be compared with counters that stood still. And if others count
            // from now on, nobody has since the change.
            self.no_longer_counted(Why::new("a module of netfilter was loaded or unloaded"), sink);
            self.choose();
        }
        self.count_again();
        self.observe_counters(sink);
        if let Access::Closed { next_attempt, .. } = self.access
            && self.root.is_live()
            && clock::node_time() >= next_attempt
        {
            self.open();
        }
        self.listen_for_silence();
        match self.access {
            Access::Events(_) => self.observe_events(sink),
            Access::Dumps => self.observe_dumps(sink),
            Access::NotNeeded | Access::Closed { .. } => {}
        }
        // Not "else": the socket may have failed just now.
        if matches!(self.access, Access::Closed { .. }) {
            self.observe_table(sink);
        }
        sink(observation(ID, self.coverage()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises maps that are slow to read. If this fails, reading them every second takes more of a CPU than was promised.
    #[test]
    fn the_counters_are_read_every_second_or_in_one_part_in_200_of_the_time() {
        for (micros, pause_millis) in [(0, 1000), (5000, 1000), (5010, 1002), (50_000, 10_000)] {
            assert_eq!(pause_after(Duration::from_micros(micros)), Duration::from_millis(pause_millis));
        }
    }
}
