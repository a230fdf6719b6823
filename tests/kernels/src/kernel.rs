//! Which kernel runs, and what it shows of itself.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The running kernel.
#[derive(Debug, Serialize)]
pub(crate) struct Kernel {
    /// As `uname -r` says it.
    pub(crate) release: String,
    /// Its first two numbers; distributions put their own behind them.
    pub(crate) version: (u32, u32),
    /// How many CPUs it has.
    pub(crate) cpus: usize,
    /// Whether functions can be probed.
    pub(crate) kprobes: bool,
    /// Whether modules show their types (since 5.11).
    module_types: bool,
    /// Whether its modules may be unloaded: only a guest's, where conntrack is a module.
    pub(crate) unloads: bool,
}

/// Asks the running kernel.
pub(crate) fn running(may_unload: bool) -> Result<Kernel> {
    let path = "/proc/sys/kernel/osrelease";
    let release = std::fs::read_to_string(path).with_context(|| format!("read `{path}`"))?.trim().to_owned();
    let version = version(&release).with_context(|| format!("find the version in `{release}`"))?;
    let kprobes = Path::new("/sys/bus/event_source/devices/kprobe/type").exists();
    let module_types = std::fs::read_dir("/sys/kernel/btf").is_ok_and(|files| files.count() > 1);
    let cpus = std::thread::available_parallelism().context("count CPUs")?.get();
    Ok(Kernel { release, version, cpus, kprobes, module_types, unloads: may_unload })
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises distributions' names. If this fails, the table of inabilities is asked about another kernel.
    #[test]
    fn releases_of_distributions_are_understood() {
        assert_eq!(version("5.10.0-32-amd64"), Some((5, 10)));
        assert_eq!(version("6.12.117+deb12-amd64"), Some((6, 12)));
        assert_eq!(version("6.18-rc1"), Some((6, 18)));
        assert_eq!(version("linux"), None);
    }
}
