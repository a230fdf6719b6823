//! One reading of the conntrack table: a dump over netlink, of everything or of UDP alone, or `/proc/net/nf_conntrack`.
//!
//! Where TCP is counted elsewhere most entries of a dump are of no use, and telling them takes most of its time: the kernel
//! walks over an entry that it leaves out in a fifth of the time (`CTA_FILTER`, since 5.8). What is needed of TCP all the same
//! (who fills the table, ports translated into the NodePort range, what is only forwarded) comes with the dumps of everything,
//! which can be rarer.

use std::time::Duration;

use headroom_core::flow::Protocol;
use headroom_core::known::Why;
use headroom_core::observe::{ConntrackTcpState, Fact, Outcome, Snapshot};

use super::{ID, table};
use crate::clock;
use crate::netlink::conntrack::{Content, Only, content, is_filtered, is_interrupted};
use crate::netlink::message::Messages;
use crate::netlink::socket::{self, DATAGRAM_BYTES, DUMP_SILENCE, Dump, Received};
use crate::root::HostRoot;
use crate::source::lines::{Lines, Step, own_table};
use crate::source::{Sink, observation, stamped};

/// What a dump may take.
const DUMP_LIMIT: Duration = Duration::from_secs(20);
/// `/proc/net/nf_conntrack` has about 200 bytes per entry: more than a million entries.
const TABLE_LIMIT_BYTES: usize = 256 << 20;

/// What is dumped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Everything,
    Udp,
}

impl What {
    fn snapshot(self) -> Snapshot {
        match self {
            Self::Everything => Snapshot::Conntrack,
            Self::Udp => Snapshot::ConntrackUdp,
        }
    }

    /// What to ask the kernel for, one after the other.
    fn parts(self) -> Vec<Option<Only>> {
        match self {
            Self::Everything => vec![None],
            Self::Udp => Only::both(Protocol::UDP).map(Some).to_vec(),
        }
    }
}

/// How reading a dump ended.
pub(super) enum DumpEnd {
    Complete,
    /// The kernel says that the table changed too much meanwhile.
    Interrupted,
    /// So many entries could not be understood.
    Holes(u64),
    Failed(String),
    /// The kernel does not give any.
    Refused(String),
}

/// Reads the table.
#[derive(Debug)]
pub(super) struct Reader {
    root: HostRoot,
    sequence: u32,
    buffer: Vec<u8>,
    /// TCP entries in TIME_WAIT that the last dump of everything showed.
    pub(super) time_waits: u64,
    /// What could not be understood, since the start.
    pub(super) malformed: u64,
    /// The kernel does not leave anything out.
    whole_only: bool,
}

impl Reader {
    pub(super) fn new(root: &HostRoot) -> Self {
        Self {
            root: root.clone(),
            sequence: 0,
            buffer: vec![0; DATAGRAM_BYTES],
            time_waits: 0,
            malformed: 0,
            whole_only: false,
        }
    }

    /// Dumps, and once more if the kernel says that the table changed too much meanwhile.
    pub(super) fn dump(&mut self, what: What, sink: Sink<'_>) -> DumpEnd {
        let end = self.dump_once(what, sink);
        if matches!(end, DumpEnd::Interrupted) { self.dump_once(what, sink) } else { end }
    }

    /// A table that has no entries, as its own count says.
    pub(super) fn nothing(&mut self, what: What, sink: Sink<'_>) -> DumpEnd {
        self.bracket(what, sink, |reader, _sink| {
            reader.time_waits = 0;
            DumpEnd::Complete
        })
    }

    fn dump_once(&mut self, what: What, sink: Sink<'_>) -> DumpEnd {
        let what = if self.whole_only { What::Everything } else { what };
        let end = self.bracket(what, sink, |reader, sink| reader.read_dump(what, sink));
        // It is asked for in vain only once.
        if what != What::Everything && self.whole_only { self.dump_once(What::Everything, sink) } else { end }
    }

    /// Reads `/proc/net/nf_conntrack`.
    pub(super) fn table(&mut self, sink: Sink<'_>) -> DumpEnd {
        self.bracket(What::Everything, sink, Self::read_table)
    }

    /// One snapshot, with its begin and end.
    fn bracket(&mut self, what: What, sink: Sink<'_>, read: impl FnOnce(&mut Self, Sink<'_>) -> DumpEnd) -> DumpEnd {
        let snapshot = what.snapshot();
        sink(observation(ID, Fact::Begin(snapshot)));
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
        sink(observation(ID, Fact::End { snapshot, outcome }));
        end
    }

    fn read_dump(&mut self, what: What, sink: Sink<'_>) -> DumpEnd {
        if what == What::Everything {
            self.time_waits = 0;
        }
        for part in what.parts() {
            let end = self.read_part(part, sink);
            if !matches!(end, DumpEnd::Complete) {
                return end;
            }
        }
        DumpEnd::Complete
    }

    fn read_part(&mut self, only: Option<Only>, sink: Sink<'_>) -> DumpEnd {
        self.sequence = self.sequence.wrapping_add(1);
        let until = clock::node_time().after(DUMP_LIMIT);
        let dump = match Dump::request(self.sequence, only) {
            Ok(dump) => dump,
            Err(error) => return DumpEnd::Failed(error.sentence()),
        };
        let (mut interrupted, mut holes) = (false, 0);
        loop {
            let length = match dump.receive(&mut self.buffer) {
                Ok(Received::Bytes(length)) => length,
                Ok(Received::Unusable) => {
                    self.malformed += 1;
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
                let filtered = message.as_ref().is_ok_and(is_filtered);
                interrupted |= message.as_ref().is_ok_and(is_interrupted);
                match message.and_then(|message| content(&message)) {
                    Ok(Content::Entry(entry)) => {
                        if only.is_some_and(|only| !filtered || entry.key.protocol != only.protocol) {
                            self.whole_only = true;
                            return DumpEnd::Failed("this kernel does not filter dumps".to_owned());
                        }
                        self.time_waits += u64::from(entry.tcp == Some(ConntrackTcpState::TimeWait));
                        sink(stamped(at, ID, Fact::Flow(entry)));
                    }
                    Ok(Content::Done { errno: 0 }) if interrupted => return DumpEnd::Interrupted,
                    Ok(Content::Done { errno: 0 }) if holes > 0 => return DumpEnd::Holes(holes),
                    Ok(Content::Done { errno: 0 }) => return DumpEnd::Complete,
                    Ok(Content::Done { errno } | Content::Error { errno }) => {
                        self.whole_only |= only.is_some();
                        let error = std::io::Error::from_raw_os_error(errno);
                        return DumpEnd::Refused(format!("conntrack dump refused{}: {error}", socket::hint(&error)));
                    }
                    Ok(Content::Overrun | Content::Ended(_) | Content::Other) => {}
                    Err(_malformed) => {
                        self.malformed += 1;
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
        let mut lines = match Lines::open_growing(&self.root, &path, TABLE_LIMIT_BYTES) {
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
        self.malformed += holes;
        if holes > 0 { DumpEnd::Holes(holes) } else { DumpEnd::Complete }
    }
}
