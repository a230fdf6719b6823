//! Scenarios: a lab in which one thing goes wrong, with headroom looking on and the truth beside it. One file each.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::nat::{NatLab, NatOptions};
use crate::pods::{Node, NodeOptions, Pod};
use crate::process::{Output, Process};
use crate::traffic::{Serve, Server};

mod dynamic;
mod exhaustion;
mod hairpin;
mod idle;
mod ip_leak;
mod ip_storm;
mod nodeport_collision;

pub use dynamic::NatDynamic;
pub use exhaustion::NatExhaustion;
pub use hairpin::HairpinLeak;
pub use idle::NatIdle;
pub use ip_leak::{FULL as NODE_FULL, FullNode, IpLeak};
pub use ip_storm::{IpStorm, Weathered};
pub use nodeport_collision::NodeportCollision;

/// What the culprit wants most.
const FULL: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 7), 443);
/// What the other pod uses in peace.
const CALM: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 9), 443);

/// The node of the scenario with everything that runs on it and beyond it. Dropped in this order.
struct Scene {
    servers: Server,
    culprit: Pod,
    bystander: Pod,
    node: Node,
    nat: NatLab,
}

impl Scene {
    fn build(lab: &Lab, options: &NatOptions) -> Result<Self> {
        let nat = NatLab::build(lab, options)?;
        let addresses: [SocketAddr; 2] = [FULL.into(), CALM.into()];
        let servers = Server::start(&nat.outside, &Serve::tcp(addresses))?;
        let node = Node::start(&nat.node, NodeOptions::default())?;
        let culprit = node.run_pod("shop", "checkout-7d9f6c5b8-x2x9k")?;
        let bystander = node.run_pod("shop", "catalog-5c8d7f9b4-lm4qz")?;
        Ok(Self { servers, culprit, bystander, node, nat })
    }
}

/// headroom on the node of a scenario.
struct Watch<'a> {
    headroom: &'a Path,
    watch: Duration,
    /// Instead of what it is called with; `{socket}`, `{cni}` and `{conf}` stand for the node's paths.
    instead: &'a [String],
}

impl Watch<'_> {
    /// headroom as its DaemonSet would run: in the node's network, with the runtime's socket and the store.
    fn start(&self, scene: &Scene, mode_and_more: &[&str]) -> Result<Process> {
        let socket = scene.node.socket().to_string_lossy().into_owned();
        let cni = scene.node.cni_dir().to_string_lossy().into_owned();
        let conf = scene.node.cni_conf_dir().to_string_lossy().into_owned();
        let watch = format!("{}s", self.watch.as_secs_f64());
        let default = [
            &["check", "--watch", &watch, "--nat-profile", "gcp", "--nat-mode"],
            mode_and_more,
            &["--cri-socket", "{socket}", "--cni-dir", "{cni}", "--cni-conf-dir", "{conf}"],
        ]
        .concat();
        let args: Vec<String> = if self.instead.is_empty() {
            default.iter().map(|arg| (*arg).to_owned()).collect()
        } else {
            self.instead.to_vec()
        };
        let args: Vec<String> = args
            .into_iter()
            .map(|arg| arg.replace("{socket}", &socket).replace("{cni}", &cni).replace("{conf}", &conf))
            .collect();
        step(&format!("{} {}", self.headroom.display(), args.join(" ")));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let netns = scene.node.netns();
        netns.spawn(netns.command(self.headroom, &args)).with_context(|| {
            format!("start `{}`; build it and give its path with --headroom or HEADROOM_BIN", self.headroom.display())
        })
    }
}

/// Prints what headroom said.
fn show(said: &Result<Output>) {
    match said {
        Ok(output) => {
            print(&format!("{}{}", output.stderr, output.stdout));
            step(&format!("headroom ended with {}", output.code()));
        }
        Err(error) => step(&format!("headroom could not be run: {error:#}")),
    }
}

fn describe(pod: &Pod) -> String {
    let address = pod.address.map_or_else(|| "the node's address".to_owned(), |address| address.to_string());
    format!("{}/{} ({address})", pod.namespace, pod.name)
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
