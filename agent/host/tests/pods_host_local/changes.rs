//! A store that changes while it is read, and between readings.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Exercises a store that somebody replaces while it is read: by another one, and by a link that leads out of it. If this
/// fails, a verdict rests on the halves of two stores, or on files that are none of host-local's.
#[test]
fn a_store_that_is_replaced_during_the_scan_is_one_or_the_other() {
    const EACH: usize = 300;
    let tree = Tree::with_network();
    for number in 0..EACH {
        let (high, low) = (number / 250, number % 250);
        tree.reserve(&format!("10.48.{high}.{low}"), "one\r\neth0");
        tree.write(format!("other/10.48.{high}.{low}"), "other\r\neth0");
        tree.write(format!("outside/10.48.{high}.{low}"), "outside\r\neth0");
    }
    symlink(tree.at("outside"), tree.at("link")).unwrap();
    let exchange = |with: &str| {
        let (store, with) = (tree.at(NETWORK), tree.at(with));
        let (here, how) = (nix::fcntl::AT_FDCWD, nix::fcntl::RenameFlags::RENAME_EXCHANGE);
        nix::fcntl::renameat2(here, &store, here, &with, how).unwrap();
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let started = Instant::now();
            while !done.load(Ordering::Relaxed) && started.elapsed() < Duration::from_secs(30) {
                exchange("other");
                exchange("link");
                std::thread::sleep(Duration::from_micros(200));
                exchange("link");
            }
        });
        for _round in 0..60 {
            let round = tree.observe();
            let of = |id: &str| {
                let is = |holder: &Holder| holder.container.0 == id;
                round.reservations.iter().filter(|held| held.holder.present().is_some_and(is)).count()
            };
            let seen = (of("one"), of("other"), of("outside"));
            match &round.outcome {
                Outcome::Complete => assert!(matches!(seen, (EACH, 0, 0) | (0, EACH, 0)), "{seen:?}"),
                Outcome::Partial(why) => {
                    let named =
                        ["is a symbolic link", "is not a directory"].iter().any(|what| why.as_str().contains(what));
                    assert!(named, "{why}");
                    assert_eq!(seen, (0, 0, 0));
                }
                Outcome::Failed(why) => panic!("{why}"),
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Sets the time at which a directory changed last to a minute ago, as if nothing had happened since.
fn stood_still(directory: &Path) {
    let then = nix::sys::time::TimeSpec::from_duration(
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - Duration::from_secs(60),
    );
    let follow = nix::sys::stat::UtimensatFlags::FollowSymlink;
    nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, directory, &then, &then, follow).unwrap();
    // The time of the inode's own change cannot be set: it has to pass.
    std::thread::sleep(Duration::from_millis(1100));
}

/// Exercises what is remembered of a store. If this fails, a daemon tells of reservations that are gone, or misses new ones.
#[test]
fn a_directory_that_stood_still_is_told_again_and_one_that_changed_is_read() {
    let tree = Tree::with_network();
    tree.reserve("10.48.131.4", format!("{ID}\r\neth0"));
    stood_still(&tree.at(NETWORK));
    let mut source = tree.source();
    let mut addresses = || {
        let mut found = Vec::new();
        source.observe(&mut |observation| {
            if let Fact::Reservation(reservation) = observation.fact {
                found.push((
                    reservation.address.to_string(),
                    reservation.holder.present().map(|holder| holder.container.0.clone()),
                ));
            }
        });
        found.sort();
        found
    };
    let first = addresses();
    assert_eq!(first.len(), 1);
    // What host-local never does shows that the file was not opened again.
    std::fs::write(tree.at(NETWORK).join("10.48.131.4"), "other\r\neth0").unwrap();
    assert_eq!(addresses(), first);
    // What it does is seen at once.
    tree.reserve("10.48.131.5", format!("{ID}\r\neth0"));
    assert_eq!(addresses().len(), 2);
    std::fs::remove_file(tree.at(NETWORK).join("10.48.131.4")).unwrap();
    assert_eq!(addresses().len(), 1);
    assert_eq!(addresses()[0].0, "10.48.131.5");
}

/// Exercises a file that is in flight. If this fails, its holder is never learnt.
#[test]
fn a_store_with_an_empty_file_is_read_again_although_its_directory_stands_still() {
    let tree = Tree::with_network();
    tree.reserve("10.48.131.4", "");
    stood_still(&tree.at(NETWORK));
    let mut source = tree.source();
    let mut holder = || {
        let mut found = None;
        source.observe(&mut |observation| {
            if let Fact::Reservation(reservation) = observation.fact {
                found = Some(reservation.holder.clone());
            }
        });
        found.unwrap()
    };
    assert_eq!(holder(), Known::Absent);
    std::fs::write(tree.at(NETWORK).join("10.48.131.4"), format!("{ID}\r\neth0")).unwrap();
    assert!(holder().present().is_some());
}
