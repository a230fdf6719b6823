//! The file of results, one JSON object per line.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::check::Cannot;
use crate::inability::Inability;
use crate::kernel::Kernel;

/// A line of the file. `xtask/src/kernels/table.rs` reads them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a> {
    Kernel(&'a Kernel),
    Check { name: &'a str, verdict: Verdict, detail: String, notes: &'a [String], secs: f64 },
    Broken { why: String },
    End,
}

/// What a check comes to.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// Counted, and exactly what was done.
    Ok,
    /// Cannot, and the table of inabilities says so.
    Cannot,
    Failed,
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Results(File);

impl Results {
    /// Begins it; one of an earlier run is emptied.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        Ok(Self(File::create(path).with_context(|| format!("create `{}`", path.display()))?))
    }

    /// The first line.
    pub(crate) fn kernel(&mut self, kernel: &Kernel) -> Result<()> {
        self.line(&Line::Kernel(kernel))
    }

    /// One check.
    pub(crate) fn check(
        &mut self,
        kernel: &Kernel,
        name: &str,
        outcome: Result<String>,
        notes: &[String],
        took: Duration,
    ) -> Result<()> {
        let (verdict, detail) = judge(outcome, Inability::of(kernel, name));
        self.line(&Line::Check { name, verdict, detail, notes, secs: took.as_secs_f64() })
    }

    /// The last line of a run that cannot go on.
    pub(crate) fn broken(&mut self, why: &anyhow::Error) -> Result<()> {
        self.line(&Line::Broken { why: format!("{why:#}") })
    }

    /// The last line: nothing is missing.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.line(&Line::End)
    }

    /// At once on disk: the machine may be gone the next moment.
    fn line(&mut self, line: &Line<'_>) -> Result<()> {
        let text = serde_json::to_string(line).context("write a result")?;
        writeln!(self.0, "{text}").and_then(|()| self.0.sync_all()).context("write to the results")
    }
}

/// What came of a check, against what may.
fn judge(outcome: Result<String>, expected: Option<String>) -> (Verdict, String) {
    match (outcome, expected) {
        (Ok(detail), None) => (Verdict::Ok, detail),
        (Ok(detail), Some(why)) => (Verdict::Failed, format!("it can ({detail}), but the table says it cannot, {why}")),
        (Err(error), expected) => match (error.downcast_ref::<Cannot>(), expected) {
            (Some(_), Some(why)) => (Verdict::Cannot, why),
            (Some(cannot), None) => {
                (Verdict::Failed, format!("it cannot ({cannot}), and no row of the table says why"))
            }
            (None, _) => (Verdict::Failed, format!("{error:#}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    /// Exercises every pair of outcome and expectation. If this fails, a kernel can lose an ability unnoticed.
    #[test]
    fn an_inability_passes_only_where_it_is_expected_and_an_error_never() {
        let verdict = |outcome, expected: Option<&str>| judge(outcome, expected.map(str::to_owned)).0;
        let cannot = || Err(Cannot("no hook".to_owned()).into());
        assert_eq!(verdict(Ok(String::new()), None), Verdict::Ok);
        assert_eq!(verdict(Ok(String::new()), Some("before 6.17")), Verdict::Failed);
        assert_eq!(verdict(cannot(), None), Verdict::Failed);
        assert_eq!(verdict(cannot(), Some("before 6.17")), Verdict::Cannot);
        assert_eq!(verdict(Err(anyhow!("3 of 4")), None), Verdict::Failed);
        assert_eq!(verdict(Err(anyhow!("3 of 4")), Some("before 6.17")), Verdict::Failed);
    }
}
