//! Leaks made honestly: by what makes them on real nodes, not by writing into the store.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};

use super::{Node, Pod, PodSpec};

/// How a reservation comes to have no owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leak {
    /// The sandbox's container is removed behind the runtime's back and its namespace with it; no CNI DEL runs.
    BehindTheBack,
    /// The runtime is killed after CNI's ADD and before the sandbox starts, so that no result is cached. Runtimes that
    /// write the sandbox down before ADD (containerd since 1.6.9 or so) still know it as not ready: there its
    /// container is removed behind their back, too. The namespace, which nobody knows any more, goes (a reboot does
    /// that on real nodes).
    KilledAfterAdd,
    /// The same, but the namespace stays mounted, with the address in it and no process.
    KilledAfterAddNamespaceStays,
}

/// A reservation that belongs to nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaked {
    pub address: Ipv4Addr,
    /// The container id in the reservation's file.
    pub container_id: String,
}

/// A sandbox whose making was cut short after its address was reserved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interrupted {
    pub address: Ipv4Addr,
    /// The container id in the reservation's file.
    pub container_id: String,
    /// The mount of its network namespace, which still carries the address.
    pub netns: PathBuf,
    /// Whether the runtime still knows the sandbox (as not ready): then it is no leak.
    pub known: bool,
}

impl Node {
    /// Leaks a pod's address by removing its container behind the runtime's back; the runtime is restarted.
    pub fn leak(&self, pod: &Pod) -> Result<Leaked> {
        self.leak_all(std::slice::from_ref(pod))?.pop().context("one pod, one leak")
    }

    /// The same for several pods, with one restart of the runtime.
    pub fn leak_all(&self, pods: &[Pod]) -> Result<Vec<Leaked>> {
        let mut mounts = Vec::new();
        for pod in pods {
            mounts.push(self.netns_mount(pod)?);
            self.ctr(&["tasks", "kill", "--signal", "SIGKILL", &pod.sandbox_id])?;
            self.delete_container(&pod.sandbox_id)?;
        }
        // The CRI plugin still knows the sandboxes (not ready): it must start anew to have forgotten.
        self.stop_runtime()?;
        self.start_runtime()?;
        mounts.iter().try_for_each(|mount| drop_netns(mount))?;
        let leaked = pods.iter().map(|pod| {
            let address = pod.address.context("a pod on the node's network has no address to leak")?;
            self.check(Leaked { address, container_id: pod.sandbox_id.clone() })
        });
        leaked.collect()
    }

    /// Makes a leak of the wanted kind, with a pod of its own.
    pub fn make_leak(&self, namespace: &str, name: &str, how: Leak) -> Result<Leaked> {
        match how {
            Leak::BehindTheBack => self.leak(&self.run_pod(namespace, name)?),
            Leak::KilledAfterAdd | Leak::KilledAfterAddNamespaceStays => {
                let interrupted = self.interrupt_add(namespace, name)?;
                if interrupted.known {
                    self.delete_container(&interrupted.container_id)?;
                    self.stop_runtime()?;
                    self.start_runtime()?;
                }
                if how == Leak::KilledAfterAdd {
                    drop_netns(&interrupted.netns)?;
                }
                self.check(Leaked { address: interrupted.address, container_id: interrupted.container_id })
            }
        }
    }

    /// Removes a container from containerd's store while the CRI plugin is told nothing; it must have stopped, which
    /// takes a moment.
    fn delete_container(&self, id: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match self.ctr(&["containers", "delete", id]) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Kills the runtime after CNI's ADD and before the sandbox starts, and starts it again; nothing else is changed.
    pub fn interrupt_add(&self, namespace: &str, name: &str) -> Result<Interrupted> {
        let (hold, held) = (self.dir().join("hold-add"), self.dir().join("held-add"));
        let before = self.reservations().unwrap_or_default();
        let mounts_before = self.netns_mounts()?;
        fs::write(&hold, "").with_context(|| format!("write `{}`", hold.display()))?;
        let spec = PodSpec { namespace: namespace.into(), name: name.into(), ..PodSpec::default() };
        let container_id = std::thread::scope(|scope| {
            // Its answer never comes: the runtime dies under it. The connection has to be one of its own.
            let config = self.sandbox_config(&spec);
            let socket = self.socket();
            scope.spawn(move || {
                let cri = crate::cri::Cri::connect(&socket, Duration::from_secs(5));
                drop(cri.and_then(|mut cri| cri.run_sandbox(config)));
            });
            let id = wait_for_file(&held, Duration::from_secs(10));
            let stopped = self.stop_runtime();
            id.and_then(|id| stopped.map(|()| id))
        })?;
        for path in [&hold, &held] {
            fs::remove_file(path).with_context(|| format!("remove `{}`", path.display()))?;
        }
        self.start_runtime()?;
        let mut new = self.reservations()?;
        new.retain(|address| !before.contains(address));
        let &[address] = new.as_slice() else { bail!("expected one new reservation, found {new:?}") };
        let mut mounts = self.netns_mounts()?;
        mounts.retain(|mount| !mounts_before.contains(mount));
        let [netns] = mounts.as_slice() else { bail!("expected one new network namespace, found {mounts:?}") };
        let known = self.sandboxes()?.contains(&container_id);
        Ok(Interrupted { address, container_id, netns: netns.clone(), known })
    }

    /// A leak is one only if the file is there and the runtime knows nothing of it.
    fn check(&self, leaked: Leaked) -> Result<Leaked> {
        let path = self.store().join(leaked.address.to_string());
        let text = fs::read_to_string(&path).with_context(|| format!("read the reservation `{}`", path.display()))?;
        if !text.starts_with(&leaked.container_id) {
            bail!("`{}` belongs to `{text}`, not to `{}`", path.display(), leaked.container_id);
        }
        if self.sandboxes()?.contains(&leaked.container_id) {
            bail!("the runtime still knows the sandbox `{}`", leaked.container_id);
        }
        Ok(leaked)
    }

    /// The namespaces containerd has mounted for its pods.
    fn netns_mounts(&self) -> Result<Vec<PathBuf>> {
        let dir = self.dir().join("state/io.containerd.grpc.v1.cri/netns");
        let alternative = self.dir().join("state/netns");
        let dir = if dir.exists() { dir } else { alternative };
        Ok(fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect())
    }

    /// The mount of a pod's namespace.
    fn netns_mount(&self, pod: &Pod) -> Result<PathBuf> {
        use std::os::unix::fs::MetadataExt;
        let inode = pod.netns.inode()?;
        let mounts = self.netns_mounts()?;
        let mount = mounts.iter().find(|mount| fs::metadata(mount).is_ok_and(|file| file.ino() == inode));
        mount.cloned().with_context(|| format!("no mount of the namespace {inode} among {mounts:?}"))
    }
}

fn drop_netns(mount: &Path) -> Result<()> {
    match umount2(mount, MntFlags::MNT_DETACH) {
        // EINVAL, ENOENT: the restarting runtime tidied it away itself.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(errno).with_context(|| format!("unmount `{}`", mount.display())),
    }
    match fs::remove_file(mount) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove `{}`", mount.display()))
        }
        _ => Ok(()),
    }
}

fn wait_for_file(path: &Path, patience: Duration) -> Result<String> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Ok(text) = fs::read_to_string(path) {
            return Ok(text);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("`{}` did not appear within {patience:?}", path.display())
}
