//! Cleaners that are killed (SIGKILL, real processes), race each other, or meet the lock of the dead.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "clean/node.rs"]
mod node;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use headroom_host::act::{self, NoJournal, Step, journal};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, raise};

use node::{NETWORK, Node, names};

/// What the child is to do, where, and after how many steps it kills itself.
const WHAT: &str = "HEADROOM_TEST_WHAT";
const WHERE: &str = "HEADROOM_TEST_WHERE";
const WHEN: &str = "HEADROOM_TEST_WHEN";
/// More steps than anything here takes.
const NEVER: usize = usize::MAX;

/// This test's own binary, asked to run one test: as the child, it does not come back from it.
fn child(test: &str, what: &str, data_dir: &Path, when: usize) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(WHAT, what).env(WHERE, data_dir).env(WHEN, when.to_string());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// What the child does, if this is one.
fn if_child() {
    let Ok(what) = std::env::var(WHAT) else { return };
    let node = Node::at(Path::new(&std::env::var_os(WHERE).unwrap()), None);
    let when: usize = std::env::var(WHEN).unwrap().parse().unwrap();
    let mut seen = 0;
    let mut die = |_step: Step| {
        if seen == when {
            raise(Signal::SIGKILL).unwrap();
        }
        seen += 1;
    };
    match what.as_str() {
        "clean" => drop(node.clean(&mut die)),
        "restore" => {
            for run in runs(&node) {
                // Another process's run that took nothing may be gone by now.
                match act::restore(&run, &mut die) {
                    Ok(_) | Err(NoJournal::Path { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        }
        "lock" => {
            let _held = Flock::lock(lock_file(&node), FlockArg::LockExclusive).unwrap();
            raise(Signal::SIGKILL).unwrap();
        }
        other => panic!("{other}"),
    }
    std::process::exit(0);
}

fn lock_file(node: &Node) -> std::fs::File {
    std::fs::File::options().create(true).append(true).open(node.store().join("lock")).unwrap()
}

/// All runs of the journal.
fn runs(node: &Node) -> Vec<PathBuf> {
    let mut runs: Vec<PathBuf> = act::list(std::slice::from_ref(&node.data_dir))
        .unwrap()
        .into_iter()
        .map(|kept| PathBuf::from(kept.journal))
        .collect();
    runs.dedup();
    runs
}

/// No reservation is lost, none is there twice, none was touched inside, and the pods have theirs.
fn nothing_is_lost(node: &Node, what: &str) {
    let everywhere = node.leaked_anywhere();
    let contents: Vec<&str> = everywhere.iter().map(|(_, content)| content.as_str()).collect();
    assert_eq!(contents, ["gone5\r\neth0", "gone6\r\neth0", "gone7\r\neth0"], "{what}: {everywhere:?}");
    for (path, _) in &everywhere {
        let folder = path.parent().unwrap();
        let known = folder == node.store() || folder.ancestors().any(|part| part.ends_with(journal::FOLDER));
        assert!(known, "{what}: {}", path.display());
    }
    for pod in 1..=4 {
        let content = std::fs::read_to_string(node.store().join(format!("10.0.0.{pod}"))).unwrap();
        assert_eq!(content, format!("pod{pod}\r\neth0"), "{what}");
    }
}

/// A run after the crash finishes the work; the journals undo all of it; undoing twice is the same.
fn a_rerun_finishes(node: &Node, what: &str) {
    let cleaned = node.clean(&mut |_| {});
    assert_eq!(cleaned.refused, [], "{what}");
    assert_eq!(node.reserved().len(), 4, "{what}: leaked reservations are left");
    nothing_is_lost(node, what);
    for _twice in 0..2 {
        for run in runs(node) {
            let restored = act::restore(&run, &mut |_| {}).unwrap();
            assert_eq!((restored.refused.len(), restored.remarks.len()), (0, 0), "{what}: {restored:?}");
        }
        assert_eq!(node.reserved().len(), 7, "{what}");
        nothing_is_lost(node, what);
    }
}

/// Exercises SIGKILL at every step of a clean-up. If this fails, a crash loses a reservation or leaves one in two places.
#[test]
fn a_cleaner_killed_at_any_step_leaves_what_a_rerun_finishes() {
    if_child();
    let mut killed = 0;
    for when in 0.. {
        let node = Node::new();
        let status = child("a_cleaner_killed_at_any_step_leaves_what_a_rerun_finishes", "clean", &node.data_dir, when)
            .wait()
            .unwrap();
        let what = format!("killed at step {when}");
        nothing_is_lost(&node, &what);
        a_rerun_finishes(&node, &what);
        if status.success() {
            break;
        }
        killed += 1;
    }
    // Made, intended, locked, reread, looked, three moves, unlocked, synced, recorded.
    assert_eq!(killed, 11);
}

/// Exercises the undo after a run that was killed before it took anything. If this fails, "the last run" undoes nothing.
#[test]
fn a_cleaner_killed_before_it_took_anything_is_not_the_last_run() {
    if_child();
    let test = "a_cleaner_killed_before_it_took_anything_is_not_the_last_run";
    // Made, intended, locked, reread, looked: the first move comes after these.
    for when in 0..5 {
        let node = Node::new();
        let cleaned = node.clean(&mut |_| {});
        assert_eq!(cleaned.applied.len(), 3);
        node.reserve("10.0.0.5", "gone5");
        assert!(!child(test, "clean", &node.data_dir, when).wait().unwrap().success());
        let kept = act::list(std::slice::from_ref(&node.data_dir)).unwrap();
        assert_eq!(kept.iter().map(|kept| kept.taken).collect::<Vec<_>>(), [0, 3], "killed at step {when}");
        assert_eq!(act::newest(&kept), cleaned.journals, "killed at step {when}");
    }
}

/// Exercises SIGKILL at every step of an undo. If this fails, a crash loses a reservation for good.
#[test]
fn a_restore_killed_at_any_step_leaves_what_a_rerun_finishes() {
    if_child();
    let mut killed = 0;
    for when in 0.. {
        let node = Node::new();
        assert_eq!(node.clean(&mut |_| {}).applied.len(), 3);
        let status =
            child("a_restore_killed_at_any_step_leaves_what_a_rerun_finishes", "restore", &node.data_dir, when)
                .wait()
                .unwrap();
        let what = format!("killed at step {when}");
        nothing_is_lost(&node, &what);
        for run in runs(&node) {
            assert!(act::restore(&run, &mut |_| {}).unwrap().refused.is_empty(), "{what}");
        }
        assert_eq!(node.reserved().len(), 7, "{what}");
        a_rerun_finishes(&node, &what);
        if status.success() {
            break;
        }
        killed += 1;
    }
    // Locked, three moves, unlocked, synced, recorded.
    assert_eq!(killed, 7);
}

/// Exercises SIGKILL between any two instructions: at moments nobody chose.
#[test]
fn a_cleaner_killed_at_any_moment_leaves_what_a_rerun_finishes() {
    if_child();
    const TEST: &str = "a_cleaner_killed_at_any_moment_leaves_what_a_rerun_finishes";
    // How long it takes when nobody kills it.
    let node = Node::new();
    let started = Instant::now();
    assert!(child(TEST, "clean", &node.data_dir, NEVER).wait().unwrap().success());
    let whole = started.elapsed();
    for part in 0..24 {
        let node = Node::new();
        let mut child = child(TEST, "clean", &node.data_dir, NEVER);
        std::thread::sleep(whole * part / 20);
        // It may have ended already: then there is nothing to kill, and the checks hold all the same.
        drop(child.kill());
        child.wait().unwrap();
        let what = format!("killed after {part}/20 of the time");
        nothing_is_lost(&node, &what);
        a_rerun_finishes(&node, &what);
    }
}

/// Exercises cleaners and undoers of several processes at once. If this fails, two of them move one reservation.
#[test]
fn cleaners_and_restorers_in_several_processes_do_not_disturb_each_other() {
    if_child();
    const TEST: &str = "cleaners_and_restorers_in_several_processes_do_not_disturb_each_other";
    for round in 0..8 {
        let node = Node::new();
        let others = ["clean", "clean", "restore", "clean", "restore"];
        let children: Vec<Child> = others.iter().map(|what| child(TEST, what, &node.data_dir, NEVER)).collect();
        for mut child in children {
            assert!(child.wait().unwrap().success(), "round {round}");
        }
        nothing_is_lost(&node, &format!("round {round}"));
        a_rerun_finishes(&node, &format!("round {round}"));
    }
}

/// Exercises a lock whose holder was killed. If this fails, one crash of host-local stops every clean-up for good.
#[test]
fn the_lock_of_a_dead_process_keeps_nobody_out() {
    if_child();
    let node = Node::new();
    let status = child("the_lock_of_a_dead_process_keeps_nobody_out", "lock", &node.data_dir, NEVER).wait().unwrap();
    assert!(!status.success(), "it was killed while it held the lock");
    assert!(node.store().join("lock").exists());
    let started = Instant::now();
    assert_eq!(node.clean(&mut |_| {}).applied.len(), 3);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(names(&node.data_dir.join(journal::FOLDER)).len(), 1);
    assert_eq!(names(&node.store()).iter().filter(|name| name.ends_with(".taken")).count(), 0);
    assert_eq!(node.store().file_name().unwrap(), NETWORK);
}
