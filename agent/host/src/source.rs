//! What a source is.

use headroom_core::known::{Known, Why};
use headroom_core::observe::{CoverageDetail, Fact, Observation, Outcome, SourceId};
use headroom_core::time::NodeTime;

use crate::clock;

pub mod aws_vpc_cni;
pub mod azure_cni;
pub mod cilium;
pub mod cilium_conntrack;
pub mod cni;
pub mod cni_cache;
pub mod connections;
pub mod conntrack;
pub mod conntrack_use;
pub mod cri;
pub mod growing;
pub mod host_local;
pub mod lines;
pub mod namespaces;
pub mod paced;
pub mod platform;
pub mod pod_store;
pub mod rules;
pub mod services;
pub mod share;
pub mod sockets;
pub mod tcp;

/// Where a source puts what it read.
pub type Sink<'a> = &'a mut dyn FnMut(Observation);

/// Something that reads facts from the node.
///
/// A source runs on a thread of its lane and may block, but never longer than the bound its module documents. It says in
/// every round what it can do here ([`Fact::Coverage`]); an error is a fact too, never a panic and never an empty answer.
pub trait Source: Send {
    /// Which.
    fn id(&self) -> SourceId;

    /// Reads once and puts every fact into the sink.
    fn observe(&mut self, sink: Sink<'_>);
}

/// Stamps a fact with the present.
pub fn observation(source: SourceId, fact: Fact) -> Observation {
    stamped(clock::node_time(), source, fact)
}

/// A fact read at a given moment.
pub fn stamped(at: NodeTime, source: SourceId, fact: Fact) -> Observation {
    Observation { at, source, fact }
}

/// "This source works, like so."
pub fn works(how: impl Into<String>) -> Fact {
    Fact::Coverage(Known::Present(CoverageDetail { how: how.into(), degraded: None, as_of_dump: false }))
}

/// "This source works, but something is missing."
pub fn degraded(how: impl Into<String>, missing: impl Into<String>) -> Fact {
    Fact::Coverage(Known::Present(CoverageDetail {
        how: how.into(),
        degraded: Some(Why::new(missing)),
        as_of_dump: false,
    }))
}

/// The same of a source that nobody tells what comes and goes: its numbers are as old as its last dump.
pub fn as_of_dump(said: Fact) -> Fact {
    match said {
        Fact::Coverage(Known::Present(detail)) => {
            Fact::Coverage(Known::Present(CoverageDetail { as_of_dump: true, ..detail }))
        }
        other => other,
    }
}

/// "There is nothing of this kind on this node." Certain, not an error.
pub fn absent() -> Fact {
    Fact::Coverage(Known::Absent)
}

/// How the reading of several places ended, and what the source can do: `how`, if there was something in any of them;
/// `missing` says what could not be read.
fn ended(how: Option<String>, missing: &[String]) -> (Outcome, Fact) {
    let why = missing.join("; ");
    match (how, missing.is_empty()) {
        (None, true) => (Outcome::Complete, absent()),
        (Some(how), true) => (Outcome::Complete, works(how)),
        (None, false) => (Outcome::Failed(Why::new(why.as_str())), unreadable(why)),
        (Some(how), false) => (Outcome::Partial(Why::new(why.as_str())), degraded(how, why)),
    }
}

/// "This could not be read, because …"
pub fn unreadable(why: impl Into<String>) -> Fact {
    Fact::Coverage(Known::because(why))
}
