//! Taking down by name: processes, mounts, namespaces, cgroups, CNI results and directories whose name carries a prefix;
//! and putting back what those directories note of the machine.
//!
//! This is the one way things go: guards call it for their own prefix, the signal handler for the process's, and
//! [`crate::Lab::sweep`] for those of dead processes. It starts no program, so that it works at any moment.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::MARKER;
use crate::machine;

const STEM: &str = "hrlab";
const NETNS_DIR: &str = "/run/netns";
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
const CNI_RESULTS: &str = "/var/lib/cni/results";
const SHIM_SOCKETS: &str = "/run/containerd/s";

/// The prefix of everything this process makes.
pub(crate) fn process_prefix() -> String {
    format!("{STEM}{}-", std::process::id())
}

/// Prefixes found on this machine whose process is gone.
pub(crate) fn dead_prefixes() -> Result<BTreeSet<String>> {
    let mut prefixes = BTreeSet::new();
    for dir in [std::env::temp_dir(), PathBuf::from(NETNS_DIR)] {
        for name in names_in(&dir)? {
            let Some(pid) = name
                .strip_prefix(STEM)
                .and_then(|rest| rest.split_once('-'))
                .and_then(|(pid, _)| pid.parse::<u32>().ok())
            else {
                continue;
            };
            if !Path::new(&format!("/proc/{pid}")).exists() {
                prefixes.insert(format!("{STEM}{pid}-"));
            }
        }
    }
    Ok(prefixes)
}

/// Removes everything that carries `prefix`; returns what was found. Nothing found is not an error, something that
/// could not be removed is.
pub(crate) fn remove(prefix: &str) -> Result<Vec<String>> {
    let mut removed = kill_processes(prefix)?;
    removed.extend(remove_shim_sockets(prefix)?);
    removed.extend(unmount(prefix)?);
    for name in names_in(Path::new(NETNS_DIR))?.into_iter().filter(|name| name.starts_with(prefix)) {
        let path = Path::new(NETNS_DIR).join(&name);
        tolerate_absence(fs::remove_file(&path)).with_context(|| format!("remove `{}`", path.display()))?;
        removed.push(format!("network namespace {name}"));
    }
    removed.extend(remove_cgroups(prefix)?);
    removed.extend(remove_cni_results(prefix)?);
    let dirs = names_in(&std::env::temp_dir())?;
    for name in dirs.into_iter().filter(|name| name.starts_with(prefix)) {
        let path = std::env::temp_dir().join(&name);
        removed.extend(machine::put_back(&path)?);
        if names_in(&path)?.iter().any(|node| path.join(node).join("config.toml").exists()) {
            remove_empty_dirs();
        }
        tolerate_absence(fs::remove_dir_all(&path)).with_context(|| format!("remove `{}`", path.display()))?;
        removed.push(format!("directory {}", path.display()));
    }
    Ok(removed)
}

/// Kills the processes marked with `prefix` and waits until they are gone.
///
/// A process is ours if the marker is in its environment (all that the lab starts, and what containerd starts) or its
/// cgroup's path carries the prefix (containers, whose environment is their own).
fn kill_processes(prefix: &str) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = processes(prefix)?;
        if found.is_empty() {
            return Ok(removed);
        }
        if Instant::now() > deadline {
            bail!("processes do not die: {found:?}");
        }
        for (pid, name) in found {
            // ESRCH: it went by itself.
            if kill(pid, Signal::SIGKILL).is_ok() {
                let line = format!("process {pid} {name}");
                if !removed.contains(&line) {
                    removed.push(line);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn processes(prefix: &str) -> Result<Vec<(Pid, String)>> {
    let marker = format!("{MARKER}={prefix}");
    let mut found = Vec::new();
    for name in names_in(Path::new("/proc"))? {
        let Ok(pid) = name.parse::<i32>() else { continue };
        if u32::try_from(pid) == Ok(std::process::id()) {
            continue;
        }
        let dir = Path::new("/proc").join(&name);
        // A process may go at any time; what cannot be read any more is not ours to kill.
        let stat = fs::read_to_string(dir.join("stat")).unwrap_or_default();
        if stat.is_empty() || stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])) {
            continue;
        }
        let environment = fs::read(dir.join("environ")).unwrap_or_default();
        let marked = environment.split(|byte| *byte == 0).any(|entry| entry.starts_with(marker.as_bytes()));
        let cgroup = fs::read_to_string(dir.join("cgroup")).unwrap_or_default();
        if marked || cgroup.contains(&format!("/{prefix}")) {
            let comm = fs::read_to_string(dir.join("comm")).unwrap_or_default();
            found.push((Pid::from_raw(pid), comm.trim().to_owned()));
        }
    }
    Ok(found)
}

/// Unmounts, newest first, everything whose mount point carries the prefix.
fn unmount(prefix: &str) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    // Several mounts may lie on one point, and a mount may hide another: read again until none is left.
    for _ in 0..8 {
        let points = mount_points(prefix)?;
        if points.is_empty() {
            return Ok(removed);
        }
        for point in points.into_iter().rev() {
            match umount2(&point, MntFlags::MNT_DETACH) {
                Ok(()) => removed.push(format!("mount {}", point.display())),
                Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
                Err(errno) => return Err(errno).with_context(|| format!("unmount `{}`", point.display())),
            }
        }
    }
    bail!("mounts of `{prefix}` keep coming back")
}

fn mount_points(prefix: &str) -> Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo").context("read `/proc/self/mountinfo`")?;
    let needle = format!("/{prefix}");
    Ok(table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
        .filter(|point| {
            let bytes = point.as_os_str().as_bytes();
            bytes.windows(needle.len()).any(|window| window == needle.as_bytes())
        })
        .collect())
}

/// Undoes the octal escapes of mountinfo (`\040` for a blank).
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escape = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match escape.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// Removes the sockets of killed shims: containerd 1.6 and 1.7 keep them outside its state directory, in
/// `/run/containerd/s`, and writes their names into the bundle.
fn remove_shim_sockets(prefix: &str) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in names_in(&std::env::temp_dir())?.into_iter().filter(|name| name.starts_with(prefix)) {
        for address in find(&std::env::temp_dir().join(name), OsStr::new("address"), 8) {
            let text = fs::read_to_string(&address).unwrap_or_default();
            let Some(path) = text.trim().strip_prefix("unix://").filter(|path| path.starts_with(SHIM_SOCKETS)) else {
                continue;
            };
            tolerate_absence(fs::remove_file(path)).with_context(|| format!("remove `{path}`"))?;
            removed.push(format!("socket {path}"));
        }
    }
    Ok(removed)
}

/// The directories that containerd and CNI made outside ours go if nobody else keeps anything in them.
fn remove_empty_dirs() {
    for dir in [SHIM_SOCKETS, "/run/containerd", CNI_RESULTS, "/var/lib/cni"] {
        // Not empty or not there: neither is ours to change.
        drop(fs::remove_dir(dir));
    }
}

/// Files named `name` at most `depth` levels below `dir`; unreadable directories hold none.
fn find(dir: &Path, name: &OsStr, depth: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Some(depth) = depth.checked_sub(1) else { return found };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        // A container's root file system is not searched: it is large and not containerd's.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && entry.file_name() != "rootfs" => {
                found.extend(find(&entry.path(), name, depth))
            }
            Ok(kind) if kind.is_file() && entry.file_name() == name => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

/// Removes the cgroups below a directory that carries the prefix, in every hierarchy.
fn remove_cgroups(prefix: &str) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for top in cgroups_named(Path::new(CGROUP_ROOT), prefix, 4) {
        remove_cgroup(&top)?;
        removed.push(format!("cgroup {}", top.display()));
    }
    Ok(removed)
}

fn cgroups_named(dir: &Path, prefix: &str, depth: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Some(depth) = depth.checked_sub(1) else { return found };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
            found.push(entry.path());
        } else {
            found.extend(cgroups_named(&entry.path(), prefix, depth));
        }
    }
    found
}

fn remove_cgroup(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    // The kernel lets go of a dead process a moment after it is gone from /proc.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match tolerate_absence(fs::remove_dir(dir)) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(error).with_context(|| format!("remove the cgroup `{}`", dir.display())),
        }
    }
}

/// Removes cached CNI results that speak of our directory (the path of the pod's namespace is in them).
fn remove_cni_results(prefix: &str) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in names_in(Path::new(CNI_RESULTS))? {
        let path = Path::new(CNI_RESULTS).join(&name);
        let text = fs::read(&path).unwrap_or_default();
        let needle = format!("/{prefix}");
        if text.windows(needle.len()).any(|window| window == needle.as_bytes()) {
            tolerate_absence(fs::remove_file(&path)).with_context(|| format!("remove `{}`", path.display()))?;
            removed.push(format!("CNI result {name}"));
        }
    }
    Ok(removed)
}

/// The names in a directory; none if it does not exist.
fn names_in(dir: &Path) -> Result<Vec<String>> {
    match fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("list `{}`", dir.display())),
    }
}

fn tolerate_absence(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the reading of mountinfo. If this fails, mounts in paths with blanks are left behind.
    #[test]
    fn octal_escapes_of_mountinfo_are_undone() {
        assert_eq!(unescape(br"/tmp/a\040b\134c"), PathBuf::from("/tmp/a b\\c"));
        assert_eq!(unescape(br"/tmp/a\"), PathBuf::from("/tmp/a\\"));
    }
}
