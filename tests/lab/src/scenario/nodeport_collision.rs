//! Replies to a NodePort as source port that never arrive, as with Cilium and GKE's Dataplane V2.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{describe, print, step};
use crate::cilium::CiliumMaps;
use crate::conntrack::{self, Flow, Protocol};
use crate::lab::Lab;
use crate::nat::{NatLab, NatOptions, OUTSIDE_ADDRESSES};
use crate::netns::Netns;
use crate::pods::{Node, NodeOptions, Pod};
use crate::traffic::{Connect, Generator, Serve, Server, Statistics, parse_duration};

/// NodePorts that are allocated: as many as a large cluster has.
const ALLOCATED: RangeInclusive<u16> = 30_000..=30_599;
/// Which of the rules in the chain IP-MASQ translates; those before it are exceptions.
const RULE: &str = "5";

/// Masquerading picks allocated NodePorts as source ports, and their replies are taken away
#[derive(Debug, Clone, clap::Args)]
pub struct NodeportCollision {
    /// The headroom binary to run on the node
    #[arg(long, env = "HEADROOM_BIN", default_value = "headroom")]
    pub headroom: PathBuf,
    /// How many connections the pod opens
    #[arg(long, default_value_t = 2400)]
    pub connections: u64,
    /// How long headroom watches
    #[arg(long, value_parser = parse_duration, default_value = "8s")]
    pub watch: Duration,
}

/// Everything that runs. Dropped in this order.
struct Scene {
    _servers: Server,
    /// The map in which headroom reads what is allocated.
    maps: CiliumMaps,
    pod: Pod,
    node: Node,
    nat: NatLab,
}

impl NodeportCollision {
    /// Builds the lab, opens connections while headroom watches, then mends the rule in two ways.
    pub fn run(&self) -> Result<ExitCode> {
        let lab = Lab::new()?;
        let scene = build(&lab)?;
        let who = describe(&scene.pod);
        step(&format!(
            "a node with {} NodePorts ({}-{}) in a map laid out as Cilium's; a program at tc ingress takes what comes for them, \
             before conntrack, as Cilium's does; MASQUERADE --random-fully, as ip-masq-agent 2.10 writes it",
            ALLOCATED.count(),
            ALLOCATED.start(),
            ALLOCATED.end()
        ));
        step(&format!("{who} opens {} connections to 4 addresses outside", self.connections));
        let broken = self.look(&scene, true)?;
        step(&format!(
            "the table itself: {} of {} connections have an allocated NodePort as source port, {} of them no answer",
            broken.colliding, broken.entries, broken.unanswered
        ));
        let mut mended = true;
        for (what, rule) in [
            ("without --random-fully (ip-masq-agent --random-fully=false)", &["-j", "MASQUERADE"][..]),
            (
                "with --to-ports 32768-65535",
                &["-p", "tcp", "-j", "MASQUERADE", "--to-ports", "32768-65535", "--random-fully"],
            ),
        ] {
            scene.nat.node.exec("iptables", &[&["-w", "-t", "nat", "-R", "IP-MASQ", RULE], rule].concat())?;
            scene.nat.node.exec("conntrack", &["-F"])?;
            step(&format!("the fix: MASQUERADE {what}; the same again"));
            let after = self.look(&scene, false)?;
            step(&format!(
                "{} of {} connections have an allocated NodePort as source port, {} no answer",
                after.colliding, after.entries, after.unanswered
            ));
            mended &= after.colliding == 0 && !after.said.contains("nodeport-collision");
        }
        let named = broken.said.contains("CRITICAL nodeport-collision");
        Ok(if named && mended && broken.unanswered > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Opens connections, lets headroom look, and looks itself.
    fn look(&self, scene: &Scene, show: bool) -> Result<Seen> {
        let to = OUTSIDE_ADDRESSES.map(|address| SocketAddr::from((address, 443)));
        let hold = self.watch + Duration::from_secs(20);
        let connect = Connect {
            to: to.to_vec(),
            rate: 800.0,
            timeout: hold,
            progress: Some(Duration::from_millis(200)),
            ..Connect::tcp(to[0], self.connections, hold)
        };
        let headroom = scene.node.netns().spawn(self.command(scene))?;
        let generator = Generator::start(&scene.pod.netns, &connect)?;
        let said = headroom.wait(self.watch + Duration::from_secs(30))?;
        let statistics = tried(&generator, self.connections)?;
        let flows = conntrack::flows(&scene.nat.node, Protocol::Tcp)?;
        if show {
            print(&format!("{}{}", said.stderr, said.stdout));
            step(&format!("headroom ended with {}", said.code()));
            step(&format!("the pod itself: {} connects, {} answered", statistics.attempted, statistics.opened));
        } else {
            let findings = said.stdout.lines().filter(|line| line.contains("nodeport"));
            findings.for_each(|line| print(&format!("{line}\n")));
            step(&format!("headroom ended with {}", said.code()));
        }
        generator.stop()?;
        Ok(Seen::of(&flows, said.stdout))
    }

    fn command(&self, scene: &Scene) -> std::process::Command {
        let [socket, cni, conf] = [scene.node.socket(), scene.node.cni_dir(), scene.node.cni_conf_dir()]
            .map(|path| path.to_string_lossy().into_owned());
        let watch = format!("{}s", self.watch.as_secs_f64());
        let mut args = vec!["check", "--watch", &watch, "--cri-socket", &socket, "--cni-dir", &cni];
        args.extend(["--cni-conf-dir", &conf]);
        scene.maps.command(scene.node.netns(), &self.headroom.to_string_lossy(), &args)
    }
}

/// What became of the connections, as the node's own table says.
struct Seen {
    entries: usize,
    colliding: usize,
    unanswered: usize,
    said: String,
}

impl Seen {
    fn of(flows: &[Flow], said: String) -> Self {
        let all = || flows.iter().filter(|flow| flow.destination.port() == 443);
        let colliding = || all().filter(|flow| ALLOCATED.contains(&flow.translated.port()));
        let unanswered = colliding().filter(|flow| flow.state.as_deref() == Some("SYN_SENT")).count();
        Self { entries: all().count(), colliding: colliding().count(), unanswered, said }
    }
}

/// Waits until every connection was begun.
fn tried(generator: &Generator, connections: u64) -> Result<Statistics> {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        // No line yet is no progress yet.
        let done = generator.progress().unwrap_or_default();
        if done.attempted >= connections || std::time::Instant::now() > deadline {
            return Ok(done);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn build(lab: &Lab) -> Result<Scene> {
    let options = NatOptions { pods: 0, ports: 1024..=65_535, node_random_fully: true, ..NatOptions::default() };
    let nat = NatLab::build(lab, &options)?;
    let servers = Server::start(&nat.outside, &Serve::tcp(OUTSIDE_ADDRESSES.map(|it: Ipv4Addr| (it, 443).into())))?;
    steal_replies(&nat.node, "eth0", &ALLOCATED)?;
    let maps = CiliumMaps::new(lab)?;
    maps.allocate(ALLOCATED)?;
    let node = Node::start(&nat.node, NodeOptions::default())?;
    let pod = node.run_pod("shop", "checkout-7d9f6c5b8-x2x9k")?;
    Ok(Scene { _servers: servers, maps, pod, node, nat })
}

/// Drops TCP packets to these ports as they come in, before netfilter sees them: a BPF program at tc ingress. Cilium's sends them
/// to a backend of the Service, which does not know the connection; for whoever dialled it is the same.
fn steal_replies(node: &Netns, link: &str, ports: &RangeInclusive<u16>) -> Result<()> {
    // Classic BPF, from the start of the Ethernet frame: protocol (byte 23) is TCP, destination port (byte 36) is one of them.
    const DROP: &str = "6 0 0 2";
    const NEXT: &str = "6 0 0 4294967295";
    let (first, last) = (ports.start(), ports.end());
    let program = format!("7,48 0 0 23,21 0 4 6,40 0 0 36,53 0 2 {first},37 1 0 {last},{DROP},{NEXT}");
    node.exec("tc", &["qdisc", "add", "dev", link, "clsact"])?;
    let filter =
        ["filter", "add", "dev", link, "ingress", "protocol", "ip", "prio", "1", "bpf", "da", "bytecode", &program];
    node.exec("tc", &filter).map(drop).context("attach a BPF program at tc ingress")
}
