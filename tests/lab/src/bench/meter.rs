//! What is read before and after: CPU time, memory, the kernel's own count of what BPF programs take; and medians.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::{SysconfVar, sysconf};

/// CPU time of the living threads of a process by their names, in user and kernel, as the scheduler counts it (nanoseconds).
pub(super) fn cpu_by_thread(pid: u32) -> Result<BTreeMap<String, Duration>> {
    let folder = format!("/proc/{pid}/task");
    let mut threads: BTreeMap<String, Duration> = BTreeMap::new();
    for thread in fs::read_dir(&folder).with_context(|| format!("list `{folder}`"))? {
        let read = |name: &str| {
            let path = thread.as_ref().ok()?.path().join(name);
            fs::read_to_string(path).ok()
        };
        // A thread may end in between.
        let Some((name, times)) = read("comm").zip(read("schedstat")) else { continue };
        let nanos = times.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
        *threads.entry(name.trim().to_owned()).or_default() += Duration::from_nanos(nanos);
    }
    Ok(threads)
}

/// CPU time of all living threads of a process.
pub(super) fn cpu(pid: u32) -> Result<Duration> {
    Ok(cpu_by_thread(pid)?.values().sum())
}

/// CPU time of the whole machine: all but idle (in steps of a tick).
pub(super) fn machine_cpu() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("read `/proc/stat`")?;
    let words: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .map_while(|word| word.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq; the rest is a guest's or stolen.
    let busy: u64 =
        words.iter().take(7).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, ticks)| ticks).sum();
    let per_sec =
        sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
    Ok(Duration::from_millis(busy * 1000 / per_sec))
}

/// User and system time of all children waited for so far.
pub(super) fn children_cpu() -> Result<(Duration, Duration)> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("ask for the children's CPU time")?;
    let duration =
        |time: nix::sys::time::TimeVal| Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or(0));
    Ok((duration(usage.user_time()), duration(usage.system_time())))
}

/// Resident memory of a process in bytes: now, and at its highest.
pub(super) fn resident_bytes(pid: u32) -> Result<(u64, u64)> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read `{path}`"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
    };
    field("VmRSS:").zip(field("VmHWM:")).with_context(|| format!("find VmRSS and VmHWM in `{path}`"))
}

/// Runs of BPF programs, and the time they took without their dispatch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) programs: usize,
    pub(super) runs: u64,
    pub(super) time_ns: u64,
}

impl Counted {
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            runs: self.runs.saturating_sub(before.runs),
            time_ns: self.time_ns.saturating_sub(before.time_ns),
            ..self
        }
    }
}

/// Lets the kernel count BPF time for as long as the result lives. (The sysctl `kernel.bpf_stats_enabled` would outlive a
/// killed run.) Since 5.8.
pub(super) fn count_bpf() -> Result<std::os::fd::OwnedFd> {
    aya::sys::enable_stats(aya::sys::Stats::RunTime).context("let the kernel count the time of BPF programs")
}

/// What the BPF programs that a process holds have done: `run_cnt` and `run_time_ns`, which bpftool shows too. Read from
/// the process's own descriptors, so that nobody else's programs are counted.
pub(super) fn bpf(pid: u32) -> Result<Counted> {
    bpf_of(pid, |_id| true)
}

/// The same of some of them.
pub(super) fn bpf_of(pid: u32, wanted: impl Fn(u64) -> bool) -> Result<Counted> {
    let programs = bpf_by_id(pid)?.into_iter().filter(|(id, _)| wanted(*id)).collect::<Vec<_>>();
    Ok(Counted {
        programs: programs.len(),
        runs: programs.iter().map(|(_, (runs, _))| runs).sum(),
        time_ns: programs.iter().map(|(_, (_, time_ns))| time_ns).sum(),
    })
}

/// The numbers by which the kernel knows them.
pub(super) fn bpf_ids(pid: u32) -> Result<BTreeSet<u64>> {
    Ok(bpf_by_id(pid)?.into_keys().collect())
}

/// Runs and nanoseconds of each.
fn bpf_by_id(pid: u32) -> Result<BTreeMap<u64, (u64, u64)>> {
    let folder = format!("/proc/{pid}/fdinfo");
    let mut programs = BTreeMap::new();
    for file in fs::read_dir(&folder).with_context(|| format!("list `{folder}`"))? {
        let Ok(text) = file.and_then(|file| fs::read_to_string(file.path())) else { continue };
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        if let (Some(id), Some(runs), Some(time_ns)) = (field("prog_id:"), field("run_cnt:"), field("run_time_ns:")) {
            programs.insert(id, (runs, time_ns));
        }
    }
    Ok(programs)
}

/// A count as a number to divide with.
#[expect(clippy::cast_precision_loss, reason = "no count here comes near 2^52")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

/// A median, and the least and greatest beside it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) greatest: f64,
}

impl Spread {
    /// Of any number of measurements; none for none.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let lower = if values.len().is_multiple_of(2) { *values.get(middle.checked_sub(1)?)? } else { upper };
        Some(Self { median: f64::midpoint(lower, upper), least: *values.first()?, greatest: *values.last()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_lies_between_the_middle_two() {
        let spread = Spread::of([4.0, 1.0, 2.0, 100.0]).unwrap();
        assert_eq!(spread, Spread { median: 3.0, least: 1.0, greatest: 100.0 });
        assert_eq!(Spread::of([5.0]).unwrap().median.total_cmp(&5.0), std::cmp::Ordering::Equal);
        assert_eq!(Spread::of([]), None);
    }

    /// Exercises the scheduler's figures. If this fails, an agent seems to cost nothing.
    #[test]
    fn a_busy_process_has_cpu_time_and_memory() {
        let pid = std::process::id();
        let before = cpu(pid).unwrap();
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        assert!(cpu(pid).unwrap() > before);
        assert!(machine_cpu().unwrap() > Duration::ZERO);
        let (now, highest) = resident_bytes(pid).unwrap();
        assert!(now > 0 && highest >= now);
    }
}
