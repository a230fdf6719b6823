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
use headroom_core::time::NodeTime;

use super::{ID, table};
use crate::clock;
use crate::netlink::conntrack::{Content, Only, content, is_filtered, is_interrupted};
use crate::netlink::message::Messages;
use crate::netlink::socket::{self, DATAGRAM_BYTES, DUMP_SILENCE, Dump, Received, SocketError};
use crate::root::HostRoot;
use crate::source::lines::{Lines, Step, own_table};
use crate::source::{Sink, observation, stamped};

/// What a dump may take.
const DUMP_LIMIT: Duration = Duration::from_secs(20);
/// A kernel that does not leave anything out is asked for it again after so long: it may have lacked memory.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(600);
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
#[derive(Debug, PartialEq, Eq)]
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

impl DumpEnd {
    /// What is missing in what was read.
    pub(super) fn lacks(&self) -> Option<String> {
        match self {
            Self::Interrupted => Some("the conntrack table changed too much while it was dumped".to_owned()),
            Self::Holes(count) => Some(format!("{count} conntrack entries could not be understood")),
            Self::Complete | Self::Failed(_) | Self::Refused(_) => None,
        }
    }
}

/// Reads the table.
#[derive(Debug)]
pub(super) struct Reader {
    root: HostRoot,
    sequence: u32,
    buffer: Vec<u8>,
    /// TCP entries in TIME_WAIT that the last dump of everything showed.
    pub(super) time_waits: u64,
    /// Entries that it showed.
    pub(super) entries: u64,
    /// What could not be understood, since the start.
    pub(super) malformed: u64,
    /// When the kernel was asked in vain to leave something out.
    whole_only: Option<NodeTime>,
}

impl Reader {
    pub(super) fn new(root: &HostRoot) -> Self {
        Self {
            root: root.clone(),
            sequence: 0,
            buffer: vec![0; DATAGRAM_BYTES],
            time_waits: 0,
            entries: 0,
            malformed: 0,
            whole_only: None,
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
            (reader.time_waits, reader.entries) = (0, 0);
            DumpEnd::Complete
        })
    }

    /// What to ask for, of a kernel that may give everything only.
    fn allowed(&mut self, what: What, now: NodeTime) -> What {
        self.whole_only = self.whole_only.filter(|asked| now.since(*asked) < ASK_AGAIN_AFTER);
        if self.whole_only.is_some() { What::Everything } else { what }
    }

    fn dump_once(&mut self, what: What, sink: Sink<'_>) -> DumpEnd {
        let what = self.allowed(what, clock::node_time());
        let end = self.bracket(what, sink, |reader, sink| reader.read_dump(what, sink));
        // It is asked for in vain only once.
        if what != What::Everything && self.whole_only.is_some() { self.dump_once(What::Everything, sink) } else { end }
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
        let outcome = match (&end, end.lacks()) {
            (DumpEnd::Failed(why) | DumpEnd::Refused(why), _) => Outcome::Failed(Why::new(why.clone())),
            (_, Some(lacks)) => Outcome::Partial(Why::new(lacks)),
            (_, None) => Outcome::Complete,
        };
        sink(observation(ID, Fact::End { snapshot, outcome }));
        end
    }

    fn read_dump(&mut self, what: What, sink: Sink<'_>) -> DumpEnd {
        if what == What::Everything {
            (self.time_waits, self.entries) = (0, 0);
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
        self.take_part(only, until, |buffer| dump.receive(buffer), sink)
    }

    /// Takes in what the kernel answers.
    fn take_part(
        &mut self,
        only: Option<Only>,
        until: NodeTime,
        mut receive: impl FnMut(&mut [u8]) -> Result<Received, SocketError>,
        sink: Sink<'_>,
    ) -> DumpEnd {
        let (mut interrupted, mut holes) = (false, 0);
        loop {
            let length = match receive(&mut self.buffer) {
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
                            self.whole_only = Some(at);
                            return DumpEnd::Failed("this kernel does not filter dumps".to_owned());
                        }
                        self.time_waits += u64::from(entry.tcp == Some(ConntrackTcpState::TimeWait));
                        self.entries += u64::from(only.is_none());
                        sink(stamped(at, ID, Fact::Flow(entry)));
                    }
                    Ok(Content::Done { errno: 0 }) if interrupted => return DumpEnd::Interrupted,
                    Ok(Content::Done { errno: 0 }) if holes > 0 => return DumpEnd::Holes(holes),
                    Ok(Content::Done { errno: 0 }) => return DumpEnd::Complete,
                    Ok(Content::Done { errno } | Content::Error { errno }) => {
                        self.whole_only = only.map(|_| at).or(self.whole_only);
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
        self.entries = 0;
        for count in 0u64.. {
            match lines.step() {
                Ok(Step::Line(line)) => match table::parse_line(line) {
                    Some(entry) => {
                        self.entries += 1;
                        sink(observation(ID, Fact::Flow(entry)));
                    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: u16 = 3;
    /// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW`.
    const ENTRY: u16 = 1 << 8;
    const MULTI: u16 = 2;
    const INTERRUPTED: u16 = 0x10;

    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let head = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]].concat();
        [head, payload.to_vec()].concat()
    }

    /// What a reading ends with where the kernel answers like that, one datagram after the other, and then no more.
    fn take(
        reader: &mut Reader,
        only: Option<Only>,
        answers: &[Result<Received, ()>],
        datagrams: &[Vec<u8>],
    ) -> DumpEnd {
        let (mut answers, mut datagrams) = (answers.iter(), datagrams.iter());
        let until = clock::node_time().after(DUMP_LIMIT);
        let receive = |buffer: &mut [u8]| match answers.next() {
            Some(Ok(Received::Unusable)) => Ok(Received::Unusable),
            Some(Ok(Received::Overrun)) => Ok(Received::Overrun),
            Some(Err(())) => Err(SocketError::Receive(std::io::Error::from_raw_os_error(libc::EIO))),
            Some(Ok(Received::Bytes(_) | Received::Nothing)) | None => {
                Ok(datagrams.next().map_or(Received::Nothing, |datagram| {
                    buffer.get_mut(..datagram.len()).unwrap().copy_from_slice(datagram);
                    Received::Bytes(datagram.len())
                }))
            }
        };
        reader.take_part(only, until, receive, &mut |_| panic!("there is no entry"))
    }

    /// Exercises dumps that lack something. If this fails, half a table is taken for all there is.
    #[test]
    fn a_dump_that_lacks_something_says_so() {
        let mut reader = Reader::new(&HostRoot::at("/nowhere"));
        let mut take = |answers: &[_], datagrams: &[_]| take(&mut reader, None, answers, datagrams);
        let done = || message(DONE, MULTI, &[0; 4]);
        let torn = || message(ENTRY, MULTI, &[2, 0, 0, 0, 0xff, 0xff, 1, 0]);
        assert_eq!(take(&[], &[done()]), DumpEnd::Complete);
        assert_eq!(take(&[], &[message(DONE, MULTI | INTERRUPTED, &[0; 4])]), DumpEnd::Interrupted);
        assert_eq!(take(&[], &[torn(), [torn(), done()].concat()]), DumpEnd::Holes(2));
        assert_eq!(take(&[Ok(Received::Unusable)], &[done()]), DumpEnd::Holes(1));
        assert!(matches!(take(&[], &[torn()]), DumpEnd::Failed(why) if why.contains("stopped half-way")));
        assert!(
            matches!(take(&[Ok(Received::Overrun)], &[done()]), DumpEnd::Failed(why) if why.contains("lost a part"))
        );
        assert!(matches!(take(&[Err(())], &[done()]), DumpEnd::Failed(_)));
        let refused = message(DONE, MULTI, &(-libc::EPERM).to_ne_bytes());
        assert!(matches!(take(&[], &[refused]), DumpEnd::Refused(why) if why.contains("refused")));
        assert_eq!(reader.malformed, 4);
        assert_eq!(reader.whole_only, None);
        assert_eq!(DumpEnd::Holes(2).lacks().unwrap(), "2 conntrack entries could not be understood");
    }

    /// Exercises a kernel that refuses once to leave something out. If this fails, every dump is one of everything from then on.
    #[test]
    fn a_filter_that_was_refused_is_tried_again() {
        let mut reader = Reader::new(&HostRoot::at("/nowhere"));
        let [only, _] = Only::both(Protocol::UDP);
        let refused = message(DONE, MULTI, &(-libc::ENOMEM).to_ne_bytes());
        assert!(matches!(take(&mut reader, Some(only), &[], &[refused]), DumpEnd::Refused(_)));
        let asked = reader.whole_only.unwrap();
        let just_before = asked.after(ASK_AGAIN_AFTER.checked_sub(Duration::from_nanos(1)).unwrap());
        assert_eq!(reader.allowed(What::Udp, just_before), What::Everything);
        assert_eq!(reader.allowed(What::Udp, asked.after(ASK_AGAIN_AFTER)), What::Udp);
    }
}
