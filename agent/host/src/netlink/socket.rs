//! Netlink sockets to conntrack, of the calling thread's network namespace.
//!
//! Opening one or joining a group writes nothing, but the kernel may load `nfnetlink` and `nf_conntrack_netlink` on its
//! own when somebody asks for them; headroom itself loads no module. Both need CAP_NET_ADMIN.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, NetlinkAddr, recvmmsg, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::conntrack::{GROUP_DESTROY, GROUP_NEW, Only, dump_request};
use super::filter;

/// Room for events that wait to be read: about 65,000 of them (the kernel doubles the number and counts its own overhead).
pub const EVENT_BUFFER_BYTES: usize = 32 << 20;
/// The kernel fills at most 32 KiB per receive call of a dump.
pub const DATAGRAM_BYTES: usize = 64 << 10;
/// Room for one event; it has 200 to 400 bytes, some more with labels and security contexts.
const EVENT_BYTES: usize = 2 << 10;
/// How long the kernel may take to produce the next part of a dump. It does so within the call, so this is an emergency.
const DUMP_SILENCE_SECS: i64 = 5;

/// Something about a conntrack socket that did not work.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// No netlink, or no netfilter in this kernel.
    #[error("cannot open a netfilter netlink socket{}", hint(.0))]
    Open(#[source] io::Error),
    /// Joining the event groups was refused.
    #[error("cannot subscribe to conntrack events{}", hint(.0))]
    Subscribe(#[source] io::Error),
    /// An option that is needed could not be set.
    #[error("cannot set `{option}` on a netlink socket")]
    Option {
        /// Which.
        option: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The dump could not be asked for.
    #[error("cannot ask for a conntrack dump{}", hint(.0))]
    Request(#[source] io::Error),
    /// Reading failed.
    #[error("cannot read conntrack messages{}", hint(.0))]
    Receive(#[source] io::Error),
}

impl SocketError {
    /// The error, and what it came from, in one sentence.
    pub fn sentence(&self) -> String {
        match self {
            Self::Open(source) | Self::Subscribe(source) | Self::Request(source) | Self::Receive(source) => {
                format!("{self}: {source}")
            }
            Self::Option { source, .. } => format!("{self}: {source}"),
        }
    }
}

/// What the usual errors mean.
pub fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (CAP_NET_ADMIN is needed)",
        Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => " (this kernel has no netfilter netlink)",
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT) => " (this kernel has no conntrack netlink)",
        _ => "",
    }
}

/// The socket that hears of new and ended flows.
#[derive(Debug)]
pub struct Events {
    socket: Socket,
    inode: u64,
    /// What is not as it should be, in words.
    pub shortcoming: Option<String>,
}

/// The outcome of one receive call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// So many bytes of the buffer were filled.
    Bytes(usize),
    /// A datagram that was longer than the buffer, or did not come from the kernel; it is gone.
    Unusable,
    /// ENOBUFS: the kernel had to drop messages.
    Overrun,
    /// Nothing is waiting.
    Nothing,
}

impl Events {
    /// Subscribes to NEW and DESTROY. UPDATE has a hundred times their volume and nothing that is needed.
    ///
    /// `without_tcp` asks the kernel to leave out events of TCP. That is only a favour: an event that is not laid out as
    /// kernels do comes all the same.
    pub fn subscribe(without_tcp: bool, buffer_bytes: usize) -> Result<Self, SocketError> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(SocketError::Open)?;
        socket.bind_auto().map_err(SocketError::Open)?;
        let mut shortcomings = Vec::new();
        if setsockopt(&socket, sockopt::RcvBufForce, &buffer_bytes).is_err() {
            // Without CAP_NET_ADMIN in the initial user namespace: as much as net.core.rmem_max allows.
            let size = setsockopt(&socket, sockopt::RcvBuf, &buffer_bytes).map_err(io::Error::from);
            let got = size.and_then(|()| socket.get_rx_buf_sz());
            shortcomings.push(match got {
                Ok(bytes) => format!("events may be lost in bursts: the receive buffer has only {} KiB", bytes / 2048),
                Err(error) => format!("events may be lost in bursts: the receive buffer cannot be enlarged: {error}"),
            });
        }
        // With ENOBUFS enabled one lost message makes the kernel hold back all others until the queue has been drained.
        if let Err(error) = socket.set_no_enobufs(true) {
            shortcomings.push(format!("an overrun of the event queue loses more than one event: {error}"));
        }
        if without_tcp && let Err(error) = socket2::SockRef::from(&socket).attach_filter(&filter::without_tcp()) {
            shortcomings.push(format!("events of TCP cannot be left out: {error}"));
        }
        for group in [GROUP_NEW, GROUP_DESTROY] {
            socket.add_membership(group).map_err(SocketError::Subscribe)?;
        }
        let inode = nix::sys::stat::fstat(socket.as_fd()).map_err(|error| SocketError::Open(error.into()))?.st_ino;
        let shortcoming = (!shortcomings.is_empty()).then(|| shortcomings.join("; "));
        Ok(Self { socket, inode, shortcoming })
    }

    /// Which line of `/proc/net/netlink` is this socket's.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Takes some datagrams from the queue with one system call; never blocks. Each is handed over, `None` for one that
    /// is of no use; [`Received::Bytes`] tells how many there were, all together.
    ///
    /// # Errors
    /// What the kernel says, except that nothing is waiting or that something was lost.
    pub fn receive(&self, buffer: &mut [u8], mut each: impl FnMut(Option<&[u8]>)) -> Result<Received, SocketError> {
        let mut places: Vec<[IoSliceMut<'_>; 1]> =
            buffer.chunks_exact_mut(EVENT_BYTES).map(|place| [IoSliceMut::new(place)]).collect();
        let mut headers = MultiHeaders::<NetlinkAddr>::preallocate(places.len(), None);
        let flags = MsgFlags::MSG_DONTWAIT;
        let datagrams = match recvmmsg(self.socket.as_raw_fd(), &mut headers, places.iter_mut(), flags, None) {
            Ok(datagrams) => datagrams,
            // Nothing was taken; the caller comes again.
            Err(Errno::EINTR) => return Ok(Received::Bytes(0)),
            Err(Errno::EAGAIN) => return Ok(Received::Nothing),
            Err(Errno::ENOBUFS) => return Ok(Received::Overrun),
            Err(errno) => return Err(SocketError::Receive(errno.into())),
        };
        let mut total = 0;
        for datagram in datagrams {
            total += datagram.bytes;
            // Only port 0 is the kernel; other processes may send to this socket too.
            let from_kernel = datagram.address.is_some_and(|address| address.pid() == 0);
            let whole = !datagram.flags.contains(MsgFlags::MSG_TRUNC);
            each(datagram.iovs().next().filter(|_bytes| from_kernel && whole));
        }
        Ok(Received::Bytes(total))
    }
}

/// A socket that asked for a dump and gets it in parts.
#[derive(Debug)]
pub struct Dump {
    socket: Socket,
}

impl Dump {
    /// Asks for the table, or for a part of it.
    pub fn request(sequence: u32, only: Option<Only>) -> Result<Self, SocketError> {
        Self::send(&dump_request(sequence, only))
    }

    /// Asks for something whose answer comes in parts, too.
    pub(super) fn send(request: &[u8]) -> Result<Self, SocketError> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(SocketError::Open)?;
        socket.bind_auto().map_err(SocketError::Open)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(DUMP_SILENCE_SECS, 0))
            .map_err(|error| SocketError::Option { option: "SO_RCVTIMEO", source: error.into() })?;
        socket.send_to(request, &SocketAddr::new(0, 0), 0).map_err(SocketError::Request)?;
        Ok(Self { socket })
    }

    /// The next part; [`Received::Nothing`] if the kernel has been silent for 5 s.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        loop {
            let room = buffer.len();
            // MSG_TRUNC: the true length of the datagram is returned, so that a cut one is noticed.
            match self.socket.recv_from(&mut &mut *buffer, libc::MSG_TRUNC) {
                Ok((length, from)) if length <= room && from.port_number() == 0 => return Ok(Received::Bytes(length)),
                Ok(_) => return Ok(Received::Unusable),
                Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                    Errno::EINTR => {}
                    Errno::EAGAIN => return Ok(Received::Nothing),
                    Errno::ENOBUFS => return Ok(Received::Overrun),
                    _ => return Err(SocketError::Receive(error)),
                },
            }
        }
    }
}

/// What is wrong with `/proc/net/netlink`.
#[derive(Debug, thiserror::Error)]
pub enum DropsError {
    /// A column is not there.
    #[error("`/proc/net/netlink` has no columns `Drops` and `Inode`")]
    Columns,
    /// The socket's line is not there or not readable.
    #[error("`/proc/net/netlink` has no line of inode `{0}`")]
    Line(u64),
}

/// How many messages the socket with this inode has lost, from the text of `/proc/net/netlink`.
pub fn drops(table: &str, inode: u64) -> Result<u64, DropsError> {
    let mut lines = table.lines();
    let head = lines.next().unwrap_or_default();
    let column = |name| head.split_ascii_whitespace().position(|word| word == name).ok_or(DropsError::Columns);
    let (drops, own) = (column("Drops")?, column("Inode")?);
    lines
        .find_map(|line| {
            let word = |at| line.split_ascii_whitespace().nth(at)?.parse::<u64>().ok();
            if word(own)? == inode { word(drops) } else { None }
        })
        .ok_or(DropsError::Line(inode))
}

/// How long one receive call on a [`Dump`] may take.
pub const DUMP_SILENCE: Duration = Duration::from_secs(DUMP_SILENCE_SECS.unsigned_abs());

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
00000000c09eb14b 0   0          00000000 0        0        0     2        0        4       \n\
00000000152f9bbc 12  4711       00000005 0        0        0     2        42       1499    \n";

    #[test]
    fn drops_are_those_of_the_own_socket() {
        assert_eq!(drops(TABLE, 1499).unwrap(), 42);
        assert_eq!(drops(TABLE, 4).unwrap(), 0);
        assert!(matches!(drops(TABLE, 12), Err(DropsError::Line(12))));
        assert!(matches!(drops("", 12), Err(DropsError::Columns)));
    }
}
