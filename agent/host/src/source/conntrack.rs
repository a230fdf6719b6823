//! The conntrack table of the agent's own network namespace: a dump now and then, and what comes and goes in between.
//!
//! What comes and goes is told by the first of these that works here (chosen at start, and again when a module of netfilter is
//! loaded or unloaded):
//!
//! 1. counters in the kernel (kprobes on conntrack), read before and after every dump, which they bracket;
//! 2. NEW and DESTROY events over netlink. The groups are joined before the first dump is asked for, and events are drained
//!    after a dump has ended, so that whatever happens during a dump arrives behind its [`Fact::End`]. Flows that existed
//!    before somebody subscribed give no DESTROY event (`nf_conntrack_events = 2`, the default since 6.1): those leave with
//!    a later dump. Lost events are noticed (`/proc/net/netlink`, column `Drops`), told as [`Fact::Lost`] and repaired by a
//!    dump. Where the TCP counters work, the kernel is asked to leave out the events of TCP: they are most of all, and
//!    whoever counts connects and closes does not need them. The kernel makes them all the same, some 4 µs a flow: where that
//!    adds up, dumps alone have to do until it is calmer;
//! 3. `/proc/net/nf_conntrack` (no CAP_NET_ADMIN, no such kernel, a captured tree), which tells nothing of flows that come
//!    and go between two readings.
//!
//! One round takes at most about 45 s (two dumps of 20 s in an emergency, and draining); on a table of 200,000
//! entries it is a third of a second. Nothing is written; subscribing may make the kernel load `nf_conntrack_netlink` on
//! its own.

use std::path::Path;
use std::time::Duration;

use headroom_core::known::Why;
use headroom_core::observe::{ConntrackTcpState, Fact, Loss, Outcome, Snapshot, SourceId};
use headroom_core::ports::PortRange;
use headroom_core::time::NodeTime;

use crate::bounded;
use crate::clock;
use crate::ebpf::ProgramStatus;
use crate::netlink::conntrack::{Content, content, is_interrupted};
use crate::netlink::message::Messages;
use crate::netlink::socket::{self, DATAGRAM_BYTES, DUMP_SILENCE, Dump, Events, Received};
use crate::root::HostRoot;
use crate::source::lines::{Lines, Step, own_table};
use crate::source::{Sink, Source, degraded, observation, stamped, unreadable, works};

mod counters;
mod modules;
mod schedule;
pub mod table;

use counters::Counters;
use modules::Modules;
use schedule::Schedule;

const ID: SourceId = SourceId::Conntrack;
/// How it works, when all is well.
const HOW: &str = "dump and NEW/DESTROY events";
/// How it works with counters in the kernel.
const HOW_COUNTED: &str = "eBPF counters on conntrack's insert and delete, compared with dumps";
/// How it works without netlink.
const HOW_TABLE: &str = "/proc/net/nf_conntrack";
/// What a dump may take.
const DUMP_LIMIT: Duration = Duration::from_secs(20);
/// How many events are drained at most: more than the queue holds (64 MiB, at least 768 bytes each with the kernel's own
/// overhead), so that whatever waited when draining began has been taken. This matters before a dump: an old NEW told
/// after it would bring back a flow whose DESTROY was lost. What comes meanwhile stays for the next round.
const DRAIN_EVENTS: usize = 128 << 10;
/// How often opening is tried again.
const REOPEN_AFTER: Duration = Duration::from_secs(30);
/// `/proc/net/nf_conntrack` has about 200 bytes per entry: more than a million entries.
const TABLE_LIMIT_BYTES: usize = 256 << 20;
/// `/proc/net/netlink` has 100 bytes per socket.
const NETLINK_LIMIT_BYTES: usize = 4 << 20;

/// More TCP connections that close in a second than this, and events cost more than half a percent of a CPU, nearly all of it for
/// TCP that others count.
const WORTH_HEARING: u64 = 500;
/// Dumps come at least so far apart where they are all there is.
const DUMPS_ALONE_EVERY: Duration = Duration::from_secs(5);
/// How it works then.
const HOW_DUMPS: &str = "dumps";

/// Losses are looked for this often where nothing is heard.
const ACCOUNT_EVERY: Duration = Duration::from_secs(1);
/// How often the counters are read, and those of what found no port.
const COUNTERS_EVERY: Duration = Duration::from_secs(1);
/// How often dumps are compared with the counters, which need none to stay true.
const COMPARE_EVERY: Duration = Duration::from_secs(10);

/// How to look.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// From one dump to the next, where events tell what happens in between.
    pub dump_interval: Duration,
    /// TCP connections are counted elsewhere: their events are not needed.
    pub tcp_is_counted: bool,
    /// The NodePort range.
    pub node_ports: PortRange,
    /// Pairs of destination and source counted in the kernel at the same time; 0 to count nothing there.
    pub max_keys: u32,
}

impl Options {
    /// Dumps and events of every protocol, and nothing counted in the kernel.
    pub fn events(dump_interval: Duration) -> Self {
        Self { dump_interval, tcp_is_counted: false, node_ports: PortRange::NODE_PORTS, max_keys: 0 }
    }
}

/// Reads conntrack.
#[derive(Debug)]
pub struct ConntrackSource {
    root: HostRoot,
    options: Options,
    counters: Counters,
    counters_read: NodeTime,
    /// The ledger was told that counters tell what happens.
    counted: bool,
    modules: Modules,
    access: Access,
    schedule: Schedule,
    sequence: u32,
    buffer: Vec<u8>,
    losses: Losses,
    /// Why the last dump failed, if it did.
    dump_failed: Option<String>,
    /// When losses were counted last.
    accounted: NodeTime,
    /// TCP entries in TIME_WAIT that the last dump showed.
    time_waits: u64,
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

/// Totals since start, and what has been told of them.
#[derive(Debug, Default)]
struct Losses {
    overruns: u64,
    malformed: u64,
    told: (u64, u64),
    /// `Drops` of the present socket at the last look.
    drops: u64,
    /// Why drops cannot be counted.
    blind: Option<String>,
}

/// How reading a dump ended.
enum DumpEnd {
    Complete,
    /// The kernel says that the table changed too much meanwhile.
    Interrupted,
    /// So many entries could not be understood.
    Holes(u64),
    Failed(String),
    /// The kernel does not give any.
    Refused(String),
}

impl ConntrackSource {
    /// Subscribes to events. What does not work is told in every round, and tried again now and then.
    pub fn start(root: &HostRoot, options: Options) -> Self {
        let mut source = Self {
            root: root.clone(),
            options,
            counters: Counters::none(),
            counters_read: NodeTime::default(),
            counted: false,
            modules: Modules::new(root),
            access: Access::Closed { why: String::new(), next_attempt: NodeTime::default() },
            schedule: Schedule::new(options.dump_interval),
            sequence: 0,
            buffer: vec![0; DATAGRAM_BYTES],
            losses: Losses::default(),
            dump_failed: None,
            accounted: NodeTime::default(),
            time_waits: 0,
        };
        source.choose();
        source
    }

    /// Chooses who tells what comes and goes.
    fn choose(&mut self) {
        self.counters = match self.options.max_keys {
            0 => Counters::none(),
            max_keys => Counters::start(&self.root, self.options.node_ports, max_keys),
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
            Events::subscribe(self.options.tcp_is_counted).map_err(|error| error.sentence())
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
        let interval = if self.counters.count_entries().is_ok() { COMPARE_EVERY } else { self.options.dump_interval };
        self.schedule = Schedule::new(interval);
        self.dump_failed = None;
    }

    fn close(&mut self, why: String) {
        if matches!(self.access, Access::Events(_) | Access::Dumps) {
            self.start_over();
        }
        self.access = Access::Closed { why, next_attempt: clock::node_time().after(REOPEN_AFTER) };
    }

    /// Takes every event from the queue that waits now; says how many.
    fn drain(&mut self, sink: Sink<'_>) -> usize {
        let Access::Events(events) = &self.access else { return 0 };
        let mut taken = 0;
        let failed = loop {
            if taken >= DRAIN_EVENTS {
                return taken;
            }
            let at = clock::node_time();
            let malformed = &mut self.losses.malformed;
            let received = events.receive(&mut self.buffer, |datagram| {
                taken += 1;
                let Some(datagram) = datagram else {
                    *malformed += 1;
                    return;
                };
                for message in Messages::new(datagram) {
                    match message.and_then(|message| content(&message)) {
                        Ok(Content::Entry(entry)) => sink(stamped(at, ID, Fact::Flow(entry))),
                        Ok(Content::Ended(entry)) => sink(stamped(at, ID, Fact::FlowEnded(entry))),
                        Ok(Content::Overrun | Content::Done { .. } | Content::Error { .. } | Content::Other) => {}
                        Err(_malformed) => *malformed += 1,
                    }
                }
            });
            match received {
                Ok(Received::Bytes(_) | Received::Unusable) => {}
                Ok(Received::Overrun) => {
                    self.schedule.lost();
                    // How many it were, the drops say, if they can be read.
                    self.losses.overruns += u64::from(self.losses.blind.is_some());
                }
                Ok(Received::Nothing) => return taken,
                Err(error) => break error.sentence(),
            }
        };
        self.close(failed);
        taken
    }

    /// Counts what the kernel could not deliver, and tells of it.
    fn account(&mut self, sink: Sink<'_>) {
        if let Access::Events(events) = &self.access {
            let path = own_table(&self.root, "netlink");
            let text = bounded::read_in(&self.root, &path, NETLINK_LIMIT_BYTES)
                .map_err(|error| format!("`{}` {error}", path.display()));
            let drops = text.and_then(|text| {
                socket::drops(&String::from_utf8_lossy(&text), events.inode()).map_err(|error| error.to_string())
            });
            match drops {
                Ok(drops) => {
                    self.losses.overruns += drops.saturating_sub(self.losses.drops);
                    self.losses.drops = drops;
                    self.losses.blind = None;
                }
                Err(why) => self.losses.blind = Some(format!("lost events cannot be counted: {why}")),
            }
        }
        let (overruns, malformed) = (self.losses.overruns, self.losses.malformed);
        if overruns != self.losses.told.0 {
            self.schedule.lost();
            sink(observation(ID, Fact::Lost { what: Loss::ConntrackOverrun, total: overruns }));
        }
        if malformed != self.losses.told.1 {
            sink(observation(ID, Fact::Lost { what: Loss::ConntrackMalformed, total: malformed }));
        }
        self.losses.told = (overruns, malformed);
    }

    /// Dumps, and once more if the kernel says that the table changed too much meanwhile.
    fn dump(&mut self, sink: Sink<'_>) {
        self.schedule.begins();
        let began = clock::thread_cpu();
        let mut end = self.bracket(sink, Self::read_dump);
        if matches!(end, DumpEnd::Interrupted) {
            end = self.bracket(sink, Self::read_dump);
        }
        self.dump_ended(began, end);
    }

    fn dump_ended(&mut self, began: Duration, end: DumpEnd) {
        self.dump_failed = match end {
            DumpEnd::Complete | DumpEnd::Interrupted | DumpEnd::Holes(_) => None,
            DumpEnd::Failed(why) => Some(why),
            DumpEnd::Refused(why) => return self.close(why),
        };
        let took = clock::thread_cpu().saturating_sub(began);
        self.schedule.ended(took, clock::node_time(), self.dump_failed.is_none());
    }

    /// One snapshot, with its begin and end.
    fn bracket(&mut self, sink: Sink<'_>, read: impl FnOnce(&mut Self, Sink<'_>) -> DumpEnd) -> DumpEnd {
        sink(observation(ID, Fact::Begin(Snapshot::Conntrack)));
        let end = read(self, sink);
        let outcome = match &end {
            DumpEnd::Complete => Outcome::Complete,
            DumpEnd::Interrupted => {
                Outcome::Partial(Why::new("the conntrack table changed too much while it was dumped"))
            }
            DumpEnd::Holes(count) => {
                Outcome::Partial(Why::new(format!("{count} conntrack entries could not be understood")))
            }
            DumpEnd::Failed(why) | DumpEnd::Refused(why) => Outcome::Failed(Why::new(why.clone())),
        };
        sink(observation(ID, Fact::End { snapshot: Snapshot::Conntrack, outcome }));
        end
    }

    fn read_dump(&mut self, sink: Sink<'_>) -> DumpEnd {
        self.sequence = self.sequence.wrapping_add(1);
        self.time_waits = 0;
        let until = clock::node_time().after(DUMP_LIMIT);
        let dump = match Dump::request(self.sequence) {
            Ok(dump) => dump,
            Err(error) => return DumpEnd::Failed(error.sentence()),
        };
        let (mut interrupted, mut holes) = (false, 0);
        loop {
            let length = match dump.receive(&mut self.buffer) {
                Ok(Received::Bytes(length)) => length,
                Ok(Received::Unusable) => {
                    self.losses.malformed += 1;
                    holes += 1;
                    continue;
                }
                Ok(Received::Overrun) => {
                    return DumpEnd::Failed("the kernel lost a part of the conntrack dump".to_owned());
                }
                Ok(Received::Nothing) => {
                    let secs = DUMP_SILENCE.as_secs();
                    return DumpEnd::Failed(format!("the conntrack dump stopped half-way: nothing came for {secs} s"));
                }
                Err(error) => return DumpEnd::Failed(error.sentence()),
            };
            let at = clock::node_time();
            for message in Messages::new(self.buffer.get(..length).unwrap_or_default()) {
                interrupted |= message.as_ref().is_ok_and(is_interrupted);
                match message.and_then(|message| content(&message)) {
                    Ok(Content::Entry(entry)) => {
                        self.time_waits += u64::from(entry.tcp == Some(ConntrackTcpState::TimeWait));
                        sink(stamped(at, ID, Fact::Flow(entry)));
                    }
                    Ok(Content::Done { errno: 0 }) if interrupted => return DumpEnd::Interrupted,
                    Ok(Content::Done { errno: 0 }) if holes > 0 => return DumpEnd::Holes(holes),
                    Ok(Content::Done { errno: 0 }) => return DumpEnd::Complete,
                    Ok(Content::Done { errno } | Content::Error { errno }) => {
                        let error = std::io::Error::from_raw_os_error(errno);
                        return DumpEnd::Refused(format!("conntrack dump refused{}: {error}", socket::hint(&error)));
                    }
                    Ok(Content::Overrun | Content::Ended(_) | Content::Other) => {}
                    Err(_malformed) => {
                        self.losses.malformed += 1;
                        holes += 1;
                    }
                }
            }
            if at > until {
                return DumpEnd::Failed(format!("the conntrack dump took more than {} s", DUMP_LIMIT.as_secs()));
            }
        }
    }

    /// Reads `/proc/net/nf_conntrack` as a snapshot.
    fn read_table(&mut self, sink: Sink<'_>) -> DumpEnd {
        let path = own_table(&self.root, "nf_conntrack");
        let cannot = |error: &std::io::Error| DumpEnd::Failed(format!("cannot read `{}`: {error}", path.display()));
        let mut lines = match Lines::open(&self.root, &path, TABLE_LIMIT_BYTES) {
            Ok(lines) => lines,
            Err(error) => return cannot(&error),
        };
        let until = clock::node_time().after(DUMP_LIMIT);
        let mut holes = 0;
        for count in 0u64.. {
            match lines.step() {
                Ok(Step::Line(line)) => match table::parse_line(line) {
                    Some(entry) => sink(observation(ID, Fact::Flow(entry))),
                    None => holes += 1,
                },
                Ok(Step::TooLong) => holes += 1,
                Ok(Step::Limit) => return DumpEnd::Failed(format!("`{}` is too long", path.display())),
                Ok(Step::End) => break,
                Err(error) => return cannot(&error),
            }
            if count % 1024 == 0 && clock::node_time() > until {
                return DumpEnd::Failed(format!(
                    "reading `{}` took more than {} s",
                    path.display(),
                    DUMP_LIMIT.as_secs()
                ));
            }
        }
        self.losses.malformed += holes;
        if holes > 0 { DumpEnd::Holes(holes) } else { DumpEnd::Complete }
    }

    fn observe_events(&mut self, sink: Sink<'_>) {
        // What waits is older than the dump that may follow: told first, it keeps its place in time.
        let now = clock::node_time();
        // Whoever hears nothing may have lost everything, which shows a second later.
        if self.drain(sink) > 0 || now.since(self.accounted) >= ACCOUNT_EVERY {
            self.accounted = now;
            self.account(sink);
        }
        if matches!(self.access, Access::Events(_)) && self.schedule.due(clock::node_time()) {
            self.dump(sink);
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

    /// How many TCP connections close in a second, as the table shows: each stays in TIME_WAIT for a known while.
    fn closes_per_sec(&self) -> u64 {
        let path = Path::new("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait");
        let secs = bounded::read_line_in(&self.root, path, 64).ok().and_then(|text| text.parse().ok()).unwrap_or(120);
        self.time_waits / std::cmp::max(secs, 1)
    }

    fn observe_dumps(&mut self, sink: Sink<'_>) {
        if self.schedule.due(clock::node_time()) {
            self.dump(sink);
            if matches!(self.access, Access::Dumps) && self.closes_per_sec() < WORTH_HEARING / 2 {
                self.open();
            }
        }
    }

    fn observe_table(&mut self, sink: Sink<'_>) {
        if self.schedule.due(clock::node_time()) {
            self.schedule.begins();
            let began = clock::thread_cpu();
            let end = self.bracket(sink, Self::read_table);
            self.dump_ended(began, end);
            self.account(sink);
        }
    }

    /// Reads the counters, and compares them with a dump now and then.
    fn observe_counters(&mut self, sink: Sink<'_>) {
        let counted = self.counters.count_entries().is_ok();
        let now = clock::node_time();
        let compare = counted && self.schedule.due(now);
        if !compare && now.since(self.counters_read) < COUNTERS_EVERY {
            return;
        }
        self.counters_read = now;
        let mut read = self.counters.read(sink);
        if compare && read.is_ok() {
            self.schedule.begins();
            let began = clock::thread_cpu();
            let mut end = self.bracket(sink, Self::read_dump);
            if matches!(end, DumpEnd::Refused(_) | DumpEnd::Failed(_)) {
                end = self.bracket(sink, Self::read_table);
            }
            read = self.counters.read(sink);
            // Counting goes on without a comparison.
            let failed = match end {
                DumpEnd::Complete | DumpEnd::Interrupted | DumpEnd::Holes(_) => None,
                DumpEnd::Failed(why) | DumpEnd::Refused(why) => Some(why),
            };
            let took = clock::thread_cpu().saturating_sub(began);
            self.schedule.ended(took, clock::node_time(), failed.is_none());
            self.dump_failed = failed;
        }
        if read.is_err() && counted {
            self.fall_back();
        }
        let counts = self.counters.count_entries();
        if self.counted
            && let Err(why) = &counts
        {
            sink(observation(ID, Fact::Begin(Snapshot::ConntrackCounters)));
            let outcome = Outcome::Failed(why.clone());
            sink(observation(ID, Fact::End { snapshot: Snapshot::ConntrackCounters, outcome }));
        }
        self.counted = counts.is_ok();
    }

    /// What became of each eBPF program.
    pub fn programs(&self) -> Vec<ProgramStatus> {
        self.counters.programs()
    }

    fn coverage(&self) -> Fact {
        let blind = |why: &Why| format!("connections that this node itself found no port for are not seen: {why}");
        let no_port = self.counters.no_port_unknown().map(blind).filter(|_| self.options.max_keys > 0);
        let counts = self.counters.count_entries();
        let how = |how: &str| match &counts {
            Err(why) if self.options.max_keys > 0 => format!("{how} (not counted in the kernel: {why})"),
            _ => how.to_owned(),
        };
        match (&self.access, &self.dump_failed) {
            (Access::NotNeeded, Some(why)) => degraded(
                HOW_COUNTED,
                format!("flows from before the start, and whether the counts are right, are not known: {why}"),
            ),
            (Access::NotNeeded, None) => match no_port {
                None => works(HOW_COUNTED),
                Some(missing) => degraded(HOW_COUNTED, missing),
            },
            (Access::Closed { why, .. }, Some(also)) => unreadable(format!("{why}; {also}")),
            (Access::Closed { why, .. }, None) => {
                degraded(HOW_TABLE, format!("flows between two readings are not seen: {why}"))
            }
            (Access::Events(_) | Access::Dumps, Some(why)) => unreadable(why),
            (Access::Dumps, None) => {
                let per_sec = self.closes_per_sec();
                let late = format!(
                    "UDP and forwarded flows are as of the last dump: with {per_sec} connections closing in a second, hearing of \
                     each flow would cost the node too much"
                );
                degraded(how(HOW_DUMPS), [Some(late), no_port].into_iter().flatten().collect::<Vec<_>>().join("; "))
            }
            (Access::Events(events), None) => {
                let missing: Vec<String> =
                    [events.shortcoming.clone(), self.losses.blind.clone(), self.silent(), no_port]
                        .into_iter()
                        .flatten()
                        .collect();
                let how = how(HOW);
                if missing.is_empty() { works(how) } else { degraded(how, missing.join("; ")) }
            }
        }
    }

    /// Whether the kernel sends no events at all.
    fn silent(&self) -> Option<String> {
        let path = Path::new("/proc/sys/net/netfilter/nf_conntrack_events");
        let switched_off = bounded::read_line_in(&self.root, path, 64).is_ok_and(|value| value == "0");
        switched_off.then(|| "there are no events: net.netfilter.nf_conntrack_events is 0".to_owned())
    }
}

impl Source for ConntrackSource {
    fn id(&self) -> SourceId {
        ID
    }

    fn observe(&mut self, sink: Sink<'_>) {
        if self.root.is_live() && self.modules.changed() {
            tracing::info!("netfilter's modules have changed: choosing anew how to read conntrack");
            self.choose();
        }
        self.observe_counters(sink);
        if let Access::Closed { next_attempt, .. } = self.access
            && self.root.is_live()
            && clock::node_time() >= next_attempt
        {
            self.open();
        }
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
