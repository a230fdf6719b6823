//! What is heard of entries that come and go, and what was lost of it.

use headroom_core::observe::{Fact, Loss};

use super::{Access, ConntrackSource, ID};
use crate::bounded;
use crate::clock;
use crate::netlink::conntrack::{Content, content};
use crate::netlink::message::Messages;
use crate::netlink::socket::{self, DATAGRAM_BYTES, Received};
use crate::source::lines::own_table;
use crate::source::{Sink, observation, stamped};

/// How many events are drained at most: more than the queue holds (64 MiB, at least 768 bytes each with the kernel's own
/// overhead), so that whatever waited when draining began has been taken. This matters before a dump: an old NEW told
/// after it would bring back a flow whose DESTROY was lost. What comes meanwhile stays for the next round.
const DRAIN_EVENTS: usize = 128 << 10;
/// `/proc/net/netlink` has 100 bytes per socket.
const NETLINK_LIMIT_BYTES: usize = 4 << 20;

/// Where datagrams are received.
#[derive(Debug)]
pub(super) struct Buffer(Vec<u8>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; DATAGRAM_BYTES])
    }
}

/// Totals since start, and what has been told of them.
#[derive(Debug, Default)]
pub(super) struct Losses {
    pub(super) overruns: u64,
    pub(super) malformed: u64,
    told: (u64, u64),
    /// `Drops` of the present socket at the last look.
    pub(super) drops: u64,
    /// Why drops cannot be counted.
    pub(super) blind: Option<String>,
}

impl ConntrackSource {
    /// Takes every event from the queue that waits now; says how many.
    pub(super) fn drain(&mut self, sink: Sink<'_>) -> usize {
        let Access::Events(events) = &self.access else { return 0 };
        let mut taken = 0;
        let failed = loop {
            if taken >= DRAIN_EVENTS {
                return taken;
            }
            let at = clock::node_time();
            let malformed = &mut self.losses.malformed;
            let received = events.receive(&mut self.buffer.0, |datagram| {
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
                    self.udp_schedule.lost();
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

    /// The table as it was put together from events is not true any more.
    fn lost(&mut self) {
        self.schedule.lost();
        self.udp_schedule.lost();
    }

    /// Counts what the kernel could not deliver, and tells of it.
    pub(super) fn account(&mut self, sink: Sink<'_>) {
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
        let (overruns, malformed) = (self.losses.overruns, self.losses.malformed + self.reader.malformed);
        if overruns != self.losses.told.0 {
            self.lost();
            sink(observation(ID, Fact::Lost { what: Loss::ConntrackOverrun, total: overruns }));
        }
        if malformed != self.losses.told.1 {
            sink(observation(ID, Fact::Lost { what: Loss::ConntrackMalformed, total: malformed }));
        }
        self.losses.told = (overruns, malformed);
    }
}
