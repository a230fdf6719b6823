//! Connections from before the counting began: what a socket table tells of their number, and what it leaves open.
//!
//! Reading a table takes a while, and does not tell which of the connections that came or went meanwhile it has met: of a pair
//! that moved, it tells the number only within these. Whatever existed before the counting does not change, so that each further
//! table narrows it down; a number that lies within what a table tells was not wrong.

use crate::flow::Destination;
use crate::ledger::pairs::{Pair, Pairs};

use super::row::{Level, Row};

/// Between which numbers the truth lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    least: i32,
    most: i32,
}

impl Bounds {
    /// Of what a table shows, what the counters count, less what they said before it was read, `came` and `went` at most while it
    /// was.
    fn told(shown: u32, before: i64, (came, went): (u64, u64)) -> Self {
        let (came, went) = (signed(came), signed(went));
        let rest = i64::from(shown).saturating_sub(before);
        // What is left after that is no less than nothing.
        let after = before.saturating_add(came).saturating_sub(went);
        Self {
            least: small(rest.saturating_sub(came).max(after.saturating_neg())),
            most: small(rest.saturating_add(went)),
        }
    }

    fn exactly(number: i32) -> Self {
        Self { least: number, most: number }
    }

    fn and(self, other: Self) -> Option<Self> {
        let both = Self { least: self.least.max(other.least), most: self.most.min(other.most) };
        (both.least <= both.most).then_some(both)
    }

    fn is_exact(self) -> bool {
        self.least == self.most
    }

    /// How far the truth may be from that number.
    fn around(self, number: i32) -> u64 {
        let apart = |end: i32| u64::from(number.abs_diff(end));
        apart(self.least).max(apart(self.most))
    }
}

/// What is not certain of one pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Open {
    open: Bounds,
    wanting: Bounds,
}

/// What is not certain of connections from before the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uncertain {
    /// Destinations whose connections these are.
    pub destinations: u64,
    /// By how many the numbers may be wrong, all pairs added.
    pub by: u64,
    /// Connections that are open, as far as is known.
    pub of: u64,
}

impl Uncertain {
    /// Whether it is more than a little: more than one connection in 50 and more than 10.
    pub fn is_much(&self) -> bool {
        self.by > 10 && self.by.saturating_mul(50) > self.of
    }
}

/// What is not certain, for few pairs.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// A whole table was compared with the counters. What is not here is certain since then.
    compared: bool,
    open: Pairs<Open>,
}

/// What a table shows of a pair: open, and under way.
pub(super) type Shown = (u32, u32);

impl Before {
    /// A whole table was compared with the counters.
    pub(super) fn is_known(&self) -> bool {
        self.compared
    }

    /// Whether the number of a pair is certain.
    pub(super) fn is_certain(&self, pair: &Pair) -> bool {
        self.compared && self.open.get(pair).is_none()
    }

    /// All pairs were compared.
    pub(super) fn were_compared(&mut self) {
        self.compared = true;
    }

    /// The pair's number is certain from now on.
    pub(super) fn settle(&mut self, pair: &Pair) {
        self.open.remove(pair);
    }

    /// Takes in what a table shows of a pair that moved while it was read: `before` is where the counters stood before.
    pub(super) fn moved(&mut self, pair: &Pair, row: &mut Row, before: Level, shown: Shown, complete: bool) {
        let after = row.level();
        let (came, went) = after.open_since(before);
        let open = Bounds::told(shown.0, before.open(), (came, went));
        let (came, went) = after.wanting_since(before);
        let wanting = Bounds::told(shown.1, before.wanting(), (came, went));
        let baseline = row.baseline();
        if !complete {
            // What an incomplete table does not show proves nothing.
            row.set_baseline(baseline.0.max(open.least), baseline.1.max(wanting.least));
            return;
        }
        let known = self.open.get(pair).copied();
        // Of connections from before that nobody counted until now, some may have ended uncounted after the table showed them.
        let uncounted = !self.compared && !before.counted;
        let one = |number: i32, known: Option<Bounds>, told: Bounds| {
            let known = match known {
                Some(known) => known,
                None if self.compared => Bounds::exactly(number),
                // Whatever existed before counting began, it was no less than nothing.
                None => Bounds { least: 0, most: i32::MAX },
            };
            let first = !self.compared && !(told.least..=told.most).contains(&number);
            let Some(both) = known.and(told) else {
                // Counting that was wrong leaves nothing open that could excuse it the next time.
                let number = number.clamp(told.least, told.most);
                return (number, Bounds::exactly(number));
            };
            // The middle is the likeliest.
            let number = if first { both.least.midpoint(both.most) } else { number.clamp(both.least, both.most) };
            (number, Bounds { least: if uncounted { known.least.min(number) } else { both.least }, ..both })
        };
        let (open_now, open) = one(baseline.0, known.map(|known| known.open), open);
        let (wanting_now, wanting) = one(baseline.1, known.map(|known| known.wanting), wanting);
        row.set_baseline(open_now, wanting_now);
        if open.is_exact() && wanting.is_exact() {
            self.settle(pair);
        } else {
            self.open.insert(pair, Open { open, wanting });
        }
    }

    /// How much is not certain, if anything is.
    pub(super) fn uncertain(&self, rows: &Pairs<Row>) -> Option<Uncertain> {
        let (mut destinations, mut by, mut last) = (0_u64, 0_u64, None::<Destination>);
        for (pair, open) in self.open.iter() {
            let (number, wanting) = rows.get(&pair).map(Row::baseline).unwrap_or_default();
            by = by.saturating_add(open.open.around(number)).saturating_add(open.wanting.around(wanting));
            // In the order of destinations.
            destinations += u64::from(last.replace(pair.destination) != Some(pair.destination));
        }
        let of = || rows.iter().fold(0_u64, |sum, (_, row)| sum.saturating_add(row.open()));
        (destinations > 0).then(|| Uncertain { destinations, by, of: of() })
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn small(count: i64) -> i32 {
    i32::try_from(count).unwrap_or(if count < 0 { i32::MIN } else { i32::MAX })
}
