//! Demand: headroom's sources, ledger and model as the agent runs them, against the gateway's own table, every second of a mixed
//! load.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use headroom_core::ledger::{Ledger, LedgerLimits};
use headroom_core::model::nat::{Basis, HoldTimes, NatSettings, Profile};
use headroom_core::model::policy::Policy;
use headroom_core::model::{Memory, evaluate};
use headroom_core::ports::PortRange;
use headroom_host::clock;
use headroom_host::netlink::socket::EVENT_BUFFER_BYTES;
use headroom_host::root::HostRoot;
use headroom_host::source::Source;
use headroom_host::source::connections::{self, ConnectionsSource};
use headroom_host::source::conntrack::{ConntrackSource, Options};
use headroom_host::source::conntrack_use::ConntrackUseSource;
use headroom_host::source::paced::Paced;
use headroom_host::source::share::Share;
use headroom_lab::Lab;
use headroom_lab::accuracy::{self, TIMES, check_load, compare};
use serde_json::Value;

use crate::check::Check;
use crate::conntrack::how;
use crate::network::Scene;

pub(crate) const CHECKS: [Check; 1] =
    [Check { name: "demand: it is what the gateway's own table holds, every second", run: demand }];

/// Seconds that are compared.
const SECONDS: u32 = 20;
/// From one reading of the gateway's table to the next: the tool takes a tenth of a second in a VM.
const PAUSE: Duration = Duration::from_millis(250);
/// Pauses between rounds, as `agent/cli/src/lanes.rs` has them.
const CONNECTIONS_EVERY: Duration = Duration::from_millis(250);
const CONNTRACK_EVERY: Duration = Duration::from_millis(100);
/// Emulated, reading costs a hundred times what it costs a node: there it may take more of the time.
const EMULATED: Share = Share::one_in(4);

/// The agent without its other lanes.
struct Agent {
    connections: Paced<ConnectionsSource>,
    timeouts: Paced<ConntrackUseSource>,
    conntrack: ConntrackSource,
    ledger: Ledger,
    memory: Memory,
    policy: Policy,
}

impl Agent {
    /// In the node's namespace.
    fn start() -> Self {
        let root = HostRoot::live();
        let reading = connections::Options { max_destinations: 65_536, reading: EMULATED };
        let connections = ConnectionsSource::start(&root, reading);
        let tcp_is_counted = connections.is_counting();
        let dump_interval = if tcp_is_counted { Duration::from_secs(1) } else { Duration::from_millis(250) };
        let node_ports = PortRange::NODE_PORTS;
        let options = Options {
            dump_interval,
            dumping: EMULATED,
            tcp_is_counted,
            node_ports,
            max_keys: 65_536,
            event_buffer_bytes: EVENT_BUFFER_BYTES,
        };
        let hold = HoldTimes {
            tcp_time_wait: TIMES.tcp_time_wait,
            tcp_reset: TIMES.tcp_close,
            tcp_transitory: TIMES.tcp_transitory,
            tcp_established_idle: TIMES.tcp_established,
            udp_idle: TIMES.udp,
            ..Profile::Gcp.hold()
        };
        let nat = NatSettings { hold, ..NatSettings::of(Profile::Gcp, Basis::Configured) };
        Self {
            connections: Paced::new(connections, CONNECTIONS_EVERY),
            timeouts: Paced::new(ConntrackUseSource::new(&root), Duration::from_secs(1)),
            conntrack: ConntrackSource::start(&root, options),
            ledger: Ledger::new(LedgerLimits::default()),
            memory: Memory::default(),
            policy: Policy { nat: Some(nat), ..Policy::default() },
        }
    }

    fn look(&mut self) {
        let Self { connections, timeouts, conntrack, ledger, .. } = self;
        let sources: [&mut dyn Source; 3] = [connections, timeouts, conntrack];
        for source in sources {
            source.observe(&mut |observation| ledger.apply(observation));
        }
    }

    /// Looks for so long.
    fn watch(&mut self, span: Duration) {
        let until = Instant::now() + span;
        while Instant::now() < until {
            self.look();
            std::thread::sleep(CONNTRACK_EVERY);
        }
    }

    /// As `/report.json` has it.
    fn report(&mut self) -> Result<Value> {
        let report = evaluate(&self.ledger, &mut self.memory, &self.policy, clock::now());
        serde_json::to_value(report).context("write a report")
    }
}

fn demand(kernels: &Scene) -> Result<String> {
    let lab = Lab::new()?;
    let scene = accuracy::Scene::build(&lab)?;
    let stop = AtomicBool::new(false);
    let (reports, readings, how) = std::thread::scope(|scope| {
        let follower = scope.spawn(|| scene.follow_gateway(PAUSE, &stop));
        let watched = scene.nat.node.run(|| {
            let mut agent = Agent::start();
            agent.look();
            let load = scope.spawn(|| scene.mixed_load(SECONDS));
            while !load.is_finished() {
                agent.watch(CONNTRACK_EVERY);
            }
            let _load = load.join().map_err(|_panic| anyhow!("the load panicked"))??;
            let mut reports = Vec::new();
            for _ in 0..SECONDS {
                agent.watch(Duration::from_secs(1));
                reports.push(agent.report()?);
            }
            // The last report is compared with what was there after it.
            agent.watch(Duration::from_secs(1));
            Ok((reports, how(&agent.conntrack)))
        });
        stop.store(true, Ordering::Relaxed);
        let readings = follower.join().map_err(|_panic| anyhow!("the follower panicked"))??;
        let (reports, how) = watched?;
        anyhow::Ok((reports, readings, how))
    })?;
    let comparison = compare(&reports, &readings)?;
    kernels.note(format!("{SECONDS} s, {how}\n{comparison}"));
    comparison.agrees()?;
    check_load(&comparison, reports.last().context("find a report")?, SECONDS)?;
    Ok(format!("{SECONDS} s {how}"))
}
