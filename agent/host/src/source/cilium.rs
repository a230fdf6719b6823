//! Cilium's endpoints: which address each has, for which container and pod.
//!
//! The agent keeps a directory per endpoint and reads it when it restarts: `ep_config.json` since v1.16, before that a comment
//! of base64 in `ep_config.h`. Directories of failed and of coming states (`1234_next`, `1234_next_fail`, `1234_stale`) are
//! passed over, as the agent does. How many addresses the node has is not in them. Where another IPAM gives the addresses (GKE
//! Dataplane V2: host-local), both tell of the same ones.

pub mod endpoint;

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::path::Path;
use std::time::Duration;

use headroom_core::known::{Known, Why};
use headroom_core::observe::{Fact, Ipam, Network, Outcome, Reservation, Snapshot, SourceId};
use headroom_core::time::NodeTime;
use nix::dir::Dir;

use crate::bounded::{self, Entry, Refusal, shown};
use crate::clock;
use crate::root::HostRoot;
use crate::source::{Sink, Source, absent, degraded, observation, unreadable, works};

/// Where the agent keeps its endpoints.
pub const DIRECTORY: &str = "/var/run/cilium/state";
/// How many entries of it are read; an endpoint's id has 16 bits, most are templates and other files.
pub const ENTRIES_LIMIT: usize = 16_384;
/// How long one round may take.
pub const ROUND_LIMIT: Duration = Duration::from_secs(2);
/// The state of an endpoint holds its DNS history: megabytes with many names.
const FILE_LIMIT: usize = 8 << 20;
/// After how many endpoints the clock is looked at.
const ENDPOINTS_PER_CLOCK: usize = 16;

/// The endpoints of Cilium.
#[derive(Debug)]
pub struct CiliumSource {
    root: HostRoot,
}

impl CiliumSource {
    /// Reads the endpoints below [`DIRECTORY`].
    pub fn new(root: HostRoot) -> Self {
        Self { root }
    }

    /// Reads all endpoints; whether the directory is there and has anything in it. What is missing is said, whatever proves nothing as well.
    fn read(&self, missing: &mut Vec<String>, emit: &mut dyn FnMut(Fact)) -> Result<bool, String> {
        let deadline = clock::node_time().after(ROUND_LIMIT);
        let failed = |refusal: Refusal| format!("`{DIRECTORY}` {refusal}");
        let mut top = match bounded::open_dir(&self.root, Path::new(DIRECTORY)) {
            Ok(top) => top,
            Err(Refusal::Missing) => return Ok(false),
            Err(refusal) => return Err(failed(refusal)),
        };
        let (entries, more) = bounded::entries(&mut top, ENTRIES_LIMIT).map_err(failed)?;
        // Cilium has an endpoint for the node itself from its first start on: the kubelet makes an empty directory for a mount.
        if entries.is_empty() {
            return Ok(false);
        }
        if more {
            missing.push(format!("`{DIRECTORY}` has more than {ENTRIES_LIMIT} entries"));
        }
        let endpoints = entries.iter().filter(|entry| entry.may_be_directory() && is_endpoint(entry.name.to_bytes()));
        read_endpoints(&top, endpoints, deadline, missing, emit);
        emit(Fact::Network(Network {
            store: DIRECTORY.to_owned(),
            ipam: Ipam::Cilium,
            name: "cilium".to_owned(),
            range_sets: Known::because("the state of Cilium's endpoints does not tell how many addresses the node has"),
            complete: missing.is_empty(),
            ignored: Vec::new(),
            last_reserved: BTreeMap::new(),
            pool: Known::Absent,
        }));
        Ok(true)
    }
}

fn read_endpoints<'a>(
    top: &Dir,
    endpoints: impl Iterator<Item = &'a Entry>,
    deadline: NodeTime,
    missing: &mut Vec<String>,
    emit: &mut dyn FnMut(Fact),
) {
    let (mut bad, mut first_bad) = (0_usize, None);
    for (done, entry) in endpoints.enumerate() {
        if done % ENDPOINTS_PER_CLOCK == ENDPOINTS_PER_CLOCK - 1 && clock::node_time() > deadline {
            missing.push(format!("the time ran out after {done} endpoints of `{DIRECTORY}`"));
            break;
        }
        match read_endpoint(top, &entry.name) {
            Ok(reservations) => reservations.into_iter().map(Fact::from).for_each(&mut *emit),
            Err(why) => {
                bad += 1;
                first_bad.get_or_insert_with(|| format!("`{}` {why}", shown(entry.name.to_bytes())));
            }
        }
    }
    missing.extend(first_bad.map(|first| format!("{bad} endpoints of `{DIRECTORY}` cannot be read; {first}")));
}

/// One endpoint's reservations; none if it went away meanwhile.
fn read_endpoint(top: &Dir, name: &CStr) -> Result<Vec<Reservation>, String> {
    let dir = match bounded::open_subdir(top, name) {
        Ok(dir) => dir,
        Err(Refusal::Missing) => return Ok(Vec::new()),
        Err(refusal) => return Err(refusal.to_string()),
    };
    let file = |name: &str| bounded::read_at(&dir, name, FILE_LIMIT);
    let parsed = match file("ep_config.json") {
        Ok(bytes) => endpoint::of_json(&bytes),
        Err(Refusal::Missing) => match file("ep_config.h") {
            Ok(bytes) => endpoint::of_header(&bytes),
            Err(Refusal::Missing) => return Ok(Vec::new()),
            Err(refusal) => return Err(format!("ep_config.h {refusal}")),
        },
        Err(refusal) => return Err(format!("ep_config.json {refusal}")),
    };
    let endpoint = parsed.map_err(|bad| format!("holds a state that {bad}"))?;
    Ok(endpoint.reservations(DIRECTORY))
}

/// Whether a directory is an endpoint's present state: its number alone.
fn is_endpoint(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(|name| name.parse::<u16>().is_ok_and(|id| id.to_string() == name))
}

impl Source for CiliumSource {
    fn id(&self) -> SourceId {
        SourceId::Cilium
    }

    /// Coverage comes last: what is missing is known only after the reading.
    fn observe(&mut self, sink: Sink<'_>) {
        let mut emit = |fact| sink(observation(SourceId::Cilium, fact));
        emit(Fact::Begin(Snapshot::Reservations));
        let mut missing = Vec::new();
        let read = self.read(&mut missing, &mut emit);
        let why = missing.join("; ");
        let outcome = match &read {
            Err(why) => Outcome::Failed(Why::new(why.as_str())),
            Ok(_) if missing.is_empty() => Outcome::Complete,
            Ok(_) => Outcome::Partial(Why::new(why.as_str())),
        };
        emit(Fact::End { snapshot: Snapshot::Reservations, outcome });
        let how = format!("endpoints below `{DIRECTORY}`");
        emit(match read {
            Err(why) => unreadable(why),
            Ok(false) => absent(),
            Ok(true) if missing.is_empty() => works(how),
            Ok(true) => degraded(how, why),
        });
    }
}
