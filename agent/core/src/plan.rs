//! Changes to a node as data: what would be done and why, before anything is done. Nothing here does it.

pub mod clean;
pub mod rate;
