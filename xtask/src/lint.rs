//! Everything that is checked without running it.

use anyhow::Result;

use crate::layers;
use crate::setup::{self, Purpose};
use crate::shell::{cargo, run as run_command};

/// Runs all checks; the first that fails ends it.
pub(crate) fn run() -> Result<()> {
    setup::require(Purpose::Build)?;
    layers::run()?;
    run_command(&mut cargo(["fmt", "--all", "--check"]))?;
    run_command(&mut cargo([
        "clippy",
        "--workspace",
        "--all-targets",
        "--features",
        "headroom-host/kernel-tests,headroom-lab/node-tests",
        "--",
        "--deny",
        "warnings",
    ]))?;
    run_command(cargo(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings"))
}
