//! What a rule asks of a packet besides its protocol.

/// Something a packet must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// In the words of `iptables`, with `! ` in front of what it must not be.
    pub said: String,
    /// What the words leave out, as it came: conditions with the same words may ask different things.
    pub rest: Vec<u8>,
    /// Whether another rule that asks the same gets the same answer.
    pub lasts: Lasts,
    /// Somebody has read it; if not, whether a packet comes here depends on something that is not known.
    pub understood: bool,
}

/// How long the answer to a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    /// On the packet's whole way: where it comes from, where it goes.
    Always,
    /// Until a rule changes it: marks, states, sets that rules fill.
    ForNow,
    /// Each rule gets an answer of its own: limits, quotas.
    Once,
}

impl Condition {
    /// One that no rule changes, and that its words tell in full.
    pub fn lasting(said: impl Into<String>) -> Self {
        Self { said: said.into(), rest: Vec::new(), lasts: Lasts::Always, understood: true }
    }

    /// One that no rule changes, and what its words leave out.
    pub fn lasting_but(said: impl Into<String>, rest: &[u8]) -> Self {
        Self { rest: rest.to_vec(), ..Self::lasting(said) }
    }

    /// One that a rule may change, and what its words leave out.
    pub fn for_now(said: impl Into<String>, rest: &[u8]) -> Self {
        Self { said: said.into(), rest: rest.to_vec(), lasts: Lasts::ForNow, understood: true }
    }

    /// One whose answer is good for one rule.
    pub fn once(said: impl Into<String>) -> Self {
        Self { said: said.into(), rest: Vec::new(), lasts: Lasts::Once, understood: true }
    }

    /// One that is not understood, and its bytes.
    pub fn unclear(said: impl Into<String>, rest: &[u8]) -> Self {
        Self { said: said.into(), rest: rest.to_vec(), lasts: Lasts::ForNow, understood: false }
    }
}
