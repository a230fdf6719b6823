//! Subject `conntrack`: the kernel's own counters, unmended. What goes into the node's table, against what
//! was made: nothing here compares with the table, so nothing puts a wrong count right. What leaves it: `ends.rs`.
//!
//! Each count is made twice from the same traffic: as this kernel does it best, and as attempts, which is what is left where
//! `__nf_conntrack_hash_insert` was inlined.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use headroom_core::flow::Protocol;
use headroom_core::observe::Fact;
use headroom_core::ports::PortRange;
use headroom_ebpf_common::conntrack::Counts;
use headroom_host::ebpf::conntrack::{Conntrack, Inserts, Subject};
use headroom_host::root::HostRoot;
use headroom_host::source::Source as _;
use headroom_host::source::conntrack_use::ConntrackUseSource;
use headroom_lab::Netns;

use crate::check::{Cannot, Check};
use crate::load;
use crate::network::{NODE_V6, OUTSIDE, Scene};
use crate::tcp::{PORTS, destinations};

pub(crate) const CHECKS: [Check; 5] = [
    Check { name: "counters: the kernel tells which runs of probes it skipped", run: tells_missed },
    Check { name: "counters: all that went in, and what was refused, unmended", run: all },
    Check { name: "counters: packets that raced with the first of their flow", run: raced },
    Check { name: "counters: flows that found no port, unmended", run: no_port },
    Check { name: "counters: flows that a rule drops behind the translation", run: dropped_behind },
];

/// How long the counters may lag behind: a second for the sockets' last words, more for expired entries to be thrown away.
const PATIENCE: Duration = Duration::from_secs(75);
/// The ways to count, all at once.
#[derive(Debug)]
pub(crate) struct Counters {
    best: RefCell<Conntrack>,
    attempts: RefCell<Conntrack>,
}

impl Counters {
    /// Begins to count in a namespace; an error in words where this kernel cannot.
    pub(crate) fn start(node: &Netns) -> Result<std::result::Result<Self, String>> {
        let namespace = u32::try_from(node.inode()?).context("number a namespace")?;
        let subject = Subject { namespace, node_ports: PortRange::NODE_PORTS, max_keys: 4096 };
        let load = |inserts| -> std::result::Result<Conntrack, String> {
            let counters = Conntrack::load_with(&HostRoot::live(), subject, inserts);
            let counters = counters.map_err(|error| error.why().to_string())?;
            match &counters.entries_unknown {
                None => Ok(counters),
                Some(why) => Err(why.to_string()),
            }
        };
        Ok(load(Inserts::Best).and_then(|best| {
            load(Inserts::Attempts).map(|attempts| Self { best: RefCell::new(best), attempts: RefCell::new(attempts) })
        }))
    }

    /// What was counted for a destination, from whatever source, in either way.
    pub(crate) fn of(&self, protocol: Protocol, to: SocketAddr) -> Result<[Counts; 2]> {
        let address = match to.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let of = |counters: &RefCell<Conntrack>| -> Result<Counts> {
            let mut counters = counters.borrow_mut();
            let mut sum = Counts::default();
            counters.counts.for_each(|key, counts| {
                if (Ipv6Addr::from(key.destination), key.port, key.protocol) == (address, to.port(), protocol.0) {
                    sum = plus(&sum, counts);
                }
            })?;
            let losses = counters.losses.get()?;
            ensure!(losses == headroom_ebpf_common::conntrack::Losses::default(), "{losses:?}");
            Ok(sum)
        };
        Ok([of(&self.best)?, of(&self.attempts)?])
    }

    /// Waits until both ways count exactly that.
    pub(crate) fn expect(&self, expected: &[Expected]) -> Result<()> {
        let began = Instant::now();
        loop {
            let mut different = Vec::new();
            for expected in expected {
                for (way, counts) in ["best", "attempts"].into_iter().zip(self.of(expected.protocol, expected.to)?) {
                    if !expected.is(&counts) {
                        different.push(format!("{way}: {expected:?}, counted {counts:?}"));
                    }
                }
            }
            let Some(first) = different.first() else { return Ok(()) };
            if began.elapsed() > PATIENCE {
                bail!("{} differ; {first}; {}", different.len(), self.missed());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What the kernel says that it skipped.
    fn missed(&self) -> String {
        let rows = [headroom_host::ebpf::CT_INSERT, headroom_host::ebpf::CT_DELETE];
        format!("runs: {:?}", rows.map(|row| self.best.borrow().runs(row)))
    }
}

fn plus(a: &Counts, b: &Counts) -> Counts {
    Counts {
        born: 0,
        inserted: a.inserted + b.inserted,
        ended_time_wait: a.ended_time_wait + b.ended_time_wait,
        ended_reset: a.ended_reset + b.ended_reset,
        ended_unanswered: a.ended_unanswered + b.ended_unanswered,
        ended_other: a.ended_other + b.ended_other,
        node_port_inserted: a.node_port_inserted + b.node_port_inserted,
        node_port_ended: a.node_port_ended + b.node_port_ended,
        no_port: a.no_port + b.no_port,
    }
}

/// How entries have left the table.
#[derive(Debug, Clone, Copy)]
enum Ends {
    /// They are still there.
    Not,
    /// A reset in answer to the first packet ends an entry at once.
    Reset,
    /// A port that was used again takes the place of its old entry.
    Any,
    /// This is what is counted, all of it.
    Exactly(Counts),
}

/// What is to be counted for a destination.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    protocol: Protocol,
    to: SocketAddr,
    inserted: u64,
    ends: Ends,
}

impl Expected {
    fn tcp(to: SocketAddr, inserted: u64, ends: Ends) -> Self {
        Self { protocol: Protocol::TCP, to, inserted, ends }
    }

    fn udp(to: SocketAddr, inserted: u64) -> Self {
        Self { protocol: Protocol::UDP, to, inserted, ends: Ends::Not }
    }

    /// These counts, however their entries came and went.
    pub(crate) fn exactly(protocol: Protocol, to: SocketAddr, counts: Counts) -> Self {
        Self { protocol, to, inserted: counts.inserted, ends: Ends::Exactly(counts) }
    }

    fn is(&self, counts: &Counts) -> bool {
        let Counts { inserted, ended_time_wait, ended_reset, ended_unanswered, ended_other, no_port, .. } = *counts;
        let ended = [ended_time_wait, ended_reset, ended_unanswered, ended_other];
        let all = self.inserted;
        let as_expected = match self.ends {
            Ends::Not => ended == [0, 0, 0, 0],
            Ends::Reset => ended == [0, all, 0, 0],
            Ends::Any => ended_unanswered == 0 && ended_other == 0 && ended_time_wait + ended_reset <= all,
            Ends::Exactly(exactly) => *counts == exactly,
        };
        inserted == all && as_expected && no_port == 0
    }
}

fn tells_missed(scene: &Scene) -> Result<String> {
    let counters = scene.conntrack()?;
    match counters.best.borrow().tells_missed {
        true => Ok(counters.missed()),
        false => Err(Cannot("it does not".to_owned()).into()),
    }
}

/// What the checks before this one made.
fn all(scene: &Scene) -> Result<String> {
    let counters = scene.conntrack()?;
    let mut expected = vec![redirected(scene)?];
    let each = scene.connections / u64::from(PORTS);
    let outside = |port| SocketAddr::new(OUTSIDE.into(), port);
    let node = |port| SocketAddr::new(NODE_V6.into(), port);
    for to in destinations(OUTSIDE.into()) {
        expected.push(Expected::tcp(to, each, Ends::Any));
    }
    for to in destinations(NODE_V6.into()) {
        expected.push(Expected::tcp(to, each / 10, Ends::Any));
    }
    for port in 0..PORTS {
        expected.push(Expected::udp(outside(7500 + port), each));
    }
    // `tcp_failures.rs`: reset by the client; refused, which ends an entry at once; never answered; answered only as far as the
    // gateway had ports.
    expected.extend([outside(7400), node(7400)].map(|to| Expected::tcp(to, 200, Ends::Any)));
    expected.push(Expected::tcp(outside(7403), 50, Ends::Not));
    expected.push(Expected::tcp(outside(7404), 20, Ends::Not));
    let refused = [outside(7401), node(7401)].map(|to| Expected::tcp(to, 500, Ends::Reset));
    expected.extend(refused);
    counters.expect(&expected).context("while they are in the table")?;
    let total: u64 = expected.iter().map(|expected| expected.inserted).sum();
    Ok(format!("{total} entries to {} destinations in two ways", expected.len()))
}

/// Connects over IPv6 whose destination is translated.
fn redirected(scene: &Scene) -> Result<Expected> {
    let (dialled, to, count) = (SocketAddr::new(NODE_V6.into(), 7452), SocketAddr::new(NODE_V6.into(), 7453), 100);
    let rule = ["PREROUTING", "-p", "tcp", "--dport", "7452", "-j", "REDIRECT", "--to-ports", "7453"];
    scene.node().exec("ip6tables", &[&["-w", "-t", "nat", "-A"], &rule[..]].concat())?;
    let listener = load::listen(scene.node(), to)?;
    for _ in 0..count {
        let client = scene.pod().run(|| TcpStream::connect(dialled).context("connect"))?;
        let (server, _) = listener.accept().context("accept")?;
        drop(client);
        drop(server);
    }
    Ok(Expected::tcp(to, count, Ends::Any))
}

/// Two threads send the first packets of a flow at once. Of two entries one goes in; the other, whose packet got another port,
/// stands beside it for a second and is not to be counted.
fn raced(scene: &Scene) -> Result<String> {
    if std::thread::available_parallelism().context("count CPUs")?.get() < 2 {
        return Err(Cannot("there is one CPU".to_owned()).into());
    }
    let counters = Counters::start(scene.node())?.map_err(Cannot)?;
    let rule = ["POSTROUTING", "-p", "udp", "--dport", "7720", "-j", "MASQUERADE", "--random-fully"];
    scene.node().exec("iptables", &[&["-w", "-t", "nat", "-I"], &rule[..]].concat())?;
    let (to, ports) = (SocketAddr::new(OUTSIDE.into(), 7720), 20_000..21_000);
    let resolved = || statistic(scene.node(), "clash_resolve");
    let before = resolved()?;
    race(scene.pod(), to, ports.clone())?;
    let clashes = resolved()? - before;
    // One by one, and only the flows' own.
    scene.node().exec("sh", &["-c", "conntrack -D -p udp --dport 7720 >/dev/null 2>&1; true"])?;
    let all = u64::try_from(ports.len()).context("count ports")?;
    ensure!(clashes > 0, "none of {all} raced");
    let [best, attempts] = counters.of(Protocol::UDP, to)?;
    ensure!((best.inserted, best.ended_other) == (all, all), "{clashes} of {all} raced: {best:?}");
    // Attempts count them, too; when they end, some are seen twice, which only comparisons with the table mend.
    ensure!(attempts.inserted == all + clashes, "{clashes} of {all} raced: {attempts:?}");
    Ok(format!("{clashes} of {all} raced"))
}

/// What the kernel has counted in a namespace, on all CPUs.
pub(crate) fn statistic(netns: &Netns, name: &str) -> Result<u64> {
    let text = netns.exec("conntrack", &["-S"])?;
    let numbers = text.split_whitespace().filter_map(|word| word.split_once('=')).filter(|(word, _)| *word == name);
    numbers.map(|(_, number)| number.parse::<u64>().with_context(|| format!("read conntrack's {name}"))).sum()
}

/// From each port two datagrams at once.
fn race(client: &Netns, to: SocketAddr, ports: Range<u16>) -> Result<()> {
    for ports in ports.collect::<Vec<_>>().chunks(200) {
        let bind =
            |port: &u16| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, *port)).with_context(|| format!("bind to {port}"));
        let sockets = client.run(|| ports.iter().map(bind).collect::<Result<Vec<_>>>())?;
        let arrived = AtomicUsize::new(0);
        let send = || -> Result<()> {
            for (number, socket) in (1..).zip(&sockets) {
                arrived.fetch_add(1, Ordering::AcqRel);
                while arrived.load(Ordering::Acquire) < 2 * number {
                    std::hint::spin_loop();
                }
                socket.send_to(b"x", to).context("send")?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(send);
            // Whoever fails stops the other, which would wait for ever.
            let mine = send().inspect_err(|_| arrived.store(usize::MAX / 2, Ordering::Release));
            let theirs = other.join().map_err(|_panic| anyhow::anyhow!("a sender panicked"))?;
            mine.and(theirs)
        })?;
    }
    Ok(())
}

fn no_port(scene: &Scene) -> Result<String> {
    let counters = Counters::start(scene.node())?.map_err(Cannot)?;
    // Inside of the NodePort range, which is counted apart.
    let rule = "POSTROUTING -p udp --dport 7710 -j MASQUERADE --to-ports 30000-30007";
    scene.node().exec("sh", &["-c", &format!("iptables -w -t nat -I {rule}")])?;
    let to = SocketAddr::new(OUTSIDE.into(), 7710);
    scene.pod().run(|| {
        for port in 30_100..30_112 {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).context("bind")?;
            socket.send_to(b"x", to).context("send")?;
        }
        Ok(())
    })?;
    let [best, attempts] = counters.of(Protocol::UDP, to)?;
    ensure!((best.inserted, best.node_port_inserted) == (8, 8), "{best:?}");
    if let Some(why) = &counters.best.borrow().no_port_unknown {
        return Err(Cannot(why.to_string()).into());
    }
    ensure!(best.no_port == 4, "{best:?}");
    ensure!(attempts == Counts { born: attempts.born, ..best }, "{attempts:?}");
    scene.node().exec("sh", &["-c", "conntrack -F 2>/dev/null"])?;
    for counts in counters.of(Protocol::UDP, to)? {
        ensure!((counts.ended_other, counts.node_port_ended) == (8, 8), "{counts:?}");
    }
    Ok("4 of 12 found no port, 8 did".to_owned())
}

/// A chain that sees packets after their source was translated, and before they enter the table.
const BEHIND: &str = "add table ip headroom_behind; \
    add chain ip headroom_behind after { type filter hook postrouting priority 300; }; \
    add rule ip headroom_behind after udp dport 7711 drop";

/// They did not go in, and no port was sought for them in vain. Where only entries that go in are seen, the kernel gives the same
/// reason as for those that found no port: the model tells them apart by how many inserts failed.
fn dropped_behind(scene: &Scene) -> Result<String> {
    let counters = Counters::start(scene.node())?.map_err(Cannot)?;
    scene.node().exec("nft", &[BEHIND])?;
    let (to, count) = (SocketAddr::new(OUTSIDE.into(), 7711), 12_u16);
    let before = insert_failed(scene)?;
    let sent = scene.pod().run(|| {
        for port in 30_200..30_200 + count {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).context("bind")?;
            // One that goes in: the first tells the programs that attempts are seen.
            socket.send_to(b"x", SocketAddr::new(OUTSIDE.into(), 7712)).context("send")?;
            socket.send_to(b"x", to).context("send")?;
        }
        Ok(())
    });
    let counted = counters.of(Protocol::UDP, to);
    scene.node().exec("nft", &["delete table ip headroom_behind"])?;
    sent?;
    let failed = insert_failed(scene)? - before;
    ensure!(failed == 0, "{failed} inserts failed");
    let [best, attempts] = counted?;
    ensure!((best.inserted, attempts.inserted, attempts.no_port) == (0, 0, 0), "{best:?} {attempts:?}");
    let blind = counters.best.borrow().counts_attempts || counters.best.borrow().no_port_unknown.is_some();
    let seen = if blind { 0 } else { u64::from(count) };
    ensure!(best.no_port == seen, "{best:?}");
    Ok(format!("{count} of {count} went in nowhere, and no insert failed"))
}

/// Entries that could not be inserted into the node's table since it is there.
fn insert_failed(scene: &Scene) -> Result<u64> {
    let mut source = ConntrackUseSource::new(&HostRoot::live());
    let mut failed = None;
    scene.node().run(|| {
        source.observe(&mut |observation| {
            if let Fact::ConntrackUse(used) = observation.fact {
                failed = used.stats.present().map(|stats| stats.insert_failed);
            }
        });
        Ok(())
    })?;
    failed.context("the statistics of conntrack could not be read")
}
