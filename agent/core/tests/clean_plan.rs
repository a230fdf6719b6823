//! Plans of the cleaner: what goes, what stays and why; and the second look that a plan is no substitute for.
#![expect(clippy::indexing_slicing, reason = "tests may panic")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use headroom_core::ids::{ContainerId, NetnsInode, PodName};
use headroom_core::known::{Known, Why};
use headroom_core::ledger::{Ledger, LedgerLimits};
use headroom_core::model::leak::{Verdict, judge};
use headroom_core::observe::{
    Fact, Holder, Ipam, Namespace, Network, Observation, Outcome, Reservation, Sandbox, Snapshot, SourceId,
};
use headroom_core::plan::clean::{Limits, Plan, blind, is_network_name, plan, still_leaked};
use headroom_core::time::{NodeTime, Now, WallTime};

const NETWORK: &str = "gke-pod-network";
const NOW: i64 = 1_800_000_000;
const GRACE: Duration = Duration::from_secs(600);

fn address(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 48, 131, last))
}

/// A node with one network.
struct Node {
    ledger: Ledger,
    clock: u64,
    network: &'static str,
    ipam: Ipam,
    /// (last byte, container, age in seconds)
    reserved: Vec<(u8, &'static str, i64)>,
    known: Vec<&'static str>,
    carried: Vec<u8>,
    runtime: Outcome,
    listing: Outcome,
    /// The address that the runtime gives its first sandbox.
    sandbox_address: Option<u8>,
}

impl Node {
    /// Five pods and three leaks.
    fn new() -> Self {
        let pods = [(2, "pod2"), (3, "pod3"), (4, "pod4"), (5, "pod5"), (6, "pod6")];
        let leaks = [(7, "gone7", 900), (8, "gone8", 86_400), (9, "gone9", 3600)];
        Self {
            ledger: Ledger::new(LedgerLimits::default()),
            clock: 100,
            network: NETWORK,
            ipam: Ipam::HostLocal,
            reserved: pods.iter().map(|(last, id)| (*last, *id, 7200)).chain(leaks).collect(),
            known: pods.iter().map(|(_, id)| *id).collect(),
            carried: pods.iter().map(|(last, _)| *last).collect(),
            runtime: Outcome::Complete,
            listing: Outcome::Complete,
            sandbox_address: None,
        }
    }

    fn store(&self) -> String {
        format!("/var/lib/cni/networks/{}", self.network)
    }

    fn put(&mut self, source: SourceId, fact: Fact) {
        self.ledger.apply(Observation { at: NodeTime::from_secs(self.clock), source, fact });
        self.clock += 1;
    }

    fn look(&mut self) {
        self.put(self.ipam.source(), Fact::Begin(Snapshot::Reservations));
        for (last, id, age) in self.reserved.clone() {
            let reservation = Reservation {
                store: self.store().into(),
                address: address(last),
                holder: Known::Present(Holder {
                    container: ContainerId(id.to_owned()),
                    ifname: Some("eth0".to_owned()),
                }),
                modified: Known::Present(WallTime::from_secs(NOW - age)),
                pod: None,
            };
            self.put(self.ipam.source(), reservation.into());
        }
        let network = Network {
            store: self.store(),
            name: self.network.to_owned(),
            range_sets: Known::Absent,
            complete: self.listing == Outcome::Complete,
            ignored: vec![],
            ipam: self.ipam,
            last_reserved: std::collections::BTreeMap::new(),
            pool: Known::Absent,
        };
        self.put(self.ipam.source(), Fact::Network(network));
        let outcome = self.listing.clone();
        self.put(self.ipam.source(), Fact::End { snapshot: Snapshot::Reservations, outcome });
        self.look_who_is_alive();
    }

    fn look_who_is_alive(&mut self) {
        self.put(SourceId::Cri, Fact::Begin(Snapshot::Runtime));
        let mut given = self.sandbox_address;
        for id in self.known.clone() {
            let addresses = given.take().map_or(Known::Absent, |last| Known::Present(vec![address(last)]));
            let sandbox = Sandbox {
                id: ContainerId(id.to_owned()),
                pod: PodName { namespace: "shop".to_owned(), name: format!("web-{id}") },
                uid: "uid".to_owned(),
                ready: true,
                host_network: false,
                addresses,
            };
            self.put(SourceId::Cri, Fact::Sandbox(sandbox));
        }
        let outcome = self.runtime.clone();
        self.put(SourceId::Cri, Fact::End { snapshot: Snapshot::Runtime, outcome });
        self.put(SourceId::Namespaces, Fact::Begin(Snapshot::Namespaces));
        let addresses = Known::Present(self.carried.iter().map(|last| address(*last)).collect());
        let namespace = Namespace {
            inode: NetnsInode(2),
            host: false,
            pid: Some(7),
            addresses,
            ports: Known::Absent,
            keepalive: Known::Absent,
        };
        self.put(SourceId::Namespaces, Fact::Namespace(namespace));
        self.put(SourceId::Namespaces, Fact::End { snapshot: Snapshot::Namespaces, outcome: Outcome::Complete });
    }

    fn twice(mut self) -> Self {
        self.look();
        self.look();
        self
    }

    fn now(&self) -> Now {
        Now { node: NodeTime::from_secs(self.clock), wall: WallTime::from_secs(NOW) }
    }

    fn plan(&self, limits: &Limits) -> Plan {
        plan(&self.ledger, limits, GRACE, self.now())
    }
}

fn addresses(plan: &Plan) -> Vec<IpAddr> {
    plan.releases.iter().map(|release| release.address).collect()
}

/// The one reason for which everything leaked stays.
fn why(plan: &Plan) -> String {
    assert!(plan.releases.is_empty(), "{plan:?}");
    let mut reasons: Vec<&str> = plan.refused.iter().map(|refused| refused.why.as_str()).collect();
    reasons.dedup();
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    reasons[0].to_owned()
}

#[test]
fn what_is_leaked_goes_the_oldest_first_and_what_is_in_use_is_not_mentioned() {
    let plan = Node::new().twice().plan(&Limits::default());
    assert_eq!(addresses(&plan), [address(8), address(9), address(7)]);
    assert_eq!(plan.refused, []);
    assert_eq!((plan.releases[0].container_id.as_str(), plan.releases[0].age_secs), ("gone8", 86_400));
    assert!(plan.releases[0].evidence.iter().any(|said| said.contains("does not know gone8")));
}

/// Exercises stores that are not host-local's. If this fails, the cleaner moves files of ipamd, Azure CNI or Cilium.
#[test]
fn what_other_ipams_keep_is_never_given_back_however_leaked_it_is() {
    let planned = Node::new().twice().plan(&Limits::default()).releases.remove(0);
    for ipam in [Ipam::AwsVpcCni, Ipam::AzureCni, Ipam::Cilium] {
        let node = Node { ipam, ..Node::new() }.twice();
        let leaked = node
            .ledger
            .reservations()
            .of(&node.store())
            .filter(|held| judge(held, node.ledger.occupants(), GRACE, node.now()).verdict == Verdict::Leaked);
        assert_eq!(leaked.count(), 3, "{ipam:?}");
        assert_eq!(node.plan(&Limits { force: true, ..Limits::default() }), Plan::default(), "{ipam:?}");
        // Nor by a plan that was made of something else.
        let refused = still_leaked(&node.ledger, &planned, GRACE, node.now()).unwrap_err();
        assert!(refused.contains("host-local"), "{ipam:?}: {refused}");
    }
}

#[test]
fn no_more_go_in_one_run_than_the_limit_says_and_the_rest_is_named() {
    let node = Node::new().twice();
    let plan = node.plan(&Limits { max: 2, ..Limits::default() });
    assert_eq!(addresses(&plan), [address(8), address(9)]);
    assert_eq!((plan.refused[0].address, plan.refused[0].verdict.clone()), (address(7), Verdict::Leaked));
    assert!(plan.refused[0].why.contains("--max"), "{plan:?}");
    assert_eq!(addresses(&node.plan(&Limits { max: 3, ..Limits::default() })).len(), 3, "at the bound");
    assert!(why(&node.plan(&Limits { max: 0, ..Limits::default() })).starts_with("0 are given back"));
}

#[test]
fn nothing_goes_where_most_of_a_network_seems_leaked_unless_forced() {
    // Three of eight are 37.5 %.
    let node = Node::new().twice();
    let reason = why(&node.plan(&Limits { percent: 37, ..Limits::default() }));
    assert!(reason.contains("3 of 8") && reason.contains("37 %") && reason.contains("--force"), "{reason}");
    assert_eq!(addresses(&node.plan(&Limits { percent: 38, ..Limits::default() })).len(), 3);
    assert_eq!(addresses(&node.plan(&Limits { percent: 1, force: true, ..Limits::default() })).len(), 3);
    // --max does not make it less suspicious.
    assert!(why(&node.plan(&Limits { percent: 37, max: 1, ..Limits::default() })).contains("--force"));
}

#[test]
fn a_half_is_not_more_than_a_half() {
    let mut node = Node::new();
    node.reserved.retain(|(last, ..)| *last > 3);
    assert_eq!(addresses(&node.twice().plan(&Limits::default())).len(), 3, "three of six at 50 %");
}

#[test]
fn without_a_complete_runtime_everything_stays_and_says_so() {
    for runtime in [Outcome::Failed(Why::new("it is stopped")), Outcome::Partial(Why::new("cut short"))] {
        let mut node = Node::new().twice();
        node.runtime = runtime;
        node.look();
        let plan = node.plan(&Limits { force: true, ..Limits::default() });
        assert!(plan.releases.is_empty());
        assert!(plan.refused.iter().all(|refused| refused.why.contains("the runtime's answer is missing")));
        assert!(blind(&node.ledger).is_some());
    }
}

#[test]
fn an_empty_runtime_while_pods_are_alive_lets_nothing_go() {
    let mut node = Node::new();
    node.known.clear();
    let plan = node.twice().plan(&Limits { force: true, ..Limits::default() });
    assert!(plan.releases.is_empty());
    assert!(plan.refused.iter().all(|refused| refused.verdict == Verdict::Undetermined), "{plan:?}");
}

#[test]
fn an_address_that_the_runtime_gives_to_a_pod_stays_whoever_reserved_it() {
    let mut node = Node::new();
    node.sandbox_address = Some(8);
    let plan = node.twice().plan(&Limits::default());
    assert_eq!(addresses(&plan), [address(9), address(7)]);
    assert!(plan.refused[0].why.contains("shop/web-pod2 has this address"), "{plan:?}");
}

#[test]
fn another_network_and_what_no_cni_made_are_left_alone() {
    let node = Node::new().twice();
    let only = |name: &str| Limits { network: Some(name.to_owned()), ..Limits::default() };
    assert_eq!(addresses(&node.plan(&only(NETWORK))).len(), 3);
    assert_eq!(node.plan(&only("podman")), Plan::default());
    let hostile = Node { network: ".headroom-journal", ..Node::new() }.twice();
    assert!(why(&hostile.plan(&Limits::default())).contains("none that CNI gives"));
    for (name, good) in [("k8s-pod-network", true), ("a.b_c", true), ("0", true), ("", false), (".x", false)] {
        assert_eq!(is_network_name(name), good, "{name}");
    }
    assert!(!is_network_name("a/b") && !is_network_name("a\nb") && !is_network_name("-a"));
}

#[test]
fn a_directory_that_was_not_read_to_its_end_gives_nothing_back() {
    let mut node = Node::new().twice();
    node.listing = Outcome::Partial(Why::new("cut short"));
    node.look();
    let plan = node.plan(&Limits::default());
    assert!(plan.releases.is_empty() && plan.refused.len() == 3, "{plan:?}");
}

/// Exercises what the executor asks under the lock. If this fails, a pod that came to life since the plan loses its address.
#[test]
fn a_plan_is_no_permission() {
    let limits = Limits::default();
    let after = |change: fn(&mut Node)| {
        let mut node = Node::new().twice();
        let planned = node.plan(&limits).releases.first().cloned().unwrap();
        assert_eq!(planned.address, address(8));
        change(&mut node);
        still_leaked(&node.ledger, &planned, GRACE, node.now())
    };
    assert_eq!(after(|_| {}), Ok(()));
    assert_eq!(after(Node::look_who_is_alive), Ok(()));
    let refused = |change: fn(&mut Node)| after(change).unwrap_err();
    let said = refused(|node| {
        node.known.push("gone8");
        node.look_who_is_alive();
    });
    assert!(said.contains("in use: the runtime knows gone8"), "{said}");
    let said = refused(|node| {
        node.carried.push(8);
        node.look_who_is_alive();
    });
    assert!(said.contains("a live network namespace carries the address"), "{said}");
    let said = refused(|node| {
        node.runtime = Outcome::Failed(Why::new("it hangs"));
        node.look_who_is_alive();
    });
    assert!(said.contains("undetermined") && said.contains("it hangs"), "{said}");
    let said = refused(|node| {
        node.reserved.retain(|(last, ..)| *last != 8);
        node.reserved.push((8, "gone8", 60));
        node.look();
    });
    assert!(said.contains("another reservation"), "{said}");
    let said = refused(|node| {
        node.reserved.retain(|(last, ..)| *last != 8);
        node.look();
    });
    assert!(said.contains("not seen"), "{said}");
}
