//! What libcni remembers of successful ADDs: for which pod a container got which addresses.

use std::collections::BTreeMap;

use crate::ids::ContainerId;
use crate::observe::{Attachment, Outcome};

/// The attachments of the last usable reading, by container.
#[derive(Debug, Default)]
pub struct Attachments {
    held: BTreeMap<ContainerId, Vec<Attachment>>,
    incoming: Vec<Attachment>,
    /// The last reading was complete: what it does not show is not there.
    complete: bool,
}

impl Attachments {
    pub(super) fn begin(&mut self) {
        self.incoming.clear();
    }

    pub(super) fn attachment(&mut self, attachment: Attachment) {
        self.incoming.push(attachment);
    }

    pub(super) fn end(&mut self, outcome: &Outcome) {
        let incoming = std::mem::take(&mut self.incoming);
        self.complete = *outcome == Outcome::Complete;
        if matches!(outcome, Outcome::Failed(_)) {
            return;
        }
        if self.complete {
            self.held.clear();
        }
        for attachment in incoming {
            let of = self.held.entry(attachment.container.clone()).or_default();
            if !of.contains(&attachment) {
                of.push(attachment);
            }
        }
        self.held.values_mut().for_each(|of| of.sort_by(|a, b| a.ifname.cmp(&b.ifname)));
    }

    /// What is remembered of a container; empty if nothing is.
    pub fn of(&self, container: &ContainerId) -> &[Attachment] {
        self.held.get(container).map_or(&[], Vec::as_slice)
    }

    /// Whether a container that is not remembered certainly is not.
    pub fn complete(&self) -> bool {
        self.complete
    }
}
