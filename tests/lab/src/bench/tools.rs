//! What is measured side by side.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::meter;
use super::network::Network;
use crate::headroom::Daemon;
use crate::process::Process;

/// Where the agent answers.
const AGENT_PORT: u16 = 9497;
/// How long a tool may take until it looks.
const START: Duration = Duration::from_secs(20);

/// How a peer is run. It may need tracefs, which is mounted for it alone where the machine has not done so. What it prints
/// is its own affair, but reading it would be ours.
const PEER: &str = r#"
[ -d /sys/kernel/tracing/events ] || mount -t tracefs tracefs /sys/kernel/tracing
exec "$@" >/dev/null"#;

/// One row of the comparison; in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tool {
    /// Nobody looks.
    Nothing,
    Headroom,
    /// The cheapest that counts the same events: one line of bpftrace.
    Bpftrace,
    Tcplife,
    Tcpstates,
    ConntrackEvents,
}

impl Tool {
    pub(super) const ALL: [Self; 6] =
        [Self::Nothing, Self::Headroom, Self::Bpftrace, Self::Tcplife, Self::Tcpstates, Self::ConntrackEvents];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Headroom => "headroom agent",
            Self::Bpftrace => "bpftrace, a count in one line",
            Self::Tcplife => "tcplife (libbpf-tools)",
            Self::Tcpstates => "tcpstates (libbpf-tools)",
            Self::ConntrackEvents => "conntrack -E",
        }
    }

    /// Whether the comparison makes sense without it.
    pub(super) fn is_peer(self) -> bool {
        !matches!(self, Self::Nothing | Self::Headroom)
    }

    /// The command line of a peer.
    fn command(self) -> &'static [&'static str] {
        match self {
            Self::Nothing | Self::Headroom => &[],
            Self::Bpftrace => {
                &["bpftrace", "-e", "tracepoint:sock:inet_sock_set_state { @[args->newstate, args->dport] = count(); }"]
            }
            Self::Tcplife => &["tcplife"],
            Self::Tcpstates => &["tcpstates"],
            Self::ConntrackEvents => &["conntrack", "-E"],
        }
    }

    /// Why it cannot be measured here; `None` if it can.
    pub(super) fn missing(self) -> Option<String> {
        let program = self.command().first()?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        (!folders.any(|folder| folder.join(program).is_file())).then(|| format!("`{program}` is not installed here"))
    }

    /// Starts it on the node, and waits until it looks. `None` for nothing.
    pub(super) fn start(self, network: &Network, headroom: &Path) -> Result<Option<Running>> {
        match self {
            Self::Nothing => Ok(None),
            Self::Headroom => Running::headroom(network, headroom).map(Some),
            Self::Bpftrace | Self::Tcplife | Self::Tcpstates | Self::ConntrackEvents => {
                let words = [&["--mount", "--propagation", "private", "sh", "-c", PEER, "sh"], self.command()].concat();
                let process = network.node.spawn(network.node.command("unshare", &words))?;
                let mut running = Running::Peer(process);
                running.wait_until_it_looks(self != Self::ConntrackEvents)?;
                Ok(Some(running))
            }
        }
    }
}

/// A tool at work. Killed when dropped.
pub(super) enum Running {
    Headroom(Daemon),
    Peer(Process),
}

impl Running {
    /// The agent as its DaemonSet runs it: in the node's network, with a NAT to judge, at its own pace.
    pub(super) fn headroom(network: &Network, headroom: &Path) -> Result<Self> {
        let nat =
            ["--nat-profile", "gcp", "--nat-mode", "static", "--nat-min-ports", "1024", "--nat-alias-ranges", "true"];
        Ok(Self::Headroom(Daemon::start_binary(&network.node, headroom, AGENT_PORT, &nat)?))
    }

    fn process(&self) -> &Process {
        match self {
            Self::Headroom(daemon) => daemon.process(),
            Self::Peer(process) => process,
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// A path of the agent; the length of its answer.
    pub(super) fn get(&self, path: &str) -> Result<usize> {
        self.body(path).map(|body| body.len())
    }

    /// What the agent answers.
    pub(super) fn body(&self, path: &str) -> Result<String> {
        let Self::Headroom(daemon) = self else { bail!("only the agent can be asked for `{path}`") };
        let (status, body) = daemon.get(path)?;
        if status != 200 {
            bail!("`{path}` answers {status}: {body}");
        }
        Ok(body)
    }

    fn wait_until_it_looks(&mut self, with_bpf: bool) -> Result<()> {
        let deadline = Instant::now() + START;
        while with_bpf && meter::bpf(self.pid())?.programs == 0 {
            let Self::Peer(process) = self else { return Ok(()) };
            if !process.is_running()? || Instant::now() > deadline {
                bail!("it did not start: {}", process.stderr().trim());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // Attached comes shortly after loaded.
        std::thread::sleep(Duration::from_secs(1));
        let Self::Peer(process) = self else { return Ok(()) };
        if !process.is_running()? {
            bail!("it ended at once: {}", process.stderr().trim());
        }
        Ok(())
    }

    /// Ends it; how it ends is not what is measured.
    pub(super) fn stop(self) -> Result<()> {
        match self {
            Self::Headroom(daemon) => daemon.stop().map(drop),
            Self::Peer(process) => process.terminate(Duration::from_secs(20)).map(drop).context("stop a peer"),
        }
    }
}
