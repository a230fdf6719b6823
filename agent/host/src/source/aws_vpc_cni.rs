//! The AWS VPC CNI: what ipamd has given to pods, and what it keeps attached to the node for them.
//!
//! Its checkpoint tells who holds which address; ipamd replaces it by renaming, so it is never seen half written. How many
//! addresses are attached only ipamd itself knows: its introspection server on loopback is asked, with GET requests that
//! change nothing, for at most [`ASK_LIMIT`]. Where there is no checkpoint (its directory may not be mounted), the server's
//! answer stands in for it. Nothing is asked of a captured tree.

mod ask;
pub mod checkpoint;
pub mod introspection;

use std::path::PathBuf;
use std::time::Duration;

use headroom_core::known::{Known, Why};
use headroom_core::observe::{Fact, Ipam, Network, Outcome, Pool, Reservation, Snapshot, SourceId, WarmTargets};

use crate::bounded::{self, Refusal};
use crate::clock;
use crate::root::HostRoot;
use crate::source::{Sink, Source, absent, degraded, observation, unreadable, works};

pub use ask::{BadResponse, NoAnswer, Server, body};
use introspection::Card;

/// Where ipamd keeps its checkpoints.
pub const DEFAULT_DIRECTORY: &str = "/var/run/aws-node";
/// Where ipamd answers, unless told otherwise.
pub const DEFAULT_SERVER: &str = "127.0.0.1:61679";
/// How long ipamd may take to answer everything it is asked in one round.
pub const ASK_LIMIT: Duration = Duration::from_secs(1);
/// The checkpoint of a node with 11,760 pods, the most an instance has addresses for, is 4 MB.
const CHECKPOINT_LIMIT: usize = 8 << 20;
/// More network cards than an instance has.
const CARDS: std::ops::Range<u32> = 0..16;

/// What ipamd holds.
#[derive(Debug)]
pub struct AwsVpcCniSource {
    root: HostRoot,
    directory: PathBuf,
    server: Server,
}

/// What a round gathers.
#[derive(Debug, Default)]
struct Round {
    /// What was read, each in words.
    how: Vec<String>,
    /// What is missing.
    missing: Vec<String>,
    /// Why reservations may be missing.
    partial: Vec<String>,
}

impl AwsVpcCniSource {
    /// Reads the checkpoints below [`DEFAULT_DIRECTORY`] and asks the server at `server` (by default [`DEFAULT_SERVER`]).
    pub fn new(root: HostRoot, server: Option<Server>) -> Self {
        let server = server.unwrap_or_default();
        Self { root, directory: PathBuf::from(DEFAULT_DIRECTORY), server }
    }

    /// The checkpoint of a network card.
    fn checkpoint(&self, card: u32) -> PathBuf {
        // The first card's name is older than the others'.
        self.directory.join(if card == 0 { "ipam.json".to_owned() } else { format!("ipam-nic-{card}.json") })
    }

    /// Reads everything; whether there was anything.
    fn read(&self, round: &mut Round, emit: &mut dyn FnMut(Fact)) -> bool {
        let mut stores = Vec::new();
        for card in CARDS {
            let path = self.checkpoint(card);
            match bounded::read_in(&self.root, &path, CHECKPOINT_LIMIT) {
                Ok(bytes) => stores.push((card, path, checkpoint::parse(&bytes).map_err(|bad| bad.to_string()))),
                Err(Refusal::Missing) => {}
                Err(refusal) => stores.push((card, path, Err(refusal.to_string()))),
            }
        }
        let cards = if self.root.is_live() { self.ask(!stores.is_empty(), round) } else { Some(not_asked()) };
        let Some(cards) = cards else { return false };
        if stores.is_empty() {
            return self.without_checkpoint(cards, round, emit);
        }
        let with_store: Vec<u32> = stores.iter().map(|(card, ..)| *card).collect();
        for (card, path, read) in stores {
            let store = path.display().to_string();
            let pool = match &cards {
                Ok((cards, targets)) => pool(cards.iter().find(|known| known.index == card), targets),
                Err(why) => Known::because(why.as_str()),
            };
            let complete = match read {
                Ok(checkpoint) => {
                    round.how.push(format!("`{store}`"));
                    let complete = checkpoint.unusable.is_none();
                    round.partial.extend(checkpoint.unusable.map(|why| format!("`{store}`: {why}")));
                    let reservations = checkpoint.reservations.into_iter();
                    reservations
                        .map(|row| Reservation { store: store.as_str().into(), ..row })
                        .map(Fact::from)
                        .for_each(&mut *emit);
                    complete
                }
                Err(why) => {
                    round.partial.push(format!("the checkpoint `{store}` {why}"));
                    false
                }
            };
            emit(Fact::Network(network(store, complete, pool)));
        }
        if let Ok((cards, targets)) = &cards {
            for card in cards.iter().filter(|card| !with_store.contains(&card.index)) {
                let path = self.checkpoint(card.index);
                round.missing.push(format!("`{}` does not exist, so ipamd's own answer stands in", path.display()));
                self.told(card, targets, emit);
            }
        }
        true
    }

    /// A network card as ipamd itself tells of it.
    fn told(&self, card: &Card, targets: &Known<WarmTargets>, emit: &mut dyn FnMut(Fact)) {
        let store = format!("{}/v1/enis#{}", self.server, card.index);
        let reservations = card.reservations.iter().cloned();
        reservations
            .map(|row| Reservation { store: store.as_str().into(), ..row })
            .map(Fact::from)
            .for_each(&mut *emit);
        emit(Fact::Network(network(store, true, pool(Some(card), targets))));
    }

    /// Asks ipamd; `None` if nobody is there and nothing else speaks for the AWS VPC CNI.
    #[expect(clippy::type_complexity, reason = "the cards with their targets, or why they are not known")]
    fn ask(&self, has_checkpoint: bool, round: &mut Round) -> Option<Result<(Vec<Card>, Known<WarmTargets>), String>> {
        let deadline = clock::node_time().after(ASK_LIMIT);
        let now = clock::now().wall;
        let asked = self.server.get("/v1/enis", deadline).map_err(|none| none.to_string());
        let cards = asked.and_then(|bytes| {
            introspection::cards(&bytes, now).map_err(|bad| format!("what {} answers {bad}", self.server))
        });
        match cards {
            Ok(cards) => {
                round.how.push(format!("introspection at {}", self.server));
                let settings = self.server.get("/v1/ipamd-env-settings", deadline);
                let targets = match settings.map_err(|none| none.to_string()) {
                    Ok(bytes) => introspection::targets(&bytes),
                    Err(why) => Known::because(why),
                };
                Some(Ok((cards, targets)))
            }
            Err(why) if has_checkpoint => {
                round.missing.push(format!("how many addresses are attached is not known: {why}"));
                Some(Err(why))
            }
            // Something else may listen on that port.
            Err(_nobody) => None,
        }
    }

    /// A node whose checkpoint is not here: what ipamd says of it.
    fn without_checkpoint(
        &self,
        cards: Result<(Vec<Card>, Known<WarmTargets>), String>,
        round: &mut Round,
        emit: &mut dyn FnMut(Fact),
    ) -> bool {
        let Ok((cards, targets)) = cards else { return false };
        round.missing.push(format!(
            "`{}` does not exist here, so ipamd's own answer stands in; mount `{}`",
            self.checkpoint(0).display(),
            self.directory.display()
        ));
        cards.iter().for_each(|card| self.told(card, &targets, emit));
        true
    }
}

/// A captured tree has no server.
fn not_asked() -> Result<(Vec<Card>, Known<WarmTargets>), String> {
    Err("a captured tree does not tell how many addresses were attached".to_owned())
}

fn pool(card: Option<&Card>, targets: &Known<WarmTargets>) -> Known<Pool> {
    match card {
        Some(card) => Known::Present(Pool { targets: targets.clone(), ..card.pool.clone() }),
        None => Known::because("ipamd does not tell of this network card"),
    }
}

fn network(store: String, complete: bool, pool: Known<Pool>) -> Network {
    Network {
        store,
        ipam: Ipam::AwsVpcCni,
        name: "aws-cni".to_owned(),
        range_sets: Known::because("ipamd attaches addresses to the node as it needs them"),
        complete,
        ignored: Vec::new(),
        last_reserved: std::collections::BTreeMap::new(),
        pool,
    }
}

impl Source for AwsVpcCniSource {
    fn id(&self) -> SourceId {
        SourceId::AwsVpcCni
    }

    /// Coverage comes last: what is missing is known only after the reading.
    fn observe(&mut self, sink: Sink<'_>) {
        let mut emit = |fact| sink(observation(SourceId::AwsVpcCni, fact));
        emit(Fact::Begin(Snapshot::Reservations));
        let mut round = Round::default();
        let any = self.read(&mut round, &mut emit);
        let outcome = match round.partial.is_empty() {
            true => Outcome::Complete,
            false => Outcome::Partial(Why::new(round.partial.join("; "))),
        };
        emit(Fact::End { snapshot: Snapshot::Reservations, outcome });
        let missing = round.partial.into_iter().chain(round.missing).collect::<Vec<_>>().join("; ");
        emit(match (any, round.how.is_empty(), missing.is_empty()) {
            (false, ..) => absent(),
            (true, true, _) => unreadable(missing),
            (true, false, true) => works(round.how.join(", ")),
            (true, false, false) => degraded(round.how.join(", "), missing),
        });
    }
}

#[cfg(test)]
mod tests;
