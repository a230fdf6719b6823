//! Numbers in foreign JSON: as numbers, or as Google writes 64-bit ones, in quotes.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// A count: 0 to 4,294,967,295.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Count(pub(super) u32);

struct AsCount;

impl Visitor<'_> for AsCount {
    type Value = Count;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number from 0 to 4294967295")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Count, E> {
        u32::try_from(number).map(Count).map_err(|_too_large| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Count, E> {
        u32::try_from(number).map(Count).map_err(|_negative| E::invalid_value(Unexpected::Signed(number), &self))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Count, E> {
        text.parse().map(Count).map_err(|_no_number| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AsCount)
    }
}

/// A count of seconds or minutes as a time; zero and absent mean that nothing is set.
pub(super) fn time(count: Option<Count>, secs_each: u64) -> Option<Duration> {
    count.filter(|count| count.0 != 0).map(|count| Duration::from_secs(u64::from(count.0).saturating_mul(secs_each)))
}

/// The number itself.
pub(super) fn number(count: Option<Count>) -> Option<u32> {
    count.map(|count| count.0)
}
