//! How often programs ran and for how long: what the kernel shows of a program's file descriptor.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya::sys::{Stats, enable_stats};
use headroom_core::known::{Known, Why};
use headroom_core::observe::ProgramRuns;

/// While it lives, the kernel counts the runs of all programs and their time. Some 20 ns for each run.
#[derive(Debug)]
pub struct Counting(#[expect(dead_code, reason = "counting ends with the file descriptor")] OwnedFd);

/// Asks the kernel to count (`BPF_ENABLE_STATS`, since 5.8): no setting of the node is changed.
///
/// # Errors
/// Why it does not.
pub fn count_runs() -> Result<Counting, Why> {
    enable_stats(Stats::RunTime).map(Counting).map_err(|error| {
        let why = match error.io_error.raw_os_error() {
            Some(libc::EPERM) => "not permitted; it takes CAP_SYS_ADMIN, or kernel.bpf_stats_enabled = 1".to_owned(),
            Some(libc::EINVAL) => "this kernel only does so with kernel.bpf_stats_enabled = 1".to_owned(),
            _ => error.io_error.to_string(),
        };
        Why::new(format!("runs are not counted: {why}"))
    })
}

/// How a program of this process ran since it was attached.
pub(super) fn of(ebpf: &aya::Ebpf, name: &str) -> Known<ProgramRuns> {
    let read = || {
        let fd = ebpf.program(name).and_then(|program| program.fd().ok()).ok_or("it is not loaded")?;
        let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
        let text = std::fs::read_to_string(&path).map_err(|_error| "`/proc/self/fdinfo` could not be read")?;
        parse(&text).ok_or("`/proc/self/fdinfo` does not show how it ran")
    };
    read().map_or_else(Known::because, Known::Present)
}

/// The lines that `bpf_prog_show_fdinfo` writes (`kernel/bpf/syscall.c`).
fn parse(text: &str) -> Option<ProgramRuns> {
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|number| number.trim().parse().ok())
    };
    Some(ProgramRuns { count: number("run_cnt")?, time_ns: number("run_time_ns")?, missed: number("recursion_misses") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_understood() {
        let old = "pos:\t0\nflags:\t02000002\nprog_type:\t17\nprog_jited:\t1\nrun_time_ns:\t1234\nrun_cnt:\t10\n";
        let runs = ProgramRuns { count: 10, time_ns: 1234, missed: None };
        assert_eq!(parse(old), Some(runs));
        assert_eq!(parse(&format!("{old}recursion_misses:\t3\n")), Some(ProgramRuns { missed: Some(3), ..runs }));
        assert_eq!(parse("pos:\t0\n"), None);
    }
}
