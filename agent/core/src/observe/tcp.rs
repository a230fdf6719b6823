//! Facts of TCP: counters of connects and closes, sockets.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::flow::Endpoint;
use crate::ids::NetnsInode;

/// Counters since [`TcpCounter::born`]; every other one only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpCounter {
    /// What the socket dialled (before the node's DNAT).
    pub destination: Endpoint,
    /// The socket's own address.
    pub source: IpAddr,
    /// Which counting of this pair it is: another number tells that the pair was forgotten in the kernel, with no connection open,
    /// and is counted anew from zero. 0 where it is not told; counters smaller than before tell the same.
    #[serde(default)]
    pub born: u32,
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

impl TcpCounter {
    /// A pair that has not dialled yet.
    pub fn zero(destination: Endpoint, source: IpAddr) -> Self {
        Self {
            destination,
            source,
            born: 0,
            attempted: 0,
            opened: 0,
            closed: 0,
            reset: 0,
            refused: 0,
            timed_out: 0,
            unreachable: 0,
            given_up: 0,
            no_local_port: 0,
            syn_retransmitted: 0,
        }
    }
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

/// Who on the node's own network holds connections to one destination: sockets of one process, found by their inodes. Told of
/// the destinations with most of them only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOwner {
    /// Other end.
    pub destination: Endpoint,
    /// The node's own address.
    pub source: IpAddr,
    /// Whose they are.
    pub owner: Owner,
    /// How many.
    pub sockets: u32,
}

/// A process, as far as it matters who it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// Its name (`/proc/<pid>/comm`).
    pub process: String,
    /// Its cgroup (`/proc/<pid>/cgroup`): `/system.slice/docker.service`, `/kubepods.slice/…`; absent if it could not be read.
    pub cgroup: Option<String>,
}

impl Owner {
    /// The systemd unit that it runs in, if it does: the last part of the cgroup's path that is one.
    pub fn unit(&self) -> Option<&str> {
        let mut parts = self.cgroup.as_deref()?.rsplit('/');
        parts.find(|part| part.ends_with(".service"))
    }

    /// The uid of the pod it belongs to, with hyphens: a part of the cgroup's path is `pod<uid>`, or `…-pod<uid>.slice` with
    /// underscores.
    pub fn pod_uid(&self) -> Option<String> {
        self.cgroup.as_deref()?.split('/').find_map(|part| {
            let part = part.strip_suffix(".slice").unwrap_or(part);
            let (before, uid) = part.rsplit_once("pod")?;
            let uid = uid.replace('_', "-");
            let digits = |c: char| c.is_ascii_hexdigit() || c == '-';
            ((before.is_empty() || before.ends_with('-')) && uid.len() >= 32 && uid.chars().all(digits)).then_some(uid)
        })
    }
}
