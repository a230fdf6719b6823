//! The runtime's socket, with a runtime behind it and with everything else that may sit there.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "pods_cri/fake.rs"]
mod fake;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use headroom_core::known::Known;
use headroom_core::observe::{CoverageDetail, Fact, Outcome, Sandbox, Snapshot};
use headroom_host::root::HostRoot;
use headroom_host::source::Source;
use headroom_host::source::cri::{CriSource, ROUND_LIMIT};

use fake::Answer;

/// What one round said.
#[derive(Debug)]
struct Round {
    sandboxes: Vec<Sandbox>,
    outcome: Outcome,
    coverage: Known<CoverageDetail>,
    took: Duration,
}

fn observe(source: &mut CriSource) -> Round {
    let (mut sandboxes, mut outcome, mut coverage) = (vec![], None, None);
    let started = Instant::now();
    source.observe(&mut |observation| match observation.fact {
        Fact::Begin(snapshot) => assert_eq!(snapshot, Snapshot::Runtime),
        Fact::Sandbox(sandbox) => sandboxes.push(sandbox),
        Fact::Container(_) | Fact::Runtime(_) => {}
        Fact::End { outcome: how, .. } => outcome = Some(how),
        Fact::Coverage(known) => coverage = Some(known),
        other => panic!("{other:?}"),
    });
    Round { sandboxes, outcome: outcome.unwrap(), coverage: coverage.unwrap(), took: started.elapsed() }
}

fn at_socket(socket: &Path) -> Round {
    observe(&mut CriSource::new(Some(socket.to_owned()), HostRoot::live()))
}

/// The reason, which has to be the same for the snapshot and the coverage, in time.
fn failure(round: &Round) -> &str {
    let Outcome::Failed(why) = &round.outcome else { panic!("{round:?}") };
    assert_eq!(round.coverage.unknown(), Some(why));
    assert!(round.sandboxes.is_empty());
    assert!(round.took < ROUND_LIMIT + Duration::from_secs(2), "{:?}", round.took);
    why.as_str()
}

/// A server that does something to each connection.
fn server(dir: &Path, behave: impl Fn(UnixStream) + Send + 'static) -> PathBuf {
    let path = dir.join("runtime.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || listener.incoming().flatten().for_each(&behave));
    path
}

#[test]
fn sockets_that_cannot_be_opened_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("runtime.sock");
    assert!(failure(&at_socket(&path)).contains("no container runtime socket at `"));
    drop(UnixListener::bind(&path).unwrap());
    let round = at_socket(&path);
    assert!(failure(&round).contains("nobody listens on the socket"), "{round:?}");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "a file").unwrap();
    let round = at_socket(&path);
    assert!(failure(&round).contains("runtime.sock`"), "{round:?}");
    let round = at_socket(&dir.path().join("x".repeat(200)));
    assert!(failure(&round).contains("could not be connected to"), "{round:?}");
}

#[test]
fn servers_that_hang_close_or_talk_nonsense_are_named_in_time() {
    type Behaviour = (&'static str, fn(UnixStream), &'static str);
    const CLOSED: &str = "failed Version";
    let behaviours: [Behaviour; 6] = [
        ("never answers", |stream| std::mem::forget(stream), "did not answer Version in time"),
        ("closes", drop, CLOSED),
        ("closes after reading", |mut stream| drop(stream.read(&mut [0; 10])), CLOSED),
        (
            "is no HTTP/2 server",
            |mut stream| drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")),
            CLOSED,
        ),
        ("sends garbage", |mut stream| drop(stream.write_all(&[0xA5; 100_000])), CLOSED),
        (
            "never stops talking",
            |mut stream| {
                // SETTINGS, then PING frames for ever.
                let ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00 forever";
                drop(stream.write_all(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"));
                while stream.write_all(&ping[..17]).is_ok() {}
            },
            "Version",
        ),
    ];
    for (what, behave, word) in behaviours {
        let dir = tempfile::tempdir().unwrap();
        let round = at_socket(&server(dir.path(), behave));
        let why = failure(&round);
        println!("{what}: {why}");
        // One that closes at once may be noticed while still connecting.
        let closed = word == CLOSED && why.contains("could not be connected to");
        assert!((why.contains(word) || closed) && why.contains("runtime.sock"), "a server that {what}: {why}");
    }
}

#[test]
fn a_node_without_a_runtime_is_certain_but_proves_nothing() {
    let tree = tempfile::tempdir().unwrap();
    let round = observe(&mut CriSource::new(None, HostRoot::at(tree.path())));
    assert!(failure(&round).contains("/run/crio/crio.sock"));
}

#[test]
fn a_dead_default_socket_does_not_hide_that_no_runtime_answered() {
    let tree = tempfile::tempdir().unwrap();
    for socket in ["run/containerd/containerd.sock", "run/crio/crio.sock"] {
        let path = tree.path().join(socket);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(UnixListener::bind(path).unwrap());
    }
    let round = observe(&mut CriSource::new(None, HostRoot::at(tree.path())));
    assert!(failure(&round).contains("containerd.sock"), "{round:?}");
}

/// Exercises single statuses. If this fails, one sick sandbox makes all verdicts undetermined, or a live pod looks dead.
#[test]
fn a_status_that_fails_is_unknown_for_that_sandbox_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fake.sock");
    let state = fake::serve(&path);
    state.lock().unwrap().sandboxes = [
        ("good", Answer::Address("10.48.131.4")),
        ("new", Answer::Address("")),
        ("gone", Answer::NotFound),
        ("sick", Answer::Error("cannot\x1b[2J read")),
        ("silent", Answer::Silence),
    ]
    .map(|(id, answer)| (id.to_owned(), answer))
    .to_vec();
    let mut source = CriSource::new(Some(format!("unix://{}", path.display()).into()), HostRoot::live());
    let round = observe(&mut source);
    assert_eq!(round.outcome, Outcome::Complete);
    assert!(round.took < ROUND_LIMIT, "{:?}", round.took);
    assert_eq!(round.coverage.present().unwrap().how, format!("fake 1.2.3 at {}", path.display()));
    let sandbox = |id: &str| round.sandboxes.iter().find(|sandbox| sandbox.id.0 == id);
    assert_eq!(sandbox("good").unwrap().addresses, Known::Present(vec!["10.48.131.4".parse().unwrap()]));
    assert_eq!(sandbox("good").unwrap().pod.to_string(), "shop/pod-good");
    assert_eq!(sandbox("new").unwrap().addresses, Known::Absent);
    assert!(sandbox("gone").is_none());
    let why = |id: &str| sandbox(id).unwrap().addresses.unknown().unwrap().to_string();
    assert!(why("sick").contains("failed PodSandboxStatus: cannot\\u{1b}[2J read"), "{}", why("sick"));
    assert!(why("silent").contains("did not answer"), "{}", why("silent"));

    // Only what is not settled is asked again.
    let asked = |state: &std::sync::Mutex<fake::State>| std::mem::take(&mut state.lock().unwrap().asked);
    assert_eq!(asked(&state).len(), 5);
    state.lock().unwrap().sandboxes.truncate(2);
    state.lock().unwrap().sandboxes[1].1 = Answer::Address("10.48.131.5");
    let round = observe(&mut source);
    assert_eq!(round.sandboxes[1].addresses, Known::Present(vec!["10.48.131.5".parse().unwrap()]));
    assert_eq!(asked(&state), ["new"]);
}

#[test]
fn many_silent_statuses_end_with_the_round() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fake.sock");
    let state = fake::serve(&path);
    state.lock().unwrap().sandboxes = (0..300).map(|number| (number.to_string(), Answer::Silence)).collect();
    let round = at_socket(&path);
    assert_eq!((round.sandboxes.len(), &round.outcome), (300, &Outcome::Complete));
    assert!(round.took < ROUND_LIMIT + Duration::from_secs(2), "{:?}", round.took);
}

#[test]
fn three_hundred_sandboxes_are_read_at_once_and_then_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fake.sock");
    let state = fake::serve(&path);
    state.lock().unwrap().sandboxes =
        (0..300).map(|number| (number.to_string(), Answer::Address("10.48.131.4"))).collect();
    let mut source = CriSource::new(Some(path), HostRoot::live());
    let (first, second) = (observe(&mut source), observe(&mut source));
    println!("first {:?}, then {:?}", first.took, second.took);
    assert_eq!(first.sandboxes, second.sandboxes);
    assert_eq!(state.lock().unwrap().asked.len(), 300);
}

#[test]
fn a_list_that_fails_or_is_too_long_fails_the_round() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fake.sock");
    let state = fake::serve(&path);
    state.lock().unwrap().ballast = 40 << 20;
    let round = at_socket(&path);
    println!("{}", failure(&round));
    assert!(failure(&round).contains("failed ListContainers"), "{round:?}");
    state.lock().unwrap().broken_lists = Some("metadata store is closed");
    let round = at_socket(&path);
    assert!(failure(&round).contains("failed ListPodSandbox: metadata store is closed"), "{round:?}");
}

#[test]
fn what_two_runtimes_know_is_joined() {
    let tree = tempfile::tempdir().unwrap();
    for (socket, id) in [("run/containerd/containerd.sock", "a"), ("run/crio/crio.sock", "b")] {
        let path = tree.path().join(socket);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        fake::serve(&path).lock().unwrap().sandboxes = vec![(id.to_owned(), Answer::Address("10.0.0.1"))];
    }
    // What a mount of a socket that does not exist leaves behind is no runtime.
    std::fs::create_dir_all(tree.path().join("var/run/cri-dockerd.sock")).unwrap();
    let round = observe(&mut CriSource::new(None, HostRoot::at(tree.path())));
    assert_eq!(round.outcome, Outcome::Complete);
    assert_eq!(round.sandboxes.len(), 2);
    let coverage = round.coverage.present().unwrap();
    assert!(coverage.how.contains("; fake 1.2.3 at"));
    assert_eq!(coverage.degraded, None);
}

/// Exercises a runtime that restarts beside one that answers. If this fails, the pods of the first look leaked meanwhile.
#[test]
fn a_socket_that_refuses_makes_the_answer_of_another_partial() {
    let tree = tempfile::tempdir().unwrap();
    let (answering, dead) =
        (tree.path().join("run/containerd/containerd.sock"), tree.path().join("run/crio/crio.sock"));
    for socket in [&answering, &dead] {
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    }
    fake::serve(&answering).lock().unwrap().sandboxes = vec![("a".to_owned(), Answer::Address("10.0.0.1"))];
    drop(UnixListener::bind(&dead).unwrap());
    let round = observe(&mut CriSource::new(None, HostRoot::at(tree.path())));
    let Outcome::Partial(why) = &round.outcome else { panic!("{round:?}") };
    assert!(why.as_str().contains("nobody listens on the socket") && why.as_str().contains("crio.sock"), "{why}");
    assert_eq!(round.sandboxes.len(), 1);
    assert_eq!(round.coverage.present().unwrap().degraded.as_ref(), Some(why));
}
