//! Whether this process is in the host's network namespace: conntrack, events and the table are those of its own.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use headroom_core::known::{Known, Why};

use crate::root::HostRoot;

/// Inode of the first PID namespace (`PROC_PID_INIT_INO`, `include/linux/proc_ns.h`): in another one process 1 is not the host's.
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;

/// Whether this process is in the network namespace of the host's first process.
pub fn is_the_hosts(root: &HostRoot) -> Known<bool> {
    if !root.is_live() {
        return Known::because("a captured tree is of no running process");
    }
    compared(&root.path("/proc"), FIRST_PID_NAMESPACE).map_or_else(Known::Unknown, Known::Present)
}

fn compared(proc: &Path, first_pid_namespace: u64) -> Result<bool, Why> {
    let inode = |path: &str| {
        let path = proc.join(path);
        let metadata = fs::metadata(&path);
        metadata
            .map(|metadata| metadata.ino())
            .map_err(|error| Why::new(format!("cannot examine `{}`: {error}", path.display())))
    };
    if inode("self/ns/pid")? != first_pid_namespace {
        return Err(Why::new("the host's first process is not seen from this PID namespace (hostPID)"));
    }
    Ok(inode("self/ns/net")? == inode("1/ns/net")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises an agent on the host, in a namespace of its own, with PIDs of its own, and without the right to look. If this fails,
    /// a pod's conntrack is taken for the node's, or the node's for a pod's.
    #[test]
    fn the_own_network_is_compared_with_that_of_the_hosts_first_process() {
        let folder = tempfile::tempdir().unwrap();
        let proc = folder.path();
        for path in ["self/ns", "1/ns"] {
            fs::create_dir_all(proc.join(path)).unwrap();
        }
        let pid = proc.join("self/ns/pid");
        fs::write(&pid, "").unwrap();
        let first = fs::metadata(&pid).unwrap().ino();
        fs::write(proc.join("self/ns/net"), "").unwrap();
        assert!(compared(proc, first).unwrap_err().as_str().contains("1/ns/net"));
        fs::write(proc.join("1/ns/net"), "").unwrap();
        assert_eq!(compared(proc, first), Ok(false));
        fs::remove_file(proc.join("1/ns/net")).unwrap();
        fs::hard_link(proc.join("self/ns/net"), proc.join("1/ns/net")).unwrap();
        assert_eq!(compared(proc, first), Ok(true));
        assert!(compared(proc, first + 1).unwrap_err().as_str().contains("hostPID"));
    }
}
