//! How keys leave, read at times of our choosing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use headroom_core::time::NodeTime;
use headroom_ebpf_common::tcp::Counts;
use headroom_host::ebpf::tcp::Tcp;
use headroom_host::ebpf::tcp::entries::Connected;
use headroom_host::root::HostRoot;

use crate::{End, V4, closed_port, connections};

/// The programs and their maps, to be read at times of our choosing.
struct Clocked {
    tcp: Tcp,
    start: NodeTime,
}

impl Clocked {
    fn new(room: u32) -> Self {
        Self { tcp: Tcp::load(&HostRoot::live(), room).unwrap(), start: headroom_host::clock::node_time() }
    }

    /// What was counted for a destination, as read so many seconds from the start.
    fn read(&mut self, second: u64, destination: SocketAddr, table: Option<&Connected<'_>>) -> Option<Counts> {
        self.read_told(second, destination, table).map(|(_, counts)| counts)
    }

    /// With the number of the counting.
    fn read_told(
        &mut self,
        second: u64,
        destination: SocketAddr,
        table: Option<&Connected<'_>>,
    ) -> Option<(u32, Counts)> {
        let mut found = None;
        let now = self.start.after(Duration::from_secs(second));
        self.tcp
            .entries
            .read(now, table, true, |key, born, counts| {
                let IpAddr::V4(address) = destination.ip() else { return };
                if key.port == destination.port() && key.destination == address.to_ipv6_mapped().octets() {
                    assert!(found.replace((born, *counts)).is_none(), "shown twice");
                }
            })
            .unwrap();
        found
    }
}

fn refused(destination: SocketAddr, times: u64) -> Counts {
    for _ in 0..times {
        TcpStream::connect(destination).unwrap_err();
    }
    Counts { attempted: times, refused: times, ..Counts::default() }
}

/// Exercises a key that comes back, as much as before or more, before all keys were read. If this fails, the ledger takes it for the
/// one that it was, and what was counted before is lost.
#[test]
fn a_pair_that_comes_back_between_two_readings_is_told_from_the_one_that_it_was() {
    let mut clocked = Clocked::new(256);
    let destination = closed_port(V4);
    let first = refused(destination, 1);
    let (born, counts) = clocked.read_told(1, destination, None).unwrap();
    assert_eq!(counts, first);
    for second in [152, 154] {
        assert_eq!(clocked.read_told(second, destination, None), Some((born, first)), "{second}");
    }
    // Freed, and not missed by anybody: those that did not move are not told.
    let now = clocked.start.after(Duration::from_secs(156));
    clocked.tcp.entries.read(now, None, false, |_, _, _| {}).unwrap();
    let second = refused(destination, 1);
    let (born_again, counts) = clocked.read_told(157, destination, None).unwrap();
    assert_eq!(counts, second);
    assert_ne!(born_again, born);
    assert_eq!(clocked.read_told(158, destination, None), Some((born_again, second)));
}

/// Exercises the end of a key. If this fails, the map fills up in days.
#[test]
fn a_pair_without_connections_is_retired_and_counted_anew_when_it_is_dialled_again() {
    let mut clocked = Clocked::new(256);
    let destination = closed_port(V4);
    let counts = refused(destination, 3);
    assert_eq!(clocked.read(1, destination, None), Some(counts));
    for second in [140, 152, 154] {
        assert_eq!(clocked.read(second, destination, None), Some(counts), "{second}");
    }
    assert_eq!(clocked.read(156, destination, None), None);
    let counts = refused(destination, 2);
    assert_eq!(clocked.read(160, destination, None), Some(counts));
}

/// Exercises each moment of the retirement. If this fails, counts that come at the wrong moment are lost.
#[test]
fn what_is_counted_while_a_pair_leaves_is_not_lost() {
    // Removed from the hash at 152, what leads to it at 154, free at 156.
    for moment in [152, 154] {
        let mut clocked = Clocked::new(256);
        let listener = TcpListener::bind((V4, 0)).unwrap();
        let destination = listener.local_addr().unwrap();
        connections(&listener, 3, End::ClientFirst);
        let counts = Counts { attempted: 3, opened: 3, closed: 3, ..Counts::default() };
        let (born, first) = clocked.read_told(1, destination, None).unwrap();
        assert_eq!(first, counts);
        assert_eq!(clocked.read(152, destination, None), Some(counts));
        if moment == 154 {
            assert_eq!(clocked.read(154, destination, None), Some(counts));
        }
        let client = TcpStream::connect(destination).unwrap();
        for second in [155, 157, 159, 400, 402, 404, 406] {
            let open = Counts { attempted: 4, opened: 4, closed: 3, ..Counts::default() };
            assert_eq!(clocked.read_told(second, destination, None), Some((born, open)), "{moment}, {second}");
        }
        drop(client);
        drop(listener.accept().unwrap());
        thread::sleep(Duration::from_millis(50));
        let ended = Counts { attempted: 4, opened: 4, closed: 4, ..Counts::default() };
        assert_eq!(clocked.read(408, destination, None), Some(ended), "{moment}");
        // Two entries have counted it: only a socket table tells that nothing is open.
        let begun = clocked.start.after(Duration::from_secs(500));
        let without = Connected { begun, shows: &|_| false };
        assert_eq!(clocked.read(600, destination, Some(&without)), Some(ended), "{moment}");
        assert_eq!(clocked.read(602, destination, None), Some(ended), "{moment}");
        assert_eq!(clocked.read(604, destination, None), None, "{moment}");
    }
}

/// Exercises keys that never come to zero: closes that were missed, connections from before the start. If this fails, they
/// stay for ever, or go while they are open.
#[test]
fn a_pair_that_may_have_connections_goes_only_when_a_socket_table_shows_none() {
    let mut clocked = Clocked::new(256);
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let destination = listener.local_addr().unwrap();
    let client = TcpStream::connect(destination).unwrap();
    let open = Some(Counts { attempted: 1, opened: 1, ..Counts::default() });
    for second in [1, 152, 164, 176, 188] {
        assert_eq!(clocked.read(second, destination, None), open);
    }
    let at = |second| clocked.start.after(Duration::from_secs(second));
    let with = Connected { begun: at(190), shows: &|_| true };
    let without = Connected { begun: at(202), shows: &|_| false };
    assert_eq!(clocked.read(191, destination, Some(&with)), open);
    assert_eq!(clocked.read(201, destination, None), open);
    assert_eq!(clocked.read(203, destination, Some(&without)), open);
    for second in [214, 216] {
        assert_eq!(clocked.read(second, destination, None), open);
    }
    assert_eq!(clocked.read(218, destination, None), None);
    drop(client);
}

/// Exercises the bound. If this fails, a full map stays full for two minutes and a half, or recent pairs go first.
#[test]
fn near_the_bound_the_pairs_that_are_idle_longest_go_sooner() {
    let mut clocked = Clocked::new(128);
    let port = closed_port(V4).port();
    let address = |last| SocketAddr::new(Ipv4Addr::new(127, 0, 9, last).into(), port);
    (1..=60).for_each(|last| assert_eq!(refused(address(last), 1).refused, 1));
    clocked.read(1, address(1), None).unwrap();
    (61..=120).for_each(|last| assert_eq!(refused(address(last), 1).refused, 1));
    clocked.read(4, address(1), None).unwrap();
    assert!(clocked.tcp.entries.in_use() >= 120);
    for second in [16, 18, 20, 22] {
        clocked.read(second, address(120), None).unwrap();
    }
    assert_eq!(clocked.read(22, address(1), None), None);
    assert!(clocked.read(22, address(120), None).is_some());
    assert!((80..=112).contains(&clocked.tcp.entries.in_use()), "{}", clocked.tcp.entries.in_use());
    assert_eq!(clocked.tcp.losses.get().unwrap().map_full, 0);
}
