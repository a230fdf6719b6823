//! Where a node's files are: `/`, or a captured tree.

use std::path::{Path, PathBuf};

/// The root that every path of a node is read under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoot(PathBuf);

impl HostRoot {
    /// The running machine itself.
    pub fn live() -> Self {
        Self(PathBuf::from("/"))
    }

    /// A tree elsewhere: a captured node, or the node's root mounted into a container.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// Whether this is the running machine: only then do namespaces, sockets and eBPF make sense.
    pub fn is_live(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// The place of an absolute path of the node, as this process sees it.
    pub fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let absolute = absolute.as_ref();
        self.0.join(absolute.strip_prefix("/").unwrap_or(absolute))
    }
}
