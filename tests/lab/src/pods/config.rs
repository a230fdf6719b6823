//! The files containerd and CNI are started with, and the pause image.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::NETWORK;
use crate::image::{self, ImageFile};
use crate::lab::Lab;
use crate::process;

/// Where Debian keeps the CNI plugins.
pub(crate) const PLUGINS: &str = "/usr/lib/cni";
pub(super) const PAUSE_IMAGE: &str = "headroom.lab/pause:1";

/// How a node is to be.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// The node's pod range.
    pub subnet: String,
    /// host-local's data directory; the lab's own if none is given. The network's store in a given one is removed with
    /// the node, but not after a crash: it has no name to know it by.
    pub data_dir: Option<PathBuf>,
    /// Chain `portmap` after `ptp`.
    pub portmap: bool,
    /// Let `ptp` masquerade; off where the node's own rules do it.
    pub ip_masq: bool,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self { subnet: "10.64.0.0/26".into(), data_dir: None, portmap: true, ip_masq: false }
    }
}

/// Writes `config.toml`, `net.d/10-gke-ptp.conflist` and `bin/`.
pub(super) fn write(dir: &Path, options: &NodeOptions) -> Result<()> {
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("write `{}`", path.display()))
    };
    for name in ["net.d", "bin", "logs"] {
        fs::create_dir_all(dir.join(name)).with_context(|| format!("create `{}/{name}`", dir.display()))?;
    }
    write("config.toml", &containerd(dir))?;
    write("net.d/10-gke-ptp.conflist", &conflist(dir, options)?)?;
    for plugin in ["loopback", "host-local", "portmap", "bridge", "bandwidth"] {
        let link = dir.join("bin").join(plugin);
        symlink(Path::new(PLUGINS).join(plugin), &link).with_context(|| format!("link `{}`", link.display()))?;
    }
    write("bin/ptp", &ptp_wrapper(dir))?;
    let ptp = dir.join("bin/ptp");
    fs::set_permissions(&ptp, fs::Permissions::from_mode(0o755)).with_context(|| format!("chmod `{}`", ptp.display()))
}

/// `restrict_oom_score_adj`: without it no sandbox starts where the machine may not lower oom scores.
fn containerd(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
[grpc]
  address = "{dir}/c.sock"
[ttrpc]
  address = "{dir}/c.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{dir}/bin"
    conf_dir = "{dir}/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "{dir}/runc"
"#
    )
}

/// The list GKE's nodes have, with our range and store.
fn conflist(dir: &Path, options: &NodeOptions) -> Result<String> {
    let data_dir = options.data_dir.clone().unwrap_or_else(|| dir.join("networks"));
    let mut plugins = vec![serde_json::json!({
        "type": "ptp",
        "mtu": 1460,
        "ipMasq": options.ip_masq,
        "ipam": {
            "type": "host-local",
            "ranges": [[{ "subnet": options.subnet }]],
            "routes": [{ "dst": "0.0.0.0/0" }],
            "dataDir": data_dir,
        },
    })];
    if options.portmap {
        plugins.push(serde_json::json!({ "type": "portmap", "capabilities": { "portMappings": true } }));
    }
    let list = serde_json::json!({ "cniVersion": "0.3.1", "name": NETWORK, "plugins": plugins });
    serde_json::to_string_pretty(&list).context("write the conflist")
}

/// The real `ptp`, with a place to stop after it has done its work: while the file `hold-add` exists an ADD says so
/// (`held-add`) and waits. That is where a crash makes a leak.
fn ptp_wrapper(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"#!/bin/sh
result=$({PLUGINS}/ptp) || {{ code=$?; printf '%s' "$result"; exit $code; }}
if [ "$CNI_COMMAND" = ADD ] && [ -e '{dir}/hold-add' ]; then
    printf '%s' "$CNI_CONTAINERID" > '{dir}/held-add.new' && mv '{dir}/held-add.new' '{dir}/held-add'
    exec sleep 600
fi
printf '%s' "$result"
"#
    )
}

/// A static program that waits, as an image.
pub(super) fn pause_image(lab: &Lab, dir: &Path) -> Result<PathBuf> {
    let source = dir.join("pause.c");
    let program = dir.join("pause");
    let archive = dir.join("pause.tar");
    // As Kubernetes' pause: waits, reaps, ends on a signal (pid 1 has no default for them).
    let text = "#include <signal.h>\n#include <sys/wait.h>\n#include <unistd.h>\n\
                static void end(int signal) { _exit(signal == SIGINT ? 1 : 0); }\n\
                static void reap(int signal) { while (waitpid(-1, 0, WNOHANG) > 0) {} }\n\
                int main(void) { signal(SIGINT, end); signal(SIGTERM, end); signal(SIGCHLD, reap); for (;;) pause(); }\n";
    fs::write(&source, text).with_context(|| format!("write `{}`", source.display()))?;
    process::run(lab, "cc", &["-static", "-Os", "-s", "-o", &program.to_string_lossy(), &source.to_string_lossy()])
        .context("build the pause program; are gcc and libc6-dev installed?")?;
    image::build(lab, &archive, PAUSE_IMAGE, &[ImageFile::new(&program, "/pause")], &["/pause"])?;
    Ok(archive)
}
