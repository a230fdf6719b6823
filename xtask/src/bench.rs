//! Measuring headroom, and writing down what was measured.

use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;

use crate::build;
use crate::say;
use crate::setup::{self, Purpose};
use crate::shell::{shown, workspace};

/// What can be measured.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// What headroom costs a node, beside other tools on the same connections; rewrites deploy/docs/benchmarks.md
    Overhead {
        /// A short run, to see whether it works; shows its numbers and writes nothing
        #[arg(long)]
        quick: bool,
        /// How many rounds; medians are reported
        #[arg(long)]
        rounds: Option<usize>,
    },
}

/// Where the results are.
const PAGE: &str = "deploy/docs/benchmarks.md";
/// What is between these two lines is rewritten.
const BEGIN: &str = "<!-- written by `cargo xtask bench overhead`: begin -->";
const END: &str = "<!-- written by `cargo xtask bench overhead`: end -->";

/// Measures.
pub(crate) fn run(what: &Bench) -> Result<()> {
    let Bench::Overhead { quick, rounds } = what;
    setup::require(Purpose::Bench)?;
    let mut arguments = vec!["bench-overhead".to_owned()];
    arguments.extend(quick.then(|| "--quick".to_owned()));
    arguments.extend(rounds.map(|rounds| format!("--rounds={rounds}")));
    let mut lab = build::lab_command(&arguments)?;
    let output = lab.stderr(Stdio::inherit()).output().with_context(|| format!("run `{}`", shown(&lab)))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", shown(&lab), output.status);
    }
    let results = String::from_utf8(output.stdout).context("read the results")?;
    say::line(results.trim_end());
    if *quick {
        say::line(format_args!("a quick run's numbers mean little: {PAGE} is left as it is"));
        return Ok(());
    }
    let page = workspace().join(PAGE);
    let text = std::fs::read_to_string(&page).with_context(|| format!("read {}", page.display()))?;
    let text = with_results(&text, &results).with_context(|| format!("{PAGE} has no lines `{BEGIN}` and `{END}`"))?;
    std::fs::write(&page, text).with_context(|| format!("write {}", page.display()))?;
    say::line(PAGE);
    Ok(())
}

/// The page with new results between its two lines.
fn with_results(page: &str, results: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_old, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", results.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the rewriting. If this fails, a run eats what people wrote around its results.
    #[test]
    fn only_what_is_between_the_two_lines_is_rewritten() {
        let page = format!("# Title\n\n{BEGIN}\nold\n{END}\nafter\n");
        let new = with_results(&page, "new\n").unwrap();
        assert_eq!(new, format!("# Title\n\n{BEGIN}\n\nnew\n\n{END}\nafter\n"));
        assert_eq!(with_results(&new, "new").as_deref(), Some(new.as_str()));
        assert_eq!(with_results("no lines", "new"), None);
    }
}
