//! A table of `x_tables`, for IPv4 and IPv6, as the kernel hands it out; in front of it where its hooks begin.
#![no_main]

use headroom_core::observe::RuleFamily;
use headroom_fuzz::sow;
use headroom_host::iptables::blob::table;
use libfuzzer_sys::fuzz_target;

/// An entry: its head, one match and one target.
fn entry(head: usize, offsets: usize, name: &str, data: &[u8], matched: Option<(&str, &[u8])>) -> Vec<u8> {
    let extension = |name: &str, data: &[u8]| {
        let size = (32 + data.len()).next_multiple_of(8);
        let mut bytes = u16::try_from(size).expect("seeds are short").to_ne_bytes().to_vec();
        bytes.extend_from_slice(name.as_bytes());
        bytes.resize(32, 0);
        bytes.extend_from_slice(data);
        bytes.resize(size, 0);
        bytes
    };
    let matched = matched.map(|(name, data)| extension(name, data)).unwrap_or_default();
    let target = extension(name, data);
    let mut bytes = vec![0; head];
    let at = u16::try_from(head + matched.len()).expect("seeds are short");
    let next = at + u16::try_from(target.len()).expect("seeds are short");
    bytes[offsets..offsets + 2].copy_from_slice(&at.to_ne_bytes());
    bytes[offsets + 2..offsets + 4].copy_from_slice(&next.to_ne_bytes());
    [bytes, matched, target].concat()
}

/// POSTROUTING jumps to a chain that masquerades half of what comes there.
fn seed(head: usize, offsets: usize) -> Vec<u8> {
    let verdict = |verdict: i32| entry(head, offsets, "", &verdict.to_ne_bytes(), None);
    let mut statistic = vec![0; 24];
    statistic[4..8].copy_from_slice(&(1_u32 << 30).to_ne_bytes());
    let mut nat = vec![0; 40];
    nat[0] = 1;
    nat[4] = 0x12;
    let chain = entry(head, offsets, "ERROR", b"KUBE-NODEPORTS\0", None);
    let jump = verdict(0).len() * 2 + chain.len();
    let rules = [
        verdict(i32::try_from(jump).expect("seeds are short")),
        verdict(-2),
        chain,
        entry(head, offsets, "MASQUERADE", &nat, Some(("statistic", &statistic))),
        verdict(-5),
        entry(head, offsets, "ERROR", b"ERROR\0", None),
    ];
    [vec![0; HOOKS], rules.concat()].concat()
}

/// Bytes that say where hooks begin: two each.
const HOOKS: usize = 10;
/// PREROUTING, INPUT, OUTPUT and POSTROUTING: the hooks of the table `nat`.
const VALID: u32 = 0x1b;

/// A seed that is refused would teach the fuzzer little.
fn begin() {
    let seeds = [(RuleFamily::Ip, seed(112, 88)), (RuleFamily::Ip6, seed(168, 140))];
    for (family, seed) in &seeds {
        let read = table(*family, &seed[HOOKS..], VALID, [0; 5]).expect("the seed is a table");
        assert!(read.kube_proxy && read.rules == 4, "{read:?}");
        assert_eq!(read.chains.iter().map(|chain| chain.rules.len()).sum::<usize>(), 4, "{read:?}");
    }
    sow(seeds.iter().map(|(_, seed)| &**seed));
}

fuzz_target!(init: begin(), |bytes: &[u8]| {
    let Some((hooks, bytes)) = bytes.split_first_chunk::<HOOKS>() else { return };
    let (hooks, _) = hooks.as_chunks::<2>();
    let hooks = std::array::from_fn(|hook| u32::from(u16::from_ne_bytes(hooks[hook])));
    for family in [RuleFamily::Ip, RuleFamily::Ip6] {
        if let Ok(read) = table(family, bytes, VALID, hooks) {
            assert!(read.rules <= bytes.len() / 100);
        }
    }
});
