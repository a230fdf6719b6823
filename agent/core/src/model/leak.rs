//! Which reservations belong to nobody.
//!
//! A reservation is *leaked* only if all of this holds: its container is unknown to the runtime, twice in a row, in
//! complete answers that were asked for after the reservation had been read; no live network namespace carries the
//! address and the node routes it to none, twice in a row; and it is older than the grace period. Anything short of that is settling or undetermined.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::known::Known;
use crate::ledger::{HeldReservation, NamespaceRound, Occupants, RuntimeRound};
use crate::observe::Outcome;
use crate::time::{NodeTime, Now};

/// What a reservation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Somebody uses it.
    InUse,
    /// Nobody uses it, but it is too early to say that nobody will.
    Settling,
    /// Nobody uses it and nobody will.
    Leaked,
    /// It cannot be told.
    Undetermined,
}

impl Verdict {
    /// The word in JSON and tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::InUse => "in_use",
            Self::Settling => "settling",
            Self::Leaked => "leaked",
            Self::Undetermined => "undetermined",
        }
    }
}

/// A verdict and what it rests on, in sentences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// Why.
    pub evidence: Vec<String>,
}

/// Judges one reservation.
pub fn judge(held: &HeldReservation, occupants: &Occupants, grace: Duration, now: Now) -> Judgement {
    Judge::new(occupants, grace, now).judge(held)
}

/// Judges many reservations: what holds for all of them is found out once.
#[derive(Debug)]
pub struct Judge<'a> {
    grace: Duration,
    now: Now,
    latest: Rounds<'a>,
    before: Rounds<'a>,
    /// The runtime names nothing at all, and yet there are pods.
    contradiction: bool,
}

/// One look at the runtime and the namespaces.
#[derive(Debug)]
struct Rounds<'a> {
    runtime: Option<&'a RuntimeRound>,
    walk: Option<&'a NamespaceRound>,
    /// Why no verdict can rest on the runtime's answer, and why none on the namespaces.
    missing: [Option<String>; 2],
}

impl<'a> Judge<'a> {
    /// By what is alive.
    pub fn new(occupants: &'a Occupants, grace: Duration, now: Now) -> Self {
        let (runtime, runtime_before) = occupants.runtime();
        let (walk, walk_before) = occupants.namespace_rounds();
        let contradiction =
            runtime.is_some_and(|round| round.ids.is_empty()) && walk.is_some_and(|walk| carries_pods(walk, occupants));
        let (latest, before) = (Rounds::new(runtime, walk), Rounds::new(runtime_before, walk_before));
        Self { grace, now, latest, before, contradiction }
    }

    /// Judges one reservation.
    pub fn judge(&self, held: &HeldReservation) -> Judgement {
        let say = |verdict, evidence: Vec<String>| Judgement { verdict, evidence };
        let cannot_tell = |why: String| Judgement { verdict: Verdict::Undetermined, evidence: vec![why] };
        let reservation = &held.reservation;
        let Rounds { runtime, walk, .. } = self.latest;

        // 1. Is anybody using it? Any sign of life is enough, however little else could be read.
        if let Some(walk) = walk.filter(|walk| walk.addresses.contains(&reservation.address)) {
            let how = if walk.outcome == Outcome::Complete { "" } else { " (others could not be read)" };
            return say(Verdict::InUse, vec![format!("a live network namespace carries the address{how}")]);
        }
        if let Some(interface) = walk.and_then(|walk| walk.routed.get(&reservation.address)) {
            return say(
                Verdict::InUse,
                vec![format!("the node routes it to {interface}, whose other end is in a live network namespace")],
            );
        }
        let holder = match &reservation.holder {
            Known::Present(holder) => Some(holder),
            Known::Absent => None,
            Known::Unknown(why) => return cannot_tell(format!("the reservation cannot be understood: {why}")),
        };
        if let Some(holder) = holder
            && runtime.is_some_and(|round| {
                !matches!(round.outcome, Outcome::Failed(_)) && round.ids.contains(&holder.container)
            })
        {
            return say(Verdict::InUse, vec![format!("the runtime knows {}", short(&holder.container.0))]);
        }

        if !held.shown {
            return cannot_tell("the last reading of the store was incomplete and did not show it".to_owned());
        }

        // 2. How old is it?
        let (age, since) = match &reservation.modified {
            Known::Present(modified) => match self.now.wall.since(*modified) {
                Some(age) => (age, "written"),
                None => return cannot_tell("it was written in the future: a clock has jumped".to_owned()),
            },
            // Most stores do not tell: then it is at least as old as we have known it.
            Known::Absent | Known::Unknown(_) => (self.now.node.since(held.first_seen), "first seen"),
        };
        let Some(holder) = holder else {
            let empty = "the file is empty: whoever reserved it has not written its name".to_owned();
            return if age < self.grace { say(Verdict::Settling, vec![empty]) } else { cannot_tell(empty) };
        };

        // 3. Is everything there that a verdict needs?
        if let Some(missing) = self.latest.missing(held.first_seen) {
            return cannot_tell(missing.to_owned());
        }
        if self.contradiction {
            return cannot_tell(
                "the runtime names no sandbox at all although pods' network namespaces are alive".to_owned(),
            );
        }
        let mut evidence = vec![
            format!("the runtime does not know {}", short(&holder.container.0)),
            "no live network namespace carries the address, no route leads to one".to_owned(),
        ];

        // 4. Is it certain?
        if age < self.grace {
            evidence.push(format!("{since} {} ago, grace period is {}", whole(age), whole(self.grace)));
            return say(Verdict::Settling, evidence);
        }
        if self.before.missing(held.first_seen).is_some()
            || self.before.runtime.is_some_and(|round| round.ids.contains(&holder.container))
            || self.before.walk.is_some_and(|walk| walk.carries(reservation.address))
        {
            evidence.push("seen so once; a second look is needed".to_owned());
            return say(Verdict::Settling, evidence);
        }
        evidence.push(format!("{since} {} ago, seen so twice", whole(age)));
        say(Verdict::Leaked, evidence)
    }
}

impl<'a> Rounds<'a> {
    fn new(runtime: Option<&'a RuntimeRound>, walk: Option<&'a NamespaceRound>) -> Self {
        let no_runtime = match runtime.map(|round| &round.outcome) {
            None => Some("the runtime was not asked yet".to_owned()),
            Some(Outcome::Complete) => None,
            Some(Outcome::Partial(why) | Outcome::Failed(why)) => {
                Some(format!("the runtime's answer is missing: {why}"))
            }
        };
        let no_walk = match walk.map(|walk| (&walk.outcome, walk.unreadable)) {
            None => Some("the network namespaces were not read yet".to_owned()),
            Some((Outcome::Complete, 0)) => None,
            Some((Outcome::Complete, unreadable)) => {
                Some(format!("the addresses of {unreadable} network namespaces could not be read"))
            }
            Some((Outcome::Partial(why) | Outcome::Failed(why), _)) => {
                Some(format!("not every network namespace could be read: {why}"))
            }
        };
        Self { runtime, walk, missing: [no_runtime, no_walk] }
    }

    /// Why this look proves nothing about a reservation that was read first at `first_seen`; `None` if runtime and
    /// namespaces were read completely, and after it.
    fn missing(&self, first_seen: NodeTime) -> Option<&str> {
        let [no_runtime, no_walk] = &self.missing;
        let runtime_earlier = self.runtime.is_none_or(|round| round.begin < first_seen);
        let walk_earlier = self.walk.is_none_or(|walk| walk.begin < first_seen);
        no_runtime
            .as_deref()
            .or(runtime_earlier.then_some("the runtime was not asked since the reservation was read"))
            .or(no_walk.as_deref())
            .or(walk_earlier.then_some("the network namespaces were not read since the reservation was"))
    }
}

/// Whether any namespace other than the node's own carries an address.
fn carries_pods(walk: &NamespaceRound, occupants: &Occupants) -> bool {
    let own = occupants.host_addresses();
    walk.addresses.iter().any(|address| !own.contains(address))
}

/// The first twelve characters of an id, as the runtimes' own tools print it.
fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// An age in the largest unit that says enough.
pub fn whole(age: Duration) -> String {
    match age.as_secs() {
        secs @ 0..120 => format!("{secs} s"),
        secs @ 120..7200 => format!("{} min", secs / 60),
        secs @ 7200..172_800 => format!("{} h", secs / 3600),
        secs => format!("{} d", secs / 86_400),
    }
}
