//! The container runtime: which sandboxes and containers exist, and the addresses of the sandboxes.
//!
//! Asks over CRI v1 and changes nothing. A whole round takes at most [`ROUND_LIMIT`], whatever the runtime does. Where more
//! than one default socket answers (containerd beside CRI-O, say), their answers are joined: a pod that only the other
//! runtime knows must not look leaked. A default socket that nobody listens on may belong to a runtime that restarts: what
//! the others know is then only a part. What a status call could not tell is unknown for that sandbox alone; a list that
//! could not be read fails the round.

mod ask;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use headroom_core::ids::{ContainerId, PodName};
use headroom_core::known::{Known, Why};
use headroom_core::observe::{self, Fact, Outcome, Sandbox, Snapshot, SourceId};
use k8s_cri::v1::{NamespaceMode, PodSandbox, PodSandboxState, PodSandboxStatus};
use tokio::time::Instant;

use crate::bounded::shown;
use crate::root::HostRoot;
use crate::source::{Sink, Source, absent, degraded, observation, unreadable, works};

use ask::{Beside, NoAnswer, Runtime, StatusAnswer};

/// How long one round may take, all sockets together.
pub const ROUND_LIMIT: Duration = Duration::from_secs(2);
/// Where runtimes listen, unless told otherwise.
pub const DEFAULT_SOCKETS: [&str; 4] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/var/run/cri-dockerd.sock",
];

/// The sandboxes and containers of the runtime.
///
/// It has a runtime of its own for its calls and must therefore not be asked from inside an asynchronous task.
#[derive(Debug)]
pub struct CriSource {
    socket: Option<PathBuf>,
    root: HostRoot,
    /// What is known of the sandboxes of the last round, by id: an address does not change while the sandbox is ready.
    statuses: BTreeMap<String, Details>,
    /// Ask for the lists alone.
    lists_only: bool,
    round_limit: Duration,
}

/// What only a sandbox's status tells.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Details {
    ready: bool,
    host_network: bool,
    addresses: Known<Vec<IpAddr>>,
}

/// What all runtimes answered.
#[derive(Debug, Default)]
struct Answer {
    sandboxes: Vec<Sandbox>,
    containers: Vec<ContainerId>,
    runtimes: Vec<observe::Runtime>,
    /// Sockets that nobody listens on, each a sentence.
    silent: Vec<String>,
}

impl CriSource {
    /// Asks the runtime at `socket`, a path as this process sees it (also as `unix://…`), or at the default sockets below
    /// `root`.
    pub fn new(socket: Option<PathBuf>, root: HostRoot) -> Self {
        let socket = socket.map(|socket| match socket.to_str().and_then(|text| text.strip_prefix("unix://")) {
            Some(path) => PathBuf::from(path),
            None => socket,
        });
        Self { socket, root, statuses: BTreeMap::new(), lists_only: false, round_limit: ROUND_LIMIT }
    }

    /// Asks only which sandboxes and containers there are: their addresses and whether they are on the host network stay
    /// unknown.
    #[must_use]
    pub fn lists_only(mut self) -> Self {
        self.lists_only = true;
        self
    }

    /// Gives a round less time than [`ROUND_LIMIT`].
    #[must_use]
    pub fn with_round_limit(mut self, limit: Duration) -> Self {
        self.round_limit = limit.min(ROUND_LIMIT);
        self
    }

    /// The sockets to ask: the one given, or those of the default ones that exist.
    fn sockets(&self) -> Vec<PathBuf> {
        let exists = |socket: &PathBuf| match socket.symlink_metadata() {
            Ok(_) => true,
            // A directory that may not be searched hides it: asking says so.
            Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
        };
        match &self.socket {
            Some(socket) => vec![socket.clone()],
            None => DEFAULT_SOCKETS.iter().map(|socket| self.root.path(socket)).filter(exists).collect(),
        }
    }

    /// Asks all sockets.
    fn ask(&mut self, sockets: &[PathBuf]) -> Result<Answer, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| format!("the agent could not start its own event loop: {error}"))?;
        // Dropping the runtime ends whatever a hung server left behind.
        runtime.block_on(async {
            let deadline = Instant::now() + self.round_limit;
            let mut answer = Answer::default();
            let mut no_runtime: Option<NoAnswer> = None;
            let mut fresh = BTreeMap::new();
            for socket in sockets {
                match self.ask_one(socket, deadline, &mut answer, &mut fresh).await {
                    Ok(()) => {}
                    Err(none) => {
                        match none.beside_another() {
                            Beside::Nothing => {}
                            Beside::Silent => answer.silent.push(format!(
                                "{none} The pods of that runtime are not seen; remove the socket if the runtime is gone for good"
                            )),
                            Beside::Failed => return Err(none.to_string()),
                        }
                        no_runtime.get_or_insert(none);
                    }
                }
            }
            self.statuses = fresh;
            match no_runtime {
                Some(none) if answer.runtimes.is_empty() => Err(none.to_string()),
                _another_answered => Ok(answer),
            }
        })
    }

    /// Asks one runtime, and for the statuses of the sandboxes that are not known well enough.
    async fn ask_one(
        &self,
        socket: &Path,
        deadline: Instant,
        answer: &mut Answer,
        fresh: &mut BTreeMap<String, Details>,
    ) -> Result<(), NoAnswer> {
        let runtime = Runtime::connect(socket, deadline).await?;
        let version = runtime.version().await?;
        let sandboxes = runtime.sandboxes().await?;
        // Sandboxes first: a container that comes with a new sandbox in between does no harm.
        let containers = runtime.containers().await?;

        let known = |sandbox: &PodSandbox| {
            self.statuses.get(&sandbox.id).filter(|details| details.holds_for(is_ready(sandbox))).cloned()
        };
        let unknown = sandboxes.iter().filter(|sandbox| !self.lists_only && known(sandbox).is_none());
        let asked = unknown.map(|sandbox| sandbox.id.clone()).collect();
        let mut asked: BTreeMap<String, StatusAnswer> = runtime.statuses(asked).await.into_iter().collect();
        for sandbox in sandboxes {
            let ready = is_ready(&sandbox);
            let details = match (known(&sandbox), asked.remove(&sandbox.id)) {
                (Some(details), _) => details,
                (None, Some(StatusAnswer::Known(status))) => Details::of(&status, ready),
                (None, Some(StatusAnswer::Gone)) => continue,
                (None, Some(StatusAnswer::Failed(why))) => Details::unknown(ready, why),
                (None, None) => Details::unknown(ready, "the sandbox's status was not read".to_owned()),
            };
            fresh.insert(sandbox.id.clone(), details.clone());
            answer.sandboxes.push(fact(sandbox, details));
        }
        answer.containers.extend(containers.into_iter().map(|container| ContainerId(container.id)));
        answer.runtimes.push(observe::Runtime {
            name: shown(version.runtime_name.as_bytes()),
            version: shown(version.runtime_version.as_bytes()),
            socket: socket.display().to_string(),
        });
        Ok(())
    }
}

impl Details {
    /// From a status.
    fn of(status: &PodSandboxStatus, ready: bool) -> Self {
        let options = status.linux.as_ref().and_then(|linux| linux.namespaces.as_ref()?.options.as_ref());
        let host_network = options.is_some_and(|options| options.network == NamespaceMode::Node as i32);
        // Some runtimes give the node's addresses to a pod on the host network; they are not the pod's.
        let addresses = if host_network { Known::Absent } else { addresses(status) };
        Self { ready, host_network, addresses }
    }

    /// Without a status.
    fn unknown(ready: bool, why: String) -> Self {
        Self { ready, host_network: false, addresses: Known::because(why) }
    }

    /// Whether it need not be asked again: a ready sandbox keeps its addresses, a torn-down one gets none.
    fn holds_for(&self, ready: bool) -> bool {
        self.ready == ready
            && match &self.addresses {
                Known::Present(_) => ready,
                Known::Absent => !ready || self.host_network,
                Known::Unknown(_) => false,
            }
    }
}

impl Source for CriSource {
    fn id(&self) -> SourceId {
        SourceId::Cri
    }

    /// Coverage comes last: it tells how the asking went.
    fn observe(&mut self, sink: Sink<'_>) {
        let mut emit = |fact| sink(observation(SourceId::Cri, fact));
        let end = |outcome| Fact::End { snapshot: Snapshot::Runtime, outcome };
        emit(Fact::Begin(Snapshot::Runtime));
        let sockets = self.sockets();
        if sockets.is_empty() {
            let why = format!(
                "no container runtime socket at {}; give its path with --cri-socket",
                DEFAULT_SOCKETS.join(", ")
            );
            emit(end(Outcome::Failed(Why::new(why.as_str()))));
            // In a captured tree its absence says nothing about the node.
            emit(if self.root.is_live() { absent() } else { unreadable(why) });
            return;
        }
        match self.ask(&sockets) {
            Ok(answer) => {
                answer.sandboxes.into_iter().map(Fact::Sandbox).for_each(&mut emit);
                answer.containers.into_iter().map(Fact::Container).for_each(&mut emit);
                let runtimes = answer.runtimes.iter();
                let how: Vec<String> = runtimes
                    .map(|runtime| format!("{} {} at {}", runtime.name, runtime.version, runtime.socket))
                    .collect();
                let how = how.join("; ");
                answer.runtimes.into_iter().map(Fact::Runtime).for_each(&mut emit);
                if answer.silent.is_empty() {
                    emit(end(Outcome::Complete));
                    emit(works(how));
                } else {
                    let why = answer.silent.join("; ");
                    emit(end(Outcome::Partial(Why::new(why.as_str()))));
                    emit(degraded(how, why));
                }
            }
            Err(why) => {
                emit(end(Outcome::Failed(Why::new(why.as_str()))));
                emit(unreadable(why));
            }
        }
    }
}

/// `SANDBOX_READY`.
fn is_ready(sandbox: &PodSandbox) -> bool {
    sandbox.state == PodSandboxState::SandboxReady as i32
}

/// A listed sandbox with what its status told.
fn fact(sandbox: PodSandbox, details: Details) -> Sandbox {
    let metadata = sandbox.metadata.unwrap_or_default();
    Sandbox {
        id: ContainerId(sandbox.id),
        pod: PodName { namespace: metadata.namespace, name: metadata.name },
        uid: metadata.uid,
        ready: details.ready,
        host_network: details.host_network,
        addresses: details.addresses,
    }
}

/// The addresses a status tells; absent if there are none (yet, or no longer).
pub fn addresses(status: &PodSandboxStatus) -> Known<Vec<IpAddr>> {
    let Some(network) = &status.network else { return Known::Absent };
    let texts = std::iter::once(&network.ip).chain(network.additional_ips.iter().map(|more| &more.ip));
    let parsed: Result<Vec<IpAddr>, String> = texts
        .filter(|text| !text.is_empty())
        .map(|text| {
            text.parse().map(|address: IpAddr| address.to_canonical()).map_err(|_not_an_address| {
                format!("the runtime gives the address `{}`, which is none", shown(text.as_bytes()))
            })
        })
        .collect();
    match parsed {
        Ok(addresses) if addresses.is_empty() => Known::Absent,
        Ok(addresses) => Known::Present(addresses),
        Err(why) => Known::because(why),
    }
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::{LinuxPodSandboxStatus, Namespace, NamespaceOption, PodIp, PodSandboxNetworkStatus};

    use super::*;

    fn status(addresses: &[&str], network: NamespaceMode) -> PodSandboxStatus {
        let mut addresses = addresses.iter().map(|&ip| ip.to_owned());
        PodSandboxStatus {
            network: Some(PodSandboxNetworkStatus {
                ip: addresses.next().unwrap_or_default(),
                additional_ips: addresses.map(|ip| PodIp { ip }).collect(),
            }),
            linux: Some(LinuxPodSandboxStatus {
                namespaces: Some(Namespace {
                    options: Some(NamespaceOption { network: network as i32, ..NamespaceOption::default() }),
                }),
            }),
            ..PodSandboxStatus::default()
        }
    }

    #[test]
    fn both_addresses_of_a_dual_stack_pod_are_taken() {
        let details = Details::of(&status(&["10.48.131.4", "fd00::4"], NamespaceMode::Pod), true);
        let expected = ["10.48.131.4", "fd00::4"].map(|text| text.parse().unwrap());
        assert_eq!(details.addresses, Known::Present(expected.to_vec()));
        assert!(!details.host_network);
    }

    #[test]
    fn a_pod_on_the_host_network_has_no_address_of_its_own() {
        let details = Details::of(&status(&["192.0.2.2"], NamespaceMode::Node), true);
        assert_eq!((details.host_network, details.addresses), (true, Known::Absent));
    }

    #[test]
    fn an_address_that_is_none_is_unknown_not_absent() {
        let details = Details::of(&status(&["10.48.131"], NamespaceMode::Pod), true);
        assert!(details.addresses.unknown().unwrap().as_str().contains("`10.48.131`"));
        assert_eq!(Details::of(&PodSandboxStatus::default(), true).addresses, Known::Absent);
    }

    #[test]
    fn a_sandbox_is_asked_again_until_its_state_is_settled() {
        let with = |ready, host_network, addresses| Details { ready, host_network, addresses };
        let address = || Known::Present(vec!["10.0.0.1".parse().unwrap()]);
        assert!(with(true, false, address()).holds_for(true));
        assert!(with(true, true, Known::Absent).holds_for(true));
        assert!(with(false, false, Known::Absent).holds_for(false));
        assert!(!with(true, false, Known::Absent).holds_for(true), "CNI has not finished yet");
        assert!(!with(true, false, address()).holds_for(false), "it was stopped");
        assert!(!with(false, false, address()).holds_for(false), "it will be torn down");
        assert!(!with(true, false, Known::because("timeout")).holds_for(true));
    }
}
