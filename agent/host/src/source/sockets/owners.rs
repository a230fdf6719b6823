//! Whose the sockets of the node's own network are: processes with links to them in `/proc/<pid>/fd`.
//!
//! All sockets of the host's network share its addresses, so an address names nobody. The links of a process of another user take
//! CAP_SYS_PTRACE, which telling network namespaces apart takes anyway. Only where one destination has `WORTH` sockets or more
//! is anybody looked for, for the `DESTINATIONS` with most of them, over at most `LINKS` links and `TIME`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use headroom_core::flow::Endpoint;
use headroom_core::observe::{Owner, SocketOwner};
use nix::dir::Dir;
use nix::fcntl::readlinkat;

use crate::bounded;
use crate::clock;
use crate::root::HostRoot;

/// Sockets to one destination from which on somebody wants to know whose they are.
const WORTH: usize = 8;
/// Destinations of which it is told.
const DESTINATIONS: usize = 16;
/// Processes told of for each.
const OWNERS: usize = 8;
/// Sockets that are remembered while a table is read.
const SOCKETS: usize = 1 << 18;
/// Links that are read at most.
const LINKS: usize = 100_000;
/// How long they may take.
const TIME: Duration = Duration::from_millis(500);
/// `/proc/<pid>/cgroup` has one line per hierarchy.
const CGROUP_LIMIT: usize = 16 << 10;
/// Processes on a node.
const PROCESSES: usize = 65_536;

/// Destination, and the node's own address towards it.
type Key = (Endpoint, IpAddr);

/// Sockets of the node's own network, by destination.
#[derive(Debug, Default)]
pub(super) struct Owners {
    sockets: BTreeMap<Key, Vec<u64>>,
    noted: usize,
}

impl Owners {
    /// A connection that was opened here.
    pub(super) fn note(&mut self, destination: Endpoint, source: IpAddr, inode: u64) {
        // One in TIME_WAIT belongs to nobody any more.
        if inode != 0 && self.noted < SOCKETS {
            self.noted += 1;
            self.sockets.entry((destination, source)).or_default().push(inode);
        }
    }

    /// Looks for the processes that have most of them.
    pub(super) fn find(self) -> Vec<SocketOwner> {
        let mut crowded: Vec<(Key, Vec<u64>)> =
            self.sockets.into_iter().filter(|(_, inodes)| inodes.len() >= WORTH).collect();
        crowded.sort_by_key(|(key, inodes)| (std::cmp::Reverse(inodes.len()), *key));
        crowded.truncate(DESTINATIONS);
        let wanted: BTreeMap<u64, Key> =
            crowded.iter().flat_map(|(key, inodes)| inodes.iter().map(move |inode| (*inode, *key))).collect();
        if wanted.is_empty() {
            return Vec::new();
        }
        let mut found = told(&holders(&wanted));
        found.sort_by_key(|owner| (owner.destination, owner.source, std::cmp::Reverse(owner.sockets)));
        let mut kept: BTreeMap<Key, usize> = BTreeMap::new();
        found.retain(|owner| {
            let so_far = kept.entry((owner.destination, owner.source)).or_default();
            *so_far += 1;
            *so_far <= OWNERS
        });
        found
    }
}

/// How many of the sockets each process has, per destination. A process that ends meanwhile, or may not be looked at, has none.
fn holders(wanted: &BTreeMap<u64, Key>) -> BTreeMap<(Key, u32), u32> {
    let (mut held, mut links) = (BTreeMap::new(), 0);
    let until = clock::node_time().after(TIME);
    let root = HostRoot::live();
    let listed =
        bounded::open_dir(&root, Path::new("/proc")).and_then(|mut proc| bounded::entries(&mut proc, PROCESSES));
    let Ok((processes, _more)) = listed else { return held };
    for pid in processes.iter().filter_map(|entry| entry.name.to_str().ok()?.parse::<u32>().ok()) {
        if links >= LINKS || clock::node_time() > until {
            break;
        }
        let opened = bounded::open_dir(&root, Path::new(&format!("/proc/{pid}/fd")));
        let Ok(mut dir) = opened else { continue };
        let Ok((entries, _more)) = bounded::entries(&mut dir, LINKS - links) else { continue };
        links += entries.len();
        for entry in entries {
            if let Some(key) = socket_of(&dir, &entry).and_then(|inode| wanted.get(&inode)) {
                *held.entry((*key, pid)).or_default() += 1_u32;
            }
        }
    }
    held
}

/// `socket:[20002]`
fn socket_of(dir: &Dir, entry: &bounded::Entry) -> Option<u64> {
    let link = readlinkat(dir, entry.name.as_c_str()).ok()?;
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn told(held: &BTreeMap<(Key, u32), u32>) -> Vec<SocketOwner> {
    let mut told: BTreeMap<(Key, Owner), u32> = BTreeMap::new();
    for ((key, pid), sockets) in held {
        if let Some(owner) = owner(*pid) {
            *told.entry((*key, owner)).or_default() += sockets;
        }
    }
    told.into_iter()
        .map(|(((destination, source), owner), sockets)| SocketOwner { destination, source, owner, sockets })
        .collect()
}

/// Name and cgroup of a process; `None` if it has ended.
fn owner(pid: u32) -> Option<Owner> {
    let root = HostRoot::live();
    let read = |name: &str| bounded::read_in(&root, Path::new(&format!("/proc/{pid}/{name}")), CGROUP_LIMIT);
    let process = String::from_utf8_lossy(&read("comm").ok()?).trim().to_owned();
    let cgroup = read("cgroup").ok().and_then(|text| cgroup_of(&String::from_utf8_lossy(&text)));
    Some(Owner { process, cgroup })
}

/// `0::/system.slice/docker.service`; with the older hierarchies the one that systemd or kubelet named (`1:name=systemd:/…`,
/// `5:pids:/kubepods/…`): the longest path.
pub fn cgroup_of(text: &str) -> Option<String> {
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).filter(|path| path.len() > 1);
    paths.max_by_key(|path| path.len()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the search on this very process. If this fails, a daemon on the host that uses up the NAT has no name.
    #[test]
    fn connections_of_this_process_are_found_to_be_its_own() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let connections: Vec<_> = (0..WORTH).map(|_| std::net::TcpStream::connect(to).unwrap()).collect();
        let text = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
        let mut owners = Owners::default();
        for row in text.lines().filter_map(|line| super::super::table::parse_line(line.as_bytes())) {
            if let super::super::table::Row::Connection { source, destination, inode, .. } = row {
                owners.note(destination, source.address, inode);
            }
        }
        let found = owners.find();
        let own = found.iter().find(|owner| owner.destination == Endpoint::new(to.ip(), to.port())).unwrap();
        assert_eq!(own.sockets as usize, WORTH);
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", std::process::id())).unwrap();
        assert_eq!(own.owner.process, comm.trim());
        drop(connections);
    }

    #[test]
    fn few_connections_are_nobodys_business() {
        let mut owners = Owners::default();
        let to = Endpoint::new(IpAddr::from([203, 0, 113, 7]), 443);
        (1..WORTH).for_each(|inode| owners.note(to, IpAddr::from([10, 0, 0, 2]), inode as u64));
        assert!(owners.find().is_empty());
    }

    #[test]
    fn a_cgroup_names_unit_or_pod() {
        let owner = |text: &str| Owner { process: "x".to_owned(), cgroup: cgroup_of(text) };
        let docker = owner("0::/system.slice/docker.service\n");
        assert_eq!((docker.unit(), docker.pod_uid()), (Some("docker.service"), None));
        let uid = "0f6d1e0a-3b1c-4c7e-9d9c-2f1f2b3c4d5e";
        let slice = uid.replace('-', "_");
        for text in [
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/cri-containerd-ab.scope\n"
            ),
            format!("2:cpu:/\n5:pids:/kubepods/burstable/pod{uid}/abcdef\n1:name=systemd:/\n"),
        ] {
            assert_eq!(owner(&text).pod_uid().as_deref(), Some(uid), "{text}");
        }
        for text in ["", "0::/\n", "x", "::", "0::/kubepods/pod/x\n"] {
            assert_eq!(owner(text).pod_uid(), None, "{text}");
        }
    }
}
