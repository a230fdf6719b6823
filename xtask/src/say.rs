//! What xtask says to the person in front of it.

use std::fmt::Display;

/// A line on stdout: progress and results.
#[expect(clippy::print_stdout, reason = "the only place that prints")]
pub(crate) fn line(text: impl Display) {
    println!("{text}");
}

/// A line on stderr: what went wrong.
#[expect(clippy::print_stderr, reason = "the only place that prints")]
pub(crate) fn error(text: impl Display) {
    eprintln!("xtask: {text}");
}
