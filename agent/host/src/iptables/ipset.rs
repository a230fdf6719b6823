//! The names of sets of `ipset`: rules hold their numbers.
//!
//! `SO_IP_SET` with `IP_SET_OP_GET_BYINDEX` (`uapi/linux/netfilter/ipset/ip_set.h`, stable) is what `iptables` itself asks. It reads,
//! and takes CAP_NET_ADMIN, as the rules do. Where a rule has a number, the kernel has sets; asking loads no module.

use std::collections::BTreeMap;

use headroom_core::observe::SourceNatRule;
use socket2::{Domain, Socket, Type};

use super::kernel::getsockopt;
use super::xt::text;

const SO_IP_SET: libc::c_int = 83;
const GET_BYINDEX: u32 = 7;
/// `IPSET_PROTOCOL`; kernels take it from 6 on.
const PROTOCOL: u32 = 7;
/// `IPSET_MAXNAMELEN`.
const NAME_BYTES: usize = 32;
/// `struct ip_set_req_get_set`: what is asked, by which protocol, and a number or a name.
const REQUEST_BYTES: usize = 8 + NAME_BYTES;
/// What stands in front of a set's number.
pub(super) const NUMBERED: &str = "--match-set #";

/// Puts the names of sets in the place of their numbers, each asked for once. A set whose name nobody tells keeps its number.
pub fn name_sets(rules: &mut [SourceNatRule]) {
    let mut socket = None;
    let mut names: BTreeMap<u16, Option<String>> = BTreeMap::new();
    let mut name = |number: u16| {
        let socket = socket.get_or_insert_with(|| Socket::new(Domain::IPV4, Type::DGRAM, None).ok()).as_ref()?;
        names.entry(number).or_insert_with(|| ask(socket, number)).clone()
    };
    for said in rules.iter_mut().flat_map(|rule| rule.conditions.iter_mut().chain(&mut rule.exceptions)) {
        if said.contains(NUMBERED) {
            *said = named(said, &mut name);
        }
    }
}

fn ask(socket: &Socket, number: u16) -> Option<String> {
    let mut request = [GET_BYINDEX.to_ne_bytes(), PROTOCOL.to_ne_bytes()].concat();
    request.extend(number.to_ne_bytes());
    request.resize(REQUEST_BYTES, 0);
    getsockopt(socket, libc::IPPROTO_IP, SO_IP_SET, &mut request).ok()?;
    Some(text(request.get(8..)?)).filter(|name| !name.is_empty())
}

/// Words with names for numbers.
fn named(said: &str, name: &mut dyn FnMut(u16) -> Option<String>) -> String {
    let mut parts = said.split(NUMBERED);
    let mut named = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = part.split_at(digits);
        match number.parse().ok().and_then(&mut *name) {
            Some(name) => named.push_str(&format!("--match-set {name}{rest}")),
            None => named.push_str(&format!("{NUMBERED}{part}")),
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_sets_become_names_where_somebody_tells_them() {
        let told = |said: &str| named(said, &mut |number| (number == 12).then(|| "pods #1".to_owned()));
        assert_eq!(told("-m set --match-set #12 src"), "-m set --match-set pods #1 src");
        assert_eq!(
            told("-m set ! --match-set #1 dst -m set --match-set #12 src,dst"),
            "-m set ! --match-set #1 dst -m set --match-set pods #1 src,dst"
        );
        for as_it_is in ["-o eth0", "--match-set #", "--match-set #99999 src", "--match-set #1é"] {
            assert_eq!(told(as_it_is), as_it_is);
        }
    }
}
