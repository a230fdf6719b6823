//! Which network namespaces there are, and through which processes their tables can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt;

use headroom_core::ids::NetnsInode;

use crate::root::HostRoot;

/// How many processes are kept for a namespace: the first may end before its table is read.
const CANDIDATES: usize = 4;

/// Stands for the node in a captured tree that tells of no process: `/proc/./net` is `/proc/net`.
const WHOLE_TREE: &str = ".";

/// What a walk over `/proc` found.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Namespaces, and names of directories in `/proc` that show their tables.
    pub(super) namespaces: BTreeMap<NetnsInode, Vec<String>>,
    /// Processes whose namespace may not be seen, and is none of those above.
    pub(super) denied: Vec<String>,
    /// What else did not work.
    pub(super) failed: Option<String>,
}

/// Looks at every process.
pub(super) fn walk(root: &HostRoot) -> Walk {
    let mut walk = Walk::default();
    if root.is_live() {
        walk.add(root, "thread-self".to_owned());
    }
    let entries = match std::fs::read_dir(root.path("/proc")) {
        Ok(entries) => entries,
        Err(error) => {
            walk.failed = Some(format!("cannot list `/proc`: {error}"));
            return walk;
        }
    };
    for entry in entries {
        match entry {
            Ok(entry) => {
                let name = entry.file_name();
                if let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
                    walk.add(root, pid.to_owned());
                }
            }
            Err(error) => walk.failed = Some(format!("cannot list `/proc`: {error}")),
        }
    }
    if walk.namespaces.is_empty() && !root.is_live() {
        walk.add(root, WHOLE_TREE.to_owned());
    }
    walk.recognise_denied(root);
    walk
}

impl Walk {
    /// Forgets the denied processes that live in a namespace another process made known. The kernel makes `net/tcp` once
    /// per namespace, and its inode may be seen by everybody.
    fn recognise_denied(&mut self, root: &HostRoot) {
        let table =
            |process: &str| std::fs::metadata(root.path(format!("/proc/{process}/net/tcp"))).map(|data| data.ino());
        if self.denied.is_empty() || !root.is_live() {
            return;
        }
        let known: BTreeSet<u64> = self
            .namespaces
            .values()
            .filter_map(|processes| processes.iter().find_map(|name| table(name).ok()))
            .collect();
        self.denied.retain(|process| match table(process) {
            Ok(inode) => !known.contains(&inode),
            Err(error) => !is_gone(&error),
        });
    }

    fn add(&mut self, root: &HostRoot, process: String) {
        match namespace(root, &process) {
            Ok(inode) => {
                let processes = self.namespaces.entry(inode).or_default();
                if processes.len() < CANDIDATES {
                    processes.push(process);
                }
            }
            Err(error) if is_gone(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.denied.push(process),
            Err(error) => self.failed = Some(format!("cannot read `/proc/{process}/ns/net`: {error}")),
        }
    }
}

/// The namespace a process is in; 0 for that of a captured tree that does not tell.
pub(super) fn namespace(root: &HostRoot, process: &str) -> io::Result<NetnsInode> {
    let path = root.path(format!("/proc/{process}/ns/net"));
    if process == WHOLE_TREE {
        return Ok(NetnsInode(0));
    }
    if root.is_live() {
        return std::fs::metadata(path).map(|metadata| NetnsInode(metadata.ino()));
    }
    // In a captured tree the link leads nowhere, but its text is the same number.
    let link = std::fs::read_link(path)?;
    let inode = link.to_str().and_then(|text| text.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok());
    inode
        .map(NetnsInode)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not the link of a network namespace"))
}

/// Whether an error means that the process has ended: between two looks, not a fault.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::ENXIO | libc::EINVAL))
}
