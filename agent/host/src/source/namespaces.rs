//! Live network namespaces: which there are, their addresses, from where they draw source ports.
//!
//! A namespace lives through a process (`/proc/<pid>/ns/net`) or a bind mount (`/run/netns`). Addresses come from
//! `/proc/<pid>/net` and need no entering; port settings belong to the namespace of whoever reads `/proc/sys/net`, so those
//! of other namespaces take `setns` and CAP_SYS_ADMIN. Of a namespace without a process, the addresses are asked for over
//! netlink where it may not be entered: that takes an interface of the node that leads into it, and CAP_NET_ADMIN. The agent's
//! own namespace is the node's: in production that is pid 1's (`hostNetwork: true`), in a lab the one the agent was started in.
//! One round takes one `stat` per process and at most [`ROUND_LIMIT`]. A namespace held only by an open file descriptor, a
//! socket or a single thread is not found.

mod addresses;
mod inside;
mod outside;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use headroom_core::ids::NetnsInode;
use headroom_core::known::{Known, Why};
use headroom_core::observe::{Fact, Namespace, Outcome, Snapshot, SourceId};
use headroom_core::time::NodeTime;
use nix::dir::Dir;
use nix::errno::Errno;

use crate::bounded::{self, Refusal};
use crate::clock;
use crate::netns::{self, Door, NotEntered, NsFile};
use crate::root::HostRoot;
use crate::source::{Sink, Source, degraded, observation, unreadable, works};

use inside::{Inside, addresses, captured};
use outside::Outside;

pub use addresses::{BadLine, of_fib_trie, of_if_inet6};

/// How long one round may take.
pub const ROUND_LIMIT: Duration = Duration::from_secs(2);
/// How many namespaces are read: sixteen times what a node has pods.
pub const NAMESPACES_LIMIT: usize = 4096;
/// Where namespaces are kept by name: CNI and `ip netns`; the second is usually the first under its older name.
const MOUNTS: [&str; 2] = ["/run/netns", "/var/run/netns"];
/// How many named namespaces are looked at.
const MOUNTS_LIMIT: usize = 16_384;
/// Processes kept per namespace, in case the first ends while it is read.
const PIDS_KEPT: usize = 4;
/// After how many processes the clock is looked at.
const PIDS_PER_CLOCK: usize = 256;
/// `PROC_PID_INIT_INO`: the inode of the initial pid namespace (linux/proc_ns.h; uapi since 6.17).
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// The live network namespaces.
#[derive(Debug)]
pub struct NamespacesSource {
    root: HostRoot,
    round_limit: Duration,
}

/// How a namespace was found.
#[derive(Debug, Default)]
struct Found {
    pids: Vec<u32>,
    mount: Option<PathBuf>,
}

/// Everything one round found, and what it knows it missed.
#[derive(Debug, Default)]
struct Scan {
    found: BTreeMap<NetnsInode, Found>,
    /// Processes whose namespace file may not be examined.
    denied: Vec<u32>,
    /// Namespaces beyond the limit.
    beyond: usize,
    /// Files where named namespaces should be.
    not_namespaces: usize,
    /// The agent sees other mounts than the node's processes: what is not mounted here may be mounted there.
    other_mounts: bool,
    partial: Vec<String>,
    /// How many namespaces could not be entered.
    not_entered: usize,
}

impl NamespacesSource {
    /// Reads the namespaces of the running machine, or the node's own from a captured tree.
    pub fn new(root: HostRoot) -> Self {
        Self { root, round_limit: ROUND_LIMIT }
    }

    /// Gives a round less time than [`ROUND_LIMIT`].
    #[must_use]
    pub fn with_round_limit(mut self, limit: Duration) -> Self {
        self.round_limit = limit.min(ROUND_LIMIT);
        self
    }
}

impl Source for NamespacesSource {
    fn id(&self) -> SourceId {
        SourceId::Namespaces
    }

    /// Coverage comes last: what is missing is known only after the reading.
    fn observe(&mut self, sink: Sink<'_>) {
        let mut emit = |fact| sink(observation(SourceId::Namespaces, fact));
        emit(Fact::Begin(Snapshot::Namespaces));
        let (outcome, coverage) = if self.root.is_live() {
            observe_live(self.round_limit, &mut emit)
        } else {
            emit(Fact::Namespace(captured(&self.root)));
            let why = "a captured tree shows the node's own network namespace only";
            (Outcome::Partial(Why::new(why)), degraded("files of a captured tree", why))
        };
        emit(Fact::End { snapshot: Snapshot::Namespaces, outcome });
        emit(coverage);
    }
}

/// The running machine.
fn observe_live(limit: Duration, emit: &mut dyn FnMut(Fact)) -> (Outcome, Fact) {
    let deadline = clock::node_time().after(limit);
    let mut proc = match bounded::open_dir(&HostRoot::live(), Path::new("/proc")) {
        Ok(proc) => proc,
        Err(refusal) => return failed(format!("`/proc` {refusal}")),
    };
    let own = match netns::identify(&proc, "self/ns/net") {
        Ok(own) => own,
        Err(errno) => {
            return failed(format!("`/proc/self/ns/net` could not be read ({}); is /proc mounted?", errno.desc()));
        }
    };
    let mut scan = Scan { other_mounts: has_other_mounts(&proc), ..Scan::default() };
    scan.found.insert(own.inode, Found { pids: vec![std::process::id()], mount: None });
    scan.processes(&mut proc, deadline);
    scan.recognise_denied(&proc);
    scan.mounts(own, deadline);
    let mut outside = Outside::look(deadline);
    outside.routes().into_iter().map(Fact::PodRoute).for_each(&mut *emit);
    for namespace in scan.read(&proc, own.inode, &mut outside, deadline) {
        emit(Fact::Namespace(namespace));
    }
    scan.outcome(&proc)
}

/// Nothing could be read.
fn failed(why: String) -> (Outcome, Fact) {
    (Outcome::Failed(Why::new(why.as_str())), unreadable(why))
}

impl Scan {
    /// One `stat` per process.
    fn processes(&mut self, proc: &mut Dir, deadline: NodeTime) {
        let mut pids = Vec::new();
        for entry in proc.iter() {
            match entry {
                Ok(entry) => pids.extend(entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok())),
                Err(errno) => {
                    self.partial.push(format!("listing `/proc` failed: {}", errno.desc()));
                    break;
                }
            }
        }
        for (done, pid) in pids.iter().enumerate() {
            if done % PIDS_PER_CLOCK == PIDS_PER_CLOCK - 1 && clock::node_time() > deadline {
                self.partial.push(format!("the time ran out after {done} of {} processes", pids.len()));
                break;
            }
            match netns::identify(&*proc, &format!("{pid}/ns/net")) {
                Ok(file) => self.add(file.inode, |found| {
                    if found.pids.len() < PIDS_KEPT && !found.pids.contains(pid) {
                        found.pids.push(*pid);
                    }
                }),
                // It has ended, or has given its namespaces back already.
                Err(Errno::ENOENT | Errno::ESRCH) => {}
                Err(_denied) => self.denied.push(*pid),
            }
        }
        if !pids.contains(&1) {
            self.partial.push("`/proc` hides processes (hidepid); run as root or with CAP_SYS_PTRACE".to_owned());
        }
    }

    /// Forgets the denied processes that live in a namespace that another process made known: nothing is missed by them.
    /// AppArmor and Landlock deny single processes even to root.
    fn recognise_denied(&mut self, proc: &Dir) {
        if self.denied.is_empty() {
            return;
        }
        let known: BTreeSet<u64> = self
            .found
            .values()
            .filter_map(|found| found.pids.iter().find_map(|pid| netns::table_inode(proc, *pid).ok()))
            .collect();
        self.denied.retain(|pid| match netns::table_inode(proc, *pid) {
            Ok(table) => !known.contains(&table),
            Err(errno) => !matches!(errno, Errno::ENOENT | Errno::ESRCH | Errno::EINVAL),
        });
    }

    /// One `stat` per name below the mount directories.
    fn mounts(&mut self, own: NsFile, deadline: NodeTime) {
        let mut seen = BTreeSet::new();
        for directory in MOUNTS {
            let listed = bounded::open_dir(&HostRoot::live(), Path::new(directory))
                .and_then(|mut dir| bounded::entries(&mut dir, MOUNTS_LIMIT).map(|entries| (dir, entries)));
            let (dir, (entries, more)) = match listed {
                Ok(listed) => listed,
                Err(Refusal::Missing) => {
                    self.no_mounts(directory);
                    continue;
                }
                Err(refusal) => {
                    self.partial.push(format!("`{directory}` {refusal}"));
                    continue;
                }
            };
            if !netns::identify(&dir, ".").is_ok_and(|identity| seen.insert(identity)) {
                continue;
            }
            if more || clock::node_time() > deadline {
                self.partial.push(format!("`{directory}` has more entries than can be read in one round"));
            }
            for entry in entries {
                let Ok(name) = entry.name.to_str() else { continue };
                match netns::identify(&dir, name) {
                    Ok(file) if file.device == own.device => {
                        let path = Path::new(directory).join(name);
                        self.add(file.inode, |found| found.mount = Some(path));
                    }
                    Ok(_not_mounted) => self.not_namespaces += 1,
                    Err(Errno::ENOENT | Errno::ESRCH) => {}
                    Err(errno) => {
                        self.partial.push(format!("`{directory}/{name}` could not be examined ({})", errno.desc()))
                    }
                }
            }
        }
    }

    /// A directory of named namespaces does not exist. In a container, that of the node may.
    fn no_mounts(&mut self, directory: &str) {
        if self.other_mounts && directory == MOUNTS[0] {
            self.partial.push(format!(
                "`{directory}` does not exist among the agent's own mounts, so live network namespaces may be hidden; mount the node's with mountPropagation: HostToContainer"
            ));
        }
    }

    /// Notes a namespace, unless there are too many.
    fn add(&mut self, inode: NetnsInode, note: impl FnOnce(&mut Found)) {
        if self.found.len() >= NAMESPACES_LIMIT && !self.found.contains_key(&inode) {
            self.beyond += 1;
        } else {
            note(self.found.entry(inode).or_default());
        }
    }

    /// Reads addresses and port settings of all that was found.
    fn read(&mut self, proc: &Dir, own: NetnsInode, outside: &mut Outside, deadline: NodeTime) -> Vec<Namespace> {
        let mut namespaces = Vec::new();
        let mut doors = Vec::new();
        for (inode, found) in &self.found {
            let through_process = found.pids.iter().find_map(|pid| {
                if clock::node_time() > deadline {
                    return Some((*pid, Known::because("the time for reading the network namespaces ran out")));
                }
                let addresses = addresses(&HostRoot::live(), Path::new(&format!("/proc/{pid}/net")));
                // The pid may be another process's by now, or the process may have ended in between.
                let same = netns::identify(proc, &format!("{pid}/ns/net")).is_ok_and(|file| file.inode == *inode);
                same.then_some((*pid, addresses))
            });
            let (pid, addresses) =
                through_process.map_or((None, None), |(pid, addresses)| (Some(pid), Some(addresses)));
            let path = pid.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net"))).or_else(|| found.mount.clone());
            // All its processes ended while it was read, and nothing else keeps it.
            let Some(path) = path else { continue };
            doors.push(Door { path, inode: *inode });
            namespaces.push((*inode, pid, addresses));
        }

        let (own_door, others): (Vec<_>, Vec<_>) = doors.iter().cloned().partition(|door| door.inode == own);
        let unread: BTreeSet<NetnsInode> =
            namespaces.iter().filter(|(_, _, addresses)| addresses.is_none()).map(|(inode, ..)| *inode).collect();
        let thread = Path::new("/proc/thread-self/net");
        let mut inside: BTreeMap<NetnsInode, Result<Inside, NotEntered>> = BTreeMap::new();
        for door in own_door {
            inside.insert(door.inode, Ok(Inside::read(None)));
        }
        let looked = netns::look_inside(&others, |index| {
            let wanted = others.get(index).is_some_and(|door| unread.contains(&door.inode));
            Inside::read(wanted.then(|| addresses(&HostRoot::live(), thread)))
        });
        inside.extend(others.iter().map(|door| door.inode).zip(looked));

        let mut read = Vec::new();
        for (inode, pid, addresses) in namespaces {
            let (ports, keepalive, from_inside) = match inside.remove(&inode) {
                Some(Ok(inside)) => (inside.ports, inside.keepalive, inside.addresses),
                Some(Err(NotEntered::OtherKind)) => continue,
                // Its last process ended.
                Some(Err(NotEntered::Gone)) if addresses.is_none() => continue,
                Some(Err(why)) => {
                    self.not_entered += 1;
                    let because = |what: &str| format!("{what} of this namespace: {why}");
                    (Known::because(because("port settings")), Known::because(because("keepalive settings")), None)
                }
                None => {
                    let because = |what: &str| format!("{what} of this namespace were not read");
                    (Known::because(because("port settings")), Known::because(because("keepalive settings")), None)
                }
            };
            let door = || others.iter().find(|door| door.inode == inode);
            let addresses = addresses.or(from_inside).or_else(|| Some(outside.addresses(door()?)));
            let addresses = addresses.unwrap_or_else(|| Known::because("the node's own addresses were not read"));
            read.push(Namespace { inode, host: inode == own, pid, addresses, ports, keepalive });
        }
        read
    }

    /// How it went, and what this source can do here.
    fn outcome(mut self, proc: &Dir) -> (Outcome, Fact) {
        if !self.denied.is_empty() {
            self.partial.push(format!(
                "{} processes live in network namespaces that could not be examined (permission denied); run as root or with CAP_SYS_PTRACE",
                self.denied.len()
            ));
        }
        if self.beyond > 0 {
            self.partial.push(format!("there are more than {NAMESPACES_LIMIT} network namespaces"));
        }
        if in_a_container_of_its_own(proc) {
            self.partial.push(
                "the agent runs in a pid namespace of its own and sees only its own processes; set hostPID: true"
                    .to_owned(),
            );
        }
        let left_over = (self.not_namespaces > 0).then(|| {
            format!(
                "{} files below `{}` are not namespaces: left over, or mounted after the agent started without mountPropagation: HostToContainer",
                self.not_namespaces,
                MOUNTS.join("`, `")
            )
        });
        // Among the node's own mounts they are certainly left over.
        let (hiding, left_over) = if self.other_mounts { (left_over, None) } else { (None, left_over) };
        self.partial.extend(hiding);
        let mut missing = self.partial.clone();
        if self.not_entered > 0 {
            missing.push(format!(
                "port settings of {} network namespaces are unknown: entering them needs CAP_SYS_ADMIN",
                self.not_entered
            ));
        }
        missing.extend(left_over);
        let how = "/proc of every process and the names below /run/netns";
        let outcome = match self.partial.is_empty() {
            true => Outcome::Complete,
            false => Outcome::Partial(Why::new(self.partial.join("; "))),
        };
        (outcome, if missing.is_empty() { works(how) } else { degraded(how, missing.join("; ")) })
    }
}

/// Whether this process has a mount namespace other than pid 1's. Where pid 1's may not be examined, it is taken for the
/// same.
fn has_other_mounts(proc: &Dir) -> bool {
    match (netns::identify(proc, "self/ns/mnt"), netns::identify(proc, "1/ns/mnt")) {
        (Ok(own), Ok(first)) => own.inode != first.inode,
        _unknown => false,
    }
}

/// Whether `/proc` shows no more than a container. A nested pid namespace with an init of its own is a node in a container
/// (kind, a lab) and as good as a machine.
fn in_a_container_of_its_own(proc: &Dir) -> bool {
    let nested = netns::identify(proc, "self/ns/pid").is_ok_and(|file| file.inode.0 != INITIAL_PID_NAMESPACE);
    nested
        && !bounded::read_line_in(&HostRoot::live(), Path::new("/proc/1/comm"), 64)
            .is_ok_and(|comm| matches!(&*comm, "systemd" | "init"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use headroom_core::observe::Keepalive;
    use headroom_core::ports::parse_port_range;

    fn observe(root: HostRoot) -> Vec<Fact> {
        let mut facts = Vec::new();
        NamespacesSource::new(root).observe(&mut |observation| facts.push(observation.fact));
        facts
    }

    #[test]
    fn the_agents_own_namespace_is_the_node_and_only_it() {
        let facts = observe(HostRoot::live());
        let namespaces: Vec<_> = facts
            .iter()
            .filter_map(|fact| if let Fact::Namespace(namespace) = fact { Some(namespace) } else { None })
            .collect();
        let hosts: Vec<_> = namespaces.iter().filter(|namespace| namespace.host).collect();
        assert_eq!(hosts.len(), 1, "{namespaces:?}");
        let proc = bounded::open_dir(&HostRoot::live(), Path::new("/proc")).unwrap();
        assert_eq!(hosts[0].inode, netns::identify(&proc, "self/ns/net").unwrap().inode);
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        assert_eq!(hosts[0].ports.present().unwrap().ephemeral, parse_port_range(&text).unwrap());
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_keepalive_time").unwrap();
        assert_eq!(hosts[0].keepalive, Known::Present(Keepalive { time_secs: text.trim().parse().unwrap() }));
        assert!(hosts[0].addresses.present().is_some());
        assert!(matches!(facts[0], Fact::Begin(Snapshot::Namespaces)));
        assert!(matches!(facts.last(), Some(Fact::Coverage(Known::Present(_)))));
    }

    /// What a round says about mounts that hide namespaces: the outcome's words and the coverage's.
    fn about_mounts(scan: Scan) -> (String, String) {
        let proc = bounded::open_dir(&HostRoot::live(), Path::new("/proc")).unwrap();
        let (outcome, coverage) = scan.outcome(&proc);
        let Fact::Coverage(Known::Present(detail)) = coverage else { panic!("{coverage:?}") };
        let words = |why: Option<Why>| why.map(|why| why.to_string()).unwrap_or_default();
        let partial = if let Outcome::Partial(why) = outcome { Some(why) } else { None };
        (words(partial), words(detail.degraded))
    }

    /// If this fails, a pod whose namespace the agent's container does not show looks leaked.
    #[test]
    fn files_that_are_no_namespaces_hide_some_only_among_other_mounts() {
        for other_mounts in [false, true] {
            let (outcome, coverage) = about_mounts(Scan { not_namespaces: 3, other_mounts, ..Scan::default() });
            assert_eq!(outcome.contains("3 files below"), other_mounts, "{outcome}");
            assert_eq!(coverage.matches("3 files below").count(), 1, "{coverage}");
            assert!(coverage.contains("mountPropagation: HostToContainer"), "{coverage}");
        }
    }

    #[test]
    fn a_missing_run_netns_hides_namespaces_only_among_other_mounts() {
        for other_mounts in [false, true] {
            let mut scan = Scan { other_mounts, ..Scan::default() };
            MOUNTS.iter().for_each(|directory| scan.no_mounts(directory));
            let (outcome, coverage) = about_mounts(scan);
            let count = usize::from(other_mounts);
            assert_eq!(outcome.matches("`/run/netns` does not exist").count(), count, "{outcome}");
            assert_eq!(coverage.matches("mountPropagation: HostToContainer").count(), count, "{coverage}");
            assert!(!outcome.contains("/var/run/netns"), "its older name: {outcome}");
        }
    }

    #[test]
    fn a_captured_tree_shows_the_node_and_claims_no_more() {
        let tree = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = tree.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/sys/net/ipv4/ip_local_port_range", "1024\t65535\n");
        write("proc/sys/net/ipv4/ip_local_reserved_ports", "30000-32767\n");
        write("proc/sys/net/ipv4/tcp_keepalive_time", "600\n");
        write("proc/net/fib_trie", "Local:\n  |-- 10.0.0.7\n     /32 host LOCAL\n");
        std::fs::create_dir_all(tree.path().join("proc/1/ns")).unwrap();
        std::os::unix::fs::symlink("net:[4026531840]", tree.path().join("proc/1/ns/net")).unwrap();
        let facts = observe(HostRoot::at(tree.path()));
        let Fact::Namespace(namespace) = &facts[1] else { panic!("{facts:?}") };
        assert_eq!(namespace.inode, NetnsInode(4_026_531_840));
        assert_eq!(namespace.addresses, Known::Present(vec!["10.0.0.7".parse().unwrap()]));
        assert_eq!(namespace.ports.present().unwrap().usable(), 61_744);
        assert_eq!(namespace.keepalive, Known::Present(Keepalive { time_secs: 600 }));
        assert!(matches!(&facts[2], Fact::End { outcome: Outcome::Partial(_), .. }));
    }

    #[test]
    fn an_empty_tree_gives_unknowns_that_name_the_files() {
        let tree = tempfile::tempdir().unwrap();
        let facts = observe(HostRoot::at(tree.path()));
        let Fact::Namespace(namespace) = &facts[1] else { panic!("{facts:?}") };
        assert!(namespace.addresses.unknown().unwrap().as_str().contains("fib_trie` does not exist"));
        assert!(namespace.ports.unknown().unwrap().as_str().contains("ip_local_port_range` does not exist"));
    }
}
