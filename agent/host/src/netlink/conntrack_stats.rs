//! ctnetlink's statistics: from the kernel's bytes to [`ConntrackStats`] of each CPU, and to the size of the table.
//!
//! `ctnetlink_ct_stat_cpu_fill_info` and `ctnetlink_stat_ct_fill_info`, `net/netfilter/nf_conntrack_netlink.c`; the numbers are
//! in `linux/netfilter/nfnetlink_conntrack.h` (uapi, stable). The same counters are in `/proc/net/stat/nf_conntrack`, which
//! kernels without `CONFIG_NF_CONNTRACK_PROCFS` do not have.

use headroom_core::observe::{ConntrackCpu, ConntrackStats};

use super::message::{Attributes, Malformed, Message, Messages};
use super::socket::{DATAGRAM_BYTES, Dump, Received, SocketError};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS_CPU`.
const STATS_CPU: u16 = 1 << 8 | 4;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS`.
const STATS: u16 = 1 << 8 | 5;
/// `NLMSG_ERROR`.
const MESSAGE_ERROR: u16 = 2;
/// `NLMSG_DONE`.
const MESSAGE_DONE: u16 = 3;
/// `NLM_F_REQUEST`.
const FLAG_REQUEST: u16 = 0x1;
/// `NLM_F_DUMP`.
const FLAG_DUMP: u16 = 0x300;
/// More CPUs than Linux runs on (`NR_CPUS` of x86-64).
pub const MAX_CPUS: usize = 8192;

/// `enum ctattr_stats_cpu`.
mod cta {
    pub(super) const INVALID: u16 = 4;
    pub(super) const INSERT_FAILED: u16 = 9;
    pub(super) const DROP: u16 = 10;
    pub(super) const EARLY_DROP: u16 = 11;
    pub(super) const SEARCH_RESTART: u16 = 13;
    pub(super) const CLASH_RESOLVE: u16 = 14;
    pub(super) const CHAIN_TOOLONG: u16 = 15;
}

/// `enum ctattr_stats_global`.
mod global {
    pub(super) const ENTRIES: u16 = 1;
    pub(super) const MAX_ENTRIES: u16 = 2;
}

/// Size of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Entries now.
    pub entries: Option<u64>,
    /// Entries at most; kernels before 4.18 do not say.
    pub max: Option<u64>,
}

/// What one message of an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Counters of a CPU.
    Cpu(ConntrackCpu),
    /// The table's size.
    Size(Size),
    /// The answer is over; the kernel's error number, 0 if there was none.
    End {
        /// Positive errno.
        errno: i32,
    },
    /// Something else, of no interest.
    Other,
}

/// What a message says.
///
/// # Errors
/// It is laid out as no kernel does it, or lacks a counter that every kernel has.
pub fn content(message: &Message<'_>) -> Result<Content, Malformed> {
    match message.kind {
        STATS_CPU => cpu(message.payload).map(Content::Cpu),
        STATS => size(message.payload).map(Content::Size),
        MESSAGE_DONE => Ok(Content::End { errno: 0 }),
        MESSAGE_ERROR => {
            let missing = Malformed::Payload { what: "errno", length: message.payload.len() };
            let errno = message.payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(missing)?;
            Ok(Content::End { errno: errno.saturating_neg() })
        }
        _ => Ok(Content::Other),
    }
}

/// `struct nfgenmsg`: the resource id is the number of the CPU, in network order.
fn cpu(payload: &[u8]) -> Result<ConntrackCpu, Malformed> {
    let (head, attributes) =
        payload.split_first_chunk::<4>().ok_or(Malformed::Payload { what: "nfgenmsg", length: payload.len() })?;
    let [_family, _version, high, low] = *head;
    let (mut insert_failed, mut drop, mut early_drop) = (None, None, None);
    let mut stats = ConntrackStats::default();
    for attribute in Attributes::new(attributes) {
        let attribute = attribute?;
        let counter = |what| attribute.be32(what).map(|count| Some(u64::from(count)));
        match attribute.kind {
            cta::INSERT_FAILED => insert_failed = counter("CTA_STATS_INSERT_FAILED")?,
            cta::DROP => drop = counter("CTA_STATS_DROP")?,
            cta::EARLY_DROP => early_drop = counter("CTA_STATS_EARLY_DROP")?,
            cta::INVALID => stats.invalid = counter("CTA_STATS_INVALID")?,
            cta::SEARCH_RESTART => stats.search_restart = counter("CTA_STATS_SEARCH_RESTART")?,
            cta::CLASH_RESOLVE => stats.clash_resolve = counter("CTA_STATS_CLASH_RESOLVE")?,
            cta::CHAIN_TOOLONG => stats.chain_toolong = counter("CTA_STATS_CHAIN_TOOLONG")?,
            _ => {}
        }
    }
    stats.insert_failed = insert_failed.ok_or(Malformed::Missing("CTA_STATS_INSERT_FAILED"))?;
    stats.drop = drop.ok_or(Malformed::Missing("CTA_STATS_DROP"))?;
    stats.early_drop = early_drop.ok_or(Malformed::Missing("CTA_STATS_EARLY_DROP"))?;
    Ok(ConntrackCpu { cpu: u32::from(u16::from_be_bytes([high, low])), stats })
}

fn size(payload: &[u8]) -> Result<Size, Malformed> {
    let attributes = payload.get(4..).ok_or(Malformed::Payload { what: "nfgenmsg", length: payload.len() })?;
    let mut size = Size::default();
    for attribute in Attributes::new(attributes) {
        let attribute = attribute?;
        match attribute.kind {
            global::ENTRIES => size.entries = Some(attribute.be32("CTA_STATS_GLOBAL_ENTRIES")?.into()),
            global::MAX_ENTRIES => size.max = Some(attribute.be32("CTA_STATS_GLOBAL_MAX_ENTRIES")?.into()),
            _ => {}
        }
    }
    Ok(size)
}

/// A request: a message header and `struct nfgenmsg`, of every family.
fn request(kind: u16, flags: u16) -> [u8; 20] {
    let mut bytes = [0; 20];
    let parts = [&20u32.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes()];
    for (place, byte) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
        *place = *byte;
    }
    bytes
}

/// Statistics could not be asked for.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The socket.
    #[error("{}", .0.sentence())]
    Socket(SocketError),
    /// The kernel refused.
    #[error("conntrack statistics refused: {0}")]
    Refused(std::io::Error),
    /// What came is not understood.
    #[error("conntrack statistics are not understood: {0}")]
    Malformed(#[from] Malformed),
    /// The answer has no end.
    #[error("the kernel did not answer to its end")]
    Endless,
}

/// Asks for the counters of every CPU.
///
/// # Errors
/// The kernel does not tell: a sum without one CPU would be too small.
pub fn of_cpus() -> Result<Vec<ConntrackCpu>, StatsError> {
    let mut cpus = Vec::new();
    ask(&request(STATS_CPU, FLAG_REQUEST | FLAG_DUMP), |content| {
        if let Content::Cpu(cpu) = content {
            cpus.push(cpu);
        }
        cpus.len() > MAX_CPUS
    })?;
    if cpus.is_empty() || cpus.len() > MAX_CPUS {
        return Err(StatsError::Endless);
    }
    Ok(cpus)
}

/// Asks for the size of the table.
///
/// # Errors
/// The kernel does not tell.
pub fn of_table() -> Result<Size, StatsError> {
    let mut size = None;
    ask(&request(STATS, FLAG_REQUEST), |content| {
        if let Content::Size(is) = content {
            size = Some(is);
        }
        size.is_some()
    })?;
    size.ok_or(StatsError::Endless)
}

/// Sends a request and shows what is answered, until `enough` or the end.
fn ask(request: &[u8], mut enough: impl FnMut(Content) -> bool) -> Result<(), StatsError> {
    let dump = Dump::send(request).map_err(StatsError::Socket)?;
    let mut buffer = vec![0; DATAGRAM_BYTES];
    // Some 100 bytes each, and the kernel fills datagrams as it can.
    for _ in 0..MAX_CPUS {
        let Received::Bytes(length) = dump.receive(&mut buffer).map_err(StatsError::Socket)? else {
            return Err(StatsError::Endless);
        };
        for message in Messages::new(buffer.get(..length).unwrap_or_default()) {
            match content(&message?)? {
                Content::End { errno: 0 } => return Ok(()),
                Content::End { errno } => {
                    return Err(StatsError::Refused(std::io::Error::from_raw_os_error(errno)));
                }
                content if enough(content) => return Ok(()),
                _ => {}
            }
        }
    }
    Err(StatsError::Endless)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message of CPU 3 as `ctnetlink_ct_stat_cpu_fill_info` lays it out.
    fn message(kind: u16, resource: u16, attributes: &[(u16, u32)]) -> Vec<u8> {
        let mut body = vec![0, 0];
        body.extend(resource.to_be_bytes());
        for (kind, value) in attributes {
            body.extend(8_u16.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value.to_be_bytes());
        }
        let length = u32::try_from(16 + body.len()).unwrap();
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &2_u16.to_ne_bytes(), &[0; 8], &body].concat()
    }

    fn read(bytes: &[u8]) -> Result<Content, Malformed> {
        content(&Messages::new(bytes).next().unwrap()?)
    }

    #[test]
    fn a_cpu_tells_its_number_and_counters_and_what_it_lacks_is_absent() {
        let bytes = message(STATS_CPU, 3, &[(2, 9), (4, 8), (9, 1), (10, 2), (11, u32::MAX), (13, 4), (14, 5)]);
        let stats = ConntrackStats {
            insert_failed: 1,
            drop: 2,
            early_drop: u64::from(u32::MAX),
            invalid: Some(8),
            search_restart: Some(4),
            clash_resolve: Some(5),
            chain_toolong: None,
        };
        assert_eq!(read(&bytes), Ok(Content::Cpu(ConntrackCpu { cpu: 3, stats })));
        let bytes = message(STATS_CPU, 3, &[(9, 1), (11, 2)]);
        assert_eq!(read(&bytes), Err(Malformed::Missing("CTA_STATS_DROP")));
        let bytes = message(STATS, 0, &[(1, 17)]);
        assert_eq!(read(&bytes), Ok(Content::Size(Size { entries: Some(17), max: None })));
    }

    #[test]
    fn a_refusal_is_an_error_and_not_a_zero() {
        let bytes = [&20_u32.to_ne_bytes()[..], &2_u16.to_ne_bytes(), &[0; 10], &(-1_i32).to_ne_bytes()].concat();
        assert_eq!(read(&bytes), Ok(Content::End { errno: 1 }));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for message in Messages::new(&bytes).map_while(Result::ok) {
                let _content = content(&message);
            }
            let (_cpu, _size) = (cpu(&bytes), size(&bytes));
        }
    }
}
