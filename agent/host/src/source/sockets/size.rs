//! How many TCP sockets there are, without reading them.

use std::path::PathBuf;

use super::processes;
use crate::bounded;
use crate::root::HostRoot;

/// A `sockstat` has some 200 bytes.
const FILE_LIMIT_BYTES: usize = 4096;

/// TCP sockets of all network namespaces, those in TIME_WAIT included, as their `sockstat` and `sockstat6` tell. What cannot be
/// read counts for nothing: this says what a reading of the tables costs, not what is there.
pub fn tcp_sockets(root: &HostRoot) -> u64 {
    let sum = |process: &String| {
        let table = |name| {
            let path = PathBuf::from(format!("/proc/{process}/net/{name}"));
            bounded::read_in(root, &path, FILE_LIMIT_BYTES).map_or(0, |bytes| of_sockstat(&bytes))
        };
        table("sockstat").saturating_add(table("sockstat6"))
    };
    let namespaces = processes::walk(root).namespaces;
    namespaces.values().filter_map(|candidates| candidates.first()).map(sum).fold(0, u64::saturating_add)
}

/// `TCP: inuse 5 orphan 0 tw 3 alloc 8 mem 0`, or `TCP6: inuse 2`.
fn of_sockstat(bytes: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(bytes);
    let words = text.lines().filter(|line| line.starts_with("TCP")).flat_map(|line| {
        let words = line.split_ascii_whitespace().skip(1);
        words.clone().zip(words.skip(1))
    });
    let counts = words.filter(|(name, _)| matches!(*name, "inuse" | "tw"));
    counts.filter_map(|(_, count)| count.parse().ok()).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    /// Exercises what kernels write, and what none would. If this fails, the agent believes large tables to be small, and reads
    /// them more often than it may.
    #[test]
    fn sockets_in_use_and_in_time_wait_are_summed() {
        let sockstat = b"sockets: used 174\nTCP: inuse 5 orphan 0 tw 300000 alloc 8 mem 0\nUDP: inuse 3 mem 0\n";
        assert_eq!(of_sockstat(sockstat), 300_005);
        assert_eq!(of_sockstat(b"TCP6: inuse 2\nUDP6: inuse 1\n"), 2);
        assert_eq!(of_sockstat(b"TCP: inuse -1 tw 99999999999999999999\nTCP: inuse\nTCP:\n\xff"), 0);
        assert_eq!(of_sockstat(b"TCP: inuse 18446744073709551615 tw 18446744073709551615"), u64::MAX);
    }

    /// Exercises the kernel's own files. If this fails, they are not where they are looked for.
    #[test]
    fn sockets_of_this_machine_are_counted() {
        let before = tcp_sockets(&HostRoot::live());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let held: Vec<_> =
            (0..100).map(|_| (TcpStream::connect(address).unwrap(), listener.accept().unwrap())).collect();
        let after = tcp_sockets(&HostRoot::live());
        assert!(after >= 201, "{before}, then {after}");
        drop(held);
    }
}
