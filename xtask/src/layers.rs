//! Rules of the house that neither the compiler nor clippy checks.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::say;
use crate::shell::{cargo, output, workspace};

/// All that the pure crate may use.
const CORE_MAY_USE: [&str; 5] = ["ipnet", "serde", "serde_json", "smallvec", "thiserror"];
/// Crates that hand what they have to say to their caller.
const SILENT: [&str; 2] = ["agent/core/src", "agent/host/src"];
/// The only files under `agent/` with unsafe code: calls for which neither the standard library nor `nix` has a safe name.
const MAY_BE_UNSAFE: [&str; 3] =
    ["agent/host/src/ebpf/maps/calls.rs", "agent/host/src/iptables/kernel.rs", "agent/host/src/memory.rs"];

/// Checks all of them, and names every place that breaks one.
pub(crate) fn run() -> Result<()> {
    let mut broken = core_dependencies()?;
    let mut files = Vec::new();
    rust_files(&workspace().join("agent"), &mut files)?;
    for file in files {
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        broken.extend(check(file.strip_prefix(workspace()).unwrap_or(&file), &text));
    }
    for line in &broken {
        say::error(line);
    }
    if !broken.is_empty() {
        bail!("{} rules of the house are broken", broken.len());
    }
    say::line("layers: the rules of the house hold");
    Ok(())
}

/// What the pure crate uses and may not.
fn core_dependencies() -> Result<Vec<String>> {
    let mut tree =
        cargo(["tree", "--package", "headroom-core", "--edges", "normal,build", "--depth", "1", "--prefix", "none"]);
    let tree = output(&mut tree).context("ask `cargo tree` what headroom-core uses")?;
    let used = tree.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    Ok(used
        .filter(|name| !CORE_MAY_USE.contains(name))
        .map(|name| format!("agent/core/Cargo.toml: headroom-core may not depend on `{name}`"))
        .collect())
}

/// What one file breaks.
fn check(path: &Path, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let at = path.display();
    if !text.starts_with("//!") {
        broken.push(format!("{at}: begins without a `//!` that says what it is for"));
    }
    if path.file_name().is_some_and(|name| name == "mod.rs") {
        broken.push(format!("{at}: a module `foo` is `foo.rs` with `foo/…` beside it, not `foo/mod.rs`"));
    }
    let silent = SILENT.iter().any(|folder| path.starts_with(folder));
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split("//").next().unwrap_or_default();
        if silent && ["print!(", "println!("].iter().any(|call| code.contains(call)) {
            broken.push(format!("{at}:{number}: prints; only the binary talks to people"));
        }
        let is_unsafe =
            ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe("].iter().any(|word| code.contains(word));
        if is_unsafe && !MAY_BE_UNSAFE.iter().any(|file| path == Path::new(file)) {
            broken.push(format!("{at}:{number}: unsafe code; only {} may have it", MAY_BE_UNSAFE.join(", ")));
        }
    }
    broken
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
        if path.is_dir() {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises each rule once. If this fails, the rule is no rule.
    #[test]
    fn every_rule_names_the_place_that_breaks_it() {
        let broken = |path: &str, text: &str| check(Path::new(path), text).join("\n");
        assert_eq!(broken("agent/host/src/a.rs", "//! A.\nfn a() {} // println!(), unsafe { }\n"), "");
        assert!(broken("agent/host/src/a.rs", "fn a() {}").contains("a.rs: begins without"));
        assert!(broken("agent/host/src/a/mod.rs", "//! A.").contains("mod.rs"));
        assert!(broken("agent/core/src/a.rs", "//! A.\nprintln!();").contains("a.rs:2: prints"));
        assert!(broken("agent/core/src/a.rs", "//! A.\neprintln!();").contains("a.rs:2: prints"));
        assert_eq!(broken("agent/cli/src/a.rs", "//! A.\nprintln!();"), "");
        assert!(broken("agent/cli/src/a.rs", "//! A.\nunsafe { a() }").contains("a.rs:2: unsafe"));
        for file in MAY_BE_UNSAFE {
            assert_eq!(broken(file, "//! A.\nunsafe { a() }"), "");
        }
    }
}
