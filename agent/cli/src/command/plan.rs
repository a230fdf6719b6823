//! `headroom plan`: arithmetic before anything is built. No node is read.

use crate::args::PlanCommand;

pub mod eni;
mod nat;
pub mod pods;

/// It fits.
const FITS: u8 = 0;
/// It does not.
const DOES_NOT_FIT: u8 = 1;

/// Runs the command.
///
/// # Errors
/// Settings that contradict each other or would be refused; a closed stdout.
pub(super) fn run(command: &PlanCommand) -> anyhow::Result<u8> {
    match command {
        PlanCommand::Nat(args) => nat::run(args),
        PlanCommand::Pods(args) => pods::run(args),
        PlanCommand::Eni(args) => eni::run(args),
    }
}

/// The exit code that says whether it fits.
fn exit_code(fits: bool) -> u8 {
    if fits { FITS } else { DOES_NOT_FIT }
}
