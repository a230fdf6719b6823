//! The cleaner on file systems that are read-only, full, or mounted where a rename cannot cross. Needs root.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "clean/node.rs"]
mod node;

use std::io::Write;
use std::path::{Path, PathBuf};

use headroom_host::act::{self, Step, journal};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use node::{NETWORK, Node, age, names};

/// A mount that goes with its guard.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, options: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        Self(at.to_owned())
    }

    fn bind(from: &Path, at: &Path) -> Self {
        mount(Some(from), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        Self(at.to_owned())
    }

    fn remount(&self, flags: MsFlags) {
        mount(None::<&str>, &self.0, None::<&str>, flags | MsFlags::MS_REMOUNT, None::<&str>).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // It fails only if it is no longer mounted.
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap_or_default();
    }
}

/// A node on a tmpfs of its own.
fn on_tmpfs(options: &str) -> (Node, Mounted, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Mounted::tmpfs(&dir.path().join("cni"), options);
    let node = Node::at(&mounted.0.join("networks"), None);
    node.fill();
    (node, mounted, dir)
}

#[test]
fn a_read_only_store_is_named_and_left() {
    let (node, mounted, _dir) = on_tmpfs("size=1m");
    assert_eq!(act::prospect(&node.data_dir).unwrap().why, None);
    mounted.remount(MsFlags::MS_RDONLY);
    assert_eq!(act::prospect(&node.data_dir).unwrap().why.as_deref(), Some("is mounted read-only"));
    let cleaned = node.clean(&mut |_| {});
    assert!(cleaned.applied.is_empty());
    assert_eq!(cleaned.refused.len(), 3);
    assert!(cleaned.refused[0].why.contains("mounted read-only?"), "{cleaned:?}");
    assert_eq!(node.reserved().len(), 7);
    mounted.remount(MsFlags::empty());
    let cleaned = node.clean(&mut |_| {});
    assert_eq!(cleaned.applied.len(), 3);
    mounted.remount(MsFlags::MS_RDONLY);
    let restored = act::restore(&cleaned.journals[0], &mut |_| {}).unwrap();
    assert_eq!((restored.restored.len(), restored.refused.len()), (0, 3), "{restored:?}");
    assert!(restored.refused[0].why.contains("Read-only file system"), "{restored:?}");
    mounted.remount(MsFlags::empty());
    assert_eq!(act::restore(&cleaned.journals[0], &mut |_| {}).unwrap().restored.len(), 3);
}

/// Exercises a disk that is full from the start, and one that fills between any two steps. If this fails, a full disk costs
/// reservations.
#[test]
fn a_full_disk_keeps_reservations_where_they_are_or_moves_them_whole() {
    use Step::{Intended, JournalMade, Locked, Looked, Moved, Recorded, Reread, Synced, Unlocked};
    let fill = |folder: &Path| {
        let mut file = std::fs::File::create(folder.join("ballast")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    };
    let steps = [JournalMade, Intended, Locked, Reread, Looked, Moved, Unlocked, Synced, Recorded];
    for when in std::iter::once(None).chain(steps.map(Some)) {
        let (node, mounted, _dir) = on_tmpfs("size=256k");
        if when.is_none() {
            fill(&mounted.0);
        }
        let mut full = when.is_none();
        let cleaned = node.clean(&mut |step| {
            if Some(step) == when && !std::mem::replace(&mut full, true) {
                fill(&mounted.0);
            }
        });
        let what = format!("full at {when:?}: {cleaned:?}");
        assert_eq!(cleaned.applied.len() + cleaned.refused.len(), 3, "{what}");
        assert_eq!(node.reserved().len(), 7 - cleaned.applied.len(), "{what}");
        assert_eq!(node.leaked_anywhere().len(), 3, "{what}");
        if when.is_none() {
            assert!(cleaned.refused[0].why.contains("free some space first"), "{what}");
            assert_eq!(act::list(std::slice::from_ref(&node.data_dir)).unwrap(), [], "{what}: a run that took nothing");
        }
        std::fs::remove_file(mounted.0.join("ballast")).unwrap();
        node.clean(&mut |_| {});
        assert_eq!(node.reserved().len(), 4, "{what}");
        for kept in act::list(std::slice::from_ref(&node.data_dir)).unwrap() {
            act::restore(Path::new(&kept.journal), &mut |_| {}).unwrap();
        }
        assert_eq!(node.reserved().len(), 7, "{what}");
    }
}

/// Exercises a network's directory that is a mount: as a file system of its own, and as a bind mount of the same one, which
/// only the rename itself notices.
#[test]
fn a_network_that_is_a_mount_of_its_own_is_refused() {
    for bind in [false, true] {
        let node = Node::new();
        let mounted = if bind {
            let real = node.data_dir.join("real");
            std::fs::rename(node.store(), &real).unwrap();
            std::fs::create_dir(node.store()).unwrap();
            Mounted::bind(&real, &node.store())
        } else {
            Mounted::tmpfs(&node.store(), "size=1m")
        };
        if !bind {
            (1..=7).for_each(|n| {
                node.reserve(&format!("10.0.0.{n}"), &format!("{}{n}", if n < 5 { "pod" } else { "gone" }))
            });
        }
        let cleaned = node.clean(&mut |_| {});
        assert!(cleaned.applied.is_empty(), "{cleaned:?}");
        assert!(cleaned.refused.iter().all(|refused| refused.why.contains("on another file system")), "{cleaned:?}");
        assert_eq!(node.reserved().len(), 7);
        assert_eq!(names(&node.data_dir.join(journal::FOLDER)), Vec::<String>::new());
        drop(mounted);
    }
}

/// Exercises a process without root's powers. If this fails, it says something else than what to do.
#[test]
fn a_store_of_somebody_else_is_named() {
    let node = Node::new();
    let top = node.data_dir.parent().unwrap();
    std::fs::set_permissions(top, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // Capabilities go with the effective user of this thread alone.
    let cleaned = std::thread::scope(|scope| {
        let work = || {
            let mut eyes = node.eyes();
            let plan = node.plan(&mut eyes);
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
            act::clean(&plan, &mut eyes, node::GRACE, &node::run_name(), &mut |_| {})
        };
        scope.spawn(work).join().unwrap()
    });
    assert!(cleaned.applied.is_empty());
    assert!(cleaned.refused[0].why.contains("run as root"), "{cleaned:?}");
    assert_eq!(node.reserved().len(), 7);
    age(&node.store().join("10.0.0.1"), std::time::Duration::ZERO);
    assert_eq!(node.store().file_name().unwrap(), NETWORK);
}
