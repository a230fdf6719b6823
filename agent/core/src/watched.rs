//! Files that settings come from, looked at again now and then: whether they have changed, which settings are in force, and what
//! is said of that. Whoever looks and reads is elsewhere.

use crate::known::Why;
use crate::model::leak::whole;
use crate::observe::CoverageDetail;
use crate::time::NodeTime;

/// What tells a file from what it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// mtime: seconds, and nanoseconds beyond them.
    pub modified: (i64, i64),
    /// Bytes.
    pub size: u64,
    /// A file that was put in its place has another one.
    pub inode: u64,
}

/// Files that were read, and may change.
#[derive(Debug)]
pub struct Watched {
    /// As they were before they were read last; `None` of one that could not be looked at.
    stamps: Option<Vec<Option<Stamp>>>,
    /// When that was read which is in force.
    in_force_since: NodeTime,
    /// Why what they say now is not in force.
    broken: Option<Why>,
}

impl Watched {
    /// Files that were read for the first time, without looking at them before: the first look reads them again.
    pub fn read_at(now: NodeTime) -> Self {
        Self { stamps: None, in_force_since: now, broken: None }
    }

    /// Whether they are to be read again. What is broken is read at every look: what mends it may be in a file that is not
    /// known yet, because the one that names it was never understood.
    pub fn changed(&mut self, stamps: Vec<Option<Stamp>>) -> bool {
        let changed = self.stamps.as_ref() != Some(&stamps);
        self.stamps = Some(stamps);
        changed || self.broken.is_some()
    }

    /// Why what they said when they were read last is not in force.
    pub fn broken(&self) -> Option<&Why> {
        self.broken.as_ref()
    }

    /// They were read again: what they say is in force now, or what they said before stays so.
    pub fn was_read(&mut self, now: NodeTime, result: Result<(), Why>) {
        self.broken = result.err();
        if self.broken.is_none() {
            self.in_force_since = now;
        }
    }

    /// What is said of them.
    pub fn coverage(&self, now: NodeTime) -> CoverageDetail {
        let age = whole(now.since(self.in_force_since));
        let count = self.stamps.as_ref().map_or(0, Vec::len);
        let files = if count == 1 { "the file".to_owned() } else { format!("{count} files") };
        let degraded =
            self.broken.as_ref().map(|why| Why::new(format!("{why}; what was read {age} ago stays in force")));
        CoverageDetail {
            how: format!("{files} about the NAT, read {age} ago, again when changed"),
            degraded,
            as_of_dump: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Stamp = Stamp { modified: (100, 5), size: 7, inode: 1 };

    fn at(secs: u64) -> NodeTime {
        NodeTime::from_secs(secs)
    }

    /// Exercises each part of a stamp. If this fails, settings that somebody has changed stay as they were.
    #[test]
    fn a_file_is_read_again_whatever_has_changed_and_not_otherwise() {
        let mut watched = Watched::read_at(at(0));
        assert!(watched.changed(vec![Some(FILE)]), "nobody looked before it was read first");
        assert!(!watched.changed(vec![Some(FILE)]));
        for stamps in [
            vec![Some(Stamp { modified: (101, 5), ..FILE })],
            vec![Some(Stamp { modified: (101, 6), ..FILE })],
            vec![Some(Stamp { size: 8, ..FILE })],
            vec![Some(Stamp { inode: 2, ..FILE })],
            vec![None],
            vec![Some(FILE), Some(FILE)],
        ] {
            assert!(watched.changed(stamps.clone()), "{stamps:?}");
            assert!(!watched.changed(stamps.clone()), "{stamps:?} is read once");
        }
    }

    /// Exercises a file that somebody spoils. If this fails, nobody learns that the numbers are those of yesterday.
    #[test]
    fn what_was_read_last_stays_in_force_and_says_how_old_it_is() {
        let mut watched = Watched::read_at(at(1000));
        watched.changed(vec![Some(FILE)]);
        watched.was_read(at(1030), Ok(()));
        assert_eq!(watched.coverage(at(1040)).how, "the file about the NAT, read 10 s ago, again when changed");
        assert_eq!(watched.coverage(at(1040)).degraded, None);
        watched.was_read(at(1060), Err(Why::new("`nat.json` is empty")));
        let why = watched.coverage(at(1030 + 7260)).degraded.unwrap();
        assert_eq!(why.as_str(), "`nat.json` is empty; what was read 2 h ago stays in force");
        assert!(watched.changed(vec![Some(FILE)]), "what mends it may be elsewhere");
        watched.was_read(at(9000), Ok(()));
        assert_eq!(watched.coverage(at(9000)).degraded, None);
        assert!(!watched.changed(vec![Some(FILE)]));
    }
}
