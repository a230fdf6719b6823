//! Reading long tables of `/proc` line by line, with bounds on everything.
//!
//! A table is read through one buffer and never held as a whole: `/proc/<pid>/net/tcp` of a busy node has tens of
//! megabytes. In a captured tree such a file can be anything, so a FIFO or device is refused, a line that does not fit is
//! passed over, and after a given number of bytes reading stops.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::bounded::{self, Refusal};
use crate::root::HostRoot;
use crate::source::growing::Growing;

/// Longest line that is read; those of the kernel's tables have at most 400 bytes.
const LINE_BYTES: usize = 4096;
/// How much is read at once. The kernel makes about that much text before it lets go of its locks.
const CHUNK_BYTES: usize = 64 << 10;

/// Where on the node a table of `/proc/net` is: that of the calling thread's namespace, or the captured one.
pub fn own_table(root: &HostRoot, name: &str) -> PathBuf {
    // `/proc/net` is that of the process's first thread, which may live in another namespace than this one.
    let directory = if root.is_live() { "/proc/thread-self/net" } else { "/proc/net" };
    Path::new(directory).join(name)
}

/// One step through a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// A line, without its end.
    Line(&'a [u8]),
    /// A line that was too long and was passed over.
    TooLong,
    /// There is more, but the limit was reached.
    Limit,
    /// That was all.
    End,
}

/// The lines of a table.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    buffer: Vec<u8>,
    /// What of the buffer is still to be given out.
    start: usize,
    end: usize,
    /// How many bytes may still be read.
    left: usize,
    finished: bool,
}

impl Lines<File> {
    /// Opens a table of the node; nothing but a regular file is read, and opening never waits.
    ///
    /// # Errors
    /// What the kernel says; `InvalidInput` if it is no regular file.
    pub fn open(root: &HostRoot, absolute: &Path, limit_bytes: usize) -> io::Result<Self> {
        Ok(Self::new(regular(root, absolute)?, limit_bytes))
    }
}

impl Lines<Growing<File>> {
    /// Opens a table that grows while it is read, of rows that are known to be short ([`Growing`]).
    ///
    /// # Errors
    /// As [`Lines::open`].
    pub fn open_growing(root: &HostRoot, absolute: &Path, limit_bytes: usize) -> io::Result<Self> {
        Ok(Self::new(Growing::new(regular(root, absolute)?), limit_bytes))
    }
}

/// Opens a regular file.
fn regular(root: &HostRoot, absolute: &Path) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let file = File::from(match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) if !root.is_live() => {
            openat(bounded::open_dir(root, parent).map_err(refused)?, name, flags, Mode::empty())?
        }
        _live => open(absolute, flags, Mode::empty())?,
    });
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// A directory that could not be opened, as an error of its file.
fn refused(refusal: Refusal) -> io::Error {
    let kind = match refusal {
        Refusal::Missing => io::ErrorKind::NotFound,
        Refusal::Denied => io::ErrorKind::PermissionDenied,
        _other => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("its directory {refusal}"))
}

impl<R: Read> Lines<R> {
    /// Reads at most so many bytes.
    pub fn new(reader: R, limit_bytes: usize) -> Self {
        Self { reader, buffer: vec![0; CHUNK_BYTES], start: 0, end: 0, left: limit_bytes, finished: false }
    }

    /// The next line. A last line without an end counts as one.
    ///
    /// # Errors
    /// What reading says.
    pub fn step(&mut self) -> io::Result<Step<'_>> {
        let mut skipping = false;
        loop {
            let waiting = self.buffer.get(self.start..self.end).unwrap_or_default();
            let newline = waiting.iter().position(|byte| *byte == b'\n');
            if let Some(length) = newline {
                let start = self.start;
                self.start += length + 1;
                return Ok(if skipping || length > LINE_BYTES {
                    Step::TooLong
                } else {
                    Step::Line(self.buffer.get(start..start + length).unwrap_or_default())
                });
            }
            let length = waiting.len();
            if self.finished {
                let start = self.start;
                self.start = self.end;
                return Ok(match length {
                    0 if skipping => Step::TooLong,
                    // What the limit has cut off is no line.
                    _ if self.left == 0 => Step::Limit,
                    0 => Step::End,
                    _ if skipping || length > LINE_BYTES => Step::TooLong,
                    _ => Step::Line(self.buffer.get(start..start + length).unwrap_or_default()),
                });
            }
            if length > LINE_BYTES {
                skipping = true;
                self.start = self.end;
            }
            self.fill()?;
        }
    }

    /// Moves what waits to the front and reads behind it.
    fn fill(&mut self) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let room = self.buffer.len().min(self.end.saturating_add(self.left));
        let Some(space) = self.buffer.get_mut(self.end..room).filter(|space| !space.is_empty()) else {
            self.finished = true;
            return Ok(());
        };
        let got = loop {
            match self.reader.read(space) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.end += got;
        self.left -= got;
        self.finished = got == 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(bytes: &[u8], limit: usize) -> (Vec<Vec<u8>>, usize, bool) {
        let (mut lines, mut too_long) = (Vec::new(), 0);
        let mut reader = Lines::new(bytes, limit);
        loop {
            match reader.step().unwrap() {
                Step::Line(line) => lines.push(line.to_vec()),
                Step::TooLong => too_long += 1,
                Step::Limit => return (lines, too_long, true),
                Step::End => return (lines, too_long, false),
            }
        }
    }

    #[test]
    fn a_line_without_end_counts_and_an_endless_one_is_passed_over() {
        assert_eq!(all(b"a\n\nb", 100), (vec![b"a".to_vec(), vec![], b"b".to_vec()], 0, false));
        let mut long = b"x\n".to_vec();
        long.resize(300_000, b'y');
        assert_eq!(all(&long, 1 << 20), (vec![b"x".to_vec()], 1, false));
        long.extend_from_slice(b"\nz\n");
        assert_eq!(all(&long, 1 << 20), (vec![b"x".to_vec(), b"z".to_vec()], 1, false));
    }

    #[test]
    fn the_limit_is_told() {
        let text = "0123456789\n".repeat(20_000);
        let (lines, too_long, limited) = all(text.as_bytes(), 110_000);
        assert_eq!((lines.len(), too_long, limited), (10_000, 0, true));
    }

    #[test]
    fn a_fifo_is_refused_at_once() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("tcp");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let root = HostRoot::at(place.path());
        assert_eq!(Lines::open(&root, Path::new("/tcp"), 100).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    proptest! {
        #[test]
        fn short_lines_come_out_as_split_would_give_them(text in "[a-c\n]{0,400}") {
            let mut expected: Vec<Vec<u8>> = text.split('\n').map(|line| line.as_bytes().to_vec()).collect();
            if expected.last().is_some_and(Vec::is_empty) {
                expected.pop();
            }
            prop_assert_eq!(all(text.as_bytes(), 1000), (expected, 0, false));
        }
    }
}
