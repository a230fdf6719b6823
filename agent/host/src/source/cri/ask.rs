//! One conversation with one runtime: connect, version, lists, the status of sandboxes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    Container, ListContainersRequest, ListPodSandboxRequest, PodSandbox, PodSandboxStatus, PodSandboxStatusRequest,
    VersionRequest, VersionResponse,
};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::bounded::shown_up_to;

/// The longest answer taken: a thousand times what a full node's list needs.
const MESSAGE_LIMIT: usize = 32 << 20;
/// How long one status may take, so that one that hangs does not cost the others.
const STATUS_LIMIT: Duration = Duration::from_millis(500);
/// How many statuses are asked for at the same time.
const STATUSES_AT_ONCE: usize = 8;

/// Why a runtime gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error(
        "no container runtime socket at `{0}`; is the runtime running, and its socket mounted into the agent's container?"
    )]
    Missing(PathBuf),
    #[error("nobody listens on the socket `{0}`; is the container runtime running?")]
    Refused(PathBuf),
    #[error("the socket `{0}` may not be opened (permission denied); run as root")]
    Denied(PathBuf),
    #[error("`{0}` could not be connected to ({1}); is it the runtime's socket?")]
    Connect(PathBuf, String),
    #[error(
        "the container runtime at `{socket}` did not answer {call} in time; is it hung? try `crictl --runtime-endpoint unix://{socket} version`"
    )]
    Late { socket: PathBuf, call: &'static str },
    #[error(
        "the server at `{0}` offers no CRI v1; is its CRI plugin disabled, or is it older than containerd 1.6 or CRI-O 1.23?"
    )]
    NoCri(PathBuf),
    #[error(
        "the container runtime at `{socket}` failed {call}: {text}; try `crictl --runtime-endpoint unix://{socket} version`"
    )]
    Failed { socket: PathBuf, call: &'static str, text: String },
}

impl NoAnswer {
    /// What this says about the node, where another socket answers.
    pub(super) fn beside_another(&self) -> Beside {
        match self {
            Self::Missing(_) | Self::NoCri(_) => Beside::Nothing,
            // A plain file or a directory (what a mount of a missing socket leaves behind) refuses as well.
            Self::Refused(socket) if !is_socket(socket) => Beside::Nothing,
            Self::Refused(_) => Beside::Silent,
            Self::Denied(_) | Self::Connect(..) | Self::Late { .. } | Self::Failed { .. } => Beside::Failed,
        }
    }
}

/// What a socket that gave no answer means, where another one answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    /// kubelet's runtime is not behind this socket.
    Nothing,
    /// Nobody listens: a runtime that is gone for good, or one that restarts and whose pods live on.
    Silent,
    /// A runtime that cannot be read.
    Failed,
}

/// Whether a socket is at this path; if that cannot be told, there may be one.
fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    path.metadata()
        .map_or_else(|error| error.kind() != std::io::ErrorKind::NotFound, |file| file.file_type().is_socket())
}

/// What came of asking for a sandbox's status.
#[derive(Debug)]
pub(super) enum StatusAnswer {
    /// This.
    Known(Box<PodSandboxStatus>),
    /// It went away after it was listed.
    Gone,
    /// The runtime could not say, because …
    Failed(String),
}

/// A connection to a runtime.
#[derive(Debug)]
pub(super) struct Runtime {
    socket: PathBuf,
    client: RuntimeServiceClient<Channel>,
    deadline: Instant,
}

impl Runtime {
    /// Connects. The stream is opened here and not by tonic, so that its errors keep their names; a connection that breaks
    /// is not opened again in the same round.
    pub(super) async fn connect(socket: &Path, deadline: Instant) -> Result<Self, NoAnswer> {
        let late = || NoAnswer::Late { socket: socket.to_owned(), call: "the connection" };
        let stream =
            timeout_at(deadline, UnixStream::connect(socket)).await.map_err(|_elapsed| late())?.map_err(|error| {
                use std::io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
                match error.kind() {
                    NotFound => NoAnswer::Missing(socket.to_owned()),
                    ConnectionRefused => NoAnswer::Refused(socket.to_owned()),
                    PermissionDenied => NoAnswer::Denied(socket.to_owned()),
                    _other => NoAnswer::Connect(socket.to_owned(), error.to_string()),
                }
            })?;
        let mut once = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_uri| {
            let stream = once.take().ok_or_else(|| std::io::Error::other("the runtime closed the connection"));
            std::future::ready(stream)
        });
        // The address is not used: the connector has the stream already.
        let endpoint = Endpoint::from_static("http://runtime.invalid");
        let channel = timeout_at(deadline, endpoint.connect_with_connector(connector))
            .await
            .map_err(|_elapsed| late())?
            .map_err(|error| NoAnswer::Connect(socket.to_owned(), chain(&error)))?;
        let client = RuntimeServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT);
        Ok(Self { socket: socket.to_owned(), client, deadline })
    }

    /// Name and version of the runtime.
    pub(super) async fn version(&self) -> Result<VersionResponse, NoAnswer> {
        let mut client = self.client.clone();
        self.bounded("Version", client.version(VersionRequest::default())).await
    }

    /// All sandboxes, also those that are not ready: they keep their addresses until they are stopped.
    pub(super) async fn sandboxes(&self) -> Result<Vec<PodSandbox>, NoAnswer> {
        let mut client = self.client.clone();
        let request = ListPodSandboxRequest { filter: None };
        Ok(self.bounded("ListPodSandbox", client.list_pod_sandbox(request)).await?.items)
    }

    /// All containers, also those that ended.
    pub(super) async fn containers(&self) -> Result<Vec<Container>, NoAnswer> {
        let mut client = self.client.clone();
        let request = ListContainersRequest { filter: None };
        Ok(self.bounded("ListContainers", client.list_containers(request)).await?.containers)
    }

    /// The statuses of sandboxes. One that fails costs no other one.
    pub(super) async fn statuses(&self, ids: Vec<String>) -> Vec<(String, StatusAnswer)> {
        let mut answers = Vec::new();
        let mut running = JoinSet::new();
        let mut ids = ids.into_iter();
        loop {
            while running.len() < STATUSES_AT_ONCE
                && let Some(id) = ids.next()
            {
                running.spawn(status(self.client.clone(), id, self.deadline));
            }
            match running.join_next().await {
                Some(Ok(answer)) => answers.push(answer),
                // Nothing cancels or panics in there; the sandbox is shown without addresses all the same.
                Some(Err(_join)) => {}
                None => return answers,
            }
        }
    }

    /// Waits for a call no longer than the round lasts.
    async fn bounded<T>(
        &self,
        call: &'static str,
        future: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, NoAnswer> {
        let socket = self.socket.clone();
        match timeout_at(self.deadline, future).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) if status.code() == Code::Unimplemented => Err(NoAnswer::NoCri(socket)),
            Ok(Err(status)) => Err(NoAnswer::Failed { socket, call, text: words(&status) }),
            Err(_elapsed) => Err(NoAnswer::Late { socket, call }),
        }
    }
}

/// One sandbox's status.
async fn status(mut client: RuntimeServiceClient<Channel>, id: String, round: Instant) -> (String, StatusAnswer) {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
    let limit = round.min(Instant::now() + STATUS_LIMIT);
    let answer = match timeout_at(limit, client.pod_sandbox_status(request)).await {
        Ok(Ok(response)) => match response.into_inner().status {
            Some(status) => StatusAnswer::Known(Box::new(status)),
            None => StatusAnswer::Failed("the runtime's PodSandboxStatus is empty".to_owned()),
        },
        Ok(Err(status)) if status.code() == Code::NotFound => StatusAnswer::Gone,
        Ok(Err(status)) => StatusAnswer::Failed(format!("the runtime failed PodSandboxStatus: {}", words(&status))),
        Err(_elapsed) => StatusAnswer::Failed("the runtime did not answer PodSandboxStatus in time".to_owned()),
    };
    (id, answer)
}

/// A gRPC status as people may see it, with what caused it, each said once.
fn words(status: &Status) -> String {
    let message = shown_up_to(status.message().as_bytes(), 200);
    match std::error::Error::source(status) {
        Some(source) => join(message, source),
        None => format!("{message} ({:?})", status.code()),
    }
}

/// An error with what caused it, each said once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    join(String::new(), error)
}

/// Appends the words of an error and its causes, unless they were said already.
fn join(mut said: String, error: &(dyn std::error::Error + 'static)) -> String {
    const CAUSES_SHOWN: usize = 6;
    for error in std::iter::successors(Some(error), |error| error.source()).take(CAUSES_SHOWN) {
        let text = shown_up_to(error.to_string().as_bytes(), 200);
        if !said.contains(&text) {
            let colon = if said.is_empty() { "" } else { ": " };
            said = format!("{said}{colon}{text}");
        }
    }
    said
}
