//! How full the conntrack table of the agent's network namespace is, what was refused or evicted, and its time-outs.
//!
//! Size and time-outs from `/proc/sys/net/netfilter/nf_conntrack_*`; statistics of each CPU over netlink, or, where that is not
//! to be had (no CAP_NET_ADMIN, a captured tree), from `/proc/net/stat/nf_conntrack`. They are 32-bit counters and wrap; they are
//! summed here, not corrected.

use std::path::{Path, PathBuf};
use std::time::Duration;

use headroom_core::known::Known;
use headroom_core::observe::{ConntrackCpu, ConntrackStats, ConntrackTimeouts, ConntrackUse, Fact, SourceId};
use headroom_core::time::NodeTime;

use crate::bounded::{self, Refusal};
use crate::clock;
use crate::netlink::conntrack_stats;
use crate::root::HostRoot;
use crate::source::lines::own_table;
use crate::source::{Sink, Source, absent, degraded, observation, unreadable, works};

const ID: SourceId = SourceId::ConntrackUse;
const HOW: &str = "/proc/sys/net/netfilter and /proc/net/stat/nf_conntrack";
/// How it works with netlink.
const HOW_NETLINK: &str = "conntrack netlink statistics and /proc/sys/net/netfilter";
/// CPUs told of singly.
const MAX_CPUS_TOLD: usize = 64;
/// Time-outs are thirteen files, and hardly ever change.
const TIMEOUTS_EVERY: Duration = Duration::from_secs(5);
/// One line per CPU, 160 bytes each.
const STATS_LIMIT_BYTES: usize = 1 << 20;

/// Reads size, statistics and time-outs of conntrack.
#[derive(Debug)]
pub struct ConntrackUseSource {
    root: HostRoot,
    /// When the time-outs were read last, and what was missing of them.
    timeouts_read: Option<NodeTime>,
    timeouts_missing: Option<String>,
}

/// What is wrong with `/proc/net/stat/nf_conntrack`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatsError {
    /// A column is not there.
    #[error("there is no column `{0}`")]
    Column(&'static str),
    /// A line that has not a hexadecimal number in every column.
    #[error("line {0} is not understood")]
    Line(usize),
    /// Only the header.
    #[error("there is no line of any CPU")]
    Empty,
}

/// The statistics of each CPU, columns taken by name: their order has changed between kernels. The lines are in the order of the
/// CPUs, without those that are not possible.
///
/// # Errors
/// If a column or every line is missing, or one is not understood: a sum without one CPU would be too small.
pub fn parse_stats(text: &str) -> Result<Vec<ConntrackCpu>, StatsError> {
    let mut lines = text.lines();
    let head: Vec<&str> = lines.next().unwrap_or_default().split_ascii_whitespace().collect();
    let optional = |name| head.iter().position(|word| *word == name);
    let column = |name| optional(name).ok_or(StatsError::Column(name));
    let (insert_failed, drop, early_drop) = (column("insert_failed")?, column("drop")?, column("early_drop")?);
    // Older kernels have other counters in these two columns, under other names.
    let (invalid, restart) = (optional("invalid"), optional("search_restart"));
    let (clash, chain) = (optional("clashres"), optional("chainlength"));
    let mut cpus = Vec::new();
    for (index, line) in lines.enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| {
            let number = words.get(at).and_then(|word| u32::from_str_radix(word, 16).ok());
            number.map(u64::from).ok_or(StatsError::Line(index + 2))
        };
        let maybe = |at: Option<usize>| at.map(number).transpose();
        let stats = ConntrackStats {
            insert_failed: number(insert_failed)?,
            drop: number(drop)?,
            early_drop: number(early_drop)?,
            invalid: maybe(invalid)?,
            search_restart: maybe(restart)?,
            clash_resolve: maybe(clash)?,
            chain_toolong: maybe(chain)?,
        };
        cpus.push(ConntrackCpu { cpu: u32::try_from(cpus.len()).unwrap_or(u32::MAX), stats });
    }
    if cpus.is_empty() { Err(StatsError::Empty) } else { Ok(cpus) }
}

fn sum(cpus: &[ConntrackCpu]) -> ConntrackStats {
    cpus.iter().fold(ConntrackStats::ZERO, |sum, cpu| sum.saturating_add(cpu.stats))
}

/// Those on which something went wrong.
fn worth_telling(mut cpus: Vec<ConntrackCpu>) -> Vec<ConntrackCpu> {
    cpus.retain(|cpu| cpu.stats.insert_failed > 0 || cpu.stats.drop > 0 || cpu.stats.early_drop > 0);
    cpus.truncate(MAX_CPUS_TOLD);
    cpus
}

impl ConntrackUseSource {
    /// Reads below this root.
    pub fn new(root: &HostRoot) -> Self {
        Self { root: root.clone(), timeouts_read: None, timeouts_missing: None }
    }

    fn sysctl(name: &str) -> PathBuf {
        Path::new("/proc/sys/net/netfilter").join(format!("nf_conntrack_{name}"))
    }

    fn number(&self, name: &str) -> Known<u64> {
        let path = Self::sysctl(name);
        match bounded::read_line_in(&self.root, &path, 64) {
            Ok(text) => text.parse().map_or_else(
                |_not_a_number| Known::because(format!("`{}` holds no number", path.display())),
                Known::Present,
            ),
            Err(Refusal::Missing) => Known::Absent,
            Err(error) => Known::because(format!("`{}` {error}", path.display())),
        }
    }

    fn stats_from_proc(&self, there: bool) -> Known<Vec<ConntrackCpu>> {
        let path = own_table(&self.root, "stat/nf_conntrack");
        match bounded::read_in(&self.root, &path, STATS_LIMIT_BYTES) {
            Ok(text) => match parse_stats(&String::from_utf8_lossy(&text)) {
                Ok(cpus) => Known::Present(cpus),
                Err(error) => Known::because(format!("`{}`: {error}", path.display())),
            },
            Err(Refusal::Missing) if !there => Known::Absent,
            Err(error) => Known::because(format!("`{}` {error}", path.display())),
        }
    }

    /// The counters of each CPU, and how they were read.
    fn stats(&self, there: bool) -> (Known<Vec<ConntrackCpu>>, &'static str) {
        if self.root.is_live() && there {
            match conntrack_stats::of_cpus() {
                Ok(cpus) => return (Known::Present(cpus), HOW_NETLINK),
                Err(error) => tracing::debug!(%error, "no conntrack statistics over netlink"),
            }
        }
        (self.stats_from_proc(there), HOW)
    }

    /// Reads the time-outs if it is time to.
    fn tell_timeouts(&mut self, sink: Sink<'_>) {
        let now = clock::node_time();
        if self.timeouts_read.is_some_and(|read| now.since(read) < TIMEOUTS_EVERY) {
            return;
        }
        self.timeouts_read = Some(now);
        self.timeouts_missing = match self.timeouts() {
            Ok(timeouts) => {
                sink(observation(ID, Fact::ConntrackTimeouts(timeouts)));
                None
            }
            Err(why) => Some(format!("the time-outs are not known: {why}")),
        };
    }

    /// The time-outs, or which of them cannot be read.
    fn timeouts(&self) -> Result<ConntrackTimeouts, String> {
        let secs = |name| match self.number(name) {
            Known::Present(secs) => {
                u32::try_from(secs).map_err(|_too_large| format!("`{}` is out of range", Self::sysctl(name).display()))
            }
            Known::Absent => Err(format!("`{}` does not exist", Self::sysctl(name).display())),
            Known::Unknown(why) => Err(why.as_str().to_owned()),
        };
        Ok(ConntrackTimeouts {
            tcp_established: secs("tcp_timeout_established")?,
            tcp_unacknowledged: secs("tcp_timeout_unacknowledged")?,
            tcp_max_retrans: secs("tcp_timeout_max_retrans")?,
            tcp_syn_sent: secs("tcp_timeout_syn_sent")?,
            tcp_syn_recv: secs("tcp_timeout_syn_recv")?,
            tcp_fin_wait: secs("tcp_timeout_fin_wait")?,
            tcp_close_wait: secs("tcp_timeout_close_wait")?,
            tcp_last_ack: secs("tcp_timeout_last_ack")?,
            tcp_time_wait: secs("tcp_timeout_time_wait")?,
            tcp_close: secs("tcp_timeout_close")?,
            udp: secs("udp_timeout")?,
            udp_stream: secs("udp_timeout_stream")?,
            icmp: secs("icmp_timeout")?,
        })
    }
}

impl Source for ConntrackUseSource {
    fn id(&self) -> SourceId {
        ID
    }

    fn observe(&mut self, sink: Sink<'_>) {
        let (mut entries, mut max, buckets) = (self.number("count"), self.number("max"), self.number("buckets"));
        // A namespace of its own may show neither, and yet have a table.
        if self.root.is_live()
            && (entries.present().is_none() || max.present().is_none())
            && let Ok(size) = conntrack_stats::of_table()
        {
            entries = size.entries.map_or(entries, Known::Present);
            max = size.max.map_or(max, Known::Present);
        }
        let there = entries != Known::Absent || max != Known::Absent;
        let (cpus, how) = self.stats(there);
        let stats = match &cpus {
            Known::Present(cpus) => Known::Present(sum(cpus)),
            Known::Absent => Known::Absent,
            Known::Unknown(why) => Known::Unknown(why.clone()),
        };
        let cpus = cpus.present().cloned().map(worth_telling).unwrap_or_default();
        let mut missing: Vec<String> = [entries.unknown(), max.unknown(), stats.unknown()]
            .into_iter()
            .flatten()
            .map(|why| why.as_str().to_owned())
            .collect();
        let nothing = entries.present().is_none() && max.present().is_none() && stats.present().is_none();
        sink(observation(ID, Fact::ConntrackUse(ConntrackUse { entries, max, buckets, stats, cpus })));
        if there {
            self.tell_timeouts(sink);
            missing.extend(self.timeouts_missing.clone());
        } else {
            self.timeouts_read = None;
        }
        sink(observation(
            ID,
            if missing.is_empty() && nothing {
                absent()
            } else if missing.is_empty() {
                works(how)
            } else if nothing {
                unreadable(missing.join("; "))
            } else {
                degraded(how, missing.join("; "))
            },
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use headroom_core::known::Why;
    use proptest::prelude::*;

    const STATS: &str = "\
entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart\n\
00000010  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000001 0000000a 000000ff 00000000  00000000 00000000 00000000 00000000\n\
00000010  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 ffffffff 00000001 00000000 00000000  00000000 00000000 00000000 00000000\n";

    fn facts(root: &HostRoot) -> Vec<Fact> {
        let mut facts = Vec::new();
        ConntrackUseSource::new(root).observe(&mut |observation| facts.push(observation.fact));
        facts
    }

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, HostRoot) {
        let place = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = place.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let root = HostRoot::at(place.path());
        (place, root)
    }

    const SYSCTL: &str = "proc/sys/net/netfilter/nf_conntrack_";

    #[test]
    fn statistics_are_summed_over_cpus_without_wrapping() {
        let expected =
            ConntrackStats { insert_failed: 0x1_0000_0000, drop: 11, early_drop: 255, ..ConntrackStats::ZERO };
        let cpus = parse_stats(STATS).unwrap();
        assert_eq!(sum(&cpus), expected);
        assert_eq!((cpus.len(), cpus[1].cpu, cpus[1].stats.drop), (2, 1, 1));
        // What one kernel does not count is not zero.
        let older = parse_stats(&STATS.replace("clashres", "searched")).unwrap();
        assert_eq!((sum(&older).clash_resolve, sum(&older).invalid), (None, Some(0)));
        assert_eq!(parse_stats(""), Err(StatsError::Column("insert_failed")));
        assert_eq!(parse_stats(STATS.lines().next().unwrap()), Err(StatsError::Empty));
        assert_eq!(parse_stats(&STATS.replace("0000000a", "what")), Err(StatsError::Line(2)));
    }

    #[test]
    fn a_node_without_conntrack_has_none_and_that_is_certain() {
        let (_place, root) = tree(&[]);
        let nothing = ConntrackUse {
            entries: Known::Absent,
            max: Known::Absent,
            buckets: Known::Absent,
            stats: Known::Absent,
            cpus: Vec::new(),
        };
        assert_eq!(facts(&root), [Fact::ConntrackUse(nothing), Fact::Coverage(Known::Absent)]);
    }

    #[test]
    fn everything_there_is_told() {
        let names = [
            ("count", "17"),
            ("max", "262144"),
            ("tcp_timeout_established", "86400"),
            ("tcp_timeout_unacknowledged", "301"),
            ("tcp_timeout_max_retrans", "302"),
            ("buckets", "65536"),
            ("tcp_timeout_syn_sent", "121"),
            ("tcp_timeout_syn_recv", "61"),
            ("tcp_timeout_fin_wait", "122"),
            ("tcp_timeout_close_wait", "3600"),
            ("tcp_timeout_last_ack", "31"),
            ("tcp_timeout_time_wait", "120"),
            ("tcp_timeout_close", "10"),
            ("udp_timeout", "30"),
            ("udp_timeout_stream", "180"),
            ("icmp_timeout", "31"),
        ];
        let paths: Vec<(String, String)> =
            names.iter().map(|(name, value)| (format!("{SYSCTL}{name}"), format!("{value}\n"))).collect();
        let mut files: Vec<(&str, &str)> = paths.iter().map(|(path, value)| (path.as_str(), value.as_str())).collect();
        files.push(("proc/net/stat/nf_conntrack", STATS));
        let (_place, root) = tree(&files);
        let facts = facts(&root);
        let [Fact::ConntrackUse(usage), Fact::ConntrackTimeouts(timeouts), Fact::Coverage(coverage)] = facts.as_slice()
        else {
            panic!("{facts:?}")
        };
        assert_eq!((&usage.entries, &usage.max), (&Known::Present(17), &Known::Present(262_144)));
        assert_eq!((usage.stats.present().unwrap().drop, &usage.buckets), (11, &Known::Present(65_536)));
        assert_eq!(usage.cpus.len(), 2);
        let expected = ConntrackTimeouts {
            tcp_established: 86_400,
            tcp_unacknowledged: 301,
            tcp_max_retrans: 302,
            tcp_syn_sent: 121,
            tcp_syn_recv: 61,
            tcp_fin_wait: 122,
            tcp_close_wait: 3600,
            tcp_last_ack: 31,
            udp_stream: 180,
            icmp: 31,
            ..Default::default()
        };
        assert_eq!(*timeouts, expected);
        assert_eq!(coverage.present().unwrap().degraded, None);
    }

    #[test]
    fn what_cannot_be_read_is_unknown_never_zero() {
        let (_place, root) = tree(&[(&format!("{SYSCTL}count"), "many\n"), (&format!("{SYSCTL}max"), "5\n")]);
        let facts = facts(&root);
        let [Fact::ConntrackUse(usage), Fact::Coverage(coverage)] = facts.as_slice() else { panic!("{facts:?}") };
        assert!(usage.entries.unknown().is_some());
        assert!(usage.stats.unknown().is_some());
        assert_eq!(usage.max, Known::Present(5));
        let degraded = coverage.present().unwrap().degraded.as_ref().map(Why::as_str).unwrap();
        assert!(degraded.contains("tcp_timeout_established"), "{degraded}");
    }

    proptest! {
        #[test]
        fn arbitrary_statistics_never_panic(text in "(insert_failed|drop|early_drop|[0-9a-f]{1,9}|[ \n]|\\PC){0,60}") {
            let _parsed = parse_stats(&text);
        }
    }
}
