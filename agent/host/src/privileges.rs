//! Which capabilities this process holds, and what each is for.

use serde::Serialize;

/// A capability that some source wants.
#[derive(Debug, Clone, Serialize)]
pub struct Capability {
    /// Its name.
    pub name: &'static str,
    /// What it is for, and what is lost without it.
    pub what_for: &'static str,
    /// Whether this process holds it; absent if that could not be read.
    pub held: Option<bool>,
}

/// (bit in `CapEff`, name, what for); bits from `linux/capability.h` (uapi, stable).
const WANTED: [(u8, &str, &str); 6] = [
    (39, "CAP_BPF", "load the eBPF programs that count connects, closes and conntrack entries"),
    (38, "CAP_PERFMON", "attach them to the kernel's tracepoints and functions"),
    (12, "CAP_NET_ADMIN", "read the conntrack table and its events, and the rules that translate addresses"),
    (19, "CAP_SYS_PTRACE", "look at the network namespaces of other processes"),
    (2, "CAP_DAC_READ_SEARCH", "read reservations and /proc of other users where modes forbid it"),
    (
        21,
        "CAP_SYS_ADMIN",
        "optional: enter pods' namespaces to read their port settings; on kernels that lack the first two it stands in for them",
    ),
];

/// Every capability that some source wants, and whether this process holds it.
pub fn wanted() -> Vec<Capability> {
    let status = procfs::process::Process::myself().and_then(|process| process.status());
    let effective = status.ok().map(|status| status.capeff);
    WANTED
        .iter()
        .map(|(bit, name, what_for)| Capability { name, what_for, held: effective.map(|set| set >> bit & 1 == 1) })
        .collect()
}
