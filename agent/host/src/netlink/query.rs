//! Questions to netfilter that are answered by a list.
//!
//! A question to a part of netfilter that is a module makes the kernel load it: whoever asks looks first whether it is there
//! (see `source::rules`).

use std::io;
use std::ops::ControlFlow;
use std::time::Instant;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::message::{Malformed, Message, Messages};

/// The kernel fills at most 32 KiB per receive call of a dump.
const DATAGRAM_BYTES: usize = 64 << 10;
/// How long the kernel may take to produce the next part.
const SILENCE_SECS: i64 = 2;
/// `NLMSG_ERROR`, `NLMSG_DONE`.
const MESSAGE_ERROR: u16 = 2;
const MESSAGE_DONE: u16 = 3;

/// A question that was not answered.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// A call failed.
    #[error("cannot {what}{}: {source}", super::socket::hint(.source))]
    Call {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("the kernel refuses to list {what}{}: {source}", super::socket::hint(.source))]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// Its reason.
        source: io::Error,
    },
    /// It was silent, or so slow that time ran out.
    #[error("listing {0} takes too long")]
    Late(&'static str),
    /// Its answer makes no sense.
    #[error("the list of {what}: {source}")]
    Malformed {
        /// What was asked for.
        what: &'static str,
        /// What is wrong.
        source: Malformed,
    },
    /// There is more than is read.
    #[error("there are more {what} than {limit}")]
    TooMany {
        /// What was asked for.
        what: &'static str,
        /// How many are read.
        limit: usize,
    },
}

impl QueryError {
    /// It was asked about something that is not there (any more).
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(libc::ENOENT))
    }
}

/// A socket for questions.
#[derive(Debug)]
pub struct Query {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Query {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> Result<Self, QueryError> {
        let call = |source| QueryError::Call { what: "open a netfilter netlink socket", source };
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(call)?;
        socket.bind_auto().map_err(call)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(SILENCE_SECS, 0))
            .map_err(|errno| call(errno.into()))?;
        Ok(Self { socket, buffer: vec![0; DATAGRAM_BYTES], sequence: 0 })
    }

    /// The sequence number for the next question.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Asks for a list (of `what`) and shows every message of it, until `each` has had enough. Whatever happens, the socket
    /// takes no further question after an error.
    ///
    /// # Errors
    /// The list is not complete; what was shown is true.
    pub fn list(
        &mut self,
        what: &'static str,
        request: &[u8],
        deadline: Instant,
        mut each: impl FnMut(&Message<'_>) -> Result<ControlFlow<()>, Malformed>,
    ) -> Result<(), QueryError> {
        let sequence = self.sequence;
        self.socket
            .send_to(request, &SocketAddr::new(0, 0), 0)
            .map_err(|source| QueryError::Call { what: "ask netfilter", source })?;
        loop {
            if Instant::now() > deadline {
                return Err(QueryError::Late(what));
            }
            let length = self.receive(what)?;
            for message in Messages::new(self.buffer.get(..length).unwrap_or_default()) {
                let malformed = |source| QueryError::Malformed { what, source };
                let message = message.map_err(malformed)?;
                // Left over from a list that was not read to its end.
                if message.sequence != sequence {
                    continue;
                }
                match (message.kind, errno(message.payload)) {
                    (MESSAGE_DONE, None | Some(0)) => return Ok(()),
                    (MESSAGE_DONE | MESSAGE_ERROR, errno) => {
                        let source = io::Error::from_raw_os_error(errno.unwrap_or(libc::EPROTO));
                        return Err(QueryError::Refused { what, source });
                    }
                    _ => {
                        if each(&message).map_err(malformed)?.is_break() {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    fn receive(&mut self, what: &'static str) -> Result<usize, QueryError> {
        loop {
            let room = self.buffer.len();
            match self.socket.recv_from(&mut self.buffer.as_mut_slice(), libc::MSG_TRUNC) {
                Ok((length, from)) if length <= room && from.port_number() == 0 => return Ok(length),
                // Not from the kernel.
                Ok((_, from)) if from.port_number() != 0 => {}
                // Cut off: the rest is lost.
                Ok(_) => {
                    let source = io::Error::from_raw_os_error(libc::EMSGSIZE);
                    return Err(QueryError::Call { what: "read netfilter's answer", source });
                }
                Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                    Errno::EINTR => {}
                    Errno::EAGAIN => return Err(QueryError::Late(what)),
                    _ => return Err(QueryError::Call { what: "read netfilter's answer", source: error }),
                },
            }
        }
    }
}

/// The first four bytes of `NLMSG_ERROR` and `NLMSG_DONE`: a negative errno, native order.
fn errno(payload: &[u8]) -> Option<i32> {
    payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes).saturating_neg())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks for something of a subsystem that no kernel has: whoever asks, the answer is a message of 36 bytes.
    fn ask(room: usize) -> QueryError {
        let mut query = Query::open().unwrap();
        query.buffer.truncate(room);
        let mut request = 20_u32.to_ne_bytes().to_vec();
        request.extend([0xff_ff_u16, 0x301].map(u16::to_ne_bytes).concat());
        request.extend(query.next_sequence().to_ne_bytes());
        request.extend([0; 8]);
        query
            .list("nothing", &request, Instant::now() + std::time::Duration::from_secs(60), |_| unreachable!())
            .unwrap_err()
    }

    /// Exercises the bound of a message. If this fails, a list with a hole in it is taken for the whole one.
    #[test]
    fn an_answer_that_does_not_fit_is_an_error() {
        let whole = ask(DATAGRAM_BYTES);
        assert!(matches!(whole, QueryError::Refused { .. }), "{whole}");
        let cut = ask(16);
        let QueryError::Call { source, .. } = &cut else { unreachable!("{cut}") };
        assert_eq!(source.raw_os_error(), Some(libc::EMSGSIZE));
    }
}
