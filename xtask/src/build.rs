//! Building and running the binary.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Purpose};
use crate::shell::{cargo, host_triple, is_root, run as run_command, shown, target_dir, which, workspace};
use crate::{say, toolchain};

/// Builds the binary; gives its path.
pub(crate) fn binary(release: bool) -> Result<PathBuf> {
    setup::require(Purpose::Build)?;
    match toolchain::find() {
        Ok(found) => say::line(format_args!("eBPF programs: {found}")),
        Err(missing) => say::line(format_args!("eBPF programs: none, {missing}; see `cargo xtask setup`")),
    }
    let mut command = cargo(["build", "--package", "headroom"]);
    if release {
        command.arg("--release");
    }
    run_command(&mut command)?;
    let path = target_dir().join(if release { "release" } else { "debug" }).join("headroom");
    say::line(path.display());
    Ok(path)
}

/// Builds a binary that needs no shared libraries: it runs in an empty image and on any distribution.
pub(crate) fn static_binary() -> Result<PathBuf> {
    setup::require(Purpose::Build)?;
    let host = host_triple()?;
    // Other flags, other artefacts: with a folder of its own the ordinary build stays as it is.
    let folder = target_dir().join("static");
    let mut command = cargo(["build", "--package", "headroom", "--release", "--target", &host, "--target-dir"]);
    // Naming the target keeps the flags from build scripts and macros, which cannot be static.
    run_command(command.arg(&folder).env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let binary = folder.join("headroom");
    let built = folder.join(&host).join("release/headroom");
    std::fs::copy(&built, &binary).with_context(|| format!("copy {}", built.display()))?;
    say::line(binary.display());
    Ok(binary)
}

/// Builds the image out of the static binary into `target/headroom-image.tar`, a docker-archive.
pub(crate) fn image() -> Result<()> {
    if which("buildah").is_none() {
        bail!("there is no buildah to build the image with; see `cargo xtask setup`");
    }
    let context = target_dir().join("image");
    std::fs::create_dir_all(&context).with_context(|| format!("create {}", context.display()))?;
    std::fs::copy(static_binary()?, context.join("headroom")).context("copy the binary beside the Containerfile")?;
    let (archive, tag) = (target_dir().join("headroom-image.tar"), "localhost/headroom:latest");
    // An archive of an earlier build would be added to, not replaced.
    if archive.exists() {
        std::fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
    }
    let storage = target_dir().join("buildah");
    let buildah = |arguments: &[&std::ffi::OsStr]| {
        let mut command = Command::new("buildah");
        command.args(["--storage-driver", "vfs", "--root"]).arg(&storage).arg("--runroot").arg(&storage);
        run_command(command.args(arguments))
    };
    let containerfile = workspace().join("deploy/Containerfile");
    let words = ["bud", "--isolation", "chroot", "-t", tag, "-f"].map(std::ffi::OsStr::new);
    buildah(&[&words[..], &[containerfile.as_os_str(), context.as_os_str()]].concat())?;
    let destination = format!("docker-archive:{}:{tag}", archive.display());
    buildah(&["push".as_ref(), tag.as_ref(), destination.as_ref()])?;
    say::line(archive.display());
    Ok(())
}

/// Builds the binary and runs it as root; its exit code is ours.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let mut command = Command::new(binary(true)?);
    command.args(arguments);
    to_its_end(as_root(command)?)
}

/// Builds the binary and the lab, and runs a scenario; its exit code is ours.
pub(crate) fn lab(arguments: &[String]) -> Result<ExitCode> {
    setup::require(Purpose::Test)?;
    to_its_end(lab_command(arguments)?)
}

/// Builds the binary and the lab; gives the command that runs the lab as root.
pub(crate) fn lab_command(arguments: &[String]) -> Result<Command> {
    let binary = binary(true)?;
    run_command(&mut cargo(["build", "--package", "headroom-lab", "--release"]))?;
    let mut lab = Command::new(target_dir().join("release/headroom-lab"));
    lab.args(arguments).env("HEADROOM_BIN", binary);
    as_root(lab)
}

/// A command as root, through sudo if we are not.
pub(crate) fn as_root(command: Command) -> Result<Command> {
    if is_root() {
        return Ok(command);
    }
    let Some(path) = which("sudo") else {
        bail!("`{}` needs root, and there is no sudo; run it as root", shown(&command));
    };
    let mut sudo = Command::new(path);
    for (name, value) in command.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        let mut assignment = name.to_owned();
        assignment.push("=");
        assignment.push(value);
        sudo.arg(assignment);
    }
    sudo.arg(command.get_program()).args(command.get_args());
    Ok(sudo)
}

/// Runs a command; its exit code is ours.
fn to_its_end(mut command: Command) -> Result<ExitCode> {
    let status = command.status().with_context(|| format!("run `{}`", shown(&command)))?;
    // A signal has no exit code.
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
