//! Facts of the conntrack table as a whole: its size, its statistics, its time-outs.

use serde::{Deserialize, Serialize};

use crate::known::Known;

/// How full the conntrack table of the agent's network namespace is. Counters are since boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackUse {
    /// Entries now (`nf_conntrack_count`).
    pub entries: Known<u64>,
    /// Entries at most (`nf_conntrack_max`).
    pub max: Known<u64>,
    /// Hash buckets (`nf_conntrack_buckets`, the module parameter `hashsize`).
    #[serde(default = "unread")]
    pub buckets: Known<u64>,
    /// Statistics summed over CPUs.
    pub stats: Known<ConntrackStats>,
    /// The same of each CPU on which something was refused, dropped or evicted; the first 64 of them.
    #[serde(default)]
    pub cpus: Vec<ConntrackCpu>,
}

/// What an older capture says of what it did not read.
fn unread<T>() -> Known<T> {
    Known::because("not in this capture")
}

/// Statistics of one CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackCpu {
    /// Its number.
    pub cpu: u32,
    /// Its counters.
    #[serde(flatten)]
    pub stats: ConntrackStats,
}

/// Counters of one CPU, or of all (`IPCTNL_MSG_CT_GET_STATS_CPU`, or `/proc/net/stat/nf_conntrack`). Each is a 32-bit counter
/// in the kernel and wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConntrackStats {
    /// Entries that could not be inserted (no free tuple, chain too long).
    pub insert_failed: u64,
    /// Packets dropped (table full, or insert failed).
    pub drop: u64,
    /// Entries evicted to make room.
    pub early_drop: u64,
    /// Packets that fit no entry and could not begin one; absent where the kernel does not say.
    #[serde(default)]
    pub invalid: Option<u64>,
    /// Lookups begun again since the table changed meanwhile; absent likewise.
    #[serde(default)]
    pub search_restart: Option<u64>,
    /// Races of two packets of one flow that the kernel settled without a loss (since 4.20); absent likewise.
    #[serde(default)]
    pub clash_resolve: Option<u64>,
    /// Entries refused because their hash chain was too long (since 5.15); each is in `insert_failed` too. Absent likewise.
    #[serde(default)]
    pub chain_toolong: Option<u64>,
}

impl ConntrackStats {
    /// Both together. What one of them does not know, neither do both.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        let both = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
        Self {
            insert_failed: self.insert_failed.saturating_add(other.insert_failed),
            drop: self.drop.saturating_add(other.drop),
            early_drop: self.early_drop.saturating_add(other.early_drop),
            invalid: both(self.invalid, other.invalid),
            search_restart: both(self.search_restart, other.search_restart),
            clash_resolve: both(self.clash_resolve, other.clash_resolve),
            chain_toolong: both(self.chain_toolong, other.chain_toolong),
        }
    }

    /// Nothing yet, for sums: what is optional is known to be zero.
    pub const ZERO: Self = Self {
        insert_failed: 0,
        drop: 0,
        early_drop: 0,
        invalid: Some(0),
        search_restart: Some(0),
        clash_resolve: Some(0),
        chain_toolong: Some(0),
    };

    /// Packets dropped because the table was full, at least: every failed insert is at most one of the drops, and what remains
    /// found no memory or no room (`__nf_conntrack_alloc`, `net/netfilter/nf_conntrack_core.c`).
    pub fn table_full(&self) -> u64 {
        self.drop.saturating_sub(self.insert_failed)
    }

    /// What happened since an earlier reading; a counter that wrapped counts as standing still.
    #[must_use]
    pub fn since(&self, then: &Self) -> Self {
        let grown = |now: Option<u64>, then: Option<u64>| Some(now?.saturating_sub(then?));
        Self {
            insert_failed: self.insert_failed.saturating_sub(then.insert_failed),
            drop: self.drop.saturating_sub(then.drop),
            early_drop: self.early_drop.saturating_sub(then.early_drop),
            invalid: grown(self.invalid, then.invalid),
            search_restart: grown(self.search_restart, then.search_restart),
            clash_resolve: grown(self.clash_resolve, then.clash_resolve),
            chain_toolong: grown(self.chain_toolong, then.chain_toolong),
        }
    }
}

/// conntrack time-outs in force (`/proc/sys/net/netfilter/nf_conntrack_*_timeout*`), in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConntrackTimeouts {
    /// `nf_conntrack_tcp_timeout_established`.
    pub tcp_established: u32,
    /// `nf_conntrack_tcp_timeout_unacknowledged`: an established connection with data under way.
    pub tcp_unacknowledged: u32,
    /// `nf_conntrack_tcp_timeout_max_retrans`: an established connection that retransmits.
    pub tcp_max_retrans: u32,
    /// `nf_conntrack_tcp_timeout_syn_sent`.
    pub tcp_syn_sent: u32,
    /// `nf_conntrack_tcp_timeout_syn_recv`.
    pub tcp_syn_recv: u32,
    /// `nf_conntrack_tcp_timeout_fin_wait`.
    pub tcp_fin_wait: u32,
    /// `nf_conntrack_tcp_timeout_close_wait`.
    pub tcp_close_wait: u32,
    /// `nf_conntrack_tcp_timeout_last_ack`.
    pub tcp_last_ack: u32,
    /// `nf_conntrack_tcp_timeout_time_wait`.
    pub tcp_time_wait: u32,
    /// `nf_conntrack_tcp_timeout_close`.
    pub tcp_close: u32,
    /// `nf_conntrack_udp_timeout`.
    pub udp: u32,
    /// `nf_conntrack_udp_timeout_stream`.
    pub udp_stream: u32,
    /// `nf_conntrack_icmp_timeout`.
    pub icmp: u32,
}

impl Default for ConntrackTimeouts {
    /// The kernel's defaults since 4.18.
    fn default() -> Self {
        Self {
            tcp_established: 432_000,
            tcp_unacknowledged: 300,
            tcp_max_retrans: 300,
            tcp_syn_sent: 120,
            tcp_syn_recv: 60,
            tcp_fin_wait: 120,
            tcp_close_wait: 60,
            tcp_last_ack: 30,
            tcp_time_wait: 120,
            tcp_close: 10,
            udp: 30,
            udp_stream: 120,
            icmp: 30,
        }
    }
}
