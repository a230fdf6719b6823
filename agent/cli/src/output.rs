//! Outputs: sinks that take a report and know nothing else. The only place that prints.

use std::io::{BufWriter, Write};

use anyhow::Context;
use serde::Serialize;

pub mod metrics;
pub mod table;
pub mod web;

/// Prints text to stdout.
///
/// # Errors
/// A stdout that does not take it; a reader that has gone is not an error.
pub fn print(text: &str) -> anyhow::Result<()> {
    forgive_gone_reader(std::io::stdout().lock().write_all(text.as_bytes())).context("write to stdout")
}

/// Prints one JSON document to stdout.
///
/// # Errors
/// As [`print()`].
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    // Answers can have many megabytes: they are written as they come.
    let mut out = BufWriter::with_capacity(64 << 10, std::io::stdout().lock());
    let written = serde_json::to_writer_pretty(&mut out, value).map_err(std::io::Error::from);
    forgive_gone_reader(written.and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()))
        .context("write to stdout")
}

/// Shows a line of progress on a terminal; the empty text removes it.
pub fn progress(text: &str) {
    // Progress is a courtesy: a stderr that is gone is no reason to stop.
    drop(std::io::stderr().lock().write_all(format!("\r\x1b[2K{text}").as_bytes()));
}

/// Says on stderr why there is no answer.
pub fn complain(error: &anyhow::Error) {
    // Nothing is left to do if stderr is gone as well.
    drop(std::io::stderr().lock().write_all(format!("headroom: {error:#}\n").as_bytes()));
}

/// `headroom check | head` closes our stdout early.
fn forgive_gone_reader(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
