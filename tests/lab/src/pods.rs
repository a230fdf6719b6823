//! Real pods without Kubernetes: a private containerd with its CRI plugin, real CNI plugins, and a host-local store.
//!
//! containerd, its shims and the CNI plugins run inside a network namespace that plays the node, so links, routes and
//! rules of the pods live there and go with it. All files are in the lab's directory, except two that the programs do
//! not let us move: the CNI result cache (`/var/lib/cni/results`) and the shims' sockets (`/run/containerd/s`); both
//! are found and removed by the sweep.

mod config;
mod leak;

use std::collections::HashMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use k8s_cri::v1::{
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata,
};
use nix::sys::signal::Signal;

use crate::cri::Cri;
use crate::netns::Netns;
use crate::process::{self, Process};

pub use config::NodeOptions;
pub(crate) use config::PLUGINS;
pub use leak::{Interrupted, Leak, Leaked};

/// The network's name: the store's directory and the beginning of the cached results' names.
pub const NETWORK: &str = "gke-pod-network";

/// A node: a containerd of our own inside a network namespace. Dropped, it goes with all its pods.
#[derive(Debug)]
pub struct Node {
    netns: Netns,
    dir: PathBuf,
    options: NodeOptions,
    /// The runtime and our connection to it; none while it is stopped.
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    cri: Cri,
    containerd: Process,
}

/// What a pod is to be.
#[derive(Debug, Clone, Default)]
pub struct PodSpec {
    pub namespace: String,
    pub name: String,
    /// Shares the node's network namespace: no address of its own, no reservation.
    pub host_network: bool,
    /// Shares the machine's pid namespace.
    pub host_pid: bool,
}

/// A pod that runs: a sandbox as the runtime made it. Not a guard: it goes with its [`Node`].
#[derive(Debug, Clone)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub sandbox_id: String,
    /// Its address from host-local; none on the node's network.
    pub address: Option<Ipv4Addr>,
    /// The pid of its sandbox's process.
    pub pid: u32,
    /// Its network namespace.
    pub netns: Netns,
    pub(crate) config: PodSandboxConfig,
}

impl Node {
    /// Starts containerd inside a namespace; takes a second or two.
    pub fn start(netns: &Netns, options: NodeOptions) -> Result<Self> {
        let dir = netns.lab().make_dir(&netns.name().replace(netns.lab().prefix(), ""))?;
        config::write(&dir, &options)?;
        netns.set_sysctl("net.ipv4.ip_forward", "1")?;
        let node = Self { netns: netns.clone(), dir, options, running: Mutex::new(None) };
        node.start_runtime()?;
        let pause = config::pause_image(netns.lab(), &node.dir)?;
        node.import_image(&pause)?;
        Ok(node)
    }

    /// Starts the runtime again after [`Node::stop_runtime`]; pods live on meanwhile.
    pub fn start_runtime(&self) -> Result<()> {
        let mut running = self.lock();
        if running.is_some() {
            return Ok(());
        }
        let config = self.dir.join("config.toml");
        let containerd =
            self.netns.spawn(self.netns.command("containerd", &["--config", &config.to_string_lossy()]))?;
        let cri = Cri::connect(&self.socket(), Duration::from_secs(30)).with_context(|| {
            let log = containerd.stderr();
            let errors = log.lines().filter(|line| line.contains("level=error") || line.contains("level=fatal"));
            format!("start containerd: {}", errors.map(|line| format!("{line}\n")).collect::<String>())
        })?;
        *running = Some(Running { cri, containerd });
        Ok(())
    }

    /// Kills the runtime as a crash would; the pods' shims and processes live on.
    pub fn stop_runtime(&self) -> Result<()> {
        // The drop of the process kills it.
        drop(self.lock().take());
        Ok(())
    }

    /// Stops the runtime where it is (SIGSTOP), as one that hangs, or lets it go on.
    pub fn hang_runtime(&self, hang: bool) -> Result<()> {
        let signal = if hang { Signal::SIGSTOP } else { Signal::SIGCONT };
        self.lock().as_ref().context("the node's runtime is stopped")?.containerd.signal(signal)
    }

    /// The runtime's socket, for `--cri-socket`.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    /// host-local's data directory, for `--cni-dir`; the store of the pods' network is `gke-pod-network` in it.
    pub fn cni_dir(&self) -> PathBuf {
        self.options.data_dir.clone().unwrap_or_else(|| self.dir.join("networks"))
    }

    /// The directory that holds one file per reserved address.
    pub fn store(&self) -> PathBuf {
        self.cni_dir().join(NETWORK)
    }

    /// Where the CNI configuration (`*.conflist`) is.
    pub fn cni_conf_dir(&self) -> PathBuf {
        self.dir.join("net.d")
    }

    /// The namespace that plays the node.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// containerd's log so far (of its present run).
    pub fn log(&self) -> String {
        self.lock().as_ref().map(|running| running.containerd.stderr()).unwrap_or_default()
    }

    /// Runs `ctr` against this containerd, in Kubernetes' namespace.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let socket = self.socket();
        let socket = socket.to_string_lossy();
        process::run(self.netns.lab(), "ctr", &[&["--address", &*socket, "--namespace", "k8s.io"], args].concat())
    }

    /// Runs a pod on the pod network.
    pub fn run_pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        self.run_pod_with(&PodSpec { namespace: namespace.into(), name: name.into(), ..PodSpec::default() })
    }

    /// Runs a pod.
    pub fn run_pod_with(&self, spec: &PodSpec) -> Result<Pod> {
        let config = self.sandbox_config(spec);
        let (sandbox_id, status) = self.with_cri(|cri| {
            let id = cri.run_sandbox(config.clone())?;
            let status = cri.sandbox_status(&id)?;
            Ok((id, status))
        })?;
        let address = match status.address.as_str() {
            _ if spec.host_network => None,
            address => Some(address.parse().with_context(|| format!("read the pod's address `{address}`"))?),
        };
        Ok(Pod {
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            sandbox_id,
            address,
            pid: status.pid,
            netns: Netns::of_pid(self.netns.lab(), status.pid),
            config,
        })
    }

    /// Stops and removes a pod the ordinary way: its address is given back.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        self.with_cri(|cri| cri.remove_sandbox(&pod.sandbox_id))
    }

    /// The sandboxes the runtime knows.
    pub fn sandboxes(&self) -> Result<Vec<String>> {
        self.with_cri(Cri::sandboxes)
    }

    /// The addresses reserved in the store, in order.
    pub fn reservations(&self) -> Result<Vec<Ipv4Addr>> {
        let store = self.store();
        let entries = fs::read_dir(&store).with_context(|| format!("list `{}`", store.display()))?;
        let mut addresses: Vec<Ipv4Addr> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        addresses.sort_unstable();
        Ok(addresses)
    }

    /// Makes a reservation look as old as `age` (its file's modification time).
    pub fn set_reservation_age(&self, address: Ipv4Addr, age: Duration) -> Result<()> {
        let path = self.store().join(address.to_string());
        let at = SystemTime::now().checked_sub(age).context("an age within the clock's range")?;
        let file = fs::File::options().write(true).open(&path).with_context(|| format!("open `{}`", path.display()))?;
        file.set_times(fs::FileTimes::new().set_modified(at).set_accessed(at))
            .with_context(|| format!("date `{}` back", path.display()))
    }

    /// The result CNI cached for a sandbox.
    pub fn cached_result(&self, sandbox_id: &str) -> PathBuf {
        Path::new("/var/lib/cni/results").join(format!("{NETWORK}-{sandbox_id}-eth0"))
    }

    pub(crate) fn with_cri<T>(&self, work: impl FnOnce(&mut Cri) -> Result<T>) -> Result<T> {
        work(&mut self.lock().as_mut().context("the node's runtime is stopped")?.cri)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sandbox_config(&self, spec: &PodSpec) -> PodSandboxConfig {
        let mode = |shared| if shared { NamespaceMode::Node } else { NamespaceMode::Pod } as i32;
        let uid = format!("{}-{}-{:x}", spec.namespace, spec.name, std::process::id());
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: spec.name.clone(),
                namespace: spec.namespace.clone(),
                uid: uid.clone(),
                attempt: 0,
            }),
            hostname: if spec.host_network { String::new() } else { spec.name.clone() },
            log_directory: self.dir.join("logs").join(&uid).to_string_lossy().into_owned(),
            // The labels the kubelet writes.
            labels: HashMap::from([
                ("io.kubernetes.pod.name".into(), spec.name.clone()),
                ("io.kubernetes.pod.namespace".into(), spec.namespace.clone()),
                ("io.kubernetes.pod.uid".into(), uid),
            ]),
            linux: Some(LinuxPodSandboxConfig {
                // The prefix in the cgroup's path is how the sweep knows the pods' processes.
                cgroup_parent: format!("/{}pods", self.netns.lab().prefix()),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        network: mode(spec.host_network),
                        pid: mode(spec.host_pid),
                        ..NamespaceOption::default()
                    }),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if crate::lab::stopping() {
            return;
        }
        let made_elsewhere = self.options.data_dir.is_some();
        // The ordinary way first, as far as it goes: then a store outside the lab's directory is given back, too.
        drop(self.with_cri(|cri| cri.sandboxes()?.iter().try_for_each(|id| cri.remove_sandbox(id))));
        drop(self.stop_runtime());
        if made_elsewhere {
            drop(fs::remove_dir_all(self.store()));
        }
        // Shims, mounts, cgroups and directories are the lab's drop's, by name.
    }
}
