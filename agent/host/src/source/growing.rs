//! A table of the kernel that grows while it is read.
//!
//! Asked for more at the end of `/proc/net/tcp`, the kernel walks the whole table again to see how many rows there are now, and
//! goes on with those that have come meanwhile: with some thousand new connections a second that takes longer than they take to
//! come, and reading never ends. Since every read but the last fills what it is given (but for the row that did not fit:
//! `seq_read_iter` in `fs/seq_file.c`), the last is known without asking.

use std::io::{self, Read};

/// What is asked for at once: not more than a page, which is what the kernel makes of a table at a time.
const PAGE_BYTES: usize = 4096;
/// No row of `tcp`, `tcp6` (some 200 bytes) or `nf_conntrack` (some 400) is longer.
const ROW_BYTES: usize = 512;

/// Reads each row that was there at the beginning, and no further.
#[derive(Debug)]
pub struct Growing<R> {
    reader: R,
    ended: bool,
}

impl<R> Growing<R> {
    /// Nothing was read of it yet.
    pub fn new(reader: R) -> Self {
        Self { reader, ended: false }
    }
}

impl<R: Read> Read for Growing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let asked = buffer.len().min(PAGE_BYTES);
        let Some(space) = buffer.get_mut(..asked).filter(|_| !self.ended) else { return Ok(0) };
        let read = self.reader.read(space)?;
        self.ended = read.saturating_add(ROW_BYTES) < asked;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    /// Gives so many bytes at each read, whatever is asked for.
    struct Table(Vec<usize>);

    impl Read for Table {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let bytes = self.0.pop().expect("is asked again after its end").min(buffer.len());
            buffer.get_mut(..bytes).unwrap().fill(b'x');
            Ok(bytes)
        }
    }

    fn all(mut reads: Vec<usize>) -> (usize, usize) {
        reads.reverse();
        let mut growing = Growing::new(Table(reads));
        let mut read = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match growing.read(&mut buffer).unwrap() {
                0 => return (read.len(), growing.reader.0.len()),
                bytes => read.push(bytes),
            }
        }
    }

    /// Exercises a read on both sides of a row, and an end without one. If this fails, rows are missing, or reading a busy node's
    /// table takes seconds.
    #[test]
    fn a_short_read_is_the_last() {
        assert_eq!(all(vec![4096, 4000, PAGE_BYTES - ROW_BYTES, 150, 4096]), (4, 1));
        assert_eq!(all(vec![4096, PAGE_BYTES - ROW_BYTES - 1, 4096]), (2, 1));
        assert_eq!(all(vec![4096, 0, 4096]), (1, 1));
    }

    /// Exercises the kernel's own table. If this fails, the kernel fills its reads otherwise than was thought, and rows are missing.
    #[test]
    fn all_that_is_there_is_read() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let held: Vec<_> =
            (0..300).map(|_| (TcpStream::connect(address).unwrap(), listener.accept().unwrap())).collect();
        let mut text = String::new();
        Growing::new(File::open("/proc/thread-self/net/tcp").unwrap()).read_to_string(&mut text).unwrap();
        let port = format!("0100007F:{:04X}", address.port());
        assert_eq!(text.lines().filter(|line| line.contains(&port)).count(), 2 * held.len() + 1);
    }

    /// Exercises a space smaller than a row: every read fills it. If this fails, a table ends where a buffer does.
    #[test]
    fn a_small_space_says_nothing_of_the_end() {
        let mut growing = Growing::new(Table(vec![0, 100, 100]));
        let mut buffer = [0; 100];
        assert_eq!([0; 3].map(|_: i32| growing.read(&mut buffer).unwrap()), [100, 100, 0]);
    }
}
