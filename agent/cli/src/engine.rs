//! The engine: lanes of sources on threads, one owner of the ledger, a report whenever it is asked for.
//!
//! A lane runs its sources one after the other, so that order between them means something (reservations before the
//! runtime). A lane that hangs delays nobody else. The queue between lanes and the owner is bounded: a full queue makes
//! sources wait, it never grows.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use headroom_core::ledger::Ledger;
use headroom_core::model::nat::NatSettings;
use headroom_core::model::policy::Policy;
use headroom_core::model::{Memory, evaluate};
use headroom_core::observe::{Observation, SourceId};
use headroom_core::report::Report;
use headroom_host::clock;
use headroom_host::source::{self, Source};

use crate::settings::Settings;

/// Facts handed over at once.
const BATCH: usize = 1024;
/// Batches in the queue at most.
const QUEUE: usize = 8;

/// Sources that run in order, again and again.
pub struct Lane {
    /// Its name, for logs and threads.
    pub name: &'static str,
    /// The sources, in order.
    pub sources: Vec<Box<dyn Source>>,
    /// The ids under which they report.
    pub reports: &'static [SourceId],
    /// From the end of one round to the beginning of the next.
    pub pause: Duration,
    /// Rounds that a first report waits for.
    pub rounds_wanted: u32,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("name", &self.name).field("pause", &self.pause).finish_non_exhaustive()
    }
}

enum FromLane {
    Facts(Vec<Observation>),
    RoundDone(usize),
}

/// Tells lanes to stop, also in the middle of a pause.
#[derive(Debug, Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits; true if it is time to stop.
    fn pause(&self, pause: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let (stopped, _timed_out) = self
            .changed
            .wait_timeout_while(stopped, pause, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        *stopped
    }
}

/// A lane that has not finished a round for so long hangs, or its thread died: what it said last is no longer true. Longer
/// than the longest pause (a minute) and the longest round (45 s) together.
const SILENT: Duration = Duration::from_secs(120);

#[derive(Debug)]
struct LaneState {
    name: &'static str,
    heard: Instant,
    reports: &'static [SourceId],
    rounds: u32,
    wanted: u32,
}

/// The owner of the ledger.
pub struct Engine {
    ledger: Ledger,
    memory: Memory,
    policy: Policy,
    queue: Receiver<FromLane>,
    lanes: Vec<LaneState>,
    stop: Arc<Stop>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("lanes", &self.lanes).finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the lanes.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn start(ledger: Ledger, policy: Policy, lanes: Vec<Lane>) -> std::io::Result<Self> {
        let (sender, queue) = sync_channel(QUEUE);
        let stop = Arc::new(Stop::default());
        let mut states = Vec::new();
        for (index, lane) in lanes.into_iter().enumerate() {
            states.push(LaneState {
                name: lane.name,
                heard: Instant::now(),
                reports: lane.reports,
                rounds: 0,
                wanted: lane.rounds_wanted,
            });
            let (sender, stop) = (sender.clone(), Arc::clone(&stop));
            thread::Builder::new().name(lane.name.to_owned()).spawn(move || run(index, lane, &sender, &stop))?;
        }
        Ok(Self { ledger, memory: Memory::default(), policy, queue, lanes: states, stop })
    }

    /// Takes in facts until `until`, or until `enough` says so after a round.
    fn take_in(&mut self, until: Instant, enough: impl Fn(&Self) -> bool) {
        while !enough(self) {
            let left = until.saturating_duration_since(Instant::now());
            match self.queue.recv_timeout(left) {
                Ok(FromLane::Facts(facts)) => facts.into_iter().for_each(|fact| self.ledger.apply(fact)),
                Ok(FromLane::RoundDone(index)) => {
                    if let Some(lane) = self.lanes.get_mut(index) {
                        lane.rounds = lane.rounds.saturating_add(1);
                        lane.heard = Instant::now();
                    }
                }
                Err(RecvTimeoutError::Timeout) => return,
                // Every lane has ended, which only happens when one panicked or all were told to stop: keep the pace.
                Err(RecvTimeoutError::Disconnected) => {
                    thread::sleep(left);
                    return;
                }
            }
        }
    }

    /// Takes in facts until every lane has run as often as a first report wants, `deadline` at the latest. What has not
    /// answered by then is said to be unknown.
    pub fn settle(&mut self, deadline: Duration) {
        let until = Instant::now() + deadline;
        self.take_in(until, |engine| engine.lanes.iter().all(|lane| lane.done(&engine.ledger)));
        let answered: BTreeSet<SourceId> = self.ledger.coverage().keys().copied().collect();
        let late = self.lanes.iter().flat_map(|lane| lane.reports).filter(|source| !answered.contains(source));
        for source in late.copied().collect::<Vec<_>>() {
            let why = format!("no answer within {}", humantime::format_duration(deadline));
            self.ledger.apply(source::observation(source, source::unreadable(why)));
        }
    }

    /// Takes in facts for a span.
    pub fn watch(&mut self, span: Duration) {
        self.take_in(Instant::now() + span, |_| false);
    }

    /// The report of this moment.
    pub fn report(&mut self) -> Report {
        for lane in self.lanes.iter().filter(|lane| lane.heard.elapsed() > SILENT) {
            let silent = lane.heard.elapsed().as_secs();
            let why = format!("no answer for {silent} s: the thread `{}` hangs or has died", lane.name);
            for source in lane.reports {
                self.ledger.apply(source::observation(*source, source::unreadable(why.clone())));
            }
        }
        let report = evaluate(&self.ledger, &mut self.memory, &self.policy, clock::now());
        // An evaluation of 50,000 destinations leaves holes; to look for them takes 0.1-5 ms.
        headroom_host::memory::give_back();
        report
    }

    /// The NAT's settings, as they are now. The report says from when on an allocation is smaller.
    pub fn set_nat(&mut self, settings: &Settings) {
        let policy = &settings.policy;
        if (&self.policy.nat, &self.policy.extra_private) != (&policy.nat, &policy.extra_private) {
            let judged_by = |nat: &NatSettings| (nat.profile, nat.endpoint_independent, nat.hold);
            if self.policy.nat.as_ref().map(judged_by) != policy.nat.as_ref().map(judged_by) {
                self.memory.forget_demand();
            }
            self.policy.nat.clone_from(&policy.nat);
            self.policy.extra_private.clone_from(&policy.extra_private);
            self.ledger.remember_for(settings.limits.remember, settings.sources_apart());
        }
    }

    /// A fact from beside the lanes.
    pub fn observe(&mut self, observation: Observation) {
        self.ledger.apply(observation);
    }

    /// What is held true now.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

impl LaneState {
    /// A second round only matters where there is something to look at twice.
    fn done(&self, ledger: &Ledger) -> bool {
        let nothing_reserved = self.rounds > 0 && ledger.reservations().is_empty();
        self.rounds >= self.wanted || nothing_reserved
    }
}

fn run(index: usize, mut lane: Lane, sender: &SyncSender<FromLane>, stop: &Stop) {
    loop {
        let _span = tracing::debug_span!("round", lane = lane.name).entered();
        // Most rounds tell little: a full batch is large enough for the allocator to ask the kernel for it.
        let mut batch = Vec::with_capacity(BATCH / 16);
        for source in &mut lane.sources {
            source.observe(&mut |fact| {
                batch.push(fact);
                if batch.len() >= BATCH {
                    let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
                    // Nobody listens any more: the engine is gone, and so will be this thread after the round.
                    drop(sender.send(FromLane::Facts(full)));
                }
            });
        }
        let sent = sender.send(FromLane::Facts(batch)).and_then(|()| sender.send(FromLane::RoundDone(index)));
        if sent.is_err() || stop.pause(lane.pause) {
            return;
        }
    }
}
