//! The little of the Container Runtime Interface (v1) that the lab needs, blocking.
//!
//! Must not be called from inside an async runtime: each client brings its own.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerStatus, ContainerStatusRequest, CreateContainerRequest, ListPodSandboxRequest,
    PodSandboxConfig, PodSandboxStatusRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StatusRequest, StopPodSandboxRequest,
};
use tonic::transport::{Channel, Endpoint, Uri};

type Client = RuntimeServiceClient<Channel>;

/// A connection to a runtime.
#[derive(Debug)]
pub struct Cri {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

/// What the runtime says of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxStatus {
    /// The pod's address; empty for a pod on the host's network.
    pub address: String,
    /// The pid of the sandbox's own process (pause).
    pub pid: u32,
}

impl Cri {
    /// Connects to a socket and waits until the runtime says it is ready, its network included.
    pub fn connect(socket: &Path, patience: Duration) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(path).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        // The address is never used: the connector always goes to the socket.
        let endpoint = Endpoint::from_static("http://cri.invalid").timeout(Duration::from_secs(120));
        let client = {
            let _inside = runtime.enter();
            RuntimeServiceClient::new(endpoint.connect_with_connector_lazy(connector))
        };
        let mut cri = Self { runtime, client };
        let deadline = Instant::now() + patience;
        loop {
            let why = match cri.not_ready() {
                Ok(why) if why.is_empty() => return Ok(cri),
                Ok(why) => why,
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() > deadline {
                bail!("the runtime at `{}` is not ready after {patience:?}: {why}", socket.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Why the runtime is not ready; empty when it is.
    fn not_ready(&mut self) -> Result<String> {
        let answer = self.runtime.block_on(self.client.status(StatusRequest { verbose: false }));
        let status = answer.context("ask for the runtime's status")?.into_inner().status.unwrap_or_default();
        let bad = status.conditions.iter().filter(|condition| !condition.status);
        Ok(bad.map(|condition| format!("{}: {} ", condition.r#type, condition.message)).collect())
    }

    /// Makes a sandbox; its id.
    pub fn run_sandbox(&mut self, config: PodSandboxConfig) -> Result<String> {
        let request = RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let answer = self.runtime.block_on(self.client.run_pod_sandbox(request)).context("run a pod sandbox")?;
        Ok(answer.into_inner().pod_sandbox_id)
    }

    /// What the runtime knows of a sandbox.
    pub fn sandbox_status(&mut self, id: &str) -> Result<SandboxStatus> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: true };
        let answer = self.runtime.block_on(self.client.pod_sandbox_status(request));
        let answer = answer.with_context(|| format!("ask for the status of the sandbox `{id}`"))?.into_inner();
        let address = answer.status.and_then(|status| status.network).map(|network| network.ip).unwrap_or_default();
        let info: serde_json::Value = serde_json::from_str(answer.info.get("info").map_or("{}", String::as_str))
            .context("read the sandbox's verbose information")?;
        let pid = info.get("pid").and_then(serde_json::Value::as_u64).and_then(|pid| u32::try_from(pid).ok());
        Ok(SandboxStatus { address, pid: pid.context("the runtime did not say the sandbox's pid")? })
    }

    /// The ids of all sandboxes the runtime knows.
    pub fn sandboxes(&mut self) -> Result<Vec<String>> {
        let answer = self.runtime.block_on(self.client.list_pod_sandbox(ListPodSandboxRequest { filter: None }));
        Ok(answer.context("list the sandboxes")?.into_inner().items.into_iter().map(|item| item.id).collect())
    }

    /// Stops a sandbox (CNI DEL included) and removes it with its containers.
    pub fn remove_sandbox(&mut self, id: &str) -> Result<()> {
        let stop = StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime
            .block_on(self.client.stop_pod_sandbox(stop))
            .with_context(|| format!("stop the sandbox `{id}`"))?;
        let remove = RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime
            .block_on(self.client.remove_pod_sandbox(remove))
            .with_context(|| format!("remove the sandbox `{id}`"))?;
        Ok(())
    }

    /// Creates and starts a container in a sandbox; its id.
    pub fn run_container(
        &mut self,
        sandbox: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let answer = self.runtime.block_on(self.client.create_container(request)).context("create a container")?;
        let id = answer.into_inner().container_id;
        let start = StartContainerRequest { container_id: id.clone() };
        self.runtime.block_on(self.client.start_container(start)).with_context(|| format!("start `{id}`"))?;
        Ok(id)
    }

    /// What the runtime knows of a container.
    pub fn container_status(&mut self, id: &str) -> Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        let answer = self.runtime.block_on(self.client.container_status(request));
        answer
            .with_context(|| format!("ask for the status of the container `{id}`"))?
            .into_inner()
            .status
            .with_context(|| format!("the runtime knows no status of the container `{id}`"))
    }

    /// Asks a container to end, kills it after `grace`.
    pub fn stop_container(&mut self, id: &str, grace: Duration) -> Result<()> {
        let timeout = i64::try_from(grace.as_secs()).context("a grace of less than the age of the universe")?;
        let request = k8s_cri::v1::StopContainerRequest { container_id: id.into(), timeout };
        self.runtime
            .block_on(self.client.stop_container(request))
            .with_context(|| format!("stop the container `{id}`"))?;
        Ok(())
    }
}
