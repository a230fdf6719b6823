//! The table of programs: what each attaches to, since when that exists, and what is lost without it.

/// One program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramRow {
    /// Name in the object and in `bpftool prog`.
    pub name: &'static str,
    /// The raw tracepoint.
    pub hook: &'static str,
    /// How many arguments of the tracepoint it relies on.
    pub arguments: usize,
    /// The kernel that brought the tracepoint.
    pub since: &'static str,
    /// What the agent cannot tell without it.
    pub lost_without: &'static str,
}

/// Counts connects and closes.
pub const TCP_STATE: ProgramRow = ProgramRow {
    name: "tcp_state",
    hook: "inet_sock_set_state",
    arguments: 3,
    since: "4.16",
    lost_without: "TCP connects and closes per destination",
};

/// Counts SYNs that went out again.
pub const TCP_RETRANSMIT: ProgramRow = ProgramRow {
    name: "tcp_retransmit",
    hook: "tcp_retransmit_skb",
    arguments: 2,
    since: "4.15",
    lost_without: "SYNs that got no answer",
};

/// All of them.
pub const PROGRAMS: [ProgramRow; 2] = [TCP_STATE, TCP_RETRANSMIT];
