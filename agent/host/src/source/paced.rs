//! A source that need not be read in every round of its lane.

use std::time::Duration;

use headroom_core::observe::SourceId;
use headroom_core::time::NodeTime;

use crate::clock;
use crate::source::{Sink, Source};

/// Reads its source in the first round, and then only after a while.
#[derive(Debug)]
pub struct Paced<S> {
    source: S,
    every: Duration,
    read: Option<NodeTime>,
}

impl<S> Paced<S> {
    /// Reads `source` at most once in `every`.
    pub fn new(source: S, every: Duration) -> Self {
        Self { source, every, read: None }
    }
}

impl<S: Source> Source for Paced<S> {
    fn id(&self) -> SourceId {
        self.source.id()
    }

    fn observe(&mut self, sink: Sink<'_>) {
        let now = clock::node_time();
        if self.read.is_none_or(|read| now.since(read) >= self.every) {
            self.read = Some(now);
            self.source.observe(sink);
        }
    }
}
