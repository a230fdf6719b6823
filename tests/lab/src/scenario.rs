//! Scenarios: a lab in which one thing goes wrong, with headroom looking on and the truth beside it.

mod ip_leak;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::conntrack::{Held, Protocol};
use crate::lab::Lab;
use crate::nat::{NatLab, NatOptions};
use crate::pods::{Node, NodeOptions, Pod};
use crate::process::Process;
use crate::traffic::{Connect, Generator, Serve, Server, Statistics, parse_duration};

pub use ip_leak::{FULL as NODE_FULL, FullNode, IpLeak};

/// What the culprit wants and the gateway cannot give.
const FULL: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 7), 443);
/// What the other pod uses in peace.
const CALM: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 9), 443);

/// A pod uses up the NAT's 64 ports towards one destination
#[derive(Debug, Clone, clap::Args)]
pub struct NatExhaustion {
    /// The headroom binary to run on the node
    #[arg(long, env = "HEADROOM_BIN", default_value = "headroom")]
    pub headroom: PathBuf,
    /// How many connections the culprit wants
    #[arg(long, default_value_t = 80)]
    pub connections: u64,
    /// How long headroom watches
    #[arg(long, value_parser = parse_duration, default_value = "5s")]
    pub watch: Duration,
    /// Instead of what headroom is called with; `{socket}`, `{cni}` and `{conf}` stand for the node's paths
    #[arg(last = true)]
    pub args: Vec<String>,
}

/// The node of the scenario with everything that runs on it and beyond it. Dropped in this order.
struct Scene {
    servers: Server,
    culprit: Pod,
    bystander: Pod,
    node: Node,
    nat: NatLab,
}

impl NatExhaustion {
    /// Builds the lab, drives the gateway dry while headroom watches, prints what both say.
    pub fn run(&self) -> Result<ExitCode> {
        let lab = Lab::new()?;
        let scene = build(&lab)?;
        step(&format!(
            "a node at 10.0.0.2 behind a gateway with {} ports; pods {} and {}",
            scene.nat.gateway_ports(),
            describe(&scene.culprit),
            describe(&scene.bystander),
        ));

        let headroom = self.start_headroom(&scene);
        // It should see the connections being opened, not only find them.
        std::thread::sleep(Duration::from_secs(1));
        step(&format!("{} opens {} connections to {}:{}", describe(&scene.culprit), self.connections, FULL.0, FULL.1));
        let hold = self.watch + Duration::from_secs(30);
        let mut connect = Connect::tcp(FULL.into(), self.connections, hold);
        connect.rate = 80.0;
        connect.timeout = Duration::from_secs(2);
        connect.progress = Some(Duration::from_millis(200));
        let culprit = Generator::start(&scene.culprit.netns, &connect)?;
        let bystander = Generator::start(&scene.bystander.netns, &Connect::tcp(CALM.into(), 5, hold))?;

        let said = headroom.and_then(|process| process.wait(self.watch + Duration::from_secs(30)));
        let held = self.wait_until_tried(&scene, &culprit)?;
        match &said {
            Ok(output) => {
                print(&format!("{}{}", output.stderr, output.stdout));
                step(&format!("headroom ended with {}", output.code()));
            }
            Err(error) => step(&format!("headroom could not be run: {error:#}")),
        }
        let culprit = culprit.stop()?;
        bystander.stop()?;
        step(&truth(&scene.nat, &held, &culprit));
        scene.servers.stop()?;
        let dry = held.ports == scene.nat.gateway_ports();
        Ok(if dry && said.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// headroom on the node, as its DaemonSet would be: in the node's network, with the runtime's socket and the store.
    fn start_headroom(&self, scene: &Scene) -> Result<Process> {
        let socket = scene.node.socket().to_string_lossy().into_owned();
        let cni = scene.node.cni_dir().to_string_lossy().into_owned();
        let conf = scene.node.cni_conf_dir().to_string_lossy().into_owned();
        let watch = format!("{}s", self.watch.as_secs_f64());
        let default = [
            "check",
            "--watch",
            &watch,
            "--nat-profile",
            "gcp",
            "--nat-mode",
            "static",
            "--nat-min-ports",
            "64",
            "--nat-alias-ranges",
            "false",
            "--nat-nodes",
            "1",
            "--nat-ips",
            "1",
            "--cri-socket",
            "{socket}",
            "--cni-dir",
            "{cni}",
            "--cni-conf-dir",
            "{conf}",
        ];
        let args: Vec<String> = if self.args.is_empty() {
            default.iter().map(|arg| (*arg).to_owned()).collect()
        } else {
            self.args.clone()
        };
        let args: Vec<String> = args
            .into_iter()
            .map(|arg| arg.replace("{socket}", &socket).replace("{cni}", &cni).replace("{conf}", &conf))
            .collect();
        step(&format!("{} {}", self.headroom.display(), args.join(" ")));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let netns = scene.node.netns();
        netns.spawn(netns.command(&self.headroom, &args)).with_context(|| {
            format!("start `{}`; build it and give its path with --headroom or HEADROOM_BIN", self.headroom.display())
        })
    }

    /// Waits until every connection was tried; what the gateway holds then.
    fn wait_until_tried(&self, scene: &Scene, culprit: &Generator) -> Result<Held> {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            // No line yet is no progress yet.
            let done = culprit.progress().unwrap_or_default();
            let tried = done.opened + done.timed_out + done.refused + done.failed;
            if tried >= self.connections || std::time::Instant::now() > deadline {
                return scene.nat.gateway_held(Protocol::Tcp, FULL.into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn build(lab: &Lab) -> Result<Scene> {
    let nat = NatLab::build(lab, &NatOptions { pods: 0, ..NatOptions::default() })?;
    let addresses: [SocketAddr; 2] = [FULL.into(), CALM.into()];
    let servers = Server::start(&nat.outside, &Serve::tcp(addresses))?;
    let node = Node::start(&nat.node, NodeOptions::default())?;
    let culprit = node.run_pod("shop", "checkout-7d9f6c5b8-x2x9k")?;
    let bystander = node.run_pod("shop", "catalog-5c8d7f9b4-lm4qz")?;
    Ok(Scene { servers, culprit, bystander, node, nat })
}

fn describe(pod: &Pod) -> String {
    let address = pod.address.map_or_else(|| "the node's address".to_owned(), |address| address.to_string());
    format!("{}/{} ({address})", pod.namespace, pod.name)
}

/// What the gateway and the generator themselves say.
fn truth(nat: &NatLab, held: &Held, culprit: &Statistics) -> String {
    format!(
        "the gateway itself: {}:{}/tcp holds {} of {} ports {:?}\n\
         the culprit itself: {} connects, {} opened, {} timed out, {} refused, {} failed",
        FULL.0,
        FULL.1,
        held.ports,
        nat.gateway_ports(),
        held.states,
        culprit.attempted,
        culprit.opened,
        culprit.timed_out,
        culprit.refused,
        culprit.failed,
    )
}

/// Removes what crashed labs left; says what.
pub fn sweep() -> Result<ExitCode> {
    let removed = Lab::sweep()?;
    for line in &removed {
        step(line);
    }
    step(&format!("{} leftovers removed", removed.len()));
    Ok(ExitCode::SUCCESS)
}

fn step(text: &str) {
    print(&format!("── {}\n", text.replace('\n', "\n── ")));
}

#[expect(clippy::print_stdout, reason = "a scenario is there to be looked at")]
fn print(text: &str) {
    print!("{text}");
}
