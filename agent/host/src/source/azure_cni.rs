//! Azure CNI and Azure CNS: who holds which address, and how many the node was given.
//!
//! Azure CNI keeps the node's addresses in one file (`azure-vnet-ipam.json`) and what it made of them in another
//! (`azure-vnet.json`: container and pod). With overlay networks Azure CNS keeps the endpoints instead
//! (`azure-endpoints.json`) and hands out addresses itself; how many there are no file says. None of them tells since when an
//! address is taken: its age counts from when headroom saw it first.

pub mod state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use headroom_core::known::{Known, Why};
use headroom_core::observe::{Fact, Ipam, Network, Outcome, Reservation, Snapshot, SourceId};

use crate::bounded::{self, Refusal};
use crate::root::HostRoot;
use crate::source::cni;
use crate::source::{Sink, Source, absent, degraded, observation, unreadable, works};

use state::{Endpoint, Vnet};

/// Azure CNI: the addresses of the node.
const IPAM: &str = "/var/run/azure-vnet-ipam.json";
/// Azure CNI: its endpoints.
const VNET: &str = "/var/run/azure-vnet.json";
/// Azure CNS: its endpoints.
const ENDPOINTS: &str = "/var/run/azure-cns/azure-endpoints.json";
/// A hundred times what a node of 250 pods writes.
const FILE_LIMIT: usize = 16 << 20;

/// The state files of Azure.
#[derive(Debug)]
pub struct AzureCniSource {
    root: HostRoot,
    cni_conf_dir: PathBuf,
}

/// What a round gathers.
#[derive(Debug, Default)]
struct Round {
    how: Vec<String>,
    missing: Vec<String>,
    partial: bool,
}

impl AzureCniSource {
    /// Reads the state files below `/var/run`. What the configuration in `cni_conf_dir` names has to be there.
    pub fn new(root: HostRoot, cni_conf_dir: PathBuf) -> Self {
        Self { root, cni_conf_dir }
    }

    /// Why nothing is known of an IPAM that the CNI configuration names. A file that is not there is not an IPAM that gave
    /// nothing: where nothing of Azure's is there, most likely only this container does not see it.
    fn unseen(&self, ipam_seen: bool, endpoints_seen: bool, round: &mut Round) {
        let config = cni::read(&self.root, &self.cni_conf_dir);
        for (ipam, file) in &config.others {
            let (path, seen) = match *ipam {
                "azure-cns" => (ENDPOINTS, endpoints_seen),
                _azures_own => (IPAM, ipam_seen),
            };
            if !seen {
                round.partial = true;
                let then = if round.how.is_empty() {
                    "in a container mount the node's `/run` at `/var/run` (deploy/overlays/azure-cni)"
                } else {
                    "how many addresses are used is not known"
                };
                round.missing.push(format!("`{path}` does not exist here, but `{file}` has the ipam `{ipam}`: {then}"));
            }
        }
    }

    /// A state file; `None` if it is not there or, as the round then says, cannot be read.
    fn file<T>(
        &self,
        path: &str,
        parse: fn(&[u8]) -> Result<T, crate::source::pod_store::BadState>,
        round: &mut Round,
    ) -> Option<Result<T, ()>> {
        let read = match bounded::read_in(&self.root, Path::new(path), FILE_LIMIT) {
            Err(Refusal::Missing) => return None,
            Err(refusal) => Err(refusal.to_string()),
            Ok(bytes) => parse(&bytes).map_err(|bad| bad.to_string()),
        };
        Some(match read {
            Ok(state) => {
                round.how.push(format!("`{path}`"));
                Ok(state)
            }
            Err(why) => {
                round.missing.push(format!("`{path}` {why}"));
                Err(())
            }
        })
    }

    fn read(&self, round: &mut Round, emit: &mut dyn FnMut(Fact)) {
        let endpoints = match self.file(VNET, state::vnet, round) {
            Some(Ok(endpoints)) => endpoints,
            Some(Err(())) | None => Vec::new(),
        };
        let ipam = self.file(IPAM, state::ipam, round);
        let ipam_seen = ipam.is_some();
        match ipam {
            Some(Ok(vnet)) => vnet_network(vnet, &endpoints, emit),
            Some(Err(())) => {
                round.partial = true;
                emit(Fact::Network(network(IPAM, "azure", false, Known::because("the file could not be read"))));
            }
            // Endpoints without Azure's own ipam: another one gave the addresses, and keeps them.
            None => {}
        }
        let endpoints = self.file(ENDPOINTS, state::endpoints, round);
        let endpoints_seen = endpoints.is_some();
        match endpoints {
            Some(Ok(endpoints)) => {
                for endpoint in &endpoints {
                    endpoint.reservations(ENDPOINTS).map(Fact::from).for_each(&mut *emit);
                }
                emit(Fact::Network(network(ENDPOINTS, "azure-cns", true, Known::Absent)));
            }
            Some(Err(())) => {
                round.partial = true;
                emit(Fact::Network(network(ENDPOINTS, "azure-cns", false, Known::Absent)));
            }
            None => {}
        }
        self.unseen(ipam_seen, endpoints_seen, round);
    }
}

/// Azure CNI's own addresses, with what its endpoints tell of them.
fn vnet_network(vnet: Vnet, endpoints: &[Endpoint], emit: &mut dyn FnMut(Fact)) {
    let mut known: BTreeMap<_, Reservation> = BTreeMap::new();
    for reservation in endpoints.iter().flat_map(|endpoint| endpoint.reservations(IPAM)) {
        known.insert(reservation.address, reservation);
    }
    for (address, holder) in vnet.in_use {
        let fact = known.remove(&address).unwrap_or(Reservation {
            store: IPAM.into(),
            address,
            holder,
            modified: state::no_time(),
            pod: None,
        });
        emit(fact.into());
    }
    emit(Fact::Network(network(IPAM, "azure", true, Known::Present(vnet.pool))));
}

fn network(store: &str, name: &str, complete: bool, pool: Known<headroom_core::observe::Pool>) -> Network {
    Network {
        store: store.to_owned(),
        ipam: Ipam::AzureCni,
        name: name.to_owned(),
        range_sets: Known::because("Azure gives addresses to the node; no file says how many it can have"),
        complete,
        ignored: Vec::new(),
        last_reserved: BTreeMap::new(),
        pool,
    }
}

impl Source for AzureCniSource {
    fn id(&self) -> SourceId {
        SourceId::AzureCni
    }

    /// Coverage comes last: what is missing is known only after the reading.
    fn observe(&mut self, sink: Sink<'_>) {
        let mut emit = |fact| sink(observation(SourceId::AzureCni, fact));
        emit(Fact::Begin(Snapshot::Reservations));
        let mut round = Round::default();
        self.read(&mut round, &mut emit);
        let why = round.missing.join("; ");
        let outcome = if round.partial { Outcome::Partial(Why::new(why.as_str())) } else { Outcome::Complete };
        emit(Fact::End { snapshot: Snapshot::Reservations, outcome });
        emit(match (round.how.is_empty(), round.missing.is_empty()) {
            (true, true) => absent(),
            (true, false) => unreadable(why),
            (false, true) => works(round.how.join(", ")),
            (false, false) => degraded(round.how.join(", "), why),
        });
    }
}
