//! The addresses of a network namespace from the texts of `/proc/<pid>/net`. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::bounded::shown;

/// A line that the kernel does not write. The text continues a sentence that has named the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("has the line `{0}`, which the kernel does not write")]
pub struct BadLine(String);

/// The IPv4 addresses of a namespace, without loopback, from `fib_trie`: its `/32 host LOCAL` leaves.
///
/// The kernel prints `  |-- ADDRESS` and below it one line per route (`fib_trie_seq_show`,
/// <https://github.com/torvalds/linux/blob/v6.12/net/ipv4/fib_trie.c#L2754>); as long as no policy rule was ever set the
/// tables `main` and `local` are one trie and everything appears twice.
///
/// # Errors
/// A leaf that is not an IPv4 address.
pub fn of_fib_trie(text: &str) -> Result<BTreeSet<IpAddr>, BadLine> {
    let mut found = BTreeSet::new();
    let mut leaf: Option<Ipv4Addr> = None;
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = Some(address.parse().map_err(|_not_an_address| BadLine(shown(line.as_bytes())))?);
        } else if line.starts_with("/32 host LOCAL") {
            found.extend(leaf.filter(|address| !address.is_loopback()).map(IpAddr::V4));
        }
    }
    Ok(found)
}

/// The IPv6 addresses of a namespace, without loopback and link-local ones, from `if_inet6`.
///
/// # Errors
/// A line that is not address, index, prefix length, scope, flags and name.
pub fn of_if_inet6(text: &str) -> Result<BTreeSet<IpAddr>, BadLine> {
    /// `IPV6_ADDR_LOOPBACK` and `IPV6_ADDR_LINKLOCAL` of `net/ipv6.h`.
    const LOOPBACK_OR_LINK_LOCAL: u8 = 0x10 | 0x20;
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let parsed = (|| {
            let address = words.next().filter(|hex| hex.len() == 32)?;
            let address = Ipv6Addr::from(u128::from_str_radix(address, 16).ok()?);
            let scope = u8::from_str_radix(words.nth(2)?, 16).ok()?;
            Some((address, scope, words.nth(1)?))
        })();
        let (address, scope, interface) = parsed.ok_or_else(|| BadLine(shown(line.as_bytes())))?;
        if scope & LOOPBACK_OR_LINK_LOCAL == 0 && interface != "lo" {
            found.insert(IpAddr::V6(address));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From a machine with Linux 6.18; the second half of the file repeats the first.
    const FIB_TRIE: &str = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        +-- 127.0.0.0/31 1 0 0
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 127.0.0.1
              /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
     +-- 192.0.2.0/24 2 0 2
        +-- 192.0.2.0/30 2 0 2
           |-- 192.0.2.0
              /24 link UNICAST
           |-- 192.0.2.2
              /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
Local:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.48.131.4
        /32 link UNICAST
        /32 host LOCAL tos=16
     |-- 192.0.2.2
        /32 host LOCAL
";

    const IF_INET6: &str = "\
fd000000000000000000000000000002 04 40 00 82     eth0
00000000000000000000000000000001 01 80 10 80       lo
fe8000000000000000fc00fffe000001 04 40 20 80     eth0
20010db8000000000000000000000001 01 80 00 80       lo
";

    #[test]
    fn only_host_local_leaves_are_addresses() {
        let found: Vec<String> = of_fib_trie(FIB_TRIE).unwrap().iter().map(IpAddr::to_string).collect();
        assert_eq!(found, ["10.48.131.4", "192.0.2.2"]);
        assert!(of_fib_trie("").unwrap().is_empty());
        assert!(of_fib_trie("  |-- 10.0.0\n").unwrap_err().to_string().contains("10.0.0"));
    }

    #[test]
    fn link_local_and_loopback_ipv6_addresses_are_left_out() {
        let found: Vec<String> = of_if_inet6(IF_INET6).unwrap().iter().map(IpAddr::to_string).collect();
        assert_eq!(found, ["fd00::2"]);
        for bad in ["fd00 04 40 00 82 eth0", "zz000000000000000000000000000002 04 40 00 82 eth0", "x"] {
            assert!(of_if_inet6(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        /// Exercises both parsers with anything. If this fails, a hostile tree brings the agent down.
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,120}", lines in "((\\|-- |/32 host LOCAL|[0-9a-f]{32}|[0-9.]{1,9}| |lo|\n){0,20})") {
            let _tables = (of_fib_trie(&text), of_if_inet6(&text), of_fib_trie(&lines), of_if_inet6(&lines));
        }

        /// Exercises `if_inet6` from both ends. If this fails, IPv6 pods are thought to be gone.
        #[test]
        fn every_global_address_is_found(address in any::<u128>(), index in any::<u8>(), name in "[a-z]{3,8}") {
            let text = format!("{address:032x} {index:02x} 40 00 82 {name:>8}\n");
            prop_assert_eq!(of_if_inet6(&text).unwrap(), BTreeSet::from([IpAddr::from(address.to_be_bytes())]));
        }
    }
}
