//! Packet rules, however they were made: what a rule asks, and where it sends a packet.
//!
//! [`crate::iptables`] and [`crate::netlink::nftables`] turn the kernel's bytes into these chains; [`source_nat`] walks
//! through them as packets would. Pure; nothing here touches a node.

use headroom_core::observe::SourceNat;
use headroom_core::protocols::Protocols;

mod between;
mod condition;
mod packets;
mod questions;
pub mod source_nat;
mod told;

pub use condition::{Condition, Lasts};

/// Rules at most in chains that are read only to see what ends there.
pub const ENDING_RULES_LIMIT: usize = 16_384;

/// A chain, or as much of it as matters.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Packets enter it at a hook at which source addresses are translated: POSTROUTING, or INPUT.
    pub at_hook: bool,
    /// Its rules are all here: of a chain that was not read, or in part, nobody knows what ends there.
    pub whole: bool,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its place in its chain, the first being 1.
    pub position: u32,
    /// What it asks, and what it says about itself.
    pub parts: Parts,
    /// What it does with a packet that has it all.
    pub action: Action,
}

/// What a rule asks of a packet.
#[derive(Debug, Clone, PartialEq)]
pub struct Parts {
    /// The protocols it applies to.
    pub protocols: Protocols,
    /// The only destination port, if it is only one; it is among the conditions, too.
    pub destination_port: Option<u16>,
    /// All else.
    pub conditions: Vec<Condition>,
    /// The part of packets it takes by chance.
    pub probability: f64,
    /// What is written beside it.
    pub comment: Option<String>,
    /// It may let packets pass by for a reason that is not told above: an option that a packet lacks.
    pub selective: bool,
    /// Of these protocols it changes what other rules ask for, a mark or a set; of packets that have some of the above.
    pub changes: Protocols,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            protocols: Protocols::ALL,
            destination_port: None,
            conditions: Vec::new(),
            probability: 1.0,
            comment: None,
            selective: false,
            changes: Protocols::NONE,
        }
    }
}

impl Rule {
    /// Whether it certainly leaves nothing over for the rules behind it in its chain.
    fn takes_all(&self) -> bool {
        let ends = matches!(self.action, Action::End | Action::Return | Action::Goto(_) | Action::Translate(_));
        ends && self.parts.ask_nothing()
    }

    /// The chain that it sends packets to, if a rule and not a map says which.
    pub fn leads_to(&self) -> Option<&str> {
        match &self.action {
            Action::Jump(to) | Action::Goto(to) => Some(to),
            Action::Continue | Action::Return | Action::End | Action::Translate(_) | Action::Map => None,
        }
    }
}

impl Parts {
    /// Whether every packet has what this asks. Spelled out, so that nobody adds a part and forgets it here.
    fn ask_nothing(&self) -> bool {
        let Self { protocols, destination_port: _, conditions, probability, comment: _, selective, changes: _ } = self;
        let chosen = !protocols.is_all() || *selective || *probability < 1.0;
        !chosen && conditions.is_empty()
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It goes on to the next rule.
    Continue,
    /// It goes through another chain and comes back.
    Jump(String),
    /// It goes through another chain and comes back to where this one was called.
    Goto(String),
    /// It goes back to where this chain was called.
    Return,
    /// It leaves this hook, or is dropped.
    End,
    /// Its source is translated, and it leaves this hook.
    Translate(SourceNat),
    /// It goes where a map says.
    Map,
}
