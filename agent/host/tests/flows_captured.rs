//! Flows from a captured tree: only files, no kernel.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::symlink;
use std::time::Duration;

use headroom_core::ids::NetnsInode;
use headroom_core::known::Known;
use headroom_core::observe::{Fact, Outcome, Snapshot, SocketState};
use headroom_host::root::HostRoot;
use headroom_host::source::Source;
use headroom_host::source::conntrack::{ConntrackSource, Options};
use headroom_host::source::sockets::SocketsSource;

const ENTRY: &str = "ipv4     2 udp      17 29 src=10.0.0.5 dst=1.2.3.4 sport=40000 dport=53 src=1.2.3.4 dst=192.0.2.1 sport=53 dport=1025 mark=0 use=2\n";
const HEADER: &str =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn process(&self, pid: u32, inode: u64, tcp: &str, tcp6: Option<&str>) {
        self.write(&format!("proc/{pid}/net/tcp"), &format!("{HEADER}{tcp}"));
        if let Some(tcp6) = tcp6 {
            self.write(&format!("proc/{pid}/net/tcp6"), &format!("{HEADER}{tcp6}"));
        }
        std::fs::create_dir_all(self.0.path().join(format!("proc/{pid}/ns"))).unwrap();
        symlink(format!("net:[{inode}]"), self.0.path().join(format!("proc/{pid}/ns/net"))).unwrap();
    }

    fn root(&self) -> HostRoot {
        HostRoot::at(self.0.path())
    }
}

fn facts(source: &mut dyn Source) -> Vec<Fact> {
    let mut facts = Vec::new();
    source.observe(&mut |observation| facts.push(observation.fact));
    facts
}

/// A line as this machine's kernel would write it.
fn line(slot: u32, source: ([u8; 4], u16), destination: ([u8; 4], u16), state: u8) -> String {
    let end = |(address, port): ([u8; 4], u16)| format!("{:08X}:{port:04X}", u32::from_ne_bytes(address));
    format!(
        "{slot:4}: {} {} {state:02X} 00000000:00000000 00:00000000 00000000     0        0 20002 1 0000000000000000 100 0 0 10 0\n",
        end(source),
        end(destination)
    )
}

#[test]
fn a_captured_conntrack_table_is_a_snapshot_and_says_what_it_lacks() {
    let tree = Tree::new();
    tree.write("proc/net/nf_conntrack", ENTRY);
    let mut source = ConntrackSource::start(&tree.root(), Options::events(Duration::from_secs(60)));
    let facts_now = facts(&mut source);
    let [Fact::Begin(_), Fact::Flow(entry), Fact::End { outcome: Outcome::Complete, .. }, Fact::Coverage(coverage)] =
        facts_now.as_slice()
    else {
        panic!("{facts_now:?}")
    };
    assert_eq!((entry.translated.port, entry.id), (1025, 0));
    let coverage = coverage.present().unwrap();
    assert_eq!(coverage.how, "/proc/net/nf_conntrack");
    assert!(coverage.degraded.as_ref().unwrap().as_str().contains("captured tree"));
    // Not due again yet, but what it can do is told in every round.
    assert!(matches!(facts(&mut source).as_slice(), [Fact::Coverage(Known::Present(_))]));
}

#[test]
fn a_line_that_is_not_understood_makes_the_snapshot_partial() {
    let tree = Tree::new();
    tree.write("proc/net/nf_conntrack", &format!("{ENTRY}ipv4 2 garbage\n"));
    let facts = facts(&mut ConntrackSource::start(&tree.root(), Options::events(Duration::from_secs(60))));
    assert!(facts.iter().any(|fact| matches!(fact, Fact::End { outcome: Outcome::Partial(_), .. })), "{facts:?}");
    assert!(facts.iter().any(|fact| matches!(fact, Fact::Lost { total: 1, .. })), "{facts:?}");
}

#[test]
fn a_tree_without_conntrack_fails_by_name_and_never_shows_an_empty_table() {
    let tree = Tree::new();
    let facts = facts(&mut ConntrackSource::start(&tree.root(), Options::events(Duration::from_secs(60))));
    let [Fact::Begin(_), Fact::End { outcome: Outcome::Failed(_), .. }, Fact::Coverage(Known::Unknown(why))] =
        facts.as_slice()
    else {
        panic!("{facts:?}")
    };
    assert!(why.as_str().contains("/proc/net/nf_conntrack"), "{why}");
}

#[test]
fn each_namespace_is_read_once_and_listeners_of_both_families_count() {
    let tree = Tree::new();
    let (here, there) = ([10, 0, 0, 5], [1, 2, 3, 4]);
    let connections = line(0, (here, 8080), (there, 50_000), 1) + &line(1, (here, 40_000), (there, 443), 1);
    let listener = "   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20002 1 0000000000000000 100 0 0 10 0\n";
    tree.process(1, 7, &connections, Some(listener));
    tree.process(2, 7, &connections, Some(listener));
    tree.process(3, 8, &line(0, (here, 40_000), (there, 443), 2), None);
    let facts = facts(&mut SocketsSource::new(&tree.root()));
    let sockets: Vec<_> =
        facts.iter().filter_map(|fact| if let Fact::Socket(socket) = fact { Some(socket) } else { None }).collect();
    let told: Vec<_> = sockets.iter().map(|s| (s.netns, s.source.port, s.accepted, s.state)).collect();
    assert_eq!(
        told,
        [
            (NetnsInode(7), 8080, true, SocketState::Open),
            (NetnsInode(7), 40_000, false, SocketState::Open),
            (NetnsInode(8), 40_000, false, SocketState::Connecting),
        ]
    );
    let listening = Fact::Listening { inode: NetnsInode(7), ports: vec!["8080".parse().unwrap()] };
    assert_eq!(facts.iter().filter(|fact| matches!(fact, Fact::Listening { .. })).collect::<Vec<_>>(), [&listening]);
    assert_eq!(facts.first(), Some(&Fact::Begin(Snapshot::Sockets)));
    let [.., Fact::End { outcome: Outcome::Complete, .. }, Fact::Coverage(Known::Present(_))] = facts.as_slice() else {
        panic!("{facts:?}")
    };
}

#[test]
fn a_namespace_that_cannot_be_read_makes_the_snapshot_partial() {
    let tree = Tree::new();
    tree.process(1, 7, "", None);
    tree.process(2, 8, "", None);
    let table = tree.0.path().join("proc/2/net/tcp");
    std::fs::remove_file(&table).unwrap();
    nix::unistd::mkfifo(&table, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let facts = facts(&mut SocketsSource::new(&tree.root()));
    let [_begin, Fact::End { outcome: Outcome::Partial(why), .. }, Fact::Coverage(Known::Present(_))] =
        facts.as_slice()
    else {
        panic!("{facts:?}")
    };
    assert!(why.as_str().contains("/proc/2/net/tcp"), "{why}");
}

#[test]
fn a_tree_with_nothing_in_it_fails() {
    let facts = facts(&mut SocketsSource::new(&Tree::new().root()));
    assert!(
        matches!(
            facts.as_slice(),
            [_, Fact::End { outcome: Outcome::Failed(_), .. }, Fact::Coverage(Known::Unknown(_))]
        ),
        "{facts:?}"
    );
}

#[test]
fn a_tree_without_processes_is_one_namespace() {
    let tree = Tree::new();
    tree.write("proc/net/tcp", &format!("{HEADER}{}", line(0, ([10, 0, 0, 5], 40_000), ([1, 2, 3, 4], 443), 1)));
    let facts = facts(&mut SocketsSource::new(&tree.root()));
    assert!(
        matches!(facts.as_slice(), [_, Fact::Socket(_), Fact::End { outcome: Outcome::Complete, .. }, _]),
        "{facts:?}"
    );
}
