//! Settings of the whole machine that a measurement needs larger: raised for as long as a lab lives.
//!
//! What a setting was is noted in the lab's directory before it changes, and put back by whatever takes the lab down: its
//! drop, its signal handler, the sweep of the next lab.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::lab::Lab;

/// Where in a lab's directory the notes are; one file for each setting, named after it.
const NOTES: &str = "machine-settings";

impl Lab {
    /// Raises a number among the machine's sysctls to `at_least`, unless it is as large already.
    pub fn raise_machine_setting(&self, key: &str, at_least: u64) -> Result<()> {
        let before = read(key)?;
        if before >= at_least {
            return Ok(());
        }
        let note = self.make_dir(NOTES)?.join(key);
        // What is noted first is what the machine had.
        match std::fs::File::create_new(&note) {
            Ok(mut file) => write!(file, "{before}").with_context(|| format!("write `{}`", note.display()))?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("create `{}`", note.display())),
        }
        write(key, at_least).with_context(|| format!("`{key}` is {before}, and {at_least} is needed"))
    }
}

/// Puts back what was noted in a lab's directory; one line for each.
pub(crate) fn put_back(lab: &Path) -> Result<Vec<String>> {
    let notes = match std::fs::read_dir(lab.join(NOTES)) {
        Ok(notes) => notes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list `{}`", lab.join(NOTES).display())),
    };
    let mut put_back = Vec::new();
    for note in notes.flatten() {
        let Ok(key) = note.file_name().into_string() else { continue };
        let text = std::fs::read_to_string(note.path()).unwrap_or_default();
        // A note that was not written to its end was noted before anything changed.
        let Ok(before) = text.parse() else { continue };
        // It was raised: what is no larger than before was lowered by somebody else.
        if read(&key)? > before {
            write(&key, before)?;
            put_back.push(format!("machine's {key}"));
        }
    }
    Ok(put_back)
}

fn path(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key.replace('.', "/"))
}

fn read(key: &str) -> Result<u64> {
    let path = path(key);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read `{}`", path.display()))?;
    text.trim().parse().with_context(|| format!("understand `{}` in `{}`", text.trim(), path.display()))
}

fn write(key: &str, value: u64) -> Result<()> {
    let path = path(key);
    std::fs::write(&path, value.to_string()).with_context(|| format!("write `{value}` to `{}`", path.display()))
}
