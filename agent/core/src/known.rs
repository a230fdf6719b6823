//! Three answers: yes, no, could not read (and why). A read error is never a zero.

use serde::{Deserialize, Serialize};

/// Why something could not be told: one sentence for people, lower case, without a full stop.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Why(String);

impl Why {
    /// The reason, in words.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// The reason, in words.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a source can say about one thing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Known<T> {
    /// It is there, and this is it.
    Present(T),
    /// It is certainly not there.
    Absent,
    /// It could not be read, because …
    Unknown(Why),
}

impl<T> Known<T> {
    /// The value, if it is known to be there.
    pub fn present(&self) -> Option<&T> {
        match self {
            Self::Present(value) => Some(value),
            Self::Absent | Self::Unknown(_) => None,
        }
    }

    /// Why it is not known, if it is not.
    pub fn unknown(&self) -> Option<&Why> {
        match self {
            Self::Unknown(why) => Some(why),
            Self::Present(_) | Self::Absent => None,
        }
    }

    /// Shorthand for [`Known::Unknown`].
    pub fn because(reason: impl Into<String>) -> Self {
        Self::Unknown(Why::new(reason))
    }
}
