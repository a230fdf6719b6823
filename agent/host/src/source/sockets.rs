//! The TCP sockets of every network namespace, from `/proc/<pid>/net/tcp` and `tcp6`.
//!
//! One process stands for its namespace, so nothing has to be entered; other processes' namespaces can be told apart only
//! with CAP_SYS_PTRACE. The kernel walks its whole socket table once per namespace and file (about 5 ms with 262,144 buckets), so
//! this is for once in a while, not for every second. One round ends after 10 s and 1,000,000 sockets at most, and says
//! so ([`Outcome::Partial`]).

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use headroom_core::ids::NetnsInode;
use headroom_core::known::Why;
use headroom_core::observe::{Fact, Outcome, Snapshot, Socket, SourceId};
use headroom_core::ports::PortRange;
use headroom_core::time::NodeTime;

use crate::clock;
use crate::root::HostRoot;
use crate::source::growing::Growing;
use crate::source::lines::{Lines, Step};
use crate::source::{Sink, Source, degraded, observation, unreadable, works};

pub mod owners;
mod processes;
pub mod size;
pub mod table;

use owners::Owners;
use table::Row;

const ID: SourceId = SourceId::Sockets;
const HOW: &str = "TCP socket tables of every network namespace";
/// 400,000 sockets.
const FILE_LIMIT_BYTES: usize = 64 << 20;
const SOCKET_LIMIT: u64 = 1_000_000;
const ROUND_LIMIT: Duration = Duration::from_secs(10);
/// How many reasons are told one by one.
const REASONS: usize = 3;

/// Reads socket tables.
#[derive(Debug)]
pub struct SocketsSource {
    root: HostRoot,
    namespaces: Option<BTreeSet<NetnsInode>>,
}

/// One reading of all tables.
struct Round<'a, 'sink> {
    root: &'a HostRoot,
    sink: Sink<'sink>,
    until: NodeTime,
    sockets: u64,
    /// Namespaces that were read, whole or in part.
    read: u64,
    /// What is missing.
    missing: Vec<String>,
    /// Every namespace with a process, if all processes could be asked.
    namespaces: Option<BTreeSet<NetnsInode>>,
    /// The agent's own namespace: the node's.
    own: Option<NetnsInode>,
    owners: Owners,
}

/// Why a namespace could not be read through a process.
enum Unread {
    /// The process has ended or moved to another namespace.
    Gone,
    Failed(String),
}

impl SocketsSource {
    /// Reads below this root.
    pub fn new(root: &HostRoot) -> Self {
        Self { root: root.clone(), namespaces: None }
    }

    /// Every network namespace that had a process in the last round, if all processes could be asked.
    pub fn namespaces(&self) -> Option<&BTreeSet<NetnsInode>> {
        self.namespaces.as_ref()
    }
}

impl Source for SocketsSource {
    fn id(&self) -> SourceId {
        ID
    }

    fn observe(&mut self, sink: Sink<'_>) {
        sink(observation(ID, Fact::Begin(Snapshot::Sockets)));
        let until = clock::node_time().after(ROUND_LIMIT);
        let mut round = Round {
            root: &self.root,
            sink,
            until,
            sockets: 0,
            read: 0,
            missing: Vec::new(),
            namespaces: None,
            own: None,
            owners: Owners::default(),
        };
        round.own = self.root.is_live().then(|| processes::namespace(&self.root, "thread-self").ok()).flatten();
        round.read_all();
        for owner in std::mem::take(&mut round.owners).find() {
            (round.sink)(observation(ID, Fact::SocketOwner(owner)));
        }
        let (read, missing) = (round.read, sentence(&round.missing));
        // Who captures a node mostly takes its own tables, not those of every pod.
        let lonely = !self.root.is_live() && read == 1;
        self.namespaces = round.namespaces;
        let (outcome, coverage) = match missing {
            None if lonely => (Outcome::Complete, degraded(HOW, "the tables of one network namespace only".to_owned())),
            None => (Outcome::Complete, works(HOW)),
            Some(why) if read > 0 => (Outcome::Partial(Why::new(why.clone())), degraded(HOW, why)),
            Some(why) => (Outcome::Failed(Why::new(why.clone())), unreadable(why)),
        };
        sink(observation(ID, Fact::End { snapshot: Snapshot::Sockets, outcome }));
        sink(observation(ID, coverage));
    }
}

/// The first reasons, and how many more there are.
fn sentence(missing: &[String]) -> Option<String> {
    let told = missing.iter().take(REASONS).cloned().collect::<Vec<_>>().join("; ");
    match missing.len() {
        0 => None,
        count if count > REASONS => Some(format!("{told}; and {} more", count - REASONS)),
        _ => Some(told),
    }
}

impl Round<'_, '_> {
    fn read_all(&mut self) {
        let walk = processes::walk(self.root);
        if walk.failed.is_none() && walk.denied.is_empty() {
            self.namespaces = Some(walk.namespaces.keys().copied().collect());
        }
        self.missing.extend(walk.failed);
        if !walk.denied.is_empty() {
            self.missing.push(format!(
                "the network namespaces of {} processes could not be told (CAP_SYS_PTRACE is needed)",
                walk.denied.len()
            ));
        }
        if walk.namespaces.is_empty() {
            self.missing.push("`/proc` shows no process with a network namespace".to_owned());
        }
        for (inode, candidates) in walk.namespaces {
            if self.sockets >= SOCKET_LIMIT {
                self.missing.push(format!("there are more than {SOCKET_LIMIT} sockets"));
                return;
            }
            if clock::node_time() > self.until {
                self.missing.push(format!("reading took more than {} s", ROUND_LIMIT.as_secs()));
                return;
            }
            for process in candidates {
                match self.read_namespace(inode, &process) {
                    Ok(()) => break,
                    // If all candidates have ended, so has the namespace, or nearly so.
                    Err(Unread::Gone) => {}
                    Err(Unread::Failed(why)) => {
                        self.missing.push(why);
                        break;
                    }
                }
            }
        }
    }

    fn read_namespace(&mut self, inode: NetnsInode, process: &str) -> Result<(), Unread> {
        let mut tables = Vec::with_capacity(2);
        for name in ["tcp", "tcp6"] {
            let path = PathBuf::from(format!("/proc/{process}/net/{name}"));
            match Lines::open_growing(self.root, &path, FILE_LIMIT_BYTES) {
                Ok(lines) => {
                    tables.push(Table { path, lines, waiting: None, past_header: false, flaws: Flaws::default() })
                }
                // A kernel without IPv6; or the process has ended, which the look below tells.
                Err(error) if name == "tcp6" && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let there = processes::namespace(self.root, process).is_ok_and(|now| now == inode);
                    if processes::is_gone(&error) && !there {
                        return Err(Unread::Gone);
                    }
                    return Err(Unread::Failed(format!("cannot read `{}`: {error}", path.display())));
                }
            }
        }
        // The pid may have been given to another process since it was listed. What is open now stays what it is.
        if processes::namespace(self.root, process).ok() != Some(inode) {
            return Err(Unread::Gone);
        }
        self.read += 1;
        self.read_tables(inode, &mut tables).map_err(Unread::Failed)?;
        self.missing.extend(tables.iter().filter_map(Table::missing));
        Ok(())
    }

    fn read_tables(&mut self, inode: NetnsInode, tables: &mut [Table]) -> Result<(), String> {
        // Listening sockets come first in each file. Those of both are needed before the first connection: an accepted
        // IPv4 connection of a dual-stack listener is in `tcp`, its listener in `tcp6`.
        let mut listening = Ports::default();
        for table in &mut *tables {
            while let Some(row) = table.next()? {
                match row {
                    Row::Listening { port } => listening.add(port),
                    Row::Connection { .. } | Row::Other => {
                        table.waiting = Some(row);
                        break;
                    }
                }
            }
        }
        let ports = listening.ranges();
        if !ports.is_empty() {
            (self.sink)(observation(ID, Fact::Listening { inode, ports }));
        }
        for table in tables {
            while let Some(row) = table.next()? {
                match row {
                    Row::Listening { port } => listening.add(port),
                    Row::Connection { source, destination, state, timer, inode: socket_inode } => {
                        let accepted = listening.has(source.port);
                        if self.own == Some(inode) && !accepted {
                            self.owners.note(destination, source.address, socket_inode);
                        }
                        let socket = Socket { netns: inode, source, destination, state, timer, accepted };
                        (self.sink)(observation(ID, Fact::Socket(socket)));
                        self.sockets += 1;
                    }
                    Row::Other => {}
                }
                if self.sockets >= SOCKET_LIMIT {
                    return Err(format!("there are more than {SOCKET_LIMIT} sockets"));
                }
            }
        }
        Ok(())
    }
}

/// One file.
struct Table {
    path: PathBuf,
    lines: Lines<Growing<File>>,
    /// A row that was read too early.
    waiting: Option<Row>,
    past_header: bool,
    flaws: Flaws,
}

/// What is wrong with a file.
#[derive(Default)]
struct Flaws {
    lines: u64,
    too_long: bool,
}

impl Table {
    fn next(&mut self) -> Result<Option<Row>, String> {
        if let Some(row) = self.waiting.take() {
            return Ok(Some(row));
        }
        loop {
            match self.lines.step() {
                Ok(Step::Line(_header)) if !self.past_header => self.past_header = true,
                Ok(Step::Line(line)) => match table::parse_line(line) {
                    Some(row) => return Ok(Some(row)),
                    None => self.flaws.lines += 1,
                },
                Ok(Step::TooLong) => self.flaws.lines += 1,
                Ok(Step::Limit) => {
                    self.flaws.too_long = true;
                    return Ok(None);
                }
                Ok(Step::End) => return Ok(None),
                Err(error) => return Err(format!("cannot read `{}`: {error}", self.path.display())),
            }
        }
    }

    fn missing(&self) -> Option<String> {
        if self.flaws.too_long {
            Some(format!("`{}` is longer than {} MiB", self.path.display(), FILE_LIMIT_BYTES >> 20))
        } else if self.flaws.lines > 0 {
            Some(format!("{} lines of `{}` could not be understood", self.flaws.lines, self.path.display()))
        } else {
            None
        }
    }
}

/// A set of ports.
struct Ports(Vec<bool>);

impl Default for Ports {
    fn default() -> Self {
        Self(vec![false; 1 << 16])
    }
}

impl Ports {
    fn add(&mut self, port: u16) {
        if let Some(place) = self.0.get_mut(usize::from(port)) {
            *place = true;
        }
    }

    /// In order; those that touch are one range.
    fn ranges(&self) -> Vec<PortRange> {
        let ports = (0..=u16::MAX).filter(|port| self.has(*port));
        PortRange::joined(ports.filter_map(|port| PortRange::new(port, port)).collect())
    }

    fn has(&self, port: u16) -> bool {
        self.0.get(usize::from(port)).copied().unwrap_or(false)
    }
}
