//! What the real binary says to those who ask for help.

use std::process::Command;

use clap::CommandFactory;
use headroom::args::Cli;

/// The words that lead to a command, and to those below it.
fn paths(command: &clap::Command, path: &[String], all: &mut Vec<Vec<String>>) {
    all.push(path.to_vec());
    for below in command.get_subcommands() {
        paths(below, &[path, &[below.get_name().to_owned()]].concat(), all);
    }
}

/// Exercises every command where no terminal tells how wide it is. If this fails, help is torn apart in the terminals of a pod.
#[test]
fn help_is_good_to_read_at_80_columns() {
    let mut all = Vec::new();
    paths(&Cli::command(), &[], &mut all);
    assert!(all.len() > 10, "{all:?}");
    for path in all {
        for asked in ["-h", "--help"] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_headroom"));
            let output = command.args(&path).arg(asked).env("COLUMNS", "200").output().unwrap();
            let help = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success() && help.contains("Usage: headroom"), "{path:?} {asked}: {help}");
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{path:?} {asked}: `{line}`");
            }
        }
    }
}
