//! The table of programs: what each attaches to, since when that exists, and what is lost without it.

/// What a program attaches to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookKind {
    /// A raw tracepoint: there by contract.
    RawTracepoint,
    /// The entry of a kernel function (kprobe): there unless the compiler did away with it.
    Function,
}

/// One program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramRow {
    /// Name in the object and in `bpftool prog`.
    pub name: &'static str,
    /// What kind of hook it has.
    pub kind: HookKind,
    /// The tracepoint or function.
    pub hook: &'static str,
    /// How many arguments of it the program relies on.
    pub arguments: usize,
    /// The kernel that brought it.
    pub since: &'static str,
    /// What the agent cannot tell without it.
    pub lost_without: &'static str,
}

/// Counts connects and closes.
pub const TCP_STATE: ProgramRow = ProgramRow {
    name: "tcp_state",
    kind: HookKind::RawTracepoint,
    hook: "inet_sock_set_state",
    arguments: 3,
    since: "4.16",
    lost_without: "TCP connects and closes per destination",
};

/// Counts SYNs that went out again.
pub const TCP_RETRANSMIT: ProgramRow = ProgramRow {
    name: "tcp_retransmit",
    kind: HookKind::RawTracepoint,
    hook: "tcp_retransmit_skb",
    arguments: 2,
    since: "4.15",
    lost_without: "SYNs that got no answer",
};

/// Counts entries that go into the conntrack table.
pub const CT_INSERT: ProgramRow = ProgramRow {
    name: "ct_insert",
    kind: HookKind::Function,
    hook: "__nf_conntrack_hash_insert",
    arguments: 1,
    since: "4.6",
    lost_without: "conntrack entries as they come",
};

/// Counts entries that are about to go in, where the function of [`CT_INSERT`] was inlined.
pub const CT_CONFIRM: ProgramRow = ProgramRow {
    name: "ct_confirm",
    kind: HookKind::Function,
    hook: "__nf_conntrack_confirm",
    arguments: 1,
    since: "2.6",
    lost_without: "conntrack entries as they come",
};

/// Counts entries that leave the table.
pub const CT_DELETE: ProgramRow = ProgramRow {
    name: "ct_delete",
    kind: HookKind::Function,
    hook: "nf_ct_delete",
    arguments: 1,
    since: "3.11",
    lost_without: "conntrack entries as they go",
};

/// Counts packets of new connections that were dropped for want of a port.
pub const CT_NO_PORT: ProgramRow = ProgramRow {
    name: "ct_no_port",
    kind: HookKind::RawTracepoint,
    hook: "kfree_skb",
    arguments: 3,
    since: "5.18",
    lost_without: "connections that this node itself found no port for",
};

/// Those of the subject `tcp`.
pub const TCP: [ProgramRow; 2] = [TCP_STATE, TCP_RETRANSMIT];
/// Those of the subject `conntrack`; [`CT_CONFIRM`] only stands in.
pub const CONNTRACK: [ProgramRow; 3] = [CT_INSERT, CT_DELETE, CT_NO_PORT];
