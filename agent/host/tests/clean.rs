//! The cleaner on a store as host-local leaves it, and on everything that may have happened to it.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "clean/node.rs"]
mod node;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headroom_core::plan::clean::{Limits, plan};
use headroom_host::act::{self, BATCH, Cleaned, LOCK_WAIT, Step, journal};
use headroom_host::clock;
use nix::fcntl::{Flock, FlockArg};

use node::{GRACE, NETWORK, Node, age, names, run_name};

const PODS: [&str; 4] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];
const ALL: [&str; 7] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7"];

/// The one reason for which everything planned stayed, and nothing was left behind.
fn refused(node: &Node, cleaned: &Cleaned) -> String {
    assert!(cleaned.applied.is_empty(), "{cleaned:?}");
    assert_eq!(cleaned.refused.len(), 3, "{cleaned:?}");
    let why = &cleaned.refused[0].why;
    assert!(cleaned.refused.iter().all(|refused| refused.why == *why), "{cleaned:?}");
    assert_eq!(cleaned.journals, Vec::<PathBuf>::new());
    assert_eq!(node.leaked_anywhere().len(), 3);
    why.clone()
}

#[test]
fn leaked_reservations_go_into_the_journal_and_come_back_as_they_were() {
    let node = Node::new();
    let before = std::fs::metadata(node.store().join("10.0.0.5")).unwrap().modified().unwrap();
    let cleaned = node.clean(&mut |_| {});
    assert_eq!(cleaned.refused, []);
    assert_eq!(cleaned.remarks, Vec::<String>::new());
    assert_eq!(node.reserved(), PODS);
    let run = cleaned.journals.first().unwrap();
    assert_eq!(names(&run.join(NETWORK)), ["10.0.0.5.taken", "10.0.0.6.taken", "10.0.0.7.taken", journal::RECORDS]);
    // host-local walks the network's directory with all that is below it: nothing of ours may be there.
    assert_eq!(names(&node.store()).len(), PODS.len() + 2, "the pods, `lock` and `last_reserved_ip.0`");
    let (records, bad) = journal::parse(&std::fs::read(run.join(NETWORK).join(journal::RECORDS)).unwrap());
    assert_eq!((records.len(), bad), (1 + 3 + 3, 0), "{records:?}");

    let restored = act::restore(run, &mut |_| {}).unwrap();
    assert_eq!((restored.restored.len(), restored.refused.len()), (3, 0), "{restored:?}");
    assert_eq!(restored.restored[0].container_id.as_deref(), Some("gone5"));
    assert_eq!(node.reserved(), ALL);
    assert_eq!(std::fs::metadata(node.store().join("10.0.0.5")).unwrap().modified().unwrap(), before);
    let again = act::restore(run, &mut |_| {}).unwrap();
    assert_eq!((again.restored.len(), again.refused.len(), again.remarks.len()), (0, 0, 0), "{again:?}");
}

#[test]
fn an_address_that_was_reserved_anew_keeps_its_new_reservation() {
    let node = Node::new();
    let cleaned = node.clean(&mut |_| {});
    node.reserve("10.0.0.6", "new6");
    let restored = act::restore(&cleaned.journals[0], &mut |_| {}).unwrap();
    assert_eq!(restored.refused.len(), 1);
    assert!(restored.refused[0].why.contains("reserved anew, for new6"), "{restored:?}");
    assert_eq!(std::fs::read_to_string(node.store().join("10.0.0.6")).unwrap(), "new6\r\neth0");
    assert_eq!(node.reserved(), ALL);
    let kept = act::list(std::slice::from_ref(&node.data_dir)).unwrap();
    assert_eq!((kept.len(), kept[0].taken, kept[0].entries.len()), (1, 3, 1), "{kept:?}");
    assert_eq!(act::newest(&kept), cleaned.journals);
}

/// Exercises every change that can come between the plan and the move. If this fails, somebody loses a live address.
#[test]
fn a_reservation_that_changes_under_way_stays() {
    type Change = fn(&Node);
    let changes: [(&str, Change, &str); 6] = [
        ("released and reserved anew", |node| node.reserve("10.0.0.6", "new6"), "reserved anew"),
        ("written again", |node| age(&node.store().join("10.0.0.6"), Duration::from_secs(1800)), "reserved anew"),
        (
            "another file with the same content and time",
            |node| {
                let path = node.store().join("10.0.0.6");
                let time = std::fs::metadata(&path).unwrap().modified().unwrap();
                let copy = node.store().join("copy");
                std::fs::write(&copy, std::fs::read(&path).unwrap()).unwrap();
                std::fs::File::options().write(true).open(&copy).unwrap().set_modified(time).unwrap();
                std::fs::rename(copy, path).unwrap();
            },
            "reserved anew",
        ),
        ("released", |node| std::fs::remove_file(node.store().join("10.0.0.6")).unwrap(), "it is gone"),
        (
            "a link out of the store",
            |node| {
                let path = node.store().join("10.0.0.6");
                std::fs::rename(&path, node.data_dir.join("elsewhere")).unwrap();
                symlink(node.data_dir.join("elsewhere"), path).unwrap();
            },
            "symbolic link",
        ),
        ("known to the runtime", |node| node.alive.lock().unwrap().containers.push("gone6".to_owned()), "in use"),
    ];
    for (what, change, why) in changes {
        for when in [Step::JournalMade, Step::Intended, Step::Locked] {
            // What changes before it is read for the intent is seen as well, but cannot have the same content and time.
            if what.starts_with("another file") && when == Step::JournalMade {
                continue;
            }
            let node = Node::new();
            let mut pending = Some(change);
            let cleaned = node.clean(&mut |step| {
                if step == when
                    && let Some(change) = pending.take()
                {
                    change(&node);
                }
            });
            let said: Vec<&str> = cleaned.refused.iter().map(|refused| refused.why.as_str()).collect();
            assert_eq!(said.len(), 1, "{what} at {when:?}: {said:?}");
            assert!(said[0].contains(why), "{what} at {when:?}: {said:?}");
            let applied: Vec<String> = cleaned.applied.iter().map(|taken| taken.address.to_string()).collect();
            assert_eq!(applied, ["10.0.0.5", "10.0.0.7"], "{what} at {when:?}");
        }
    }
}

#[test]
fn a_namespace_that_carries_the_address_keeps_it() {
    let node = Node::new();
    let cleaned = node.clean(&mut |step| {
        if step == Step::Reread {
            node.alive.lock().unwrap().addresses.push("10.0.0.7".parse().unwrap());
        }
    });
    assert_eq!(cleaned.applied.len(), 2);
    assert!(cleaned.refused[0].why.contains("a live network namespace carries the address"), "{cleaned:?}");
    assert!(node.reserved().contains(&"10.0.0.7".to_owned()));
}

#[test]
fn a_runtime_that_fails_under_the_lock_keeps_everything_and_is_not_asked_for_ever() {
    let node = Node::new();
    let mut locked = 0;
    let cleaned = node.clean(&mut |step| {
        locked += usize::from(step == Step::Locked);
        if step == Step::Intended {
            node.alive.lock().unwrap().runtime_fails = Some("it was stopped");
        }
    });
    assert!(refused(&node, &cleaned).contains("it was stopped"));
    assert_eq!(node.reserved(), ALL);
    assert_eq!(locked, 2, "one more attempt, then no more");
    assert_eq!(names(&node.data_dir.join(journal::FOLDER)), Vec::<String>::new(), "an empty run leaves nothing");
}

#[test]
fn a_runtime_that_fails_for_a_moment_is_asked_again() {
    let node = Node::new();
    let mut failures = 0;
    let cleaned = node.clean(&mut |step| {
        let mut alive = node.alive.lock().unwrap();
        match step {
            Step::Locked if failures == 0 => {
                failures += 1;
                alive.runtime_fails = Some("busy");
            }
            Step::Looked => alive.runtime_fails = None,
            _other => {}
        }
    });
    // Two looks in a row were complete: one between the attempts, without the lock, and one under it.
    assert_eq!((cleaned.applied.len(), failures), (3, 1), "{cleaned:?}");
}

#[test]
fn a_lock_that_somebody_holds_is_waited_for_but_not_for_ever() {
    let node = Node::new();
    let lock = || std::fs::File::options().create(true).append(true).open(node.store().join("lock")).unwrap();
    let held = Flock::lock(lock(), FlockArg::LockExclusive).unwrap();
    let started = Instant::now();
    let cleaned = node.clean(&mut |_| {});
    let why = refused(&node, &cleaned);
    assert!(why.contains("has not let go of it for 3.0 s") && why.contains("/proc/locks"), "{why}");
    assert!(started.elapsed() >= LOCK_WAIT && started.elapsed() < LOCK_WAIT * 2, "{:?}", started.elapsed());

    // Let go of within the time: that is what host-local does.
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(held);
    });
    assert_eq!(node.clean(&mut |_| {}).applied.len(), 3);
    release.join().unwrap();
    // The attempt that was given up did get the lock in the end, and gave it back.
    assert!(Flock::lock(lock(), FlockArg::LockExclusiveNonblock).is_ok());
}

#[test]
fn host_local_is_kept_out_while_reservations_move_and_only_then() {
    let node = Node::new();
    let path = node.store().join("lock");
    let free = |path: &Path| {
        let file = std::fs::File::options().create(true).append(true).open(path).unwrap();
        Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok()
    };
    let mut seen = Vec::new();
    let cleaned = node.clean(&mut |step| seen.push((step, free(&path))));
    assert_eq!(cleaned.applied.len(), 3);
    use Step::{Intended, JournalMade, Locked, Looked, Moved, Recorded, Reread, Synced, Unlocked};
    let expected = [
        (JournalMade, true),
        (Intended, true),
        (Locked, false),
        (Reread, false),
        (Looked, false),
        (Moved, false),
        (Moved, false),
        (Moved, false),
        (Unlocked, true),
        (Synced, true),
        (Recorded, true),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn a_lock_or_a_journal_that_is_something_else_is_refused_by_name() {
    let with = |make: fn(&Node)| {
        let node = Node::new();
        make(&node);
        let cleaned = node.clean(&mut |_| {});
        refused(&node, &cleaned)
    };
    let fifo = |node: &Node| nix::unistd::mkfifo(&node.store().join("lock"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(with(fifo).contains("no regular file"));
    assert!(with(|node| symlink("/etc/passwd", node.store().join("lock")).unwrap()).contains("no regular file"));
    assert!(with(|node| std::fs::create_dir(node.store().join("lock")).unwrap()).contains("no regular file"));
    let elsewhere = |node: &Node| {
        std::fs::create_dir(node.data_dir.join("elsewhere")).unwrap();
        symlink("elsewhere", node.data_dir.join(journal::FOLDER)).unwrap();
    };
    assert!(with(elsewhere).contains("symbolic link") || with(elsewhere).contains("not a directory"));
    assert!(with(|node| std::fs::write(node.data_dir.join(journal::FOLDER), "").unwrap()).contains("not a directory"));
}

#[test]
fn a_store_that_is_replaced_during_the_run_is_not_touched() {
    for when in [Step::JournalMade, Step::Intended] {
        let node = Node::new();
        let aside = node.data_dir.join("aside");
        let mut done = false;
        let cleaned = node.clean(&mut |step| {
            if step == when && !std::mem::replace(&mut done, true) {
                std::fs::rename(node.store(), &aside).unwrap();
                std::fs::create_dir(node.store()).unwrap();
                (5..=7).for_each(|n| node.reserve(&format!("10.0.0.{n}"), &format!("gone{n}")));
            }
        });
        assert!(cleaned.applied.is_empty(), "{cleaned:?}");
        assert!(cleaned.refused.iter().all(|refused| refused.why.contains("replaced by another directory")));
        assert_eq!(node.leaked_anywhere().len(), 6);
    }
}

#[test]
fn a_store_that_is_a_link_is_not_followed() {
    let node = Node::new();
    let mut eyes = node.eyes();
    let planned = node.plan(&mut eyes);
    std::fs::rename(node.store(), node.data_dir.join("aside")).unwrap();
    symlink("aside", node.store()).unwrap();
    let cleaned = act::clean(&planned, &mut eyes, GRACE, &run_name(), &mut |_| {});
    let why = refused(&node, &cleaned);
    assert!(why.contains("not a directory") || why.contains("symbolic link"), "{why}");
}

#[test]
fn more_than_one_batch_is_moved_and_each_holds_the_lock_for_a_moment() {
    let node = Node::new();
    let count = BATCH * 2 + 3;
    for number in 0..count {
        node.reserve(&format!("10.1.{}.{}", number / 250, number % 250 + 1), &format!("gone-{number}"));
    }
    let mut eyes = node.eyes();
    eyes.look();
    eyes.look();
    let limits = Limits { max: usize::MAX, force: true, ..Limits::default() };
    let planned = plan(eyes.ledger(), &limits, GRACE, clock::now());
    let mut locked = 0;
    let count_locks = &mut |step| locked += usize::from(step == Step::Locked);
    let cleaned = act::clean(&planned, &mut eyes, GRACE, &run_name(), count_locks);
    assert_eq!((cleaned.applied.len(), locked), (count + 3, 3), "{:?}", cleaned.refused);
    assert_eq!(node.reserved(), PODS);
    let restored = act::restore(&cleaned.journals[0], &mut |_| {}).unwrap();
    assert_eq!(restored.restored.len(), count + 3);
}

#[test]
fn a_journal_that_is_none_is_refused_and_a_hostile_one_does_no_harm() {
    let node = Node::new();
    assert!(act::restore(&node.store(), &mut |_| {}).unwrap_err().to_string().contains("no run of headroom's journal"));
    let missing = node.data_dir.join(journal::FOLDER).join("20260101T000000.000Z-1");
    assert!(act::restore(&missing, &mut |_| {}).unwrap_err().to_string().contains("could not be opened"));

    let cleaned = node.clean(&mut |_| {});
    let run = &cleaned.journals[0];
    let folder = run.join(NETWORK);
    std::fs::remove_file(folder.join("10.0.0.5.taken")).unwrap();
    symlink("/etc/passwd", folder.join("10.0.0.5.taken")).unwrap();
    nix::unistd::mkfifo(&folder.join("10.0.0.9.taken"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::write(folder.join("..taken"), "").unwrap();
    std::fs::write(folder.join("lock.taken"), "").unwrap();
    std::fs::write(folder.join(journal::RECORDS), vec![0xFF; 10_000]).unwrap();
    std::fs::create_dir(run.join("..hidden")).unwrap();
    std::fs::write(run.join("..hidden/10.0.0.8.taken"), "").unwrap();
    let kept = act::list(std::slice::from_ref(&node.data_dir)).unwrap();
    assert!(kept.iter().any(|kept| kept.why.as_deref().is_some_and(|why| why.contains("cannot be read"))), "{kept:?}");
    let restored = act::restore(run, &mut |_| {}).unwrap();
    let said: Vec<String> = restored.refused.iter().map(|stays| format!("{}: {}", stays.address, stays.why)).collect();
    assert_eq!(restored.restored.len(), 2, "{restored:?}");
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said.iter().any(|said| said.contains("10.0.0.5") && said.contains("symbolic link")), "{said:?}");
    assert!(said.iter().any(|said| said.contains("10.0.0.9") && said.contains("FIFO")), "{said:?}");
    assert!(said.iter().any(|said| said.contains("10.0.0.8") && said.contains("no path of a network")), "{said:?}");
    assert_eq!(node.reserved(), ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.6", "10.0.0.7"]);
}

#[test]
fn several_cleaners_at_once_take_each_reservation_once() {
    let node = Arc::new(Node::new());
    let all = Arc::new(Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _cleaner in 0..4 {
            scope.spawn(|| {
                let cleaned = node.clean(&mut |_| {});
                all.lock().unwrap().push(cleaned);
            });
        }
    });
    let all = all.lock().unwrap();
    let applied: usize = all.iter().map(|cleaned| cleaned.applied.len()).sum();
    assert_eq!(applied, 3, "{all:?}");
    let reasons = all.iter().flat_map(|cleaned| &cleaned.refused);
    reasons.for_each(|refused| assert!(refused.why.contains("somebody else has given it back"), "{refused:?}"));
    assert_eq!((node.reserved().len(), node.leaked_anywhere().len()), (4, 3));
}
