//! conntrack's modules come and go while an agent runs that may do what its DaemonSet lets it: it chooses anew who tells what
//! comes and goes.
//!
//! In a guest only: whoever runs this on a machine of their own keeps their modules.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use headroom_lab::Netns;

use crate::check::Cannot;
use crate::deployed::Deployed;
use crate::pair::{NOWHERE, Pair};

/// The check, which needs a kernel without anything that uses the modules: the scene must be gone.
pub(crate) const NAME: &str = "conntrack: its modules may come, go and come back";
/// Where the flows go.
const TO: SocketAddr = SocketAddr::new(NOWHERE, 7800);
/// How long the kernel may take to let go of a module.
const PATIENCE: Duration = Duration::from_secs(20);
/// In so long an agent has looked at the list of modules twice.
const LOOKS: Duration = Duration::from_secs(12);
/// What loads modules when something asks for them.
const LOADER: &str = "/proc/sys/kernel/modprobe";

/// Who may probe functions.
const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";

/// Runs it.
pub(crate) fn run(may_unload: bool) -> Result<String> {
    if !may_unload {
        return Err(Cannot("this machine's modules are not ours to unload".to_owned()).into());
    }
    unload()?;
    let pair = Pair::build("modules")?;
    let node = &pair.node;

    let loader = std::fs::read_to_string(LOADER).context("read who loads modules")?;
    // Distributions let only CAP_SYS_ADMIN probe functions: an agent has to say so, and with what is usual elsewhere it counts.
    let default = std::fs::read_to_string(PARANOID).context("read who may probe functions")?;
    if default.trim().parse::<i32>().context("read a level")? > 2 {
        translate(node)?;
        Deployed::start(node)?.says(0, "read, 0 flows, `kernel.perf_event_paranoid` is")?;
        stop_translating(node)?;
        unload()?;
        std::fs::write(PARANOID, "2").context("let CAP_PERFMON probe functions")?;
    }
    let none = without_loader()?;
    let agent = Deployed::start(node)?;
    agent.says(0, "unreadable").context("without conntrack")?;
    none.give_back(&loader)?;

    // It comes: what was before the counters is in the comparison, what comes later is counted.
    translate(node)?;
    send(node, 20_000..20_300)?;
    agent.says(300, "counted, 300 flows")?;
    send(node, 20_300..20_500)?;
    agent.says(500, "counted, 500 flows")?;

    // It goes, and nobody can load it again: nothing is counted, and nothing is made up.
    let none = without_loader()?;
    stop_translating(node)?;
    unload()?;
    agent.says(500, "unreadable").context("when it is gone")?;
    none.give_back(&loader)?;
    translate(node)?;
    send(node, 30_000..30_100)?;
    agent.says(500, "counted, 100 flows")?;

    // It is replaced between two looks, long after the last module came that the agent itself has the kernel load.
    std::thread::sleep(LOOKS);
    agent.unseen(|| {
        stop_translating(node)?;
        unload()?;
        translate(node)?;
        // The same modules are there again: that one is missing would tell, too.
        node.exec("conntrack", &["-L"]).map(drop)
    })?;
    send(node, 40_000..40_050)?;
    agent.says(500, "counted, 50 flows").context("when it was replaced")?;
    send(node, 40_050..40_070)?;
    agent.says(500, "counted, 70 flows").context("after a reload")?;
    Ok("500 flows, then 100, then 70; with the DaemonSet's capabilities".to_owned())
}

/// Nobody loads modules by themselves until this is given back.
struct WithoutLoader;

fn without_loader() -> Result<WithoutLoader> {
    std::fs::write(LOADER, "/bin/false").context("keep the kernel from loading modules")?;
    Ok(WithoutLoader)
}

impl WithoutLoader {
    fn give_back(self, loader: &str) -> Result<()> {
        std::fs::write(LOADER, loader.trim_end()).context("let the kernel load modules")
    }
}

fn translate(node: &Netns) -> Result<()> {
    node.exec("sh", &["-c", "iptables -w -t nat -A POSTROUTING -o out0 -j MASQUERADE"])?;
    node.set_sysctl("net.netfilter.nf_conntrack_udp_timeout", "900")
}

fn stop_translating(node: &Netns) -> Result<()> {
    node.exec("sh", &["-c", "nft flush ruleset"]).map(drop)
}

/// A flow from each of these ports.
fn send(node: &Netns, ports: std::ops::Range<u16>) -> Result<()> {
    node.run(|| {
        for port in ports {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("bind to {port}"))?;
            socket.send_to(b"x", TO).with_context(|| format!("send from {port}"))?;
        }
        Ok(())
    })
}

/// Unloads whatever of netfilter nobody uses, until conntrack is gone.
fn unload() -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read_to_string("/proc/modules").context("read the list of modules")?;
        let modules: Vec<(&str, &str)> = text
            .lines()
            .filter_map(|line| {
                let mut words = line.split_ascii_whitespace();
                Some((words.next()?, words.nth(1)?))
            })
            .collect();
        if !modules.iter().any(|(name, _)| *name == "nf_conntrack") {
            return Ok(());
        }
        ensure!(Instant::now() < until, "conntrack is in use: {text}");
        let of_netfilter = |name: &str| {
            ["nf_", "nft_", "xt_", "x_tables", "ip_tables", "ip6", "ipt", "nfnetlink"]
                .iter()
                .any(|it| name.starts_with(it))
        };
        for (name, _) in modules.iter().filter(|(name, users)| *users == "0" && of_netfilter(name)) {
            // One that is in use after all is tried again.
            let _status = Command::new("rmmod").arg(name).stderr(std::process::Stdio::null()).status();
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
