//! The pure half of headroom.
//!
//! ```text
//! Observation ──Ledger::apply──▶ Ledger ──model::evaluate(view, policy, now)──▶ Report
//! ```
//!
//! Nothing in this crate reads a clock, a file or a socket: time is an argument, facts arrive as
//! [`observe::Observation`]s, and what should be written is returned as data. `clippy.toml` beside this crate and its
//! short dependency list keep it so.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod findings;
pub mod flow;
pub mod heaviest;
pub mod history;
pub mod ids;
pub mod known;
pub mod ledger;
pub mod model;
pub mod observe;
pub mod plan;
pub mod ports;
pub mod protocols;
pub mod report;
pub mod sizing;
pub mod time;
pub mod watched;
pub mod words;
