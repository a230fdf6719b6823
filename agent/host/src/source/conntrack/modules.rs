//! Whether netfilter's modules came or went: a probe of a module's function dies with the module, silently.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use headroom_core::time::NodeTime;

use crate::root::HostRoot;
use crate::{bounded, clock};

/// How often to look.
const EVERY: Duration = Duration::from_secs(5);
/// `/proc/modules` has some 100 bytes per module.
const LIMIT_BYTES: usize = 1 << 20;

/// The modules that matter, as they were seen last.
#[derive(Debug)]
pub(super) struct Modules {
    root: HostRoot,
    seen: Vec<String>,
    looked: NodeTime,
}

impl Modules {
    pub(super) fn new(root: &HostRoot) -> Self {
        Self { root: root.clone(), seen: loaded(root), looked: clock::node_time() }
    }

    /// Whether they have changed since this was asked last.
    pub(super) fn changed(&mut self) -> bool {
        let now = clock::node_time();
        if now.since(self.looked) < EVERY {
            return false;
        }
        self.looked = now;
        let loaded = loaded(&self.root);
        let changed = loaded != self.seen;
        self.seen = loaded;
        changed
    }
}

/// Names and addresses of netfilter's modules: a module that was unloaded and loaded again has another address. That is zero where
/// it is hidden (without CAP_SYSLOG), so the inode of its folder is asked for, too: sysfs gives no number twice
/// (`idr_alloc_cyclic` in `fs/kernfs/dir.c`). None where all is built in.
fn loaded(root: &HostRoot) -> Vec<String> {
    let text = bounded::read_in(root, Path::new("/proc/modules"), LIMIT_BYTES).unwrap_or_default();
    modules(&String::from_utf8_lossy(&text), |name| {
        // The times of that folder are when it was looked at first.
        std::fs::metadata(root.path(format!("/sys/module/{name}"))).map_or(0, |folder| folder.ino())
    })
}

/// `nf_conntrack 188416 5 nf_nat,xt_conntrack, Live 0xffffffffc0a00000`
fn modules(text: &str, inode: impl Fn(&str) -> u64) -> Vec<String> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let name = words.next().filter(|name| matches!(*name, "nf_conntrack" | "nf_conntrack_netlink" | "nf_nat"))?;
        Some(format!("{name} {} {}", words.nth(4).unwrap_or_default(), inode(name)))
    });
    let mut modules: Vec<String> = lines.collect();
    modules.sort();
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises a module that comes back. If this fails, the agent counts nothing after a reload and does not notice.
    #[test]
    fn a_reload_is_a_change_and_a_user_more_is_not() {
        let before = "nf_nat 1 2 - Live 0x10\nnf_conntrack 188416 5 nf_nat, Live 0x20\next4 1 1 - Live 0x30\n";
        let used = "nf_nat 1 2 - Live 0x10\nnf_conntrack 188416 6 nf_nat, Live 0x20\n";
        let again = "nf_conntrack 188416 5 nf_nat, Live 0x40\nnf_nat 1 2 - Live 0x10\n";
        let modules = |text| modules(text, |_| 7);
        assert_eq!(modules(before), modules(used));
        assert_ne!(modules(before), modules(again));
        assert!(modules("").is_empty());
    }

    /// Exercises an agent without CAP_SYSLOG, to which every address is zero. If this fails, it counts nothing after a reload, as it is
    /// deployed.
    #[test]
    fn a_reload_shows_where_addresses_are_hidden() {
        let text = "nf_conntrack 188416 5 nf_nat, Live 0x0000000000000000\n";
        let folder = tempfile::tempdir().unwrap();
        let root = HostRoot::at(folder.path());
        let module = folder.path().join("sys/module/nf_conntrack");
        std::fs::create_dir_all(&module).unwrap();
        std::fs::create_dir_all(folder.path().join("proc")).unwrap();
        std::fs::write(folder.path().join("proc/modules"), text).unwrap();
        let before = loaded(&root);
        assert_eq!(loaded(&root), before);
        // Another one takes its place while the first is still there: no file system gives both the same number.
        let again = folder.path().join("again");
        std::fs::create_dir(&again).unwrap();
        std::fs::rename(&module, folder.path().join("gone")).unwrap();
        std::fs::rename(&again, &module).unwrap();
        assert_ne!(loaded(&root), before);
    }
}
