//! How full the conntrack table of the agent's network namespace is, what was refused or evicted, and its time-outs.
//!
//! From `/proc/sys/net/netfilter/nf_conntrack_*` and `/proc/net/stat/nf_conntrack`. The statistics are 32-bit counters per
//! CPU and wrap; they are summed here, not corrected.

use std::path::{Path, PathBuf};

use headroom_core::known::Known;
use headroom_core::observe::{ConntrackStats, ConntrackTimeouts, ConntrackUse, Fact, SourceId};

use crate::bounded::{self, Refusal};
use crate::root::HostRoot;
use crate::source::lines::own_table;
use crate::source::{Sink, Source, absent, degraded, observation, unreadable, works};

const ID: SourceId = SourceId::ConntrackUse;
const HOW: &str = "/proc/sys/net/netfilter and /proc/net/stat/nf_conntrack";
/// One line per CPU, 160 bytes each.
const STATS_LIMIT_BYTES: usize = 1 << 20;

/// Reads size, statistics and time-outs of conntrack.
#[derive(Debug)]
pub struct ConntrackUseSource {
    root: HostRoot,
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

/// Sums the statistics over CPUs, columns taken by name: their order has changed between kernels.
///
/// # Errors
/// If a column or every line is missing, or one is not understood: a sum without one CPU would be too small.
pub fn parse_stats(text: &str) -> Result<ConntrackStats, StatsError> {
    let mut lines = text.lines();
    let head: Vec<&str> = lines.next().unwrap_or_default().split_ascii_whitespace().collect();
    let column = |name| head.iter().position(|word| *word == name).ok_or(StatsError::Column(name));
    let (insert_failed, drop, early_drop) = (column("insert_failed")?, column("drop")?, column("early_drop")?);
    let mut sum = ConntrackStats::default();
    let mut cpus = 0;
    for (index, line) in lines.enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| {
            let number = words.get(at).and_then(|word| u32::from_str_radix(word, 16).ok());
            number.map(u64::from).ok_or(StatsError::Line(index + 2))
        };
        sum.insert_failed += number(insert_failed)?;
        sum.drop += number(drop)?;
        sum.early_drop += number(early_drop)?;
        cpus += 1;
    }
    if cpus == 0 { Err(StatsError::Empty) } else { Ok(sum) }
}

impl ConntrackUseSource {
    /// Reads below this root.
    pub fn new(root: &HostRoot) -> Self {
        Self { root: root.clone() }
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

    fn stats(&self, there: bool) -> Known<ConntrackStats> {
        let path = own_table(&self.root, "stat/nf_conntrack");
        match bounded::read_in(&self.root, &path, STATS_LIMIT_BYTES) {
            Ok(text) => match parse_stats(&String::from_utf8_lossy(&text)) {
                Ok(stats) => Known::Present(stats),
                Err(error) => Known::because(format!("`{}`: {error}", path.display())),
            },
            Err(Refusal::Missing) if !there => Known::Absent,
            Err(error) => Known::because(format!("`{}` {error}", path.display())),
        }
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
        let (entries, max) = (self.number("count"), self.number("max"));
        let there = entries != Known::Absent || max != Known::Absent;
        let stats = self.stats(there);
        let mut missing: Vec<String> = [entries.unknown(), max.unknown(), stats.unknown()]
            .into_iter()
            .flatten()
            .map(|why| why.as_str().to_owned())
            .collect();
        let nothing = entries.present().is_none() && max.present().is_none() && stats.present().is_none();
        sink(observation(ID, Fact::ConntrackUse(ConntrackUse { entries, max, stats })));
        if there {
            match self.timeouts() {
                Ok(timeouts) => sink(observation(ID, Fact::ConntrackTimeouts(timeouts))),
                Err(why) => missing.push(format!("the time-outs are not known: {why}")),
            }
        }
        sink(observation(
            ID,
            if missing.is_empty() && nothing {
                absent()
            } else if missing.is_empty() {
                works(HOW)
            } else if nothing {
                unreadable(missing.join("; "))
            } else {
                degraded(HOW, missing.join("; "))
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
        let expected = ConntrackStats { insert_failed: 0x1_0000_0000, drop: 11, early_drop: 255 };
        assert_eq!(parse_stats(STATS), Ok(expected));
        assert_eq!(parse_stats(""), Err(StatsError::Column("insert_failed")));
        assert_eq!(parse_stats(STATS.lines().next().unwrap()), Err(StatsError::Empty));
        assert_eq!(parse_stats(&STATS.replace("0000000a", "what")), Err(StatsError::Line(2)));
    }

    #[test]
    fn a_node_without_conntrack_has_none_and_that_is_certain() {
        let (_place, root) = tree(&[]);
        let nothing = ConntrackUse { entries: Known::Absent, max: Known::Absent, stats: Known::Absent };
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
        assert_eq!(usage.stats.present().unwrap().drop, 11);
        let expected = ConntrackTimeouts {
            tcp_established: 86_400,
            tcp_unacknowledged: 301,
            tcp_max_retrans: 302,
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
