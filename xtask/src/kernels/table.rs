//! The table of kernels and checks, and its sum.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::say;
use crate::test::Sum;

/// A line of a file of results; `tests/kernels/src/results.rs` writes them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Kernel { release: String, kprobes: bool, module_types: bool },
    Check { name: String, verdict: Verdict, detail: String, notes: Vec<String> },
    Broken { why: String },
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    /// Cannot, for a reason that is known; as good as passed.
    Cannot,
    Failed,
}

/// What one kernel said.
#[derive(Debug, Default)]
struct Column {
    name: String,
    /// What it is, in words.
    about: String,
    checks: BTreeMap<String, (Verdict, String)>,
    /// What was compared less than exactly, and why.
    notes: Vec<String>,
    /// Why it did not come to its end, if it did not.
    broken: Option<String>,
}

/// What all of them said.
#[derive(Debug, Default)]
pub(super) struct Table {
    columns: Vec<Column>,
    /// The checks in the order in which they ran.
    rows: Vec<String>,
}

impl Table {
    /// Adds a kernel that ran.
    pub(super) fn add(&mut self, name: &str, results: &Path, took: Duration) {
        match std::fs::read_to_string(results) {
            Ok(text) => self.read(name, &text, took),
            Err(error) => self.fail(name, format!("it left no results: {error}")),
        }
    }

    /// Adds a kernel that did not run.
    pub(super) fn fail(&mut self, name: &str, why: String) {
        self.columns.push(Column { name: name.to_owned(), broken: Some(why), ..Column::default() });
    }

    fn read(&mut self, name: &str, text: &str, took: Duration) {
        let mut column = Column { name: name.to_owned(), ..Column::default() };
        let mut ended = false;
        for line in text.lines() {
            match serde_json::from_str(line) {
                Ok(Line::Kernel { release, kprobes, module_types }) => {
                    let has = |there: bool, what: &str| format!("{} {what}", if there { "with" } else { "without" });
                    let (kprobes, types) = (has(kprobes, "kprobes"), has(module_types, "types of modules"));
                    column.about = format!("{release}, {kprobes}, {types}; {} s", took.as_secs());
                }
                Ok(Line::Check { name, verdict, detail, notes }) => {
                    column.notes.extend(notes.into_iter().map(|note| format!("{name}: {note}")));
                    if !self.rows.contains(&name) {
                        self.rows.push(name.clone());
                    }
                    column.checks.insert(name, (verdict, detail));
                }
                Ok(Line::Broken { why }) => column.broken = Some(why),
                Ok(Line::End) => ended = true,
                Err(error) => column.broken = Some(format!("`{line}` is no result: {error}")),
            }
        }
        if !ended && column.broken.is_none() {
            let last = text.lines().last().unwrap_or("nothing");
            column.broken =
                Some(format!("it did not come to its end within {} s; it last said {last}", took.as_secs()));
        }
        self.columns.push(column);
    }

    /// Shows it: a line per check, then what needs a sentence.
    pub(super) fn show(&self) {
        let width = self.rows.iter().map(String::len).max().unwrap_or_default();
        let header = self.columns.iter().map(|column| format!("  {:<8}", column.name)).collect::<String>();
        say::line(format_args!("{:width$}{header}", "check"));
        for row in &self.rows {
            let cells: String = self.columns.iter().map(|column| format!("  {:<8}", column.cell(row))).collect();
            say::line(format_args!("{row:width$}{cells}").to_string().trim_end());
        }
        for column in &self.columns {
            say::line(format_args!("{}: {}", column.name, column.about));
        }
        for row in &self.rows {
            let mut sentences: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for column in &self.columns {
                if let Some((Verdict::Cannot, why)) = column.checks.get(row) {
                    sentences.entry(why).or_default().push(&column.name);
                }
            }
            for (why, names) in sentences {
                say::line(format_args!("{}: {row}: cannot, because {why}", names.join(", ")));
            }
        }
        for column in &self.columns {
            for note in &column.notes {
                say::line(format_args!("{}: {note}", column.name));
            }
            for (row, (verdict, detail)) in &column.checks {
                if *verdict == Verdict::Failed {
                    say::line(format_args!("{}: {row}: FAILED: {detail}", column.name));
                }
            }
            if let Some(why) = &column.broken {
                say::line(format_args!("{}: FAILED: {why}", column.name));
            }
        }
    }

    /// How many cells are as they should be.
    pub(super) fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        for column in &self.columns {
            for row in &self.rows {
                match column.checks.get(row) {
                    Some((Verdict::Ok | Verdict::Cannot, _)) => sum.passed += 1,
                    Some((Verdict::Failed, _)) | None => sum.failed += 1,
                }
            }
            // With no cell missing or failed a broken column must still count.
            sum.failed += u32::from(column.broken.is_some());
        }
        sum
    }
}

impl Column {
    fn cell(&self, row: &str) -> &'static str {
        match self.checks.get(row) {
            Some((Verdict::Ok, _)) => "ok",
            Some((Verdict::Cannot, _)) => "cannot",
            Some((Verdict::Failed, _)) => "FAILED",
            None => "missing",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: &str = r#"{"kernel":{"release":"6.1.0","version":[6,1],"kprobes":true,"module_types":true}}"#;

    fn check(name: &str, verdict: &str) -> String {
        format!(r#"{{"check":{{"name":"{name}","verdict":"{verdict}","detail":"","notes":[],"secs":0.1}}}}"#)
    }

    /// Exercises guests that come to their end and one that does not. If this fails, a guest that died passes.
    #[test]
    fn what_is_missing_has_failed() {
        let mut table = Table::default();
        let took = Duration::from_secs(60);
        table.read("one", &[KERNEL, &check("a", "ok"), &check("b", "cannot"), "\"end\""].join("\n"), took);
        assert_eq!(table.sum(), Sum { passed: 2, failed: 0 });
        table.read("two", &[KERNEL, &check("a", "ok"), &check("b", "failed"), "\"end\""].join("\n"), took);
        assert_eq!(table.sum(), Sum { passed: 3, failed: 1 });
        table.read("three", &[KERNEL, &check("a", "ok")].join("\n"), took);
        assert_eq!(table.sum(), Sum { passed: 4, failed: 3 });
        table.fail("four", "no such package".to_owned());
        assert_eq!(table.sum(), Sum { passed: 4, failed: 6 });
    }
}
