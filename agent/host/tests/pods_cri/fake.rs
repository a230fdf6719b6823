//! A container runtime that says what a test wants it to say, over a real socket.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use k8s_cri::v1::*;
use tonic::codegen::tokio_stream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// How the runtime answers when asked for a sandbox's status.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// The pod's address.
    Address(&'static str),
    /// It went away since it was listed.
    NotFound,
    /// An error.
    Error(&'static str),
    /// Nothing, ever.
    Silence,
}

/// The runtime's sandboxes, changed by the test as it goes.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) sandboxes: Vec<(String, Answer)>,
    /// Sandboxes asked for since the test last looked.
    pub(crate) asked: Vec<String>,
    /// Answer lists with this error.
    pub(crate) broken_lists: Option<&'static str>,
    /// Answer lists never.
    pub(crate) silent_lists: bool,
    /// Name no container.
    pub(crate) no_containers: bool,
    /// Bytes added to the answer of `ListContainers`.
    pub(crate) ballast: usize,
}

struct Fake(Arc<Mutex<State>>);

/// Serves at the path until the test's process ends.
pub(crate) fn serve(path: &Path) -> Arc<Mutex<State>> {
    let state = Arc::new(Mutex::new(State::default()));
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let served = state.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            while let Ok((stream, _peer)) = listener.accept().await {
                let service = RuntimeServiceServer::new(Fake(served.clone())).max_encoding_message_size(usize::MAX);
                let incoming = tokio_stream::once(Ok::<_, std::io::Error>(stream));
                tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
            }
        });
    });
    state
}

type Reply<T> = Result<Response<T>, Status>;

/// The whole trait: what a test needs, and "unimplemented" for the rest.
macro_rules! runtime_service {
    ({ $($needed:item)* } $($name:ident: $request:ty => $response:ty,)*) => {
        #[tonic::async_trait]
        impl RuntimeService for Fake {
            type GetContainerEventsStream = tokio_stream::Empty<Result<ContainerEventResponse, Status>>;

            async fn get_container_events(
                &self,
                _request: Request<GetEventsRequest>,
            ) -> Reply<Self::GetContainerEventsStream> {
                Err(Status::unimplemented("not here"))
            }

            $($needed)*

            $(async fn $name(&self, _request: Request<$request>) -> Reply<$response> {
                Err(Status::unimplemented("not here"))
            })*
        }
    };
}

runtime_service! {
    {
        async fn version(&self, _request: Request<VersionRequest>) -> Reply<VersionResponse> {
            Ok(Response::new(VersionResponse {
                runtime_name: "fake".to_owned(),
                runtime_version: "1.2.3".to_owned(),
                ..VersionResponse::default()
            }))
        }

        async fn list_pod_sandbox(&self, _request: Request<ListPodSandboxRequest>) -> Reply<ListPodSandboxResponse> {
            if self.0.lock().unwrap().silent_lists {
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
            let state = self.0.lock().unwrap();
            if let Some(text) = state.broken_lists {
                return Err(Status::internal(text));
            }
            let sandbox = |(id, _answer): &(String, Answer)| PodSandbox {
                id: id.clone(),
                metadata: Some(PodSandboxMetadata {
                    name: format!("pod-{id}"),
                    uid: "uid".to_owned(),
                    namespace: "shop".to_owned(),
                    attempt: 0,
                }),
                ..PodSandbox::default()
            };
            Ok(Response::new(ListPodSandboxResponse { items: state.sandboxes.iter().map(sandbox).collect() }))
        }

        async fn pod_sandbox_status(&self, request: Request<PodSandboxStatusRequest>) -> Reply<PodSandboxStatusResponse> {
            let id = request.into_inner().pod_sandbox_id;
            let answer = {
                let mut state = self.0.lock().unwrap();
                state.asked.push(id.clone());
                state.sandboxes.iter().find(|(listed, _)| *listed == id).map_or(Answer::NotFound, |(_, answer)| answer.clone())
            };
            let ip = match answer {
                Answer::Address(ip) => ip.to_owned(),
                Answer::NotFound => return Err(Status::not_found("no such sandbox")),
                Answer::Error(text) => return Err(Status::unknown(text)),
                Answer::Silence => {
                    tokio::time::sleep(Duration::from_secs(3600)).await;
                    String::new()
                }
            };
            let network = PodSandboxNetworkStatus { ip, additional_ips: Vec::new() };
            let status = PodSandboxStatus { id, network: Some(network), ..PodSandboxStatus::default() };
            Ok(Response::new(PodSandboxStatusResponse { status: Some(status), ..PodSandboxStatusResponse::default() }))
        }

        async fn list_containers(&self, _request: Request<ListContainersRequest>) -> Reply<ListContainersResponse> {
            let image_ref = "x".repeat(self.0.lock().unwrap().ballast);
            let container = Container { id: "container".to_owned(), image_ref, ..Container::default() };
            let containers = if self.0.lock().unwrap().no_containers { vec![] } else { vec![container] };
            Ok(Response::new(ListContainersResponse { containers }))
        }
    }
    run_pod_sandbox: RunPodSandboxRequest => RunPodSandboxResponse,
    stop_pod_sandbox: StopPodSandboxRequest => StopPodSandboxResponse,
    remove_pod_sandbox: RemovePodSandboxRequest => RemovePodSandboxResponse,
    create_container: CreateContainerRequest => CreateContainerResponse,
    start_container: StartContainerRequest => StartContainerResponse,
    stop_container: StopContainerRequest => StopContainerResponse,
    remove_container: RemoveContainerRequest => RemoveContainerResponse,
    container_status: ContainerStatusRequest => ContainerStatusResponse,
    update_container_resources: UpdateContainerResourcesRequest => UpdateContainerResourcesResponse,
    reopen_container_log: ReopenContainerLogRequest => ReopenContainerLogResponse,
    exec_sync: ExecSyncRequest => ExecSyncResponse,
    exec: ExecRequest => ExecResponse,
    attach: AttachRequest => AttachResponse,
    port_forward: PortForwardRequest => PortForwardResponse,
    container_stats: ContainerStatsRequest => ContainerStatsResponse,
    list_container_stats: ListContainerStatsRequest => ListContainerStatsResponse,
    pod_sandbox_stats: PodSandboxStatsRequest => PodSandboxStatsResponse,
    list_pod_sandbox_stats: ListPodSandboxStatsRequest => ListPodSandboxStatsResponse,
    update_runtime_config: UpdateRuntimeConfigRequest => UpdateRuntimeConfigResponse,
    status: StatusRequest => StatusResponse,
    checkpoint_container: CheckpointContainerRequest => CheckpointContainerResponse,
    list_metric_descriptors: ListMetricDescriptorsRequest => ListMetricDescriptorsResponse,
    list_pod_sandbox_metrics: ListPodSandboxMetricsRequest => ListPodSandboxMetricsResponse,
    runtime_config: RuntimeConfigRequest => RuntimeConfigResponse,
}
