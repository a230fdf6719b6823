//! conntrack's modules come and go while the source runs: it chooses anew who tells what comes and goes.
//!
//! In a guest only: whoever runs this on a machine of their own keeps their modules.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use headroom_core::flow::{Destination, Endpoint, Protocol};
use headroom_lab::netns::veth;
use headroom_lab::{Lab, Netns};

use crate::check::Cannot;
use crate::conntrack::Watch;

/// The check, which needs a kernel without anything that uses the modules: the scene must be gone.
pub(crate) const NAME: &str = "conntrack: its modules may come, go and come back";
/// Where packets vanish.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), 7800);
/// How long the kernel may take to let go of a module.
const PATIENCE: Duration = Duration::from_secs(20);
/// What loads modules when something asks for them.
const LOADER: &str = "/proc/sys/kernel/modprobe";

/// Runs it.
pub(crate) fn run(may_unload: bool) -> Result<String> {
    if !may_unload {
        return Err(Cannot("this machine's modules are not ours to unload".to_owned()).into());
    }
    unload()?;
    let lab = Lab::new()?;
    let (node, outside) = (Netns::add(&lab, "modules-node")?, Netns::add(&lab, "modules-out")?);
    veth((&node, "out0"), (&outside, "eth0"))?;
    node.add_address("out0", "192.0.2.1/24")?;
    outside.add_address("eth0", "192.0.2.2/24")?;
    node.add_route(&["198.51.100.0/24", "via", "192.0.2.2"])?;
    let to = [Destination { protocol: Protocol::UDP, endpoint: Endpoint::new(NOWHERE.ip(), NOWHERE.port()) }];

    let loader = std::fs::read_to_string(LOADER).context("read who loads modules")?;
    let none = without_loader()?;
    let mut watch = Watch::start_in(&node)?;
    ensure!(!watch.counts(), "entries are counted without conntrack");
    ensure!(watch.unreadable().is_some(), "something can be read without conntrack");
    none.give_back(&loader)?;

    // It comes: what was before the counters is in the comparison, what comes later is counted.
    translate(&node)?;
    send(&node, 20_000..20_300)?;
    watch.expect(300, |watch| watch.live(&to))?;
    watch.until("counters", Watch::counts)?;
    send(&node, 20_300..20_500)?;
    watch.expect(500, |watch| watch.live(&to))?;

    // It goes, and nobody can load it again: nothing is counted, and nothing is made up.
    let none = without_loader()?;
    stop_translating(&node)?;
    unload()?;
    watch.until("word that it is gone", |watch| !watch.counts() && watch.unreadable().is_some())?;
    none.give_back(&loader)?;
    translate(&node)?;
    send(&node, 30_000..30_100)?;
    watch.until("counters", Watch::counts)?;
    watch.expect(100, |watch| watch.live(&to))?;

    // It is replaced between two looks.
    stop_translating(&node)?;
    unload()?;
    translate(&node)?;
    send(&node, 40_000..40_050)?;
    watch.expect(50, |watch| watch.live(&to))?;
    send(&node, 40_050..40_070)?;
    watch.expect(70, |watch| watch.live(&to))?;
    ensure!(watch.counts(), "entries are not counted after a reload");
    Ok("500 flows, then 100, then 70".to_owned())
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
            socket.send_to(b"x", NOWHERE).with_context(|| format!("send from {port}"))?;
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
