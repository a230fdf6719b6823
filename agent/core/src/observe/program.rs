//! The eBPF programs, as the kernel tells of them.

use serde::{Deserialize, Serialize};

use crate::known::Known;

/// An eBPF program, and what the kernel says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its name, in the object and in `bpftool prog`.
    pub name: String,
    /// The tracepoint or function.
    pub hook: String,
    /// What cannot be told without it.
    pub lost_without: String,
    /// How it ran since it was attached; unknown if it is not attached, because …
    pub runs: Known<ProgramRuns>,
}

/// How a program ran (`bpf_prog_info`, as `/proc/self/fdinfo` shows it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProgramRuns {
    /// Runs while the kernel counted them: with `kernel.bpf_stats_enabled` or `BPF_ENABLE_STATS`, else it stands still.
    pub count: u64,
    /// Nanoseconds they took, without the way to the program.
    pub time_ns: u64,
    /// Events it did not see because it, or another, was running already on that CPU; absent where the kernel does not tell: before
    /// Linux 5.12, and of probes on functions before 6.7.
    pub missed: Option<u64>,
}
