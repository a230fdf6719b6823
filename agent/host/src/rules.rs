//! Packet rules, however they were made: what a rule asks, and where it sends a packet.
//!
//! [`crate::iptables`] and [`crate::netlink::nftables`] turn the kernel's bytes into these chains; [`source_nat`] walks
//! through them as a packet would. Pure; nothing here touches a node.

use headroom_core::flow::Protocol;
use headroom_core::observe::SourceNat;

pub mod source_nat;

/// A chain, or as much of it as matters.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Packets enter it at a hook at which source addresses are translated: POSTROUTING, or INPUT.
    pub at_hook: bool,
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
    /// The only protocol it applies to, if it is only one.
    pub protocol: Option<Protocol>,
    /// The only destination port, if it is only one.
    pub destination_port: Option<u16>,
    /// All else, in the words of `iptables`.
    pub conditions: Vec<String>,
    /// The part of packets it takes by chance.
    pub probability: f64,
    /// What is written beside it.
    pub comment: Option<String>,
    /// Parts that are not understood.
    pub unclear: Vec<String>,
    /// It may let packets pass by for a reason that is not told above: a map without their key, a set that is full.
    pub selective: bool,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            protocol: None,
            destination_port: None,
            conditions: Vec::new(),
            probability: 1.0,
            comment: None,
            unclear: Vec::new(),
            selective: false,
        }
    }
}

impl Rule {
    /// Whether it certainly leaves nothing over for the rules behind it in its chain.
    fn takes_all(&self) -> bool {
        let ends = matches!(self.action, Action::End | Action::Return | Action::Goto(_) | Action::Translate(_));
        ends && self.parts.ask_nothing()
    }
}

impl Parts {
    /// Whether every packet has what this asks. Spelled out, so that nobody adds a part and forgets it here.
    fn ask_nothing(&self) -> bool {
        let Self { protocol, destination_port, conditions, probability, comment: _, unclear, selective } = self;
        let chosen = protocol.is_some() || destination_port.is_some() || *selective || *probability < 1.0;
        !chosen && conditions.is_empty() && unclear.is_empty()
    }

    /// What holds for every packet that has not what this asks, if that is one thing: `mark 0x1` for `! mark 0x1`.
    fn opposite(&self) -> Option<&str> {
        match (self.protocol, self.conditions.as_slice(), self.unclear.as_slice()) {
            (None, [only], []) => only.strip_prefix("! "),
            _ => None,
        }
    }

    /// Everything it asks, in one sentence.
    fn sentence(&self) -> String {
        let protocol = self.protocol.map(|protocol| format!("-p {protocol}"));
        let words: Vec<&str> =
            protocol.iter().chain(&self.conditions).chain(&self.unclear).map(String::as_str).collect();
        if words.is_empty() { "everything".to_owned() } else { words.join(" ") }
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
