//! host-local's stores as they are found on nodes, and as somebody hostile would leave them.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use headroom_core::known::{Known, Why};
use headroom_core::observe::{CoverageDetail, Fact, Holder, Network, Outcome, Reservation, Snapshot};
use headroom_host::root::HostRoot;
use headroom_host::source::Source;
use headroom_host::source::host_local::{HostLocalSource, Named};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

#[path = "pods_host_local/changes.rs"]
mod changes;

const ID: &str = "3f2b9c0de1a4f5b6c7d8e9f00112233445566778899aabbccddeeff001122334";
const NETWORK: &str = "var/lib/cni/networks/gke-pod-network";

/// A captured tree.
struct Tree(tempfile::TempDir);

/// What one round said.
struct Round {
    networks: Vec<Network>,
    reservations: Vec<Arc<Reservation>>,
    outcome: Outcome,
    coverage: Known<CoverageDetail>,
}

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with_network() -> Self {
        let tree = Self::new();
        std::fs::create_dir_all(tree.at(NETWORK)).unwrap();
        tree
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        let path = self.at(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn reserve(&self, name: &str, content: impl AsRef<[u8]>) {
        self.write(Path::new(NETWORK).join(name), content);
    }

    fn source(&self) -> HostLocalSource {
        HostLocalSource::new(HostRoot::at(self.0.path()), "/var/lib/cni/networks".into(), "/etc/cni/net.d".into())
    }

    fn observe(&self) -> Round {
        observe(self.source())
    }
}

fn observe(mut source: HostLocalSource) -> Round {
    let (mut networks, mut reservations, mut outcome, mut coverage, mut begun) = (vec![], vec![], None, None, false);
    source.observe(&mut |observation| match observation.fact {
        Fact::Begin(snapshot) => {
            assert_eq!(snapshot, Snapshot::Reservations);
            begun = true;
        }
        Fact::Network(network) => networks.push(network),
        Fact::Reservation(reservation) => {
            assert!(begun && outcome.is_none(), "outside the bracket");
            reservations.push(reservation);
        }
        Fact::End { outcome: how, .. } => outcome = Some(how),
        Fact::Coverage(known) => coverage = Some(known),
        other => panic!("{other:?}"),
    });
    reservations.sort_by_key(|reservation| reservation.address);
    Round { networks, reservations, outcome: outcome.unwrap(), coverage: coverage.unwrap() }
}

impl Round {
    fn holder(&self, address: &str) -> &Known<Holder> {
        let address: std::net::IpAddr = address.parse().unwrap();
        &self.reservations.iter().find(|reservation| reservation.address == address).unwrap().holder
    }

    fn why_not(&self, address: &str) -> &str {
        self.holder(address).unknown().unwrap().as_str()
    }

    fn degraded(&self) -> &str {
        self.coverage.present().unwrap().degraded.as_ref().map_or("", Why::as_str)
    }
}

#[test]
fn a_gke_store_is_read_with_its_range_its_holders_and_its_times() {
    let tree = Tree::with_network();
    tree.write(
        "etc/cni/net.d/10-gke-ptp.conflist",
        r#"{"name":"gke-pod-network","cniVersion":"0.3.1","plugins":[{"type":"ptp","ipam":{"type":"host-local",
           "ranges":[[{"subnet":"10.48.131.0/26"}]]}},{"type":"portmap"}]}"#,
    );
    tree.reserve("lock", "");
    tree.reserve("last_reserved_ip.0", "10.48.131.4");
    tree.reserve("10.48.131.4", format!("{ID}\r\neth0"));
    tree.reserve("10.48.131.5", "");
    tree.reserve("fd00::5", format!("{ID}\r\neth0"));
    let before = SystemTime::now();
    let round = tree.observe();
    assert_eq!(round.outcome, Outcome::Complete);
    assert_eq!(round.degraded(), "");
    let network = &round.networks[0];
    assert_eq!(
        (network.store.as_str(), network.name.as_str()),
        ("/var/lib/cni/networks/gke-pod-network", "gke-pod-network")
    );
    assert_eq!(network.range_sets.present().unwrap()[0][0].subnet.to_string(), "10.48.131.0/26");
    assert!(network.ignored.is_empty(), "{:?}", network.ignored);
    assert!(network.complete);
    assert_eq!(round.reservations.len(), 3);
    for address in ["10.48.131.4", "fd00::5"] {
        let holder = round.holder(address).present().unwrap();
        assert_eq!((holder.container.0.as_str(), holder.ifname.as_deref()), (ID, Some("eth0")));
    }
    assert_eq!(*round.holder("10.48.131.5"), Known::Absent, "an empty file is in flight");
    let modified = round.reservations[0].modified.present().unwrap().as_millis();
    let now = i64::try_from(before.duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    assert!((now - 60_000..=now + 1000).contains(&modified), "{modified} {now}");
}

/// Exercises every kind of file in the place of a reservation. If this fails, one of them hangs or deceives the agent.
#[test]
fn hostile_reservations_are_each_unknown_for_their_own_reason() {
    let tree = Tree::with_network();
    let at = |name: &str| tree.at(NETWORK).join(name);
    tree.write("secret", format!("{ID}\r\neth0"));
    symlink(tree.at("secret"), at("10.0.0.1")).unwrap();
    mkfifo(&at("10.0.0.2"), Mode::S_IRWXU).unwrap();
    std::fs::create_dir(at("10.0.0.3")).unwrap();
    std::fs::File::create(at("10.0.0.4")).unwrap().set_len(1 << 30).unwrap();
    let _listener = UnixListener::bind(at("10.0.0.5")).unwrap();
    tree.reserve("10.0.0.6", b"\xff\xfe\0\x01");
    tree.reserve("10.0.0.7", [0; 66]);
    tree.reserve("10.0.0.8", format!("{ID}\r\neth0").repeat(100));
    tree.reserve("10.0.0.9", format!("{ID}\r\neth0"));
    let started = Instant::now();
    let round = tree.observe();
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    for (address, word) in [
        ("10.0.0.1", "symbolic link"),
        ("10.0.0.2", "FIFO"),
        ("10.0.0.3", "directory"),
        ("10.0.0.4", "longer than 4096 bytes"),
        ("10.0.0.5", "socket"),
        ("10.0.0.6", "not text"),
        ("10.0.0.7", "container id"),
        ("10.0.0.8", "longer than 4096 bytes"),
    ] {
        assert!(round.why_not(address).contains(word), "{address}: {}", round.why_not(address));
    }
    assert!(round.holder("10.0.0.9").present().is_some(), "its neighbours do not hide a good one");
    assert_eq!(round.outcome, Outcome::Complete);
}

#[test]
fn names_that_are_no_addresses_are_counted_and_shown_without_harm() {
    let tree = Tree::with_network();
    std::fs::write(tree.at(NETWORK).join(OsStr::from_bytes(b"\xff\x1b[2J")), "x").unwrap();
    // A line of its own in a careless report; and an address in front of it.
    for name in ["10.0.0.1\n10.0.0.2", "10.0.0.3\n", "\nLEAKED 10.0.0.4"] {
        tree.reserve(name, ID);
    }
    let long = "a-very-long-name".repeat(15);
    // None of the addresses is spelt as host-local does, so it would never find them.
    for name in
        ["010.0.0.1", "10.0.0.1.bak", "FD00::1", "fd00:0::1", "::ffff:10.0.0.1", "10.0.0", "10.0.0.1~", ".swp", &long]
    {
        tree.reserve(name, "x");
    }
    let round = tree.observe();
    let ignored = &round.networks[0].ignored;
    assert_eq!(ignored.len(), 9, "{ignored:?}");
    assert_eq!(ignored[8], "… and 5 more");
    let harmless = |name: &String| name.chars().count() <= 81 && !name.contains(['\x1b', '\n']);
    assert!(ignored.iter().all(harmless), "{ignored:?}");
    assert!(round.reservations.is_empty());
    assert_eq!(round.outcome, Outcome::Complete);
}

#[test]
fn a_network_directory_that_is_a_link_is_refused_and_named() {
    let tree = Tree::with_network();
    tree.reserve("10.0.0.1", ID);
    tree.write("elsewhere/10.9.9.9", ID);
    symlink(tree.at("elsewhere"), tree.at("var/lib/cni/networks/other")).unwrap();
    let round = tree.observe();
    assert_eq!(round.reservations.len(), 1);
    let Outcome::Partial(why) = &round.outcome else { panic!("{:?}", round.outcome) };
    assert!(why.as_str().contains("`/var/lib/cni/networks/other` is a symbolic link"), "{why}");
    assert!(round.degraded().contains("symbolic link"));
}

#[test]
fn a_node_without_host_local_is_an_empty_complete_answer() {
    let round = Tree::new().observe();
    assert_eq!(round.coverage, Known::Absent);
    assert_eq!(round.outcome, Outcome::Complete);
    assert!(round.networks.is_empty());
}

#[test]
fn a_directory_that_somebody_named_and_that_does_not_exist_is_no_empty_node() {
    let named = |cni_dir, cni_conf_dir| Named { cni_dir, cni_conf_dir };
    for (named, path) in [(named(true, false), "/var/lib/cni/networks"), (named(false, true), "/etc/cni/net.d")] {
        let round = observe(Tree::new().source().with_named(named));
        let Outcome::Failed(why) = &round.outcome else { panic!("{:?}", round.outcome) };
        assert!(why.as_str().contains(&format!("`{path}` does not exist")), "{why}");
        assert_eq!(round.coverage.unknown(), Some(why));
    }
    // What there is, is told all the same; there may be more.
    let tree = Tree::with_network();
    tree.reserve("10.0.0.1", ID);
    let round = observe(tree.source().with_named(named(true, true)));
    assert_eq!(round.reservations.len(), 1);
    assert!(matches!(round.outcome, Outcome::Partial(_)), "{:?}", round.outcome);
    assert!(round.degraded().contains("`/etc/cni/net.d` does not exist"), "{}", round.degraded());
}

#[test]
fn a_store_that_is_a_file_is_a_failure_not_an_empty_answer() {
    let tree = Tree::new();
    tree.write("var/lib/cni/networks", "surprise");
    let round = tree.observe();
    let Outcome::Failed(why) = &round.outcome else { panic!("{:?}", round.outcome) };
    assert!(why.as_str().contains("`/var/lib/cni/networks` is not a directory"), "{why}");
    assert_eq!(round.coverage.unknown(), Some(why));
}

#[test]
fn a_network_whose_data_dir_is_elsewhere_is_read_there() {
    let tree = Tree::with_network();
    tree.write(
        "etc/cni/net.d/10-kindnet.conflist",
        r#"{"name":"kindnet","plugins":[{"type":"ptp","ipam":{"type":"host-local","dataDir":"/run/cni-ipam-state",
           "ranges":[[{"subnet":"10.244.0.0/24"}],[{"subnet":"fd00:10:244::/64"}]]}}]}"#,
    );
    tree.write("etc/cni/net.d/99-torn.conf", "{");
    tree.write("run/cni-ipam-state/kindnet/10.244.0.7", format!("{ID}\r\neth0"));
    tree.write("run/cni-ipam-state/unrelated/10.9.9.9", ID);
    tree.write("var/lib/cni/networks/kindnet/10.244.0.9", ID);
    let round = tree.observe();
    let stores: Vec<_> = round.networks.iter().map(|network| network.store.as_str()).collect();
    assert_eq!(
        stores,
        ["/var/lib/cni/networks/gke-pod-network", "/var/lib/cni/networks/kindnet", "/run/cni-ipam-state/kindnet"]
    );
    assert_eq!(round.networks[2].range_sets.present().unwrap().len(), 2);
    // A store of the same name where the configuration does not look has no known range.
    assert!(round.networks[1].range_sets.unknown().unwrap().as_str().contains("dataDir `/run/cni-ipam-state`"));
    assert!(round.networks[0].range_sets.unknown().unwrap().as_str().contains("network `gke-pod-network`"));
    assert!(round.degraded().contains("99-torn.conf` is not valid JSON"), "{}", round.degraded());
    assert_eq!(round.outcome, Outcome::Complete);
}

/// Exercises directories that are configured and not there. If this fails, a store that is not mounted looks empty.
#[test]
fn a_configured_data_dir_that_does_not_exist_is_a_warning() {
    let tree = Tree::new();
    let conflist = |data_dir: &str| {
        format!(
            r#"{{"name":"net","plugins":[{{"type":"ptp","ipam":{{"type":"host-local",{data_dir}"subnet":"10.0.0.0/24"}}}}]}}"#
        )
    };
    for (data_dir, path) in
        [(r#""dataDir":"/run/cni-ipam-state","#, "/run/cni-ipam-state"), ("", "/var/lib/cni/networks")]
    {
        tree.write("etc/cni/net.d/10-net.conflist", conflist(data_dir));
        let round = tree.observe();
        assert_eq!(
            round.degraded(),
            format!(
                "dataDir `{path}` of network `net` does not exist here: nothing is reserved yet, or it is not mounted"
            )
        );
        assert!(matches!(round.outcome, Outcome::Partial(_)), "nothing was read: {:?}", round.outcome);
        std::fs::create_dir_all(tree.at(path.trim_start_matches('/'))).unwrap();
        // The network's own directory comes with its first pod.
        let round = tree.observe();
        assert_eq!((round.degraded(), &round.outcome), ("", &Outcome::Complete));
        let [network] = round.networks.as_slice() else { panic!("{:?}", round.networks) };
        assert_eq!((network.store.as_str(), network.complete), (format!("{path}/net").as_str(), true));
        assert_eq!((network.range_sets.present().unwrap().len(), round.reservations.len()), (1, 0));
    }
}

/// Exercises a directory that this process may not open. If this fails, its reservations are forgotten as released.
#[test]
fn a_network_whose_directory_may_not_be_read_is_incomplete() {
    let tree = Tree::with_network();
    tree.reserve("10.0.0.1", ID);
    tree.write("var/lib/cni/networks/closed/10.0.0.2", ID);
    let closed = tree.at("var/lib/cni/networks/closed");
    let mode = |mode| std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(mode)).unwrap();
    for path in
        [tree.at(""), tree.at("var"), tree.at("var/lib"), tree.at("var/lib/cni"), tree.at("var/lib/cni/networks")]
    {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    mode(0o000);
    // Root may open everything: its capabilities are taken from this thread alone, by another effective user.
    let root = nix::unistd::Uid::effective().is_root();
    let round = std::thread::scope(|scope| {
        let observe = || {
            if root {
                let nobody = 65_534;
                nix::unistd::setfsuid(nix::unistd::Uid::from_raw(nobody));
            }
            tree.observe()
        };
        scope.spawn(observe).join().unwrap()
    });
    mode(0o755);
    let mut complete: Vec<_> = round.networks.iter().map(|network| (network.name.as_str(), network.complete)).collect();
    complete.sort();
    assert_eq!(complete, [("closed", false), ("gke-pod-network", true)]);
    assert!(
        matches!(&round.outcome, Outcome::Partial(why) if why.as_str().contains("networks/closed` may not be read"))
    );
}

#[test]
fn a_store_reached_on_two_ways_is_read_once() {
    let tree = Tree::with_network();
    tree.reserve("10.0.0.1", ID);
    symlink("/var/lib/cni", tree.at("run")).unwrap();
    tree.write(
        "etc/cni/net.d/10.conf",
        r#"{"name":"gke-pod-network","type":"ptp","ipam":{"type":"host-local","dataDir":"/run/networks","subnet":"10.0.0.0/24"}}"#,
    );
    let round = tree.observe();
    assert_eq!((round.networks.len(), round.reservations.len()), (1, 1));
}

#[test]
fn more_entries_than_the_bound_make_it_partial() {
    let tree = Tree::with_network();
    for last in 1..=20 {
        tree.reserve(&format!("10.0.0.{last}"), ID);
    }
    let round = observe(tree.source().with_entries_limit(5));
    assert_eq!(round.reservations.len(), 5);
    assert!(!round.networks[0].complete);
    let Outcome::Partial(why) = &round.outcome else { panic!("{:?}", round.outcome) };
    assert!(why.as_str().contains("more entries than can be read in one round; 5 were listed"), "{why}");
}

/// Exercises a /18. If this fails, a large range costs many times what it may; the budget for a /16 is for the bench.
#[test]
fn a_large_range_is_read_quickly() {
    let tree = Tree::with_network();
    for number in 0..16_384_u32 {
        let path = tree.at(NETWORK).join(format!("10.48.{}.{}", number >> 8, number & 255));
        std::fs::write(path, format!("{ID}\r\neth0")).unwrap();
    }
    let started = Instant::now();
    let round = tree.observe();
    let took = started.elapsed();
    println!("16,384 reservations in {took:?}");
    assert_eq!(round.reservations.len(), 16_384);
    assert_eq!(round.outcome, Outcome::Complete);
    // Far above what an unoptimised build takes on an idle machine: a shared one may be busy.
    assert!(took < Duration::from_secs(8), "{took:?}");
}

/// Exercises the store as two threads read it. If this fails, what one of them read is lost or told twice.
#[test]
fn a_store_that_two_threads_read_is_told_once_and_whole() {
    let tree = Tree::with_network();
    for number in 0..5000_u32 {
        tree.reserve(&format!("10.48.{}.{}", number >> 8, number & 255), format!("{number:064x}\r\neth0"));
    }
    for name in ["10.50.0.1", "10.47.0.1"] {
        symlink("/etc/hostname", tree.at(NETWORK).join(name)).unwrap();
    }
    let round = tree.observe();
    let (links, read): (Vec<_>, Vec<_>) = round.reservations.iter().partition(|held| held.holder.unknown().is_some());
    assert_eq!((links.len(), read.len(), &round.outcome), (2, 5000, &Outcome::Complete));
    for (number, reservation) in read.iter().enumerate() {
        assert_eq!(reservation.address.to_string(), format!("10.48.{}.{}", number >> 8, number & 255));
        assert_eq!(reservation.holder.present().unwrap().container.0, format!("{number:064x}"));
    }
}
