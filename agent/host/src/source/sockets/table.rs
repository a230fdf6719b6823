//! `/proc/<pid>/net/tcp` and `tcp6`: one line per socket.
//!
//! From `get_tcp4_sock`, `get_timewait4_sock` (`net/ipv4/tcp_ipv4.c`) and their IPv6 counterparts: addresses are printed
//! as 32-bit numbers in the machine's own byte order, ports in host order, times in USER_HZ (100 per second everywhere
//! Linux runs today).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use headroom_core::flow::Endpoint;
use headroom_core::observe::{SocketState, SocketTimer};

/// `USER_HZ` ticks to milliseconds.
const MILLIS_PER_TICK: u64 = 10;

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// Somebody listens on this port.
    Listening {
        /// The port.
        port: u16,
    },
    /// A connection, or an attempt at one.
    Connection {
        /// Own end.
        source: Endpoint,
        /// Other end.
        destination: Endpoint,
        /// Its state.
        state: SocketState,
        /// What it waits for.
        timer: SocketTimer,
        /// The socket's inode, as in the links of `/proc/<pid>/fd`; 0 where no process has it any more.
        inode: u64,
    },
    /// A socket that has no connection, or one that is not complete on the accepting side.
    Other,
}

/// A line of the table; `None` if it is not understood.
pub fn parse_line(line: &[u8]) -> Option<Row> {
    let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let slot = words.next()?;
    if slot.last() != Some(&b':') {
        return None;
    }
    let source = endpoint(words.next()?)?;
    let destination = endpoint(words.next()?)?;
    let state = hex(words.next()?, 2)?;
    let _queues = words.next()?;
    let timer = words.next()?;
    let waits_for = if state == ESTABLISHED { timer_of_established(timer)? } else { SocketTimer::Other };
    // `enum` of `net/tcp_states.h`; it is uapi in all but name.
    let state = match state {
        // `get_timewait4_sock` alone writes timer 3, and as the state the substate: FIN_WAIT2 until the other end closes too.
        0x01..=0x0d if timer.starts_with(b"03:") => SocketState::TimeWait { remaining_millis: remaining(timer)? },
        0x01 | 0x04 | 0x05 | 0x08 | 0x09 | 0x0b => SocketState::Open,
        0x02 => SocketState::Connecting,
        0x06 => SocketState::TimeWait { remaining_millis: remaining(timer)? },
        0x0a => return Some(Row::Listening { port: source.port }),
        // SYN_RECV, CLOSE, NEW_SYN_RECV, BOUND_INACTIVE.
        0x03 | 0x07 | 0x0c | 0x0d => return Some(Row::Other),
        _ => return None,
    };
    // Retransmissions, uid, time-out (of zero-window probes), inode.
    let inode = words.nth(3).and_then(|word| std::str::from_utf8(word).ok()?.parse().ok()).unwrap_or(0);
    Some(Row::Connection { source, destination, state, timer: waits_for, inode })
}

/// `TCP_ESTABLISHED`.
const ESTABLISHED: u64 = 0x01;

/// `02:00000A2F`, from `get_tcp4_sock`: 1 retransmits (or probes for loss), 4 probes a closed window, and 2 is `sk_timer`, which
/// in an established connection is for keepalive alone. Without any of them it is 0.
fn timer_of_established(timer: &[u8]) -> Option<SocketTimer> {
    match timer.get(..3)? {
        b"00:" => Some(SocketTimer::None),
        b"02:" => Some(SocketTimer::Keepalive { remaining_millis: remaining(timer)? }),
        _ => Some(SocketTimer::Other),
    }
}

/// Hexadecimal digits and nothing else; at most so many.
fn hex(word: &[u8], digits: usize) -> Option<u64> {
    if word.is_empty() || word.len() > digits {
        return None;
    }
    word.iter().try_fold(0u64, |number, byte| {
        let digit = char::from(*byte).to_digit(16)?;
        Some(number << 4 | u64::from(digit))
    })
}

/// `0100007F:1F90`, or 32 digits before the colon.
fn endpoint(word: &[u8]) -> Option<Endpoint> {
    let colon = word.len().checked_sub(5)?;
    let (address, port) = word.split_at_checked(colon)?;
    let port = u16::try_from(hex(port.strip_prefix(b":")?, 4)?).ok()?;
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word_in_memory(address)?)),
        32 => {
            let mut bytes = [0; 16];
            for (place, digits) in bytes.chunks_exact_mut(4).zip(address.chunks_exact(8)) {
                place.copy_from_slice(&word_in_memory(digits)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(Endpoint::new(address, port))
}

/// The four bytes that, read as a number by this machine, print as these digits.
fn word_in_memory(digits: &[u8]) -> Option<[u8; 4]> {
    u32::try_from(hex(digits, 8)?).ok().map(u32::to_ne_bytes)
}

/// `03:00000A2F`: what is left of a timer.
fn remaining(timer: &[u8]) -> Option<u32> {
    let ticks = hex(timer.get(2..)?.strip_prefix(b":")?, 16)?;
    Some(u32::try_from(ticks.saturating_mul(MILLIS_PER_TICK)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Lines of a little-endian machine.
    #[cfg(target_endian = "little")]
    #[test]
    fn lines_as_the_kernel_writes_them_are_understood() {
        let end = |text: &str| {
            let socket: std::net::SocketAddr = text.parse().unwrap();
            Endpoint::new(socket.ip(), socket.port())
        };
        assert_eq!(
            parse_line(b"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20002 1 0000000000000000 100 0 0 10 0"),
            Some(Row::Listening { port: 8080 })
        );
        assert_eq!(
            parse_line(b"  12: 0500000A:9C40 07710CCB:01BB 01 00000000:00000000 00:00000000 00000000     0        0 20002 1 0000000000000000 100 0 0 10 0"),
            Some(Row::Connection {
                source: end("10.0.0.5:40000"),
                destination: end("203.12.113.7:443"),
                state: SocketState::Open,
                timer: SocketTimer::None,
                inode: 20_002,
            })
        );
        assert_eq!(
            parse_line(b" 999: 0000000000000000FFFF00000500000A:9C40 0000000000000000FFFF000007710CCB:01BB 06 00000000:00000000 03:00001770 00000000     0        0 0 3 0000000000000000"),
            Some(Row::Connection {
                source: end("10.0.0.5:40000"),
                destination: end("203.12.113.7:443"),
                state: SocketState::TimeWait { remaining_millis: 60_000 },
                timer: SocketTimer::Other,
                inode: 0,
            })
        );
        assert_eq!(
            parse_line(b" 999: B80D01200000000000000000010000FE:9C40 00000000000000000000000001000000:01BB 02 00000001:00000000 01:00000063 00000002     0        0 0 3 0000000000000000"),
            Some(Row::Connection {
                source: end("[2001:db8::fe00:1]:40000"),
                destination: end("[::1]:443"),
                state: SocketState::Connecting,
                timer: SocketTimer::Other,
                inode: 0,
            })
        );
    }

    /// If this fails, connections without keepalive are taken for safe, or the other way round.
    #[test]
    fn an_established_socket_tells_whether_it_sends_keepalive_probes() {
        let line = |state: &str, timer: &str| {
            let line = format!(
                "  34: 0500000A:9C40 07710CCB:01BB {state} 00000000:00000000 {timer} 00000000     0        0 20002 2 0000000000000000 20 4 30 10 -1"
            );
            match parse_line(line.as_bytes()) {
                Some(Row::Connection { timer, .. }) => timer,
                other => panic!("{line}: {other:?}"),
            }
        };
        assert_eq!(line("01", "00:00000000"), SocketTimer::None);
        assert_eq!(line("01", "02:000AFC80"), SocketTimer::Keepalive { remaining_millis: 7_200_000 });
        assert_eq!(line("01", "01:00000014"), SocketTimer::Other, "data is under way");
        assert_eq!(line("01", "04:00000014"), SocketTimer::Other);
        assert_eq!(line("05", "02:000007D0"), SocketTimer::Other, "in FIN_WAIT2 the timer is another");
        assert_eq!(parse_line(b"  34: 0500000A:9C40 07710CCB:01BB 01 00000000:00000000 02:zz 0 0 0 1"), None);
    }

    /// If this fails, sockets that only wait for the other end's FIN count as open connections.
    #[cfg(target_endian = "little")]
    #[test]
    fn a_time_wait_socket_in_the_fin_wait2_substate_is_time_wait() {
        let line = |state: &str, timer: &str| {
            let line = format!(
                "  34: 0500000A:9C40 07710CCB:01BB {state} 00000000:00000000 {timer} 00000000     0        0 0 3 0000000000000000"
            );
            match parse_line(line.as_bytes()) {
                Some(Row::Connection { state, .. }) => state,
                other => panic!("{line}: {other:?}"),
            }
        };
        assert_eq!(line("05", "03:000007D0"), SocketState::TimeWait { remaining_millis: 20_000 });
        assert_eq!(line("05", "02:000007D0"), SocketState::Open, "a whole socket, still owned by its process");
    }

    #[test]
    fn the_header_and_damaged_lines_are_no_rows() {
        for line in [
            &b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"[..],
            b"",
            b"   0: 0100007F:1F90",
            b"   0: 0100007:1F90 00000000:0000 01 00000000:00000000 00:00000000",
            b"   0: 0100007F:1F90 00000000:0000 99 00000000:00000000 00:00000000",
            b"   0: 0100007F:1F90 00000000:0000 06 00000000:00000000 0300000000",
            b"   0: +100007F:1F90 00000000:0000 01 00000000:00000000 00:00000000",
        ] {
            assert_eq!(parse_line(line), None, "{}", line.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_lines_never_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
            parse_line(&line);
        }

        /// Printed the way the kernel prints (`%08X` of the word in memory), on a machine of either byte order.
        #[test]
        fn what_is_written_is_read(
            v6: bool,
            ends in any::<[([u8; 16], u16); 2]>(),
            state in prop::sample::select(vec![(1, SocketState::Open), (2, SocketState::Connecting), (6, SocketState::TimeWait { remaining_millis: 120 })]),
        ) {
            let print = |(bytes, port): ([u8; 16], u16)| {
                let words = if v6 { &bytes[..] } else { &bytes[..4] };
                let digits: String = words
                    .chunks(4)
                    .map(|word| format!("{:08X}", u32::from_ne_bytes(word.try_into().unwrap())))
                    .collect();
                format!("{digits}:{port:04X}")
            };
            let expect = |(bytes, port): ([u8; 16], u16)| {
                let v4 = IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]);
                Endpoint::new(if v6 { IpAddr::from(bytes) } else { v4 }, port)
            };
            let timer = if state.0 == 6 { 3 } else { 1 };
            let line = format!(
                "{:4}: {} {} {:02X} 00000000:00000000 {timer:02X}:0000000C 00000000     0        0 0 3 0000000000000000",
                7, print(ends[0]), print(ends[1]), state.0
            );
            prop_assert_eq!(
                parse_line(line.as_bytes()),
                Some(Row::Connection {
                    source: expect(ends[0]),
                    destination: expect(ends[1]),
                    state: state.1,
                    timer: SocketTimer::Other,
                    inode: 0,
                })
            );
        }
    }
}
