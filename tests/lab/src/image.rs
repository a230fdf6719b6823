//! Images without a registry: built as docker-archives, imported into the lab's containerd, run through the CRI.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_cri::v1::{
    Capability, ContainerConfig, ContainerMetadata, ContainerState, ImageSpec, Int64Value, KeyValue,
    LinuxContainerConfig, LinuxContainerSecurityContext, Mount, MountPropagation, NamespaceMode, NamespaceOption,
    SecurityProfile, security_profile::ProfileType,
};

use crate::lab::Lab;
use crate::pods::{Node, Pod};
use crate::process;

/// A file of an image.
#[derive(Debug, Clone)]
pub struct ImageFile {
    source: PathBuf,
    target: PathBuf,
}

impl ImageFile {
    /// The file `source`, executable, at `target` (absolute) in the image.
    pub fn new(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), target: target.into() }
    }
}

/// Builds a docker-archive of one layer.
pub fn build(lab: &Lab, archive: &Path, tag: &str, files: &[ImageFile], entrypoint: &[&str]) -> Result<()> {
    let work = archive.with_extension("d");
    let root = work.join("root");
    for file in files {
        let inside = root.join(file.target.strip_prefix("/").context("a path in an image is absolute")?);
        let parent = inside.parent().context("a file in an image has a directory")?;
        fs::create_dir_all(parent).with_context(|| format!("create `{}`", parent.display()))?;
        fs::copy(&file.source, &inside).with_context(|| format!("copy `{}`", file.source.display()))?;
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("chmod `{}`", inside.display()))?;
    }
    let (work_name, root_name) = (work.to_string_lossy().into_owned(), root.to_string_lossy().into_owned());
    let layer = work.join("layer.tar");
    let layer_name = layer.to_string_lossy().into_owned();
    process::run(
        lab,
        "tar",
        &["--numeric-owner", "--owner=0", "--group=0", "-C", &root_name, "-cf", &layer_name, "."],
    )?;
    let digest = process::run(lab, "sha256sum", &[&layer_name])?;
    let digest = digest.split_whitespace().next().context("sha256sum prints the sum first")?;
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Entrypoint": entrypoint },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"] }]);
    for (name, json) in [("config.json", config), ("manifest.json", manifest)] {
        fs::write(work.join(name), json.to_string()).with_context(|| format!("write `{work_name}/{name}`"))?;
    }
    let archive_name = archive.to_string_lossy().into_owned();
    process::run(lab, "tar", &["-C", &work_name, "-cf", &archive_name, "manifest.json", "config.json", "layer.tar"])?;
    fs::remove_dir_all(&work).with_context(|| format!("remove `{work_name}`"))
}

/// A container to run in a pod's sandbox. User 0, all capabilities dropped but those named.
#[derive(Debug, Clone, Default)]
pub struct ContainerSpec {
    pub name: String,
    /// The image's name as it was imported.
    pub image: String,
    /// Instead of the image's entrypoint, unless empty.
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Files and directories of the machine: where, where in the container, read-only.
    pub mounts: Vec<HostMount>,
    /// Capabilities without `CAP_`: `BPF`, `PERFMON`, …
    pub add_capabilities: Vec<String>,
    /// A root file system that cannot be written.
    pub read_only_root: bool,
    /// The runtime's own seccomp filter (`RuntimeDefault`) instead of none.
    pub seccomp_runtime_default: bool,
}

/// A path of the machine in a container.
#[derive(Debug, Clone)]
pub struct HostMount {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    pub read_only: bool,
    /// Mounts made later below it appear in the container, too (`HostToContainer`).
    pub follows_host: bool,
}

/// A container that was started. Not a guard: it goes with its node.
#[derive(Debug)]
pub struct Container<'node> {
    node: &'node Node,
    pub id: String,
    log: PathBuf,
}

/// What a container said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerOutput {
    pub exit_code: i32,
    /// The runtime's word for the end: `Completed`, `Error`, `OOMKilled`.
    pub reason: String,
    pub stdout: String,
    pub stderr: String,
}

impl Node {
    /// Imports a docker-archive or OCI archive; the images' names.
    pub fn import_image(&self, archive: &Path) -> Result<Vec<String>> {
        // `unpacking docker.io/library/x:1 (sha256:…)...done`
        let said = self.ctr(&["images", "import", &archive.to_string_lossy()])?;
        let words = said.lines().filter_map(|line| line.strip_prefix("unpacking ")?.split_whitespace().next());
        Ok(words.map(str::to_owned).collect())
    }

    /// Creates and starts a container in a pod.
    pub fn run_container(&self, pod: &Pod, spec: &ContainerSpec) -> Result<Container<'_>> {
        let log_dir = PathBuf::from(&pod.config.log_directory);
        fs::create_dir_all(&log_dir).with_context(|| format!("create `{}`", log_dir.display()))?;
        let config = container_config(pod, spec);
        let log = log_dir.join(&config.log_path);
        let id = self.with_cri(|cri| cri.run_container(&pod.sandbox_id, config, pod.config.clone()))?;
        Ok(Container { node: self, id, log })
    }
}

fn container_config(pod: &Pod, spec: &ContainerSpec) -> ContainerConfig {
    let shared = pod.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let shared = shared.and_then(|context| context.namespace_options.clone()).unwrap_or_default();
    // A container's own pid namespace, unless the pod has the machine's.
    let pid = if shared.pid == NamespaceMode::Node as i32 { shared.pid } else { NamespaceMode::Container as i32 };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: spec.name.clone(), attempt: 0 }),
        image: Some(ImageSpec { image: spec.image.clone(), ..ImageSpec::default() }),
        command: spec.command.clone(),
        args: spec.args.clone(),
        envs: spec.env.iter().map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() }).collect(),
        mounts: spec.mounts.iter().map(mount).collect(),
        log_path: format!("{}.log", spec.name),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                capabilities: Some(Capability {
                    add_capabilities: spec.add_capabilities.clone(),
                    drop_capabilities: vec!["ALL".into()],
                    ..Capability::default()
                }),
                namespace_options: Some(NamespaceOption { pid, ..shared }),
                run_as_user: Some(Int64Value { value: 0 }),
                readonly_rootfs: spec.read_only_root,
                no_new_privs: true,
                seccomp: Some(SecurityProfile {
                    profile_type: if spec.seccomp_runtime_default {
                        ProfileType::RuntimeDefault
                    } else {
                        ProfileType::Unconfined
                    } as i32,
                    ..SecurityProfile::default()
                }),
                ..LinuxContainerSecurityContext::default()
            }),
            ..LinuxContainerConfig::default()
        }),
        ..ContainerConfig::default()
    }
}

fn mount(mount: &HostMount) -> Mount {
    Mount {
        host_path: mount.host_path.to_string_lossy().into_owned(),
        container_path: mount.container_path.to_string_lossy().into_owned(),
        readonly: mount.read_only,
        propagation: if mount.follows_host {
            MountPropagation::PropagationHostToContainer
        } else {
            MountPropagation::PropagationPrivate
        } as i32,
        ..Mount::default()
    }
}

impl Container<'_> {
    /// Waits for its end.
    pub fn wait(&self, timeout: Duration) -> Result<ContainerOutput> {
        let deadline = Instant::now() + timeout;
        loop {
            let status = self.node.with_cri(|cri| cri.container_status(&self.id))?;
            if status.state == ContainerState::ContainerExited as i32 {
                let (stdout, stderr) = self.output()?;
                return Ok(ContainerOutput { exit_code: status.exit_code, reason: status.reason, stdout, stderr });
            }
            if Instant::now() > deadline {
                let (stdout, stderr) = self.output()?;
                bail!("the container `{}` still runs after {timeout:?}: {stdout}{stderr}", self.id);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks it to end, kills it after `grace`.
    pub fn stop(&self, grace: Duration) -> Result<ContainerOutput> {
        self.node.with_cri(|cri| cri.stop_container(&self.id, grace))?;
        self.wait(Duration::from_secs(5))
    }

    /// What it wrote so far: stdout and stderr.
    pub fn output(&self) -> Result<(String, String)> {
        let log = fs::read_to_string(&self.log).with_context(|| format!("read the log `{}`", self.log.display()))?;
        Ok((stream(&log, "stdout"), stream(&log, "stderr")))
    }

    /// Its log file, in the CRI's format.
    pub fn log(&self) -> &Path {
        &self.log
    }
}

/// One stream out of a log whose lines read `<time> stdout F <text>`; `P` marks a part of a longer line.
fn stream(log: &str, name: &str) -> String {
    let mut text = String::new();
    for line in log.lines() {
        let mut fields = line.splitn(4, ' ').skip(1);
        if fields.next() != Some(name) {
            continue;
        }
        let whole = fields.next() != Some("P");
        text.push_str(fields.next().unwrap_or_default());
        if whole {
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the reading of CRI logs. If this fails, a test on a container's JSON sees it broken in pieces.
    #[test]
    fn parts_of_a_long_line_in_a_log_are_joined() {
        let log = "2026-01-01T00:00:00Z stdout P {\"a\":\n2026-01-01T00:00:00Z stderr F oh\n\
                   2026-01-01T00:00:00Z stdout F 1}\n2026-01-01T00:00:00Z stdout F end\n";
        assert_eq!(stream(log, "stdout"), "{\"a\":1}\nend\n");
        assert_eq!(stream(log, "stderr"), "oh\n");
    }
}
