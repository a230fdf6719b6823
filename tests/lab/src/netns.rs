//! Network namespaces: made, entered, wired together, removed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};

use crate::lab::{Lab, stopping};
use crate::process::{self, Process};

/// A network namespace. Cheap to clone; the last clone removes the namespace, unless it was only borrowed.
#[derive(Debug, Clone)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lab: Lab,
    path: PathBuf,
    /// Made by us and therefore removed by us.
    owned: bool,
}

impl Netns {
    /// Makes a namespace named `<prefix><name>` (as `ip netns` knows it) with its loopback up.
    pub fn add(lab: &Lab, name: &str) -> Result<Self> {
        let name = lab.name(name);
        process::run(lab, "ip", &["netns", "add", &name])?;
        let netns = Self(Arc::new(Inner { lab: lab.clone(), path: Path::new("/run/netns").join(&name), owned: true }));
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// The namespace of a living process, for as long as that lives; never removed by this guard.
    pub fn of_pid(lab: &Lab, pid: u32) -> Self {
        Self(Arc::new(Inner { lab: lab.clone(), path: format!("/proc/{pid}/ns/net").into(), owned: false }))
    }

    /// The lab it belongs to.
    pub fn lab(&self) -> &Lab {
        &self.0.lab
    }

    /// A file that stands for the namespace (`/run/netns/…` or `/proc/<pid>/ns/net`).
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The name `ip netns` knows it by; the pid's file name for a borrowed one.
    pub fn name(&self) -> String {
        self.0.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The number the kernel knows it by.
    pub fn inode(&self) -> Result<u64> {
        Ok(fs::metadata(self.path()).with_context(|| format!("stat `{}`", self.path().display()))?.ino())
    }

    /// Runs a closure on a thread of its own inside the namespace. Files of the namespace are at
    /// `/proc/thread-self/net` (not `/proc/self/net`, which is the main thread's) and `/proc/sys/net`.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = self.path();
        let file = File::open(path).with_context(|| format!("open the network namespace `{}`", path.display()))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("enter the network namespace `{}`", path.display()))?;
                work()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs a program inside to its end; returns its stdout, its failure is an error.
    pub fn exec(&self, program: &str, args: &[&str]) -> Result<String> {
        self.run(|| process::run(self.lab(), program, args))
            .with_context(|| format!("in the network namespace `{}`", self.name()))
    }

    /// A command to be started with [`Netns::spawn`].
    pub fn command(&self, program: impl AsRef<OsStr>, args: &[&str]) -> Command {
        process::command(self.lab(), program, args)
    }

    /// Starts a command inside. Only the network namespace is entered: mounts, `/sys` and all else stay the machine's
    /// (`ip netns exec` would mount a new `/sys` and hide tracefs from an agent).
    pub fn spawn(&self, command: Command) -> Result<Process> {
        self.run(|| Process::spawn(self.lab(), command))
    }

    /// Runs `ip` inside.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        self.exec("ip", args)
    }

    /// Gives a link an address (`10.0.0.2/24`).
    pub fn add_address(&self, link: &str, cidr: &str) -> Result<()> {
        self.ip(&["address", "add", cidr, "dev", link]).map(drop)
    }

    /// Adds a route: `&["default", "via", "10.0.0.1"]`.
    pub fn add_route(&self, route: &[&str]) -> Result<()> {
        self.ip(&[&["route", "add"], route].concat()).map(drop)
    }

    /// Brings a link up.
    pub fn up(&self, link: &str) -> Result<()> {
        self.ip(&["link", "set", "dev", link, "up"]).map(drop)
    }

    /// Reads a sysctl of the namespace (`net.ipv4.ip_local_port_range`).
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let path = sysctl_path(key);
        self.run(|| Ok(fs::read_to_string(&path).with_context(|| format!("read `{path}`"))?.trim().to_owned()))
    }

    /// Sets a sysctl of the namespace; only `net.*`, the others are not per namespace.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        if !key.starts_with("net.") {
            return Err(anyhow!("`{key}` is the whole machine's; the lab sets only `net.*`"));
        }
        let path = sysctl_path(key);
        self.run(|| fs::write(&path, value).with_context(|| format!("write `{value}` to `{path}`")))
    }
}

fn sysctl_path(key: &str) -> String {
    format!("/proc/sys/{}", key.replace('.', "/"))
}

impl Drop for Inner {
    fn drop(&mut self) {
        // What fails here the lab's own drop finds by name and reports; after a signal its handler does all of it.
        if self.owned && !stopping() && umount2(&self.path, MntFlags::MNT_DETACH).is_ok() {
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Joins two namespaces with a pair of links, both up. The pair is made inside them: the machine never sees it.
pub fn veth(one: (&Netns, &str), other: (&Netns, &str)) -> Result<()> {
    let peer = other.0.path().to_string_lossy().into_owned();
    one.0.ip(&["link", "add", "name", one.1, "type", "veth", "peer", "name", other.1, "netns", &peer])?;
    one.0.up(one.1)?;
    other.0.up(other.1)
}
