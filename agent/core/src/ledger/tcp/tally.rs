//! What is told of one pair.

use std::time::Duration;

/// What the sockets' side knows of one (destination, source address) pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpTally {
    /// Connections open now.
    pub open: u64,
    /// Connects under way.
    pub wanting: u64,
    /// Ended by FIN within [`Spans::closed`], as far as it is known.
    pub closed_held: u64,
    /// Of these: ended before the counting began, as socket tables tell (which forget after a minute).
    pub closed_before: u64,
    /// Ended by RST within [`Spans::reset`]. A refused connect never opened: it is none of them.
    pub reset_held: u64,
    /// Connects that the application gave up within [`Spans::half_open`].
    pub given_up_held: u64,
    /// Ended by FIN within [`Spans::lately`].
    pub closed_lately: u64,
    /// Ended by RST within [`Spans::lately`].
    pub reset_lately: u64,
    /// Connects that failed within [`Spans::lately`] (without those for want of a local port).
    pub failed_lately: Failures,
    /// Connects that found no local port within [`Spans::lately`].
    pub no_local_port_lately: u64,
    /// SYNs sent again within [`Spans::lately`].
    pub syn_retransmitted_lately: u64,
    /// Opened since the ledger knows the pair: since the start, or since the pair came back after it was forgotten (without
    /// connections for 150 s, near the bound of the kernel's map for 10 s, and for as long as the ledger remembers ends).
    pub opened_total: u64,
    /// Closed or reset since then.
    pub closed_total: u64,
    /// Failed since then (without those for want of a local port).
    pub failed_total: Failures,
    /// Connects that found no local port since then.
    pub no_local_port_total: u64,
    /// SYNs sent again since then.
    pub syn_retransmitted_total: u64,
}

/// How far back to look for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spans {
    /// For connections that closed in good order.
    pub closed: Duration,
    /// For those that were reset.
    pub reset: Duration,
    /// For connects that were given up: their last SYN was sent shortly before. (One that the kernel gives up sent its last SYN
    /// a minute before.)
    pub half_open: Duration,
    /// For failures.
    pub lately: Duration,
}

impl Spans {
    /// The same for everything.
    pub fn all(span: Duration) -> Self {
        Self { closed: span, reset: span, half_open: span, lately: span }
    }
}

/// Connects that failed, by cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Failures {
    /// Something answered: nobody listens there.
    pub refused: u64,
    /// Nothing answered in time.
    pub timed_out: u64,
    /// No route, prohibited, or another error of the network.
    pub unreachable: u64,
    /// The application ended them before there was an answer.
    pub given_up: u64,
}

impl Failures {
    /// All of them.
    pub fn sum(self) -> u64 {
        self.refused.saturating_add(self.unanswered())
    }

    /// Those that nobody answered.
    pub fn unanswered(self) -> u64 {
        self.timed_out.saturating_add(self.unreachable).saturating_add(self.given_up)
    }

    /// Both together.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        Self {
            refused: self.refused.saturating_add(other.refused),
            timed_out: self.timed_out.saturating_add(other.timed_out),
            unreachable: self.unreachable.saturating_add(other.unreachable),
            given_up: self.given_up.saturating_add(other.given_up),
        }
    }
}

/// In words, the largest first: `16 connects timed out, 3 were refused`; `no connects failed` if there are none.
impl std::fmt::Display for Failures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut causes = [
            (self.timed_out, "timed out"),
            (self.refused, "were refused"),
            (self.unreachable, "found no way"),
            (self.given_up, "were given up"),
        ];
        causes.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let mut told = causes.iter().filter(|(count, _)| *count > 0);
        let Some((count, how)) = told.next() else { return f.write_str("no connects failed") };
        write!(f, "{count} connect{} {how}", if *count == 1 { "" } else { "s" })?;
        told.try_for_each(|(count, how)| write!(f, ", {count} {how}"))
    }
}
