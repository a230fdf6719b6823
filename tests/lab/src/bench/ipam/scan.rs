//! Reading 65,536 reservations: `headroom ipam scan` against a loop in C that opens, examines, reads and closes each.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::bench::say;
use crate::bench::table::today;

/// What cannot be done with less.
const LOOP: &str = r"
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
int main(int argc, char **argv) {
    DIR *dir = opendir(argv[1]);
    char buffer[4097];
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        struct stat stat;
        int fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_CLOEXEC);
        if (fd < 0) continue;
        if (fstat(fd, &stat) == 0 && S_ISREG(stat.st_mode) && read(fd, buffer, sizeof buffer) < 0) return 2;
        close(fd);
    }
    return dir == 0;
}
";

/// A store that host-local has just written into is read twice: one look takes it as it stands.
const STILL: Duration = Duration::from_millis(1500);

/// Measures; Markdown.
pub(super) fn measure(headroom: &Path, quick: bool) -> Result<String> {
    let (reservations, rounds) = if quick { (4096_u32, 1) } else { (65_536, 15) };
    let scratch = tempfile::tempdir().context("make a directory")?;
    let root = scratch.path().join("node");
    let store = root.join("var/lib/cni/networks/big");
    fs::create_dir_all(&store).context("make a store")?;
    for number in 0..reservations {
        let [_, _, high, low] = number.to_be_bytes();
        let content = format!("{number:064x}\r\neth0");
        fs::write(store.join(format!("10.48.{high}.{low}")), content).context("make a reservation")?;
    }
    let (source, program) = (scratch.path().join("loop.c"), scratch.path().join("loop"));
    fs::write(&source, LOOP).context("write the loop")?;
    let compiled = Command::new("cc").arg("-O2").arg("-o").args([&program, &source]).status().context("run cc")?;
    ensure!(compiled.success(), "cc failed");
    thread::sleep(STILL);

    let scan = |format: &str| {
        let mut command = Command::new(headroom);
        command.args(["ipam", "scan", "-o", format, "--root"]).arg(&root);
        command
    };
    let mut bare = Command::new(&program);
    bare.arg(&store);
    let mut commands = [bare, scan("table"), scan("json")];
    let mut took = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..rounds {
        say(&format!("round {} of {rounds}: {reservations} reservations", round + 1));
        for (took, command) in took.iter_mut().zip(&mut commands) {
            let started = Instant::now();
            let status = command.stdout(Stdio::null()).status().context("run what is measured")?;
            took.push(started.elapsed());
            // Nothing but the store is there: what is reserved cannot be judged (3).
            ensure!(matches!(status.code(), Some(0 | 3)), "{command:?} ended with {status}");
        }
    }
    Ok(markdown(reservations, &took))
}

fn markdown(reservations: u32, took: &[Vec<Duration>; 3]) -> String {
    let [bare, table, json] = took;
    let row = |what: &str, took: &[Duration], limit: Option<f64>| {
        let millis = spread(took.iter().map(|took| took.as_secs_f64() * 1000.0).collect());
        // Neighbours on the machine slow both of a round.
        let ratio = spread(took.iter().zip(bare).map(|(took, bare)| took.as_secs_f64() / bare.as_secs_f64()).collect());
        let against = match limit {
            Some(limit) => {
                format!("{:.2} ({:.2}–{:.2}) × | ≤ {limit} × | {}", ratio[1], ratio[0], ratio[2], met(ratio[1], limit))
            }
            None => " | | ".to_owned(),
        };
        format!("| {what} | {:.0} ({:.0}–{:.0}) ms | {against} |\n", millis[1], millis[0], millis[2])
    };
    let mut text = format!(
        "### Reading {reservations} reservations\n\n{}, on disk, in the page cache; medians of {} rounds in turns, least and greatest in \
         brackets. Ratios are within a round.\n\n\
         | reading | wall | against the loop | budget | met |\n|---|---|---|---|---|\n",
        today(),
        bare.len()
    );
    text.push_str(&row("the loop in C: open, fstat, read, close", bare, None));
    text.push_str(&row("`headroom ipam scan`", table, Some(1.5)));
    text.push_str(&row("`headroom ipam scan -o json`", json, Some(2.5)));
    text
}

fn met(ratio: f64, limit: f64) -> &'static str {
    if ratio <= limit { "yes" } else { "**no**" }
}

/// Least, median, greatest.
fn spread(mut all: Vec<f64>) -> [f64; 3] {
    all.sort_by(f64::total_cmp);
    let at = |index: usize| all.get(index).copied().unwrap_or_default();
    [at(0), at(all.len() / 2), at(all.len().saturating_sub(1))]
}
