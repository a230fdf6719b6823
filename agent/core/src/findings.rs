//! Findings: what is wrong, how bad, on what evidence, and what to do about it.

use serde::{Deserialize, Serialize};

use crate::observe::SourceId;

pub mod catalog;

pub use catalog::FindingId;

/// How bad it is; the worst decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// A question could not be answered.
    Unknown,
    /// It will go wrong, or goes wrong now and then.
    Warning,
    /// It goes wrong now.
    Critical,
}

impl Severity {
    /// The word in JSON, metrics and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which kind.
    pub id: FindingId,
    /// How bad.
    pub severity: Severity,
    /// One sentence.
    pub title: String,
    /// What it is about: a destination, a network, a namespace, a source.
    pub subject: String,
    /// What it rests on.
    pub evidence: Vec<Evidence>,
    /// What to do.
    pub remedy: String,
}

/// One piece of evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Who observed it; absent for what the user or a default said.
    pub source: Option<SourceId>,
    /// What.
    pub said: String,
}

impl Evidence {
    /// Something a source observed.
    pub fn seen(source: SourceId, said: impl Into<String>) -> Self {
        Self { source: Some(source), said: said.into() }
    }

    /// Something that was configured or assumed.
    pub fn given(said: impl Into<String>) -> Self {
        Self { source: None, said: said.into() }
    }
}

/// The exit code of a diagnosis: 0 clean, 1 warnings, 2 critical, 3 could not tell.
pub fn exit_code(findings: &[Finding]) -> u8 {
    match findings.iter().map(|finding| finding.severity).max() {
        Some(Severity::Critical) => 2,
        Some(Severity::Warning) => 1,
        Some(Severity::Unknown) => 3,
        Some(Severity::Info) | None => 0,
    }
}
