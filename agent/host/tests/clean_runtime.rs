//! The cleaner beside a runtime that stops, hangs, fails or forgets, over a real socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the suite it belongs to needs more of it")]
#[path = "pods_cri/fake.rs"]
mod fake;
#[expect(dead_code, reason = "the suite it belongs to needs more of it")]
#[path = "clean/node.rs"]
mod node;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headroom_core::model::leak::Verdict;
use headroom_core::plan::clean::Plan;
use headroom_host::act::{self, Cleaned, Eyes, LOOK_LIMIT, Step};
use headroom_host::root::HostRoot;
use headroom_host::source::cri::CriSource;

use fake::{Answer, State};
use node::{GRACE, Node, run_name};

/// A node whose runtime is behind a socket.
struct WithRuntime {
    node: Node,
    socket: PathBuf,
    state: Arc<Mutex<State>>,
}

impl WithRuntime {
    fn new() -> Self {
        let node = Node::new();
        node.alive.lock().unwrap().namespaces_only = true;
        let socket = node.data_dir.join("runtime.sock");
        let state = fake::serve(&socket);
        state.lock().unwrap().sandboxes = (1..=4).map(|n| (format!("pod{n}"), Answer::NotFound)).collect();
        let node = Self { node, socket, state };
        node.set_addresses();
        node
    }

    /// The sandboxes have the addresses of their reservations.
    fn set_addresses(&self) {
        let addresses = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];
        let mut state = self.state.lock().unwrap();
        for ((_id, answer), address) in state.sandboxes.iter_mut().zip(addresses) {
            *answer = Answer::Address(address);
        }
    }

    fn eyes_at(&self, socket: &Path) -> Eyes {
        let cri = || CriSource::new(Some(socket.to_owned()), HostRoot::live());
        let quick = cri().lists_only().with_round_limit(LOOK_LIMIT);
        Eyes::of(self.node.stores(), vec![Box::new(cri()), self.node.says()], vec![Box::new(quick), self.node.says()])
    }

    fn eyes(&self) -> Eyes {
        self.eyes_at(&self.socket)
    }

    /// Plans, then carries it out, with a change at a step; and how long the lock was held.
    fn clean(&self, at: Step, mut change: impl FnMut(&mut State)) -> (Plan, Cleaned, Duration) {
        let mut eyes = self.eyes();
        let plan = self.node.plan(&mut eyes);
        let (mut locked, mut longest) = (None, Duration::ZERO);
        let cleaned = act::clean(&plan, &mut eyes, GRACE, &run_name(), &mut |step| {
            match step {
                Step::Locked => locked = Some(Instant::now()),
                Step::Looked => longest = longest.max(locked.take().map_or(Duration::ZERO, |at| at.elapsed())),
                _other => {}
            }
            if step == at {
                change(&mut self.state.lock().unwrap());
            }
        });
        (plan, cleaned, longest)
    }

    fn nothing_changed(&self) {
        assert_eq!(self.node.reserved().len(), 7);
        assert_eq!(self.node.leaked_anywhere().len(), 3);
    }
}

#[test]
fn a_runtime_that_answers_lets_leaks_go_and_keeps_what_it_knows() {
    let with = WithRuntime::new();
    let (plan, cleaned, _held) = with.clean(Step::Recorded, |_| {});
    assert_eq!((plan.releases.len(), cleaned.applied.len()), (3, 3), "{plan:?} {cleaned:?}");
    assert_eq!(with.node.reserved().len(), 4);
}

#[test]
fn before_the_plan_a_stopped_failing_or_hanging_runtime_lets_nothing_go() {
    let with = WithRuntime::new();
    let planned = |eyes: &mut Eyes| with.node.plan(eyes);
    let refused = |plan: Plan, why: &str| {
        assert!(plan.releases.is_empty(), "{plan:?}");
        assert!(
            plan.refused.iter().all(|refused| refused.verdict == Verdict::Undetermined && refused.why.contains(why))
        );
        assert_eq!(plan.refused.len(), 7, "without a runtime nobody is known to be in use");
    };
    // Stopped: the socket is there and nobody listens; then not even the socket.
    let stopped = with.node.data_dir.join("stopped.sock");
    drop(std::os::unix::net::UnixListener::bind(&stopped).unwrap());
    refused(planned(&mut with.eyes_at(&stopped)), "nobody listens on the socket");
    refused(planned(&mut with.eyes_at(Path::new("/nonexistent/runtime.sock"))), "no container runtime socket");
    with.state.lock().unwrap().broken_lists = Some("the boltdb is corrupt");
    refused(planned(&mut with.eyes()), "the boltdb is corrupt");
    with.state.lock().unwrap().broken_lists = None;
    with.state.lock().unwrap().silent_lists = true;
    refused(planned(&mut with.eyes()), "did not answer ListPodSandbox in time");
    with.nothing_changed();
}

#[test]
fn an_empty_list_is_not_believed_while_pods_run() {
    let with = WithRuntime::new();
    {
        let mut state = with.state.lock().unwrap();
        state.sandboxes.clear();
        state.no_containers = true;
    }
    with.node.alive.lock().unwrap().addresses = vec!["10.0.0.1".parse().unwrap()];
    let plan = with.node.plan(&mut with.eyes());
    assert!(plan.releases.is_empty(), "{plan:?}");
    assert!(plan.refused.iter().all(|refused| refused.why.contains("names no sandbox at all")), "{plan:?}");
}

/// Exercises a runtime that forgets its pods between the plan and the move. If this fails, they lose their addresses.
#[test]
fn an_empty_list_under_the_lock_keeps_everything_while_pods_run() {
    let with = WithRuntime::new();
    with.node.alive.lock().unwrap().addresses = vec!["10.0.0.1".parse().unwrap()];
    let (plan, cleaned, _held) = with.clean(Step::Locked, |state| {
        state.sandboxes.clear();
        state.no_containers = true;
    });
    assert_eq!((plan.releases.len(), cleaned.applied.len()), (3, 0), "{cleaned:?}");
    assert!(cleaned.refused.iter().all(|refused| refused.why.contains("names no sandbox at all")), "{cleaned:?}");
    with.nothing_changed();
}

#[test]
fn a_runtime_that_fails_under_the_lock_keeps_everything() {
    let with = WithRuntime::new();
    let (_plan, cleaned, _held) = with.clean(Step::Locked, |state| state.broken_lists = Some("it is shutting down"));
    assert!(cleaned.applied.is_empty());
    assert!(cleaned.refused.iter().all(|refused| refused.why.contains("it is shutting down")), "{cleaned:?}");
    with.nothing_changed();
}

/// Exercises a runtime that hangs while host-local waits for us. If this fails, no pod starts until it comes back.
#[test]
fn a_runtime_that_hangs_under_the_lock_does_not_make_host_local_wait() {
    let with = WithRuntime::new();
    let (_plan, cleaned, held) = with.clean(Step::Locked, |state| state.silent_lists = true);
    assert!(cleaned.applied.is_empty());
    assert!(cleaned.refused[0].why.contains("did not answer ListPodSandbox in time"), "{cleaned:?}");
    // The look's limit, and what a busy machine adds.
    assert!(held >= LOOK_LIMIT / 2 && held < LOOK_LIMIT * 4, "{held:?}");
    with.nothing_changed();
}

/// Exercises a sandbox that the runtime names only when asked again. If this fails, a pod that was slow to start loses its
/// address.
#[test]
fn a_sandbox_that_appears_before_the_move_keeps_its_address() {
    let with = WithRuntime::new();
    let (_plan, cleaned, _held) =
        with.clean(Step::Locked, |state| state.sandboxes.push(("gone6".to_owned(), Answer::NotFound)));
    assert_eq!(cleaned.applied.len(), 2, "{cleaned:?}");
    assert_eq!(cleaned.refused[0].address.to_string(), "10.0.0.6");
    assert!(cleaned.refused[0].why.contains("the runtime knows gone6"), "{cleaned:?}");
    assert!(with.node.reserved().contains(&"10.0.0.6".to_owned()));
}
