//! The commands. Each returns its exit code.

use crate::args::{Cli, Command, IpamCommand};

mod agent;
mod check;
pub(crate) mod clean;
pub mod doctor;
mod explain;
pub mod plan;
mod restore;
mod scan;

/// Exit code for wrong usage and wrong settings (`EX_USAGE`).
pub const USAGE: u8 = 64;

/// Runs what the user asked for.
///
/// # Errors
/// Whatever kept the command from giving an answer at all.
pub fn run(cli: Cli) -> anyhow::Result<u8> {
    match cli.command {
        Command::Check(args) => check::run(&args),
        Command::Agent(args) => agent::run(&args),
        Command::Ipam { command: IpamCommand::Scan(args) } => scan::run(&args),
        Command::Plan { command } => plan::run(&command),
        Command::Ipam { command: IpamCommand::Clean(args) } => clean::run(&args),
        Command::Ipam { command: IpamCommand::Restore(args) } => restore::run(&args),
        Command::Explain { id } => explain::run(id.as_deref()),
        Command::Doctor(args) => doctor::run(&args),
    }
}

/// An error in what the user said, not in what the node does.
#[derive(Debug)]
pub struct UsageError(pub anyhow::Error);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for UsageError {}
