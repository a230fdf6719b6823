//! The binary `headroom` as a library, so that tests can call it: what the user typed, what it means, the engine that runs
//! sources, and the outputs. No rule about resources lives here.

pub mod args;
mod cleaner;
pub mod command;
pub mod engine;
pub mod lanes;
pub mod output;
pub mod settings;
pub mod telemetry;
