//! A gateway that forgets connections on which nothing passes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::{CALM, FULL, Scene, Watch, describe, step};
use crate::conntrack::Protocol;
use crate::lab::Lab;
use crate::nat::{NatOptions, Timeouts};
use crate::traffic::{Connect, Generator, parse_duration};

/// A NAT forgets silent connections; their next use fails
#[derive(Debug, Clone, clap::Args)]
pub struct NatIdle {
    /// The headroom binary to run on the node
    #[arg(long, env = "HEADROOM_BIN", default_value = "headroom")]
    pub headroom: PathBuf,
    /// How many connections of the culprit fall silent
    #[arg(long, default_value_t = 20)]
    pub connections: u64,
    /// How long the gateway remembers a silent connection (Cloud NAT: 20 minutes)
    #[arg(long, value_parser = parse_duration, default_value = "5s")]
    pub idle: Duration,
    /// How long headroom watches
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    pub watch: Duration,
    /// Instead of what headroom is called with; `{socket}`, `{cni}` and `{conf}` stand for the node's paths
    #[arg(last = true)]
    pub args: Vec<String>,
}

impl NatIdle {
    /// Builds the lab, lets connections fall silent until the gateway has forgotten them, and then be used again.
    pub fn run(&self) -> Result<ExitCode> {
        let lab = Lab::new()?;
        let timeouts = Timeouts { tcp_established: self.idle, ..Timeouts::CLOUD_NAT };
        let options = NatOptions { pods: 0, ports: 1024..=65535, timeouts, ..NatOptions::default() };
        let scene = Scene::build(&lab, &options)?;
        scene.nat.reset_what_is_unknown()?;
        step(&format!(
            "a node at 10.0.0.2 behind a gateway that forgets connections after {:?} of silence; pods {} and {}",
            self.idle,
            describe(&scene.culprit),
            describe(&scene.bystander),
        ));
        let silence = self.watch + Duration::from_secs(4);
        let hold = silence + Duration::from_secs(6);
        let mut silent = Connect::tcp(FULL.into(), self.connections, hold);
        (silent.talk, silent.talk_every) = (true, Some(silence));
        let mut busy = Connect::tcp(CALM.into(), 5, hold);
        (busy.talk, busy.talk_every) = (true, Some(Duration::from_secs(1)));
        step(&format!(
            "{} opens {} connections and says nothing for {silence:?}",
            describe(&scene.culprit),
            self.connections
        ));
        let silent = Generator::start(&scene.culprit.netns, &silent)?;
        let busy = Generator::start(&scene.bystander.netns, &busy)?;

        let idle = format!("{}ms", self.idle.as_millis());
        let headroom = Watch { headroom: &self.headroom, watch: self.watch, instead: &self.args }.start(
            &scene,
            &["static", "--nat-min-ports", "64", "--nat-alias-ranges", "false", "--nat-tcp-established-idle", &idle],
        );
        let said = headroom.and_then(|process| process.wait(self.watch + Duration::from_secs(30)));
        super::show(&said);
        let held = scene.nat.gateway_held(Protocol::Tcp, FULL.into())?;
        step(&format!(
            "the gateway itself: {}:{}/tcp holds {} ports {:?}; {}:{}/tcp holds {}",
            FULL.0,
            FULL.1,
            held.ports,
            held.states,
            CALM.0,
            CALM.1,
            scene.nat.gateway_held(Protocol::Tcp, CALM.into())?.ports
        ));
        let (silent, busy) = (silent.wait(hold + Duration::from_secs(20))?, busy.wait(Duration::from_secs(30))?);
        step(&format!(
            "the culprit itself: {} connections opened, {} broke when they were used again\n\
             the bystander itself: {} connections opened, {} broke",
            silent.opened, silent.broken, busy.opened, busy.broken
        ));
        scene.servers.stop()?;
        Ok(if silent.broken == silent.opened && said.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
