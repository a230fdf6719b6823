//! A cleaner's journal: its records and the names of its entries.
#![no_main]

use headroom_fuzz::sow;
use headroom_host::act::journal::{entry_address, is_run_name, parse};
use libfuzzer_sys::fuzz_target;

const SEED: &[u8] = br#"{"run":{"schema":"headroom.journal/1","store":"/var/lib/cni/networks/n","started":"2026-11-22T06:43:58.091Z","by":"headroom 0.1.0"}}
{"taking":{"network":"n","store":"/var/lib/cni/networks/n","address":"10.64.0.5","container_id":"abc","ifname":"eth0","modified":1795304621250,"age_secs":3600,"evidence":["seen so twice"],"inode":7}}
{"taken":{"address":"10.64.0.5"}}
{"left":{"address":"fd00::5","why":"it is gone"}}
{"restored":{"address":"10.64.0.5","at":"2026-11-22T06:44:58.091Z"}}
"#;

fuzz_target!(init: sow([SEED, b"10.64.0.5.taken", b"fd00::5.taken", b"20261122T064358.091Z-2957"]), |bytes: &[u8]| {
    let (records, bad) = parse(bytes);
    // Every line is one or the other.
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
    assert_eq!(records.len() + bad, lines);
    if let Some(address) = entry_address(bytes) {
        assert_eq!(format!("{address}.taken").as_bytes(), bytes);
    }
    if let Ok(name) = std::str::from_utf8(bytes) {
        assert!(!is_run_name(name) || !name.contains(['/', '\0', '\n']));
    }
});
