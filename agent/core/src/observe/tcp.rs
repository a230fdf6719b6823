//! Facts of TCP: counters of connects and closes, sockets.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::flow::Endpoint;
use crate::ids::NetnsInode;

/// Counters since the eBPF programs were attached, or since the pair was seen again after a long silence; they only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpCounter {
    /// What the socket dialled (before the node's DNAT).
    pub destination: Endpoint,
    /// The socket's own address.
    pub source: IpAddr,
    /// Connects begun.
    pub attempted: u64,
    /// Connects that were answered.
    pub opened: u64,
    /// Established connections that ended by FIN, from either side.
    pub closed: u64,
    /// Established connections that ended by RST or abort.
    pub reset: u64,
    /// Connects that were refused (ECONNREFUSED): something answered.
    pub refused: u64,
    /// Connects that nothing answered in time (ETIMEDOUT).
    pub timed_out: u64,
    /// Connects that ended with another error: no route, prohibited.
    pub unreachable: u64,
    /// Connects that the application ended before there was an answer.
    pub given_up: u64,
    /// Connects that found no local port.
    pub no_local_port: u64,
    /// SYNs sent again because no answer came.
    pub syn_retransmitted: u64,
}

/// One socket of a socket table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// In which network namespace.
    pub netns: NetnsInode,
    /// Own end.
    pub source: Endpoint,
    /// Other end.
    pub destination: Endpoint,
    /// Its state.
    pub state: SocketState,
    /// What it waits for.
    #[serde(default)]
    pub timer: SocketTimer,
    /// Somebody listens on the own port in that namespace: the connection came in, it was not opened here.
    pub accepted: bool,
}

/// TCP socket states, as far as they matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketState {
    /// SYN_SENT.
    Connecting,
    /// ESTABLISHED and the closing states that still own the connection.
    Open,
    /// TIME_WAIT, with what the kernel says is left of it.
    TimeWait {
        /// Milliseconds left.
        remaining_millis: u32,
    },
}

/// The timer of an open socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketTimer {
    /// None: nothing is under way, and it sends no keepalive probes.
    None,
    /// Its keepalive timer: it will look then whether the connection was silent for too long, and probe it.
    Keepalive {
        /// Milliseconds left.
        remaining_millis: u32,
    },
    /// Another one, which hides whether there is a keepalive timer; or it is not known.
    #[default]
    Other,
}
