//! Running every test there is, and adding them up.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Purpose};
use crate::shell::{cargo, host_triple, is_root, shown, which};
use crate::{build, kernels, say};

/// Sums over all suites.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
}

impl Sum {
    /// Says the sum and ends the process if anything failed: the sum is the last word, and `main` would add a line.
    pub(crate) fn conclude(self) {
        let Self { passed, failed } = self;
        say::line(format_args!("{passed} passed, {failed} failed"));
        if failed > 0 {
            std::process::exit(1);
        }
    }
}

/// Runs the tests of the workspace, the end-to-end tests with the release binary, and the programs on other kernels. The last
/// line is the sum.
pub(crate) fn run() -> Result<()> {
    setup::require(Purpose::Test)?;
    let (binary, static_binary) = (build::binary(true)?, build::static_binary()?);
    let mut sum = Sum::default();
    let features = ["--features", "headroom-host/kernel-tests"];
    suite(cargo(["test", "--no-fail-fast", "--workspace", "--exclude", "headroom-lab"]).args(features), &mut sum)?;
    // One lab at a time: each takes the whole machine.
    let mut lab = cargo(["test", "--no-fail-fast", "--package", "headroom-lab", "--features", "node-tests"]);
    lab.args(["--", "--test-threads=1"]).env("HEADROOM_BIN", binary).env("HEADROOM_STATIC_BIN", static_binary);
    suite(lab.env("HEADROOM_KUBERNETES_VALIDATE", setup::kubernetes_validate()), &mut sum)?;
    let kernels = kernels::check(None, &kernels::Task::Check(String::new()))?;
    sum.passed += kernels.passed;
    sum.failed += kernels.failed;
    sum.conclude();
    Ok(())
}

/// Runs one `cargo test` as root, shows its output, and adds its results.
fn suite(command: &mut Command, sum: &mut Sum) -> Result<()> {
    if !is_root() {
        let Some(sudo) = which("sudo") else { bail!("the tests need root, and there is no sudo; run them as root") };
        // cargo builds as we are; only what it built runs as root.
        let mut runner = sudo.into_os_string();
        runner.push(" -E");
        command.env(format!("CARGO_TARGET_{}_RUNNER", host_triple()?.to_uppercase().replace('-', "_")), runner);
    }
    say::line(format_args!("$ {}", shown(command)));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("run `{}`", shown(command)))?;
    let failed_before = sum.failed;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("read the tests' output")?;
            add(&line, sum);
            say::line(line);
        }
    }
    let status = child.wait().context("wait for the tests")?;
    if !status.success() && sum.failed == failed_before {
        // A suite that did not compile, or died, has no result line.
        say::error(format_args!("`{}` ended with {status}", shown(command)));
        sum.failed += 1;
    }
    Ok(())
}

/// Adds a line like `test result: ok. 13 passed; 0 failed; …`; other lines add nothing.
fn add(line: &str, sum: &mut Sum) {
    let Some(result) = line.trim().strip_prefix("test result:") else { return };
    for part in result.split([';', '.']) {
        let mut words = part.split_whitespace();
        if let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u32>), words.next()) {
            match what {
                "passed" => sum.passed += count,
                "failed" => sum.failed += count,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the sum. If this fails, a failure can hide behind a green line.
    #[test]
    fn results_of_suites_add_up() {
        let mut sum = Sum::default();
        for line in [
            "running 3 tests",
            "test a ... ok",
            "test result: ok. 13 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 1.75s",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            add(line, &mut sum);
        }
        assert_eq!(sum, Sum { passed: 15, failed: 1 });
    }
}
