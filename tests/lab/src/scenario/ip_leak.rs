//! Pod IPs leak until the node is full; headroom finds them, gives them back, and the next pod starts.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{describe, print, step};
use crate::lab::Lab;
use crate::netns::Netns;
use crate::pods::{Leak, Leaked, Node, NodeOptions, Pod};
use crate::process::Output;

/// What a pod's start says when the node has no address left.
pub const FULL: &str = "no IP addresses available in range set";

/// Pod IPs leak until the node is full; headroom gives them back and the next pod starts
#[derive(Debug, Clone, clap::Args)]
pub struct IpLeak {
    /// The headroom binary to run on the node
    #[arg(long, env = "HEADROOM_BIN", default_value = "headroom")]
    pub headroom: PathBuf,
}

/// A node whose addresses are all reserved, some of them for nobody.
#[derive(Debug)]
pub struct FullNode {
    /// Pods that run.
    pub pods: Vec<Pod>,
    /// Reservations that belong to nobody.
    pub leaked: Vec<Leaked>,
    /// The node.
    pub node: Node,
}

impl FullNode {
    /// A node with 13 addresses: eight pods, five leaks, made in the ways in which they come about.
    pub fn build(lab: &Lab) -> Result<Self> {
        let netns = Netns::add(lab, "node")?;
        let node = Node::start(&netns, NodeOptions { subnet: "10.64.0.0/28".into(), ..NodeOptions::default() })?;
        let run = |prefix: &str, count: usize| -> Result<Vec<Pod>> {
            (1..=count).map(|number| node.run_pod("shop", &format!("{prefix}-{number}"))).collect()
        };
        let pods = run("web", 8)?;
        let mut leaked = node.leak_all(&run("gone", 3)?)?;
        for name in ["slow-1", "slow-2"] {
            leaked.push(node.make_leak("shop", name, Leak::KilledAfterAdd)?);
        }
        // An hour later.
        for address in leaked.iter().map(|leak| leak.address).chain(pods.iter().filter_map(|pod| pod.address)) {
            node.set_reservation_age(address, Duration::from_secs(3600))?;
        }
        Ok(Self { pods, leaked, node })
    }

    /// The next pod, which cannot start: what the runtime says.
    pub fn next_pod_fails(&self) -> Result<String> {
        match self.node.run_pod("shop", "next") {
            Ok(pod) => bail!("the node is not full: {} started", describe(&pod)),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    /// headroom on the node.
    pub fn headroom(&self, binary: &std::path::Path, args: &[&str]) -> Result<Output> {
        let paths = [self.node.socket(), self.node.cni_dir(), self.node.cni_conf_dir()];
        let [socket, cni, conf] = &paths.map(|path| path.to_string_lossy().into_owned());
        let args = [args, &["--cri-socket", socket, "--cni-dir", cni, "--cni-conf-dir", conf]].concat();
        let netns = self.node.netns();
        let process = netns.spawn(netns.command(binary, &args)).with_context(|| {
            format!("start `{}`; build it and give its path with --headroom or HEADROOM_BIN", binary.display())
        })?;
        process.wait(Duration::from_secs(60))
    }
}

impl IpLeak {
    /// Builds the lab, fills the node, cleans, starts the next pod; prints what everybody says.
    pub fn run(&self) -> Result<ExitCode> {
        let lab = Lab::new()?;
        step(
            "a node with 13 pod IPs; eight pods run, three are killed behind the runtime's back, and twice the runtime dies",
        );
        step("between CNI's ADD and the sandbox's start (containerd issue 5768 and its relatives); an hour passes");
        let full = FullNode::build(&lab)?;
        step(&format!("host-local has {} reservations; the next pod:", full.node.reservations()?.len()));
        let error = full.next_pod_fails()?;
        print(&format!("{error}\n"));
        ensure!(error.contains(FULL), "the next pod failed, but not because the node is full");
        for args in [&["ipam", "scan"][..], &["ipam", "clean"], &["ipam", "clean", "--apply"]] {
            let said = self.show(&full, args)?;
            ensure!(said.code() <= 1, "headroom could not tell");
        }
        let pod = full.node.run_pod("shop", "next").context("start the next pod")?;
        step(&format!("the next pod starts: {}", describe(&pod)));
        self.show(&full, &["ipam", "restore"])?;
        step("the address of the new pod was reserved anew, so its old reservation stays in the journal");
        Ok(ExitCode::SUCCESS)
    }

    fn show(&self, full: &FullNode, args: &[&str]) -> Result<Output> {
        step(&format!("headroom {}", args.join(" ")));
        let said = full.headroom(&self.headroom, args)?;
        print(&format!("{}{}", said.stderr, said.stdout));
        step(&format!("headroom ended with {}", said.code()));
        Ok(said)
    }
}
