//! What a cloud's own tools print about a NAT: JSON that somebody saved and gives to headroom. Recognised by its content;
//! fields that are not known are passed over, fields that are known have to be what they should be.
//!
//! Pure: bytes in, what they say out. What it means is decided in `headroom_core::model::nat`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use headroom_core::model::nat::Described;
use serde::de::DeserializeOwned;
use serde_json::Value;

mod aws;
mod azure;
mod count;
mod gcloud;
mod mapping;
mod monitoring;
mod recognise;
mod terraform;

pub use recognise::read;

/// Largest document that is read: a Terraform state of some thousand resources, a mapping of as many nodes.
pub const MAX_BYTES: usize = 16 << 20;

/// What a document says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Said {
    /// Which tool printed it.
    pub tool: &'static str,
    /// The NAT's settings, as far as they are in it.
    pub described: Described,
    /// What it says of single machines, by name (or number, where there is no name).
    pub instances: BTreeMap<String, Instance>,
    /// NAT IPs that the gateway itself says it lacks.
    pub missing_ips: Option<u32>,
    /// The last measurement says that the gateway could not give ports to some machine.
    pub allocation_failed: Option<Failed>,
    /// Where in the document the settings are that a NAT may refuse, by their names (`min-ports`).
    pub places: BTreeMap<&'static str, String>,
    /// What to know besides.
    pub notes: Vec<String>,
}

/// That something failed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Failed {
    /// When, where the document says.
    pub at: Option<String>,
}

/// What a document says of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Instance {
    /// Its own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Ports that it was given, over all NAT IPs.
    pub ports: Option<u32>,
    /// Ports that it used towards its busiest destination, at most.
    pub used: Option<u32>,
    /// Of when this is, where the document says.
    pub at: Option<String>,
}

/// Why a document says nothing. The text continues a sentence that has named the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDocument {
    /// No bytes.
    #[error("is empty")]
    Empty,
    /// Not JSON; what it may be instead.
    #[error("is no JSON: {why}{hint}")]
    NotJson {
        /// What the parser says, with the place.
        why: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// JSON of something else.
    #[error("looks like {what}; {instead}")]
    OtherKind {
        /// What it looks like.
        what: String,
        /// What to give instead.
        instead: &'static str,
    },
    /// A field that is not what it should be.
    #[error("({tool}) has a bad `{path}`: {why}")]
    Field {
        /// Which tool prints such documents.
        tool: &'static str,
        /// Where in the document.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// The right kind, without a NAT in it.
    #[error("({tool}) has no NAT in it{hint}")]
    Nothing {
        /// Which tool prints such documents.
        tool: &'static str,
        /// What to do about it.
        hint: String,
    },
    /// Several that are not alike.
    #[error("({tool}) describes {} NATs that differ: choose one with --gateway ({})", names.len(), names.join(", "))]
    Several {
        /// Which tool prints such documents.
        tool: &'static str,
        /// What they are called.
        names: Vec<String>,
    },
}

/// A part of a document as what it should be; `path` is where the part is.
fn field<T: DeserializeOwned>(value: &Value, tool: &'static str, path: &str) -> Result<T, BadDocument> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = error.path().to_string();
        let path = match (path.is_empty(), inner.as_str()) {
            (_, ".") => path.to_owned(),
            (true, inner) => inner.to_owned(),
            (false, inner) if inner.starts_with('[') => format!("{path}{inner}"),
            (false, inner) => format!("{path}.{inner}"),
        };
        BadDocument::Field { tool, path: shortened(&path), why: shortened(&error.into_inner().to_string()) }
    })
}

/// The one that is asked for; without a name the only one, or the first of several that are alike.
fn choose(mut found: Vec<Said>, gateway: Option<&str>, tool: &'static str) -> Result<Said, BadDocument> {
    fn name(said: &Said) -> &str {
        let names = &said.described.names;
        names.gateway.as_deref().or(names.cluster.as_deref()).unwrap_or("without a name")
    }
    let names: Vec<String> = found.iter().take(20).map(|said| shortened(name(said))).collect();
    if let Some(gateway) = gateway {
        found.retain(|said| name(said) == gateway);
        if found.is_empty() && !names.is_empty() {
            return Err(BadDocument::Nothing {
                tool,
                hint: format!(" called `{gateway}`; there are {}", names.join(", ")),
            });
        }
    }
    let alike = |a: &Said, b: &Said| {
        let nameless =
            |said: &Said| Described { names: Default::default(), ip_notes: Vec::new(), ..said.described.clone() };
        nameless(a) == nameless(b)
    };
    if found.iter().zip(found.iter().skip(1)).any(|(a, b)| !alike(a, b)) {
        return Err(BadDocument::Several { tool, names });
    }
    let count = found.len();
    let mut first = found.into_iter().next().ok_or(BadDocument::Nothing { tool, hint: String::new() })?;
    if count > 1 {
        first.notes.push(format!("{count} NATs that are alike; a node uses one of them"));
    }
    Ok(first)
}

/// At most so much of a foreign text is repeated.
fn shortened(text: &str) -> String {
    const MOST: usize = 200;
    let mut short: String = text.chars().take(MOST).collect();
    if text.chars().nth(MOST).is_some() {
        short.push('…');
    }
    short
}

/// How many different texts.
fn distinct(texts: &[String]) -> u32 {
    u32::try_from(texts.iter().collect::<BTreeSet<_>>().len()).unwrap_or(u32::MAX)
}

/// The last part of a path or URL.
fn last_part(text: &str) -> String {
    text.rsplit('/').next().unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests;
