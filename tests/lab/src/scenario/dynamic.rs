//! A gateway that gives the node more ports as it needs them, a while later.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::{CALM, FULL, Scene, Watch, describe, step};
use crate::conntrack::Protocol;
use crate::lab::Lab;
use crate::nat::{DynamicPorts, Growth, NatOptions};
use crate::traffic::{Connect, Generator, parse_duration};

/// A NAT with dynamic port allocation doubles the node's range, always a little late
#[derive(Debug, Clone, clap::Args)]
pub struct NatDynamic {
    /// The headroom binary to run on the node
    #[arg(long, env = "HEADROOM_BIN", default_value = "headroom")]
    pub headroom: PathBuf,
    /// How many connections the culprit wants
    #[arg(long, default_value_t = 200)]
    pub connections: u64,
    /// How many of them per second
    #[arg(long, default_value_t = 40.0)]
    pub rate: f64,
    /// How long the gateway takes to enlarge the range
    #[arg(long, value_parser = parse_duration, default_value = "700ms")]
    pub delay: Duration,
    /// How long headroom watches
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    pub watch: Duration,
    /// Instead of what headroom is called with; `{socket}`, `{cni}` and `{conf}` stand for the node's paths
    #[arg(last = true)]
    pub args: Vec<String>,
}

impl NatDynamic {
    /// Builds the lab, lets the culprit outrun the gateway, prints what headroom and the gateway say.
    pub fn run(&self) -> Result<ExitCode> {
        let lab = Lab::new()?;
        let scene = Scene::build(&lab, &NatOptions { pods: 0, ports: 1024..=1087, ..NatOptions::default() })?;
        step(&format!(
            "a node at 10.0.0.2 behind a gateway that gives it 64 ports, and twice as many {:?} after they are used up, up to \
             1024; pods {} and {}",
            self.delay,
            describe(&scene.culprit),
            describe(&scene.bystander),
        ));
        let growth = Growth { first: 1024, min: 64, max: 1024, delay: self.delay };
        let ports = DynamicPorts::start(&scene.nat, growth, FULL.into());

        let headroom = Watch { headroom: &self.headroom, watch: self.watch, instead: &self.args }.start(
            &scene,
            &["dynamic", "--nat-min-ports", "64", "--nat-max-ports", "1024", "--nat-nodes", "1", "--nat-ips", "1"],
        );
        std::thread::sleep(Duration::from_secs(1));
        step(&format!(
            "{} opens {} connections a second to {}:{}, {} in all",
            describe(&scene.culprit),
            self.rate,
            FULL.0,
            FULL.1,
            self.connections
        ));
        let hold = self.watch + Duration::from_secs(30);
        let mut connect = Connect::tcp(FULL.into(), self.connections, hold);
        (connect.rate, connect.timeout) = (self.rate, Duration::from_secs(8));
        let culprit = Generator::start(&scene.culprit.netns, &connect)?;
        let bystander = Generator::start(&scene.bystander.netns, &Connect::tcp(CALM.into(), 5, hold))?;
        let said = headroom.and_then(|process| process.wait(self.watch + Duration::from_secs(30)));
        super::show(&said);

        let held = scene.nat.gateway_held(Protocol::Tcp, FULL.into())?;
        let grown = ports.stop()?;
        let culprit = culprit.stop()?;
        bystander.stop()?;
        for (after, range) in &grown {
            step(&format!("the gateway itself: {range} ports after {:.1} s", after.as_secs_f64()));
        }
        step(&format!(
            "the gateway itself: {}:{}/tcp holds {} of {} ports {:?}\n\
             the culprit itself: {} connects, {} opened, {} timed out",
            FULL.0,
            FULL.1,
            held.ports,
            grown.last().map_or(0, |(_, range)| *range),
            held.states,
            culprit.attempted,
            culprit.opened,
            culprit.timed_out
        ));
        scene.servers.stop()?;
        Ok(if grown.len() > 1 && said.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
