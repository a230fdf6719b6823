//! A gateway that runs dry.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::{CALM, FULL, Scene, Watch, describe, step};
use crate::conntrack::{Held, Protocol};
use crate::lab::Lab;
use crate::nat::{NatLab, NatOptions};
use crate::traffic::{Connect, Generator, Statistics, parse_duration};

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

impl NatExhaustion {
    /// Builds the lab, drives the gateway dry while headroom watches, prints what both say.
    pub fn run(&self) -> Result<ExitCode> {
        let lab = Lab::new()?;
        let scene = Scene::build(&lab, &NatOptions { pods: 0, ..NatOptions::default() })?;
        step(&format!(
            "a node at 10.0.0.2 behind a gateway with {} ports; pods {} and {}",
            scene.nat.gateway_ports(),
            describe(&scene.culprit),
            describe(&scene.bystander),
        ));

        let headroom = Watch { headroom: &self.headroom, watch: self.watch, instead: &self.args }.start(
            &scene,
            &["static", "--nat-min-ports", "64", "--nat-alias-ranges", "false", "--nat-nodes", "1", "--nat-ips", "1"],
        );
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
        super::show(&said);
        let culprit = culprit.stop()?;
        bystander.stop()?;
        step(&truth(&scene.nat, &held, &culprit));
        scene.servers.stop()?;
        let dry = held.ports == scene.nat.gateway_ports();
        Ok(if dry && said.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
