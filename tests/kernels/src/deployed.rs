//! An agent with the capabilities of its DaemonSet and no others, which says what it sees.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use headroom_core::known::Known;
use headroom_core::ledger::{Ledger, LedgerLimits};
use headroom_core::observe::SourceId;
use headroom_host::root::HostRoot;
use headroom_host::source::Source as _;
use headroom_host::source::conntrack::ConntrackSource;
use headroom_lab::Netns;
use headroom_lab::process::Process;

use crate::conntrack::{PATIENCE, counts, options};

/// Where its capabilities are listed.
const MANIFEST: &str = include_str!("../../../deploy/base/daemonset.yaml");

/// Before 5.11 maps are locked memory, of which container runtimes allow as much as there is.
const RUN: &str = r#"ulimit -l unlimited && exec setpriv --bounding-set "$0" --inh-caps -all --no-new-privs "$@""#;

/// How the reason begins that a distribution gives for not letting functions be probed.
const PARANOID: &str = "`kernel.perf_event_paranoid` is";

/// Said where the addresses of modules are hidden from it.
const HIDDEN: &str = "addresses of modules: hidden";

/// A running one. Killed when dropped.
pub(crate) struct Deployed<'a> {
    node: &'a Netns,
    process: Process,
}

impl<'a> Deployed<'a> {
    /// Starts it in a namespace.
    pub(crate) fn start(node: &'a Netns) -> Result<Self> {
        let bounding = format!("-all,+{}", capabilities().join(",+"));
        let program = std::env::current_exe().context("find this program")?;
        let program = program.to_str().context("the path of this program is not UTF-8")?;
        let process = node.spawn(node.command("sh", &["-c", RUN, &bounding, program, "--follow"]))?;
        let agent = Self { node, process };
        // Otherwise it would see by them that a module was replaced, which it cannot on a node.
        agent.process.wait_for_line(HIDDEN, PATIENCE)?;
        Ok(agent)
    }

    /// Waits until it says how it looks and what it sees, after it has seen so many flows at most.
    pub(crate) fn says(&self, most: u64, what: &str) -> Result<()> {
        self.process.wait_for_line(&said(most, what), PATIENCE).map(drop)
    }

    /// Keeps it from looking while something happens.
    pub(crate) fn unseen(&self, happens: impl FnOnce() -> Result<()>) -> Result<()> {
        let signal = |name: &str| self.node.exec("sh", &["-c", &format!("kill -{name} {}", self.process.pid())]);
        signal("STOP")?;
        happens()?;
        signal("CONT").map(drop)
    }
}

fn said(most: u64, what: &str) -> String {
    format!("{most} at most: {what}")
}

fn wrong(ledger: &Ledger) -> bool {
    ledger.conntrack().drift().is_some_and(|drift| drift.total > 0)
}

/// What the DaemonSet's container is given.
fn capabilities() -> Vec<String> {
    let lines = MANIFEST.lines().map(str::trim).skip_while(|line| *line != "add:").skip(1);
    let lines = lines.take_while(|line| line.starts_with(['-', '#']));
    lines.filter_map(|line| line.strip_prefix("- ")).map(str::to_lowercase).collect()
}

/// Such an agent, in the network namespace that it was started in, until it is killed: `--follow`. It says whenever something has
/// changed.
pub(crate) fn follow() -> Result<()> {
    let mut out = std::io::stdout();
    let mut say = |what: &str| writeln!(out, "{what}").and_then(|()| out.flush()).context("say how it goes");
    let modules = std::fs::read_to_string("/proc/modules").context("read the list of modules")?;
    let address = |line: &str| line.split_ascii_whitespace().nth(5).map(str::to_owned);
    let hidden = modules.lines().filter_map(address).all(|address| address.trim_start_matches(['0', 'x']).is_empty());
    ensure!(hidden, "addresses of modules are shown: {modules}");
    say(HIDDEN)?;
    let mut source = ConntrackSource::start(&HostRoot::live(), options());
    let mut ledger = Ledger::new(LedgerLimits::default());
    let (mut most, mut last) = (0, String::new());
    loop {
        source.observe(&mut |observation| ledger.apply(observation));
        let coverage = ledger.coverage().get(&SourceId::Conntrack);
        let live = ledger.conntrack().live();
        most = live.max(most);
        let how = match coverage {
            // Comparisons with the table put right what probes that died do not see.
            Some(Known::Present(_)) if counts(&source) && wrong(&ledger) => "miscounted",
            Some(Known::Present(_)) if counts(&source) => "counted",
            Some(Known::Present(_)) => "read",
            _ => "unreadable",
        };
        let paranoid = source.programs().iter().find_map(|program| {
            let why = program.attached.as_ref().err()?.to_string();
            why.split_once(PARANOID).map(|(_, level)| format!(", {PARANOID}{level}"))
        });
        let now = said(most, &format!("{how}, {live} flows{}", paranoid.unwrap_or_default()));
        if now != last {
            say(&now)?;
            last = now;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the manifest. If this fails, the agent that is checked may do more than the one that is deployed, or less.
    #[test]
    fn capabilities_are_those_of_the_manifest() {
        assert_eq!(capabilities(), ["bpf", "perfmon", "net_admin", "sys_ptrace", "dac_read_search"]);
    }
}
