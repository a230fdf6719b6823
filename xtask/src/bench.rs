//! Measuring headroom, and writing down what was measured.

use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;

use crate::build;
use crate::say;
use crate::setup::{self, Purpose};
use crate::shell::{cargo, shown, workspace};

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
    /// What reading 20,000 packet rules and 10,000 NodePorts takes; rewrites its part of deploy/docs/benchmarks.md. Needs root
    Rules,
    /// What one evaluation with 50,000 destinations and 200 pods takes; rewrites its part of deploy/docs/benchmarks.md
    Evaluate,
    /// What an analysis of a conntrack table of 262,144 entries takes; rewrites its part of deploy/docs/benchmarks.md
    Conntrack {
        /// A smaller table, to see whether it works; shows its numbers and writes nothing
        #[arg(long)]
        quick: bool,
        /// How many rounds; medians are reported
        #[arg(long)]
        rounds: Option<usize>,
    },
    /// What giving leaked pod IPs back takes, beside the published shell loop; rewrites its part of deploy/docs/benchmarks.md
    Ipam {
        /// A short run, to see whether it works; shows its numbers and writes nothing
        #[arg(long)]
        quick: bool,
    },
    /// Whether the agent grows during ten minutes of 5,000 connections a second; rewrites its part of deploy/docs/benchmarks.md
    Churn {
        /// Half a minute, to see whether it works; shows its numbers and writes nothing
        #[arg(long)]
        quick: bool,
    },
}

/// Where the results are.
const PAGE: &str = "deploy/docs/benchmarks.md";
/// What is between these two lines is rewritten.
type Part = (&'static str, &'static str);
const OVERHEAD: Part = (
    "<!-- written by `cargo xtask bench overhead`: begin -->",
    "<!-- written by `cargo xtask bench overhead`: end -->",
);
const CONNTRACK: Part = (
    "<!-- written by `cargo xtask bench conntrack`: begin -->",
    "<!-- written by `cargo xtask bench conntrack`: end -->",
);
const EVALUATE: Part = (
    "<!-- written by `cargo xtask bench evaluate`: begin -->",
    "<!-- written by `cargo xtask bench evaluate`: end -->",
);
const CHURN: Part =
    ("<!-- written by `cargo xtask bench churn`: begin -->", "<!-- written by `cargo xtask bench churn`: end -->");
const RULES: Part =
    ("<!-- written by `cargo xtask bench rules`: begin -->", "<!-- written by `cargo xtask bench rules`: end -->");
const IPAM: Part =
    ("<!-- written by `cargo xtask bench ipam`: begin -->", "<!-- written by `cargo xtask bench ipam`: end -->");

/// Measures.
pub(crate) fn run(what: &Bench) -> Result<()> {
    match what {
        Bench::Overhead { quick, rounds } => in_lab("bench-overhead", OVERHEAD, *quick, *rounds),
        Bench::Conntrack { quick, rounds } => in_lab("bench-conntrack", CONNTRACK, *quick, *rounds),
        Bench::Rules => example("rules_cost", RULES),
        Bench::Evaluate => example("evaluate_cost", EVALUATE),
        Bench::Ipam { quick } => in_lab("bench-ipam", IPAM, *quick, None),
        Bench::Churn { quick } => in_lab("bench-churn", CHURN, *quick, None),
    }
}

/// What an example of headroom-host measures.
fn example(name: &str, part: Part) -> Result<()> {
    setup::require(Purpose::Test)?;
    let mut example = cargo(["run", "--release", "--locked", "--package", "headroom-host", "--example", name]);
    let output = example.stderr(Stdio::inherit()).output().with_context(|| format!("run `{}`", shown(&example)))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", shown(&example), output.status);
    }
    let results = String::from_utf8(output.stdout).context("read the results")?;
    say::line(results.trim_end());
    write_down(part, &results)
}

/// What the lab measures.
fn in_lab(bench: &str, part: Part, quick: bool, rounds: Option<usize>) -> Result<()> {
    setup::require(Purpose::Bench)?;
    let mut arguments = vec![bench.to_owned()];
    arguments.extend(quick.then(|| "--quick".to_owned()));
    arguments.extend(rounds.map(|rounds| format!("--rounds={rounds}")));
    let mut lab = build::lab_command(&arguments)?;
    let output = lab.stderr(Stdio::inherit()).output().with_context(|| format!("run `{}`", shown(&lab)))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", shown(&lab), output.status);
    }
    let results = String::from_utf8(output.stdout).context("read the results")?;
    say::line(results.trim_end());
    if quick {
        say::line(format_args!("a quick run's numbers mean little: {PAGE} is left as it is"));
        return Ok(());
    }
    write_down(part, &results)
}

/// Writes results into their part of the page.
fn write_down(part: Part, results: &str) -> Result<()> {
    let page = workspace().join(PAGE);
    let text = std::fs::read_to_string(&page).with_context(|| format!("read {}", page.display()))?;
    let (begin, end) = part;
    let text =
        with_results(&text, part, results).with_context(|| format!("{PAGE} has no lines `{begin}` and `{end}`"))?;
    std::fs::write(&page, text).with_context(|| format!("write {}", page.display()))?;
    say::line(PAGE);
    Ok(())
}

/// The page with new results between the two lines of a part.
fn with_results(page: &str, (begin, end): Part, results: &str) -> Option<String> {
    let (before, rest) = page.split_once(begin)?;
    let (_old, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}\n\n{}\n\n{end}{after}", results.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the rewriting. If this fails, a run eats what people wrote around its results, or another run's.
    #[test]
    fn only_what_is_between_the_two_lines_is_rewritten() {
        let (begin, end) = OVERHEAD;
        let page = format!("# Title\n\n{begin}\nold\n{end}\nafter\n{}\nother\n{}\n", RULES.0, RULES.1);
        let new = with_results(&page, OVERHEAD, "new\n").unwrap();
        assert_eq!(new, page.replace("\nold\n", "\n\nnew\n\n"));
        assert_eq!(with_results(&new, OVERHEAD, "new").as_deref(), Some(new.as_str()));
        assert_eq!(with_results("no lines", OVERHEAD, "new"), None);
    }

    /// Exercises the page. If this fails, a run has nowhere to write.
    #[test]
    fn the_page_has_a_part_for_every_measurement() {
        let page = std::fs::read_to_string(workspace().join(PAGE)).unwrap();
        assert!(
            [OVERHEAD, CONNTRACK, RULES, EVALUATE, IPAM]
                .into_iter()
                .all(|part| with_results(&page, part, "").is_some())
        );
    }
}
