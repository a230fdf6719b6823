//! A table of `x_tables`, from the kernel: `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES` (`uapi/linux/netfilter_ipv4/ip_tables.h`
//! and its like for IPv6; both stable), as `iptables-legacy-save` does, but with a UDP socket: that needs no CAP_NET_RAW.
//!
//! Asking for a table that is not there makes the kernel load its module or make the table. So nobody is asked who is not
//! named in `/proc/net/ip_tables_names` already. Reading takes CAP_NET_ADMIN.

use std::io;
use std::os::fd::AsRawFd as _;

use headroom_core::observe::RuleFamily;
use socket2::{Domain, Socket, Type};

use super::blob::{self, BadTable, Table};
use super::xt::u32_at;
use crate::bounded::{self, Refusal};
use crate::root::HostRoot;
use crate::source::lines::own_table;

/// Largest table that is read: some 200,000 rules of kube-proxy.
pub const TABLE_LIMIT_BYTES: usize = 64 << 20;
/// How often a table is asked for that changes between the two calls.
const ATTEMPTS: u32 = 5;
/// Names are short, and there are five tables.
const NAMES_LIMIT_BYTES: usize = 4096;
/// `IPT_BASE_CTL` and `IP6T_BASE_CTL`.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// `XT_TABLE_MAXNAMELEN`.
const NAME_BYTES: usize = 32;
/// `struct ipt_getinfo`: name, valid hooks, five beginnings, five ends, number of entries, size.
const INFO_BYTES: usize = 84;
/// `struct ipt_get_entries`: name and size, padded to eight bytes.
const ENTRIES_HEADER: usize = 40;

/// A table could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The list of tables could not be read.
    #[error("`{path}` {refusal}")]
    Names {
        /// The file.
        path: String,
        /// Why not.
        refusal: Refusal,
    },
    /// A call failed.
    #[error("cannot {what} of {family} `nat`{}: {source}", hint(.source))]
    Call {
        /// What was asked for.
        what: &'static str,
        /// IPv4 or IPv6.
        family: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The table is larger than what is read.
    #[error("{family} `nat` has {bytes} bytes, at most {TABLE_LIMIT_BYTES} are read")]
    TooLarge {
        /// IPv4 or IPv6.
        family: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// It changed again and again.
    #[error("{0} `nat` changed while it was read, {ATTEMPTS} times")]
    Unsteady(&'static str),
    /// Its bytes make no sense.
    #[error("{family} `nat`: {source}")]
    Bad {
        /// IPv4 or IPv6.
        family: &'static str,
        /// What is wrong.
        source: BadTable,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (CAP_NET_ADMIN is needed)",
        _ => "",
    }
}

/// The table `nat` of a family; `None` where there is none.
///
/// # Errors
/// It is there and could not be read.
pub fn nat_table(root: &HostRoot, family: RuleFamily) -> Result<Option<Table>, TableError> {
    let (names, name) = match family {
        RuleFamily::Ip6 => ("ip6_tables_names", "ip6tables"),
        RuleFamily::Ip | RuleFamily::Inet => ("ip_tables_names", "iptables"),
    };
    let path = own_table(root, names);
    let listed = match bounded::read_in(root, &path, NAMES_LIMIT_BYTES) {
        Ok(text) => String::from_utf8_lossy(&text).lines().any(|line| line == "nat"),
        // The module is not loaded: nobody has rules of this kind.
        Err(Refusal::Missing) => false,
        Err(refusal) => return Err(TableError::Names { path: path.display().to_string(), refusal }),
    };
    if !listed {
        return Ok(None);
    }
    let call = |what, source| TableError::Call { what, family: name, source };
    let (domain, level) = match family {
        RuleFamily::Ip6 => (Domain::IPV6, libc::IPPROTO_IPV6),
        RuleFamily::Ip | RuleFamily::Inet => (Domain::IPV4, libc::IPPROTO_IP),
    };
    let socket =
        Socket::new(domain, Type::DGRAM, None).map_err(|source| call("open a socket to ask for the rules", source))?;
    for _attempt in 0..ATTEMPTS {
        let mut info = vec![0; INFO_BYTES];
        put_name(&mut info);
        getsockopt(&socket, level, GET_INFO, &mut info).map_err(|source| call("ask for the size", source))?;
        let number = |at| u32_at(&info, at).unwrap_or(0);
        let hooks = [36, 40, 44, 48, 52].map(number);
        let mut entries = vec![0; room(name, number(80))?];
        put_name(&mut entries);
        if let Some(size) = entries.get_mut(NAME_BYTES..NAME_BYTES + 4) {
            size.copy_from_slice(&number(80).to_ne_bytes());
        }
        match getsockopt(&socket, level, GET_ENTRIES, &mut entries) {
            Ok(()) => {
                let entries = entries.get(ENTRIES_HEADER..).unwrap_or_default();
                let table = blob::table(family, entries, number(32), hooks);
                return table.map(Some).map_err(|source| TableError::Bad { family: name, source });
            }
            // It has another size by now.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(source) => return Err(call("ask for the rules", source)),
        }
    }
    Err(TableError::Unsteady(name))
}

/// Bytes that take a table of this size, unless it is too large.
fn room(family: &'static str, bytes: u32) -> Result<usize, TableError> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    if bytes > TABLE_LIMIT_BYTES { Err(TableError::TooLarge { family, bytes }) } else { Ok(ENTRIES_HEADER + bytes) }
}

fn put_name(bytes: &mut [u8]) {
    for (place, byte) in bytes.iter_mut().zip(b"nat") {
        *place = *byte;
    }
}

/// What the standard library has no name for: options whose answer depends on what is in the buffer.
pub(super) fn getsockopt(socket: &Socket, level: libc::c_int, option: libc::c_int, bytes: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads from and writes to `bytes`, at most `length` of them, which is how many there are; both live
    // until the call returns, and any bytes are a valid `u8`.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, bytes.as_mut_ptr().cast::<libc::c_void>(), &raw mut length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the bound of a table. If this fails, a node with very many rules is not read, or takes the agent's memory.
    #[test]
    fn a_table_is_read_up_to_the_bound() {
        let most = u32::try_from(TABLE_LIMIT_BYTES).unwrap();
        assert_eq!(room("iptables", most).unwrap(), ENTRIES_HEADER + TABLE_LIMIT_BYTES);
        let refused = room("iptables", most + 1).unwrap_err().to_string();
        assert_eq!(refused, "iptables `nat` has 67108865 bytes, at most 67108864 are read");
        assert!(room("iptables", u32::MAX).is_err());
    }
}
