//! Subject `conntrack`: entries as they come and go, told by the kernel's counters where functions can be probed and by
//! events elsewhere, against flows made here and against the table's own number.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use headroom_core::flow::{Destination, Endpoint, Protocol};
use headroom_core::ledger::{Ledger, LedgerLimits};
use headroom_core::ports::PortRange;
use headroom_host::clock;
use headroom_host::ebpf::{CT_DELETE, CT_INSERT, CT_NO_PORT};
use headroom_host::netlink::socket::EVENT_BUFFER_BYTES;
use headroom_host::root::HostRoot;
use headroom_host::source::Source as _;
use headroom_host::source::conntrack::{ConntrackSource, DUMPING, Options};
use headroom_lab::Netns;

use crate::check::{Cannot, Check};
use crate::load;
use crate::network::{OUTSIDE, Scene};
use crate::tcp::PORTS;

pub(crate) const CHECKS: [Check; 4] = [
    Check { name: "conntrack: NATed UDP flows are counted as they come and go", run: udp },
    Check { name: "conntrack: NATed TCP connections are counted", run: tcp },
    Check { name: "conntrack: killed and started anew under load, it ends with the table's number", run: restart },
    Check { name: "conntrack: new flows that found no port are counted", run: no_port },
];

/// How long the counts may lag behind: what moved during one comparison with the table is mended by the next, half a minute
/// later on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(75);

/// The source in a namespace, and what it told.
struct Watch<'a> {
    node: &'a Netns,
    source: ConntrackSource,
    ledger: Ledger,
}

impl<'a> Watch<'a> {
    fn start(scene: &'a Scene) -> Result<Self> {
        let node = scene.node();
        let source = node.run(|| Ok(ConntrackSource::start(&HostRoot::live(), options())))?;
        let mut watch = Self { node, source, ledger: Ledger::new(LedgerLimits::default()) };
        watch.look()?;
        Ok(watch)
    }

    fn how(&self) -> &'static str {
        how(&self.source)
    }

    /// How the counts were made, if no comparison with the table had to mend them.
    fn unmended(&self) -> Result<&'static str> {
        let drift = self.ledger.conntrack().drift();
        ensure!(drift.is_some() == counts(&self.source), "{} there is {drift:?}", self.how());
        ensure!(drift.is_none_or(|drift| drift.total == 0), "comparisons with the table mended counts: {drift:?}");
        Ok(self.how())
    }

    fn look(&mut self) -> Result<()> {
        let (source, ledger) = (&mut self.source, &mut self.ledger);
        self.node.run(|| {
            source.observe(&mut |observation| ledger.apply(observation));
            Ok(())
        })
    }

    fn live(&self, to: &[Destination]) -> u64 {
        let rows = self.ledger.conntrack().iter().filter(|(pair, _)| to.contains(&pair.destination));
        rows.map(|(_, cohorts)| cohorts.live()).sum()
    }

    /// Waits for a number.
    fn expect(&mut self, expected: u64, number: impl Fn(&Self) -> u64) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let counted = number(self);
            if counted == expected {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{counted} counted {}, not {expected}", self.how());
            std::thread::sleep(Duration::from_millis(100));
            self.look()?;
        }
    }
}

/// Where events tell what comes and goes, there is one dump, at the start; counters are compared with one every ten seconds all
/// the same, as in the agent. What they count by themselves is for `counters.rs` to check.
pub(crate) fn options() -> Options {
    Options {
        dump_interval: Duration::from_secs(3600),
        dumping: DUMPING,
        tcp_is_counted: false,
        node_ports: PortRange::NODE_PORTS,
        max_keys: 65_536,
        event_buffer_bytes: EVENT_BUFFER_BYTES,
    }
}

pub(crate) fn counts(source: &ConntrackSource) -> bool {
    let programs = source.programs();
    let attached = |name| programs.iter().any(|program| program.row.name == name && program.attached.is_ok());
    attached(CT_INSERT.name) && attached(CT_DELETE.name)
}

/// Who tells what comes and goes.
pub(crate) fn how(source: &ConntrackSource) -> &'static str {
    if counts(source) { "by the kernel's counters" } else { "by events" }
}

/// Destinations at the outside, and how many source ports make up the check's flows.
fn targets(scene: &Scene, first: u16) -> Result<(Vec<SocketAddr>, std::ops::Range<u16>)> {
    let to = (0..PORTS).map(|port| SocketAddr::new(OUTSIDE.into(), first + port)).collect();
    let count = u16::try_from(scene.connections / u64::from(PORTS)).context("count source ports")?;
    Ok((to, 20_000..20_000_u16.saturating_add(count)))
}

fn destinations(protocol: Protocol, to: &[SocketAddr]) -> Vec<Destination> {
    to.iter().map(|to| Destination { protocol, endpoint: Endpoint::new(to.ip(), to.port()) }).collect()
}

/// Removes what was made, by the tool.
pub(crate) fn flush(scene: &Scene, protocol: &str) -> Result<()> {
    scene.node().exec("sh", &["-c", &format!("conntrack -D -p {protocol} >/dev/null 2>&1; true")]).map(drop)
}

fn udp(scene: &Scene) -> Result<String> {
    flush(scene, "udp")?;
    let mut watch = Watch::start(scene)?;
    let (to, ports) = targets(scene, 7600)?;
    load::send(scene.pod(), scene.outside(), &to, ports)?;
    let all = destinations(Protocol::UDP, &to);
    watch.expect(scene.connections, |watch| watch.live(&all))?;
    for destination in &all {
        let live = watch.live(std::slice::from_ref(destination));
        ensure!(live == scene.connections / u64::from(PORTS), "{live} to {destination}");
    }
    flush(scene, "udp")?;
    watch.expect(0, |watch| watch.live(&all))?;
    Ok(format!("{} of {} {}", scene.connections, scene.connections, watch.unmended()?))
}

fn tcp(scene: &Scene) -> Result<String> {
    let mut watch = Watch::start(scene)?;
    let each = scene.connections / u64::from(PORTS);
    let to = SocketAddr::new(OUTSIDE.into(), 7650);
    let ports = load::open_and_close(scene.pod(), scene.outside(), to, each)?;
    let all = destinations(Protocol::TCP, &[to]);
    // A source port that was used again has its old entry.
    let entries = u64::try_from(ports.len()).context("count ports")?;
    watch.expect(entries, |watch| watch.live(&all))?;
    flush(scene, "tcp")?;
    watch.expect(0, |watch| watch.live(&all))?;
    Ok(format!("{entries} entries of {each} connections {}", watch.unmended()?))
}

fn restart(scene: &Scene) -> Result<String> {
    flush(scene, "udp")?;
    let limit = scene.connections.to_string();
    let program = std::env::current_exe().context("find this program")?;
    let before = scene.node().spawn(scene.node().command(program, &["--watch", &limit]))?;
    before.wait_for_line(WATCHING, PATIENCE)?;
    let (to, ports) = targets(scene, 7660)?;
    let killed = AtomicBool::new(false);
    let mut after = std::thread::scope(|scope| -> Result<Watch<'_>> {
        let (pod, outside, to) = (scene.pod(), scene.outside(), &to);
        let (killed, until) = (&killed, Instant::now() + 2 * PATIENCE);
        let load = scope.spawn(move || {
            // However fast this is, and however late the kill: the second half comes slowly until then.
            let mut next = ports.start + (ports.end - ports.start) / 2;
            load::send(pod, outside, to, ports.start..next)?;
            while !killed.load(Ordering::Relaxed) && next < ports.end && Instant::now() < until {
                load::send(pod, outside, to, next..next + 1)?;
                next += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            load::send(pod, outside, to, next..ports.end)?;
            Ok::<bool, anyhow::Error>(next < ports.end)
        });
        // It has seen some of them when it is killed (SIGKILL).
        before.wait_for_line(HALF_WAY, PATIENCE)?;
        drop(before);
        killed.store(true, Ordering::Relaxed);
        let mut after = Watch::start(scene)?;
        if let Some(drift) = after.ledger.conntrack().drift() {
            scene.note(format!("the first comparison under load left {} of {} entries open", drift.open, drift.of));
        }
        while !load.is_finished() {
            std::thread::sleep(Duration::from_millis(100));
            after.look()?;
        }
        match load.join() {
            Ok(under_load) => ensure!(under_load?, "all flows were made before the agent was killed"),
            Err(_panic) => bail!("the load panicked"),
        }
        Ok(after)
    })?;
    let all = destinations(Protocol::UDP, &to);
    after.expect(scene.connections, |watch| watch.live(&all))?;
    let held = headroom_lab::conntrack::held_by_destination(scene.node(), headroom_lab::conntrack::Protocol::Udp)?;
    for (to, destination) in to.iter().zip(&all) {
        let live = usize::try_from(after.live(std::slice::from_ref(destination))).context("count flows")?;
        let held = held.get(to).map_or(0, |held| held.ports);
        ensure!(live == held, "{live} to {destination}, of which conntrack holds {held}");
    }
    // What the first comparison left open the later ones settled: nothing was counted wrong.
    let how = after.unmended()?;
    if let Some(drift) = after.ledger.conntrack().drift() {
        let (settled, comparisons) = (drift.settled, drift.comparisons);
        scene.note(format!("{settled} entries were put right in {comparisons} comparisons, within what was open"));
    }
    flush(scene, "udp")?;
    Ok(format!("{} of {} {how}", scene.connections, scene.connections))
}

/// Said by the agent that is to be killed when it has read the table, and when it has seen a part of the flows.
const WATCHING: &str = "watching";
const HALF_WAY: &str = "half-way";

/// An agent in the network namespace that it was started in, until it is killed: `--watch`.
pub(crate) fn watch(flows: u64) -> Result<()> {
    let mut source = ConntrackSource::start(&HostRoot::live(), options());
    let mut ledger = Ledger::new(LedgerLimits::default());
    let mut out = std::io::stdout();
    let mut say = |what: &str| writeln!(out, "{what}").and_then(|()| out.flush()).context("say how it goes");
    source.observe(&mut |observation| ledger.apply(observation));
    say(WATCHING)?;
    let before = ledger.conntrack().live();
    let mut said = false;
    loop {
        std::thread::sleep(Duration::from_millis(100));
        source.observe(&mut |observation| ledger.apply(observation));
        if !said && ledger.conntrack().live() > before + flows / 10 {
            say(HALF_WAY)?;
            said = true;
        }
    }
}

fn no_port(scene: &Scene) -> Result<String> {
    let mut watch = Watch::start(scene)?;
    let programs = watch.source.programs();
    let program = programs.iter().find(|program| program.row.name == CT_NO_PORT.name).context("find the program")?;
    if let Err(why) = &program.attached {
        return Err(Cannot(why.to_string()).into());
    }
    let rule = "POSTROUTING -p udp --dport 7700 -j MASQUERADE --to-ports 40000-40007";
    scene.node().exec("sh", &["-c", &format!("iptables -w -t nat -I {rule}")])?;
    let to = SocketAddr::new(OUTSIDE.into(), 7700);
    let sent = scene.pod().run(|| {
        for port in 30_000..30_012 {
            let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, port)).context("bind")?;
            socket.send_to(b"x", to).context("send")?;
        }
        Ok(())
    });
    let all = destinations(Protocol::UDP, &[to]);
    let dropped = |watch: &Watch<'_>| {
        let rows = watch.ledger.no_ports().iter(clock::node_time(), PATIENCE);
        rows.filter(|(destination, ..)| all.contains(destination)).map(|(.., total)| total).sum()
    };
    let counted = sent.and_then(|()| watch.expect(4, dropped)).and_then(|()| watch.expect(8, |watch| watch.live(&all)));
    scene.node().exec("sh", &["-c", &format!("iptables -w -t nat -D {rule}")])?;
    counted?;
    Ok("4 of 12 found no port, 8 did".to_owned())
}
