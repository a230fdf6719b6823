//! Arithmetic before anything is built: what fits, what does not, and what to set. Pure functions of what is asked; no
//! ledger, no node.

pub mod eni;
pub mod nat;
pub mod pods;
