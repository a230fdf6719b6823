//! One network's directory: names first, then (`reading.rs`) what the files say.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use headroom_core::known::{Known, Why};
use headroom_core::observe::{AddressRange, Fact, Ipam, Network};
use headroom_core::time::NodeTime;
use nix::dir::Dir;
use nix::sys::stat::fstat;

use super::reading::{self, Listed, Progress};
use crate::bounded::{self, shown};
use crate::clock;

/// The file beside the reservations that names the last one, before the number of its range set.
const LAST_RESERVED: &str = "last_reserved_ip.";
/// More range sets than any network has.
const RANGE_SETS_LIMIT: u32 = 64;
/// How many unexpected names are shown.
const IGNORED_SHOWN: usize = 8;
/// After how many files the clock is looked at.
const FILES_PER_CLOCK: usize = 1024;

/// What bounds the reading of a store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Directory entries per network.
    pub(super) entries: usize,
    /// When the round has to end.
    pub(super) deadline: NodeTime,
}

/// What a store is called and what is configured for it.
#[derive(Debug)]
pub(super) struct StoreName {
    /// Path of the directory on the node.
    pub(super) store: String,
    /// Name of the network.
    pub(super) network: String,
    /// As configured.
    pub(super) range_sets: Known<Vec<Vec<AddressRange>>>,
}

/// What is worth saying about a store beyond its facts.
#[derive(Debug, Default)]
pub(super) struct Remarks {
    /// Why reservations may be missing.
    pub(super) partial: Option<Why>,
    /// How many files this process may not open.
    pub(super) denied: usize,
}

/// The device and inode of an open directory: what tells a store reached on two ways.
pub(super) fn identity(dir: &Dir) -> Option<(u64, u64)> {
    fstat(dir.as_fd()).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// Reads a network's directory: its reservations, then one [`Network`] that tells whether these are all.
pub(super) fn read(mut dir: Dir, named: StoreName, bounds: Bounds, emit: &mut dyn FnMut(Fact)) -> Remarks {
    let mut remarks = Remarks::default();
    let Listing { listed, ignored, last_reserved } = list(&mut dir, bounds, &named.store, &mut remarks);
    let StoreName { store, network, range_sets } = named;

    let shared: Arc<str> = store.as_str().into();
    let Progress { done, denied } = reading::read(&dir, &listed, &shared, bounds.deadline, emit);
    remarks.denied = denied;
    if done < listed.len() {
        remarks.partial = Some(Why::new(format!(
            "the time for reading the stores ran out after {done} of {} reservations of `{store}`",
            listed.len()
        )));
    }
    let complete = remarks.partial.is_none();
    let last_reserved = last_reserved.iter().filter_map(|set| Some((*set, last_reserved_in(&dir, *set)?))).collect();
    emit(Fact::Network(Network {
        store,
        ipam: Ipam::HostLocal,
        name: network,
        range_sets,
        complete,
        ignored,
        last_reserved,
        pool: Known::Absent,
    }));
    remarks
}

/// The address that was reserved last from a range set. host-local itself begins anew where it cannot read it.
fn last_reserved_in(dir: &Dir, set: u32) -> Option<IpAddr> {
    let mut buffer = [0; 65];
    let small = bounded::read_small(dir, format!("{LAST_RESERVED}{set}").as_str(), &mut buffer).ok()?;
    std::str::from_utf8(buffer.get(..small.len)?).ok()?.trim().parse().ok()
}

/// A network without reservations: its directory could not be opened, or (then this is all) is not there yet.
pub(super) fn without_reservations(named: StoreName, complete: bool) -> Fact {
    let StoreName { store, network, range_sets } = named;
    Fact::Network(Network {
        store,
        ipam: Ipam::HostLocal,
        name: network,
        range_sets,
        complete,
        ignored: Vec::new(),
        last_reserved: BTreeMap::new(),
        pool: Known::Absent,
    })
}

/// What a directory lists.
#[derive(Debug, Default)]
struct Listing {
    listed: Vec<Listed>,
    /// Names that are no reservations, a few of them.
    ignored: Vec<String>,
    /// Range sets that something was reserved from.
    last_reserved: Vec<u32>,
}

/// The reservations a directory lists, and the names that are none.
fn list(dir: &mut Dir, bounds: Bounds, store: &str, remarks: &mut Remarks) -> Listing {
    let Listing { mut listed, mut ignored, mut last_reserved } = Listing::default();
    let (mut unexpected, mut seen) = (0_usize, 0_usize);
    for entry in dir.iter() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(errno) => {
                remarks.partial =
                    Some(Why::new(format!("listing `{store}` failed after {seen} entries: {}", errno.desc())));
                break;
            }
        };
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        seen += 1;
        if seen > bounds.entries || (seen % FILES_PER_CLOCK == 0 && clock::node_time() > bounds.deadline) {
            remarks.partial = Some(Why::new(format!(
                "`{store}` has more entries than can be read in one round; {} were listed",
                seen - 1
            )));
            break;
        }
        if name == b"lock" {
            continue;
        }
        if let Some(set) = name.strip_prefix(LAST_RESERVED.as_bytes()) {
            let set = std::str::from_utf8(set).ok().and_then(|set| set.parse::<u32>().ok());
            last_reserved.extend(set.filter(|set| *set < RANGE_SETS_LIMIT));
            continue;
        }
        match address(name) {
            Some(address) => listed.push(Listed { address, kind: entry.file_type() }),
            None => {
                unexpected += 1;
                if ignored.len() < IGNORED_SHOWN {
                    ignored.push(shown(name));
                }
            }
        }
    }
    if unexpected > ignored.len() {
        ignored.push(format!("… and {} more", unexpected - ignored.len()));
    }
    // In their order they are put in place at once, here and in the ledger.
    listed.sort_unstable_by_key(|listed| listed.address);
    Listing { listed, ignored, last_reserved }
}

/// The address a file stands for. Only the spelling that host-local uses counts: no other one is looked up by it.
pub fn address(name: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(name).ok()?;
    match text.parse().ok()? {
        // One address has one spelling: no leading zeros are taken.
        address @ IpAddr::V4(_) => Some(address),
        // Rust writes `::ffff:10.0.0.1` where Go writes `10.0.0.1`.
        address @ IpAddr::V6(_) => {
            (address.to_canonical() == address && address.to_string() == text).then_some(address)
        }
    }
}

/// The path of a network's directory on the node, as people see it.
pub(super) fn path(data_dir: &Path, name: &[u8]) -> String {
    format!("{}/{}", data_dir.display(), shown(name))
}
