//! A map of connections pinned as Cilium pins it, that is written while it is read.

use std::sync::atomic::{AtomicBool, Ordering};

use aya::maps::{HashMap, Map, MapData};
use headroom_core::observe::{CiliumConntrack, Fact};
use headroom_host::source::Source as _;
use headroom_host::source::cilium_conntrack::CiliumConntrackSource;

use super::*;

type Connections = HashMap<MapData, [u8; 14], [u8; 56]>;

const OUT: u8 = 0;
const IN: u8 = 1;
const OPEN: u8 = 0x18;
const CLOSING: u8 = 0x1b;
/// As cilium's issue 23913 shows an entry that was left behind.
const LEFT: u8 = 0x1a;
/// Connections that are open at the same time.
const AT_ONCE: u32 = 64;

/// One of the two entries of a connection of a pod to its own port 80: so many of these pods there are, from so many ports each.
fn key(number: u32, direction: u8) -> [u8; 14] {
    let pod = (0x0a01_0000 + number / 50_000).to_be_bytes();
    let from = u16::try_from(1024 + number % 50_000).unwrap().to_be_bytes();
    let key = [&[169, 254, 42, 1][..], &pod, &[0, 80], &from, &[6, direction]].concat();
    key.try_into().unwrap()
}

fn value(flags: u8) -> [u8; 56] {
    let mut value = [0; 56];
    (value[36], value[38]) = (flags, 5);
    value
}

/// Connections of healthy pods, one after the other: whenever the OUT entry is there, so is the IN entry, and none is still open
/// where the other is closing.
fn live(map: &mut Connections, done: &AtomicBool) -> u32 {
    let mut number = 0;
    while !done.load(Ordering::Relaxed) {
        map.insert(key(number, IN), value(OPEN), 0).unwrap();
        map.insert(key(number, OUT), value(OPEN), 0).unwrap();
        if let Some(old) = number.checked_sub(AT_ONCE) {
            map.insert(key(old, OUT), value(CLOSING), 0).unwrap();
            map.insert(key(old, IN), value(CLOSING), 0).unwrap();
            map.remove(&key(old, OUT)).unwrap();
            map.remove(&key(old, IN)).unwrap();
        }
        number += 1;
    }
    number
}

/// Exercises a busy map, which is no picture of one moment. If this fails, connections that begin or end while it is read are
/// called leaks of a healthy pod.
#[test]
fn connections_that_begin_and_end_while_the_map_is_read_are_not_left_behind() {
    let bpffs = Bpffs::mount();
    let path = bpffs.map("cilium_ct4_global");
    sh(&format!("bpftool map create {path} type hash key 14 value 56 entries 131072 name cilium_ct4_glob"));
    let open = || Connections::try_from(Map::HashMap(MapData::from_pin(&path).unwrap())).unwrap();
    let mut map = open();
    // What others have in it, so that a reading takes its time.
    for number in 0..60_000_u32 {
        let key = [&[10, 9, 9, 9][..], &number.to_be_bytes(), &[0, 80, 200, 0, 6, IN]].concat();
        map.insert(<[u8; 14]>::try_from(key).unwrap(), value(0x10), 0).unwrap();
    }
    // Three that are truly left behind.
    (1..=3).for_each(|number| map.insert(key(u32::MAX / 2 + number, OUT), value(LEFT), 0).unwrap());
    let done = AtomicBool::new(false);
    let (readings, made) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| live(&mut open(), &done));
        let readings: Vec<CiliumConntrack> = (0..10).map(|_| reading(&bpffs.root())).collect();
        done.store(true, Ordering::Relaxed);
        (readings, writer.join().unwrap())
    });
    let open: u64 = readings.iter().flat_map(|read| &read.hairpins).map(|hairpin| hairpin.open).sum();
    assert!(open > 0 && made > 1000, "{open} seen of {made} that were made");
    let whole = readings.iter().filter(|read| read.is_whole());
    let alone = |read: &CiliumConntrack| read.hairpins.iter().map(|hairpin| hairpin.alone).sum::<u64>();
    let left: Vec<_> = whole.map(|read| (read.left_behind(), alone(read))).collect();
    assert!(!left.is_empty() && left.iter().all(|left| *left == (3, 3)), "{left:?}");
    // On a machine that is too busy to read it whole in time, too.
    assert!(readings.iter().all(|read| read.left_behind() <= 3), "{readings:?}");
}

fn reading(root: &HostRoot) -> CiliumConntrack {
    let mut found = None;
    CiliumConntrackSource::new(root).observe(&mut |said| {
        if let Fact::CiliumConntrack(read) = said.fact {
            found = Some(read);
        }
    });
    found.unwrap()
}
