//! A table of `x_tables`, for IPv4 and IPv6, as the kernel hands it out.
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
    rules.concat()
}

fuzz_target!(init: sow([&*seed(112, 88), &seed(168, 140)]), |bytes: &[u8]| {
    for family in [RuleFamily::Ip, RuleFamily::Ip6] {
        if let Ok(read) = table(family, bytes, 0x1b, [0; 5]) {
            assert!(read.rules <= bytes.len() / 100);
        }
    }
});
