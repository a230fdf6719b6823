//! What a NAT itself says that it has given this node, and how old that is.

use std::time::Duration;

use super::NatSettings;
use crate::model::leak::whole;
use crate::time::WallTime;

/// Ports that the NAT itself says it has given this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedPorts {
    /// How many.
    pub ports: u32,
    /// Who said so.
    pub why: String,
    /// When it was so, where that is known.
    pub at: Option<WallTime>,
}

/// Ports that a NAT has given may change from then on: nodes come and go, ranges grow, somebody changes the gateway.
const OLD: Duration = Duration::from_secs(3600);

impl ObservedPorts {
    /// How old it is.
    pub fn age(&self, now: WallTime) -> Option<Duration> {
        now.since(self.at?)
    }

    /// The same in words.
    pub fn told_age(&self, now: WallTime) -> Option<String> {
        self.at.map(|at| told_age(at, now))
    }
}

/// How old something is that a NAT said then.
fn told_age(at: WallTime, now: WallTime) -> String {
    match now.since(at) {
        Some(age) if age > OLD => format!("{} old: the NAT may have given something else since", whole(age)),
        Some(age) => format!("{} old", whole(age)),
        None => "dated ahead of this node's clock".to_owned(),
    }
}

impl NatSettings {
    /// That the gateway could not give ports to some machine, with the age of that.
    pub fn told_allocation_failed(&self, now: WallTime) -> Option<String> {
        let age = told_age(self.allocation_failed?, now);
        Some(format!("the gateway could not give ports to some VM (nat_allocation_failed), {age}"))
    }

    /// Whether it could not so lately that it is likely to be so now.
    pub fn failed_lately(&self, now: WallTime) -> bool {
        self.allocation_failed.and_then(|at| now.since(at)).is_some_and(|age| age <= OLD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the ages that matter. If this fails, numbers of last week look like those of now.
    #[test]
    fn what_is_old_is_told_to_be_and_a_clock_that_jumped_gives_no_age() {
        let told = |at: Option<i64>, now| {
            let at = at.map(WallTime::from_secs);
            ObservedPorts { ports: 64, why: String::new(), at }.told_age(WallTime::from_secs(now))
        };
        assert_eq!(told(None, 1000), None);
        assert_eq!(told(Some(1000), 1000).unwrap(), "0 s old");
        assert_eq!(told(Some(1000), 4600).unwrap(), "60 min old");
        assert_eq!(told(Some(1000), 4601).unwrap(), "60 min old: the NAT may have given something else since");
        assert_eq!(
            told(Some(1000), 1000 + 3 * 86_400).unwrap(),
            "3 d old: the NAT may have given something else since"
        );
        assert_eq!(told(Some(1000), 999).unwrap(), "dated ahead of this node's clock");
    }
}
