//! What the files of one network's directory say: one open, fstat, read and close per reservation, by two threads where
//! there are many.
//!
//! The kernel's share of this cannot be saved, only divided: 65,536 reservations take it a third of a second.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use headroom_core::known::{Known, Why};
use headroom_core::observe::{Fact, Reservation};
use headroom_core::time::NodeTime;
use nix::dir::{Dir, Type};

use super::holder;
use crate::bounded::{self, Refusal};
use crate::clock;

/// host-local writes less than 200 bytes; more than this is not its file.
const CONTENT_LIMIT: usize = 4096;
/// How many files a thread takes at once; then it looks at the clock.
const PORTION: usize = 512;
/// From how many files on a second thread is worth it.
const MANY: usize = 4096;

/// A reservation's name, as the directory lists it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed {
    /// The address it stands for.
    pub(super) address: IpAddr,
    /// What the directory says that it is.
    pub(super) kind: Option<Type>,
}

/// How far the reading came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Files that were looked at, in time.
    pub(super) done: usize,
    /// Of these, how many this process may not open.
    pub(super) denied: usize,
}

/// Reads the listed files of a directory, until the deadline at the latest.
pub(super) fn read(
    dir: &Dir,
    listed: &[Listed],
    store: &Arc<str>,
    deadline: NodeTime,
    emit: &mut dyn FnMut(Fact),
) -> Progress {
    let work = Work { dir: dir.as_fd(), listed, store, deadline, next: 0.into(), done: 0.into(), denied: 0.into() };
    let mut emit = |reservation| emit(Fact::Reservation(reservation));
    if listed.len() < MANY {
        work.take(&mut emit);
    } else {
        thread::scope(|scope| {
            let other = thread::Builder::new().name("reservations".to_owned()).spawn_scoped(scope, || {
                let mut read = Vec::new();
                work.take(&mut |reservation| read.push(reservation));
                read
            });
            work.take(&mut emit);
            // Without a second thread the first has read them all.
            match other.map(thread::ScopedJoinHandle::join) {
                Ok(Ok(read)) => read.into_iter().for_each(emit),
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(_no_thread) => {}
            }
        });
    }
    Progress { done: work.done.into_inner(), denied: work.denied.into_inner() }
}

/// What the threads share.
struct Work<'a> {
    dir: BorrowedFd<'a>,
    listed: &'a [Listed],
    store: &'a Arc<str>,
    deadline: NodeTime,
    /// The portion that is to be taken next.
    next: AtomicUsize,
    done: AtomicUsize,
    denied: AtomicUsize,
}

impl Work<'_> {
    /// Takes portions until there are none, or no time.
    fn take(&self, emit: &mut dyn FnMut(Arc<Reservation>)) {
        let mut buffer = [0; CONTENT_LIMIT + 1];
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(portion) = self.listed.chunks(PORTION).nth(number) else { return };
            // The first one always: a store that cannot be read in time still shows something.
            if number > 0 && clock::node_time() > self.deadline {
                return;
            }
            portion.iter().filter_map(|listed| self.one(*listed, &mut buffer)).for_each(|read| emit(Arc::new(read)));
            self.done.fetch_add(portion.len(), Ordering::Relaxed);
        }
    }

    fn one(&self, Listed { address, kind }: Listed, buffer: &mut [u8]) -> Option<Reservation> {
        let content = match Refusal::of_type(kind) {
            Some(refusal) => Err(refusal),
            None => bounded::read_small(self.dir, address.to_string().as_str(), buffer),
        };
        let (holder, modified) = match content {
            Ok(small) => (holder::parse(buffer.get(..small.len).unwrap_or_default()), Known::Present(small.modified)),
            // Released between readdir and open.
            Err(Refusal::Missing) => return None,
            Err(refusal) => {
                self.denied.fetch_add(usize::from(refusal == Refusal::Denied), Ordering::Relaxed);
                let why = Why::new(format!("the file {refusal}"));
                (Known::Unknown(why.clone()), Known::Unknown(why))
            }
        };
        Some(Reservation { store: Arc::clone(self.store), address, holder, modified, pod: None })
    }
}
