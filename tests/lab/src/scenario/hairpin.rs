//! A pod that talks to itself through a Service, and what it leaves in conntrack.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{describe, print, step};
use crate::cilium::{CiliumMaps, Hairpin};
use crate::lab::Lab;
use crate::nat::{NatLab, NatOptions};
use crate::pods::{Node, NodeOptions, Pod};
use crate::traffic::{Connect, Generator, Serve, Server};

/// The Service, and the pod's port behind it.
const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 10), 80);
const PORT: u16 = 8080;
/// Entries count as silent after 10 s.
const SILENCE: Duration = Duration::from_secs(12);

/// A pod talks to itself through a Service and leaves conntrack entries behind
#[derive(Debug, Clone, clap::Args)]
pub struct HairpinLeak {
    /// The headroom binary to run on the node
    #[arg(long, env = "HEADROOM_BIN", default_value = "headroom")]
    pub headroom: PathBuf,
    /// How many connections the pod opens to itself
    #[arg(long, default_value_t = 40)]
    pub connections: u64,
}

/// Everything that runs. Dropped in this order.
struct Scene {
    _server: Server,
    pod: Pod,
    node: Node,
    nat: NatLab,
}

impl HairpinLeak {
    /// Builds the lab, leaves entries behind, lets headroom look; then does it right, and lets it look again.
    pub fn run(&self) -> Result<ExitCode> {
        let lab = Lab::new()?;
        let scene = build(&lab)?;
        let (who, address) = (describe(&scene.pod), scene.pod.address.context("the pod has no address")?);
        step(&format!("{who} serves on {PORT}, and dials itself through the Service {SERVICE}"));
        let connections = self.connections;
        step(&format!(
            "it opens and closes {connections} connections; the node does not see them close (its FINs are lost)"
        ));
        lose_ends(&scene.pod, "-A")?;
        Generator::start(&scene.pod.netns, &Connect::tcp(SERVICE.into(), connections, Duration::ZERO))?
            .wait(Duration::from_secs(20))?;
        let maps = CiliumMaps::new(&lab)?;
        let own = SocketAddrV4::new(address, PORT).into();
        maps.add(own, 40_000..40_010, Hairpin::Open)?;
        maps.add(own, 41_000..41_150, Hairpin::Alone)?;
        maps.add(own, 42_000..42_003, Hairpin::Broken)?;
        step("beside it, a map laid out and pinned as Cilium's, filled by hand with what its issue 23913 shows");
        std::thread::sleep(SILENCE);
        let args = arguments(&scene);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let watching = [&args[..], &["--watch", "2s"]].concat();
        let broken =
            self.look(&scene, maps.command(scene.node.netns(), &self.headroom.to_string_lossy(), &watching))?;
        step(&format!("the table itself has {} entries from the pod to the Service", entries(&scene, address)?));

        step("the fix: the entries are deleted, and the pod keeps its connections open (without Cilium's map)");
        lose_ends(&scene.pod, "-D")?;
        let pod = address.to_string();
        scene.nat.node.exec("conntrack", &["-D", "-p", "tcp", "-s", &pod, "-d", &SERVICE.ip().to_string()])?;
        let kept = Connect::tcp(SERVICE.into(), connections, Duration::from_secs(60));
        let kept = Generator::start(&scene.pod.netns, &kept)?;
        std::thread::sleep(SILENCE);
        let mended = self.look(&scene, scene.node.netns().command(&self.headroom, &watching))?;
        step("the same without --watch: connections that are open are no leak, however little was seen of them");
        let glance = self.look(&scene, scene.node.netns().command(&self.headroom, &args))?;
        step(&format!("the table itself has {} entries from the pod to the Service", entries(&scene, address)?));
        kept.stop()?;
        let named = broken.matches("conntrack-hairpin-leak").count() >= 2;
        let gone = [mended, glance].iter().all(|said| !said.contains("conntrack-hairpin-leak"));
        Ok(if named && gone { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn look(&self, scene: &Scene, command: Command) -> Result<String> {
        let said = scene.node.netns().spawn(command)?.wait(Duration::from_secs(60))?;
        print(&format!("{}{}", said.stderr, said.stdout));
        step(&format!("headroom ended with {}", said.code()));
        Ok(said.stdout)
    }
}

fn arguments(scene: &Scene) -> Vec<String> {
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    let node = &scene.node;
    ["check", "--cri-socket", &path(node.socket()), "--cni-dir", &path(node.cni_dir())]
        .into_iter()
        .map(str::to_owned)
        .collect()
}

/// Entries from the pod to the Service, as the tool `conntrack` prints them.
fn entries(scene: &Scene, address: Ipv4Addr) -> Result<usize> {
    let flows = crate::conntrack::flows(&scene.nat.node, crate::conntrack::Protocol::Tcp)?;
    let own = |flow: &&crate::conntrack::Flow| flow.source.ip() == address && flow.destination == SERVICE.into();
    Ok(flows.iter().filter(own).count())
}

/// Loses what ends a connection on its way out of the pod, or no longer.
fn lose_ends(pod: &Pod, how: &str) -> Result<()> {
    for flag in ["FIN", "RST"] {
        pod.netns.exec("iptables", &["-w", how, "OUTPUT", "-p", "tcp", "--tcp-flags", flag, flag, "-j", "DROP"])?;
    }
    // A socket that nobody owns gives up soon.
    pod.netns.set_sysctl("net.ipv4.tcp_orphan_retries", "1")
}

fn build(lab: &Lab) -> Result<Scene> {
    let nat = NatLab::build(lab, &NatOptions { pods: 0, ..NatOptions::default() })?;
    let node = Node::start(&nat.node, NodeOptions::default())?;
    let pod = node.run_pod("shop", "cart-6b7c9d8f5-qk2vz")?;
    let address = pod.address.context("the pod has no address")?;
    service(&nat, address)?;
    let server = Server::start(&pod.netns, &Serve::tcp([SocketAddrV4::new(address, PORT).into()]))?;
    Ok(Scene { _server: server, pod, node, nat })
}

/// What kube-proxy writes for a Service with one endpoint: DNAT, and masquerading for a pod that dials itself.
fn service(nat: &NatLab, pod: Ipv4Addr) -> Result<()> {
    let (service, port, own) = (SERVICE.ip().to_string(), SERVICE.port().to_string(), PORT.to_string());
    let (pod, endpoint) = (pod.to_string(), format!("{pod}:{PORT}"));
    let iptables = |args: &[&str]| nat.node.exec("iptables", &[&["-w", "-t", "nat"], args].concat()).map(drop);
    iptables(&[
        "-A",
        "PREROUTING",
        "-d",
        &service,
        "-p",
        "tcp",
        "--dport",
        &port,
        "-j",
        "DNAT",
        "--to-destination",
        &endpoint,
    ])?;
    iptables(&["-I", "POSTROUTING", "-s", &pod, "-d", &pod, "-p", "tcp", "--dport", &own, "-j", "MASQUERADE"])
}
