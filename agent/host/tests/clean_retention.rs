//! What is kept of the journal, and what a run removes when it begins.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the suite it belongs to needs more of it")]
#[path = "clean/node.rs"]
mod node;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use headroom_core::time::WallTime;
use headroom_host::act::{self, KEPT_ALWAYS, KEPT_FOR, KEPT_RUNS, REMOVALS, journal};
use headroom_host::clock;

use node::{NETWORK, Node, names};

const MINUTE: Duration = Duration::from_secs(60);

/// The name of a run that began so long ago.
fn begun(ago: Duration, process: usize) -> String {
    let ago = i64::try_from(ago.as_millis()).unwrap();
    let then = WallTime::from_millis(clock::now().wall.as_millis() - ago);
    journal::run_name(then, u32::try_from(process).unwrap())
}

/// A run in the journal, with so many reservations.
fn run(node: &Node, name: &str, reservations: usize) -> PathBuf {
    let run = node.data_dir.join(journal::FOLDER).join(name);
    let dir = run.join(NETWORK);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(journal::RECORDS), "").unwrap();
    for number in 0..reservations {
        std::fs::write(dir.join(format!("10.1.{}.{}.taken", number / 256, number % 256)), "old\r\neth0").unwrap();
    }
    run
}

/// Exercises the bound of time. If this fails, journals grow for ever, or an undo is gone before its time.
#[test]
fn a_run_is_kept_for_thirty_days_and_goes_with_the_next_run_after_that() {
    let node = Node::new();
    assert_eq!(KEPT_FOR, Duration::from_secs(30 * 24 * 3600));
    let kept = run(&node, &begun(KEPT_FOR - MINUTE, 1), 2);
    let unset_clock = run(&node, "19700101T000007.000Z-1", 1);
    let gone = [run(&node, &begun(KEPT_FOR + MINUTE, 1), 2), run(&node, &begun(KEPT_FOR * 3, 2), 0)];
    assert_eq!(node.clean(&mut |_| {}).applied.len(), 3);
    assert!(gone.iter().all(|run| !run.exists()), "{gone:?}");
    assert_eq!(names(&kept.join(NETWORK)).len(), 3);
    assert!(unset_clock.exists(), "nobody knows how old it is");
    let listed = act::list(std::slice::from_ref(&node.data_dir)).unwrap();
    assert_eq!(listed.len(), 3, "{listed:?}");
}

/// Exercises journals that somebody has put something else into. If this fails, root removes what is not headroom's.
#[test]
fn only_what_the_cleaner_makes_is_removed() {
    let node = Node::new();
    let outside = node.data_dir.join("outside");
    std::fs::create_dir_all(outside.join(NETWORK)).unwrap();
    std::fs::write(outside.join(NETWORK).join("10.1.0.9.taken"), "").unwrap();
    let old = KEPT_FOR * 2;
    let foreign = run(&node, &begun(old, 1), 1);
    std::fs::write(foreign.join(NETWORK).join("note"), "mine").unwrap();
    let linked = node.data_dir.join(journal::FOLDER).join(begun(old, 2));
    symlink(&outside, &linked).unwrap();
    let inner = run(&node, &begun(old, 3), 1);
    symlink(outside.join(NETWORK), inner.join("linked")).unwrap();
    let named = node.data_dir.join(journal::FOLDER).join("20200101-backup");
    std::fs::create_dir(&named).unwrap();
    assert_eq!(node.clean(&mut |_| {}).applied.len(), 3);
    assert_eq!(names(&outside.join(NETWORK)), ["10.1.0.9.taken"], "a link was followed");
    assert_eq!(names(&foreign.join(NETWORK)), [journal::RECORDS, "note"]);
    assert!(linked.is_symlink() && named.is_dir() && inner.join("linked").is_symlink());
}

/// Exercises the bound of work. If this fails, the first run after a long time keeps the node busy.
#[test]
fn a_run_removes_no_more_than_its_share_and_the_next_one_goes_on() {
    let node = Node::new();
    let old = run(&node, &begun(KEPT_FOR * 2, 1), REMOVALS + 10);
    let left = |run: &Path| names(&run.join(NETWORK)).len();
    assert_eq!(node.clean(&mut |_| {}).applied.len(), 3);
    assert_eq!(left(&old), 11, "ten and the records");
    node.reserve("10.0.0.8", "gone8");
    assert_eq!(node.clean(&mut |_| {}).applied.len(), 1);
    assert!(!old.exists());
}

/// Exercises the bound of number. If this fails, the journal takes all inodes of the node, or the cleaner stops too early.
#[test]
fn with_as_many_runs_as_are_kept_nothing_is_given_back_and_it_says_what_to_do() {
    assert_eq!(KEPT_RUNS, 1024);
    let node = Node::new();
    let all: Vec<PathBuf> = (0..1024).map(|number| run(&node, &begun(MINUTE, number), 0)).collect();
    let why = act::prospect(&node.data_dir).unwrap().why.unwrap();
    assert!(why.contains("holds 1024 runs"), "{why}");
    let cleaned = node.clean(&mut |_| {});
    assert_eq!((cleaned.applied.len(), cleaned.refused.len()), (0, 3));
    let why = &cleaned.refused[0].why;
    assert!(why.contains("holds 1024 runs") && why.contains("headroom ipam restore --list"), "{why}");
    assert!(why.contains("move the oldest out of it"), "{why}");
    assert_eq!(act::list(std::slice::from_ref(&node.data_dir)).unwrap().len(), 1024, "all of them are listed");
    assert_eq!(node.reserved().len(), 7);

    std::fs::rename(&all[0], node.data_dir.join("moved-away")).unwrap();
    let prospect = act::prospect(&node.data_dir).unwrap();
    assert_eq!((prospect.runs, prospect.why), (1023, None));
    assert_eq!(node.clean(&mut |_| {}).applied.len(), 3);
    assert_eq!(names(&node.data_dir.join(journal::FOLDER)).len(), 1024);
}

/// A full journal: a run a minute, the newest older than `newest`. Each took what `address` says of its number, 0 the newest.
fn full(node: &Node, newest: Duration, address: impl Fn(usize) -> String) -> Vec<PathBuf> {
    let run_at = |number: usize| {
        let run = run(node, &begun(newest + MINUTE * u32::try_from(number + 1).unwrap(), number), 0);
        std::fs::write(run.join(NETWORK).join(address(number) + ".taken"), "old\r\neth0").unwrap();
        run
    };
    (0..KEPT_RUNS).map(run_at).collect()
}

fn of_61(number: usize) -> String {
    format!("10.1.0.{}", number % 61)
}

/// Exercises a node that leaks for weeks: a run every ten minutes, of 61 addresses. If this fails, its cleaner stops after
/// seven days; or what could still be undone is lost, though there was something else to lose.
#[test]
fn where_there_is_no_more_room_the_oldest_run_goes_whose_addresses_were_taken_again() {
    let node = Node::new();
    let runs = full(&node, KEPT_ALWAYS, of_61);
    // The oldest run's address was taken again, but in another network; the next one holds one more, of its own.
    let (oldest, second, third) = (&runs[1023], &runs[1022], &runs[1021]);
    std::fs::rename(oldest.join(NETWORK), oldest.join("other")).unwrap();
    std::fs::write(second.join(NETWORK).join("10.1.1.1.taken"), "old\r\neth0").unwrap();
    assert_eq!(act::prospect(&node.data_dir).unwrap().why, None);
    assert_eq!(node.clean(&mut |_| {}).applied.len(), 3);
    let gone: Vec<&PathBuf> = runs.iter().filter(|run| !run.exists()).collect();
    assert_eq!(gone, [third], "one makes room enough");
    assert_eq!(names(&node.data_dir.join(journal::FOLDER)).len(), KEPT_RUNS);

    // One that somebody has put back is of no more use either.
    std::fs::remove_dir_all(second.join(NETWORK)).unwrap();
    node.reserve("10.0.0.8", "gone8");
    assert_eq!(node.clean(&mut |_| {}).applied.len(), 1);
    assert!(!second.exists() && oldest.exists() && runs[1020].exists());
}

/// Exercises what a full journal keeps. If this fails, an undo is gone that could have been wanted.
#[test]
fn what_could_still_be_undone_stays_and_so_does_what_is_young_or_later_than_now() {
    let stays = |node: &Node, runs: &[PathBuf]| {
        assert!(act::prospect(&node.data_dir).unwrap().why.unwrap().contains("can still be undone"));
        let cleaned = node.clean(&mut |_| {});
        assert_eq!((cleaned.applied.len(), cleaned.refused.len()), (0, 3));
        assert!(cleaned.refused[0].why.contains("holds 1024 runs"), "{:?}", cleaned.refused[0]);
        assert!(runs.iter().all(|run| run.exists()));
    };
    let each_its_own = |number: usize| format!("10.1.{}.{}", number / 256, number % 256);
    let node = Node::new();
    stays(&node, &full(&node, KEPT_ALWAYS, each_its_own));
    // A clock ran ahead when the newest took what the others have, all of them: nobody knows which was first.
    let node = Node::new();
    let mut runs = full(&node, KEPT_ALWAYS, each_its_own);
    let ahead = begun(Duration::ZERO, 0).replacen("20", "21", 1);
    std::fs::remove_dir_all(runs.remove(0)).unwrap();
    runs.push(run(&node, &ahead, 1024));
    stays(&node, &runs);
    // And a run that began a moment ago may be about to take something: another process's.
    let node = Node::new();
    let young: Vec<PathBuf> = (0..KEPT_RUNS).map(|number| run(&node, &begun(MINUTE, number), 1)).collect();
    stays(&node, &young);
}

#[test]
fn a_directory_that_is_not_there_has_no_prospect() {
    let node = Node::new();
    assert_eq!(act::prospect(&node.data_dir.join("nothing")), None);
    let prospect = act::prospect(&node.data_dir).unwrap();
    assert_eq!((prospect.runs, prospect.why), (0, None));
}
