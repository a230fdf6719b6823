//! Subject `conntrack`: what leaves the table, by how it ended, unmended: against what was made, and what the table showed of it.
//!
//! Everything happens in a table of its own, so that time-outs may run out and the whole table may be emptied.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use headroom_core::flow::Protocol;
use headroom_ebpf_common::conntrack::Counts;
use headroom_lab::conntrack;
use socket2::{Domain, SockRef, Socket, Type};

use crate::check::{Cannot, Check};
use crate::counters::{Counters, Expected, statistic};
use crate::load;
use crate::network::Scene;
use crate::pair::{NOWHERE, OUTSIDE, Pair};
use crate::timers;

pub(crate) const CHECKS: [Check; 2] = [
    Check { name: "counters: what expired or was removed, by how it ended, unmended", run: ended },
    Check { name: "counters: what a full table evicted, unmended", run: evicted },
];

/// How many entries each kind makes to each of its two destinations.
const EACH: u64 = 20;
/// The second destination's port is so much higher: on the way there source ports are translated into the NodePort range.
const INTO_NODE_PORTS: u16 = 100;
/// How long a slow machine may take for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is kept until its entries have left the table.
type Open = Vec<TcpStream>;

/// A way for entries to end.
#[derive(Debug)]
struct Kind {
    protocol: Protocol,
    to: SocketAddr,
    /// Makes one.
    make: fn(&Pair, SocketAddr) -> Result<Open>,
    /// As the table shows it before its end.
    state: &'static str,
    /// How it is counted.
    counter: fn(&mut Counts) -> &mut u64,
}

/// Those whose timers run out.
const EXPIRING: [Kind; 4] = [
    Kind {
        protocol: Protocol::TCP,
        to: SocketAddr::new(OUTSIDE, 8001),
        make: closed,
        state: "TIME_WAIT",
        counter: |counts| &mut counts.ended_time_wait,
    },
    Kind {
        protocol: Protocol::TCP,
        to: SocketAddr::new(OUTSIDE, 8002),
        make: reset,
        state: "CLOSE",
        counter: |counts| &mut counts.ended_reset,
    },
    Kind {
        protocol: Protocol::TCP,
        to: SocketAddr::new(NOWHERE, 8003),
        make: unanswered,
        state: "SYN_SENT",
        counter: |counts| &mut counts.ended_unanswered,
    },
    Kind {
        protocol: Protocol::UDP,
        to: SocketAddr::new(NOWHERE, 8004),
        make: datagram,
        state: "UDP",
        counter: |counts| &mut counts.ended_other,
    },
];

/// Those that somebody removes before.
const REMOVED: [Kind; 3] = [
    Kind {
        protocol: Protocol::UDP,
        to: SocketAddr::new(NOWHERE, 8005),
        make: datagram,
        state: "UDP",
        counter: |counts| &mut counts.ended_other,
    },
    Kind {
        protocol: Protocol::TCP,
        to: SocketAddr::new(OUTSIDE, 8006),
        make: open,
        state: "ESTABLISHED",
        counter: |counts| &mut counts.ended_other,
    },
    Kind {
        protocol: Protocol::TCP,
        to: SocketAddr::new(NOWHERE, 8007),
        make: unanswered,
        state: "SYN_SENT",
        counter: |counts| &mut counts.ended_unanswered,
    },
];

impl Kind {
    /// The second one's entries have source ports in the NodePort range.
    fn destinations(&self) -> [SocketAddr; 2] {
        [self.to, SocketAddr::new(self.to.ip(), self.to.port() + INTO_NODE_PORTS)]
    }

    /// What is to be counted, before its entries' end or after it.
    fn expected(&self, gone: bool) -> [Expected; 2] {
        [(false, 0), (true, EACH)].map(|(into_node_ports, node_ports)| {
            let [elsewhere, inside] = self.destinations();
            let mut counts = Counts { inserted: EACH, node_port_inserted: node_ports, ..Counts::default() };
            if gone {
                *(self.counter)(&mut counts) = EACH;
                counts.node_port_ended = node_ports;
            }
            Expected::exactly(self.protocol, if into_node_ports { inside } else { elsewhere }, counts)
        })
    }
}

fn ended(_: &Scene) -> Result<String> {
    let pair = Pair::build("ends")?;
    translate(&pair)?;
    let counters = Counters::start(&pair.node)?.map_err(Cannot)?;
    let expired = all(&pair, &counters, &EXPIRING, |pair| timers::run_out(&pair.node)).context("expired")?;
    let removed = all(&pair, &counters, &REMOVED, remove).context("removed")?;
    Ok(format!("{expired} that expired, {removed} that were removed, in two ways"))
}

/// Makes entries of each kind, sees them in the table, ends them, and compares before and after.
fn all(pair: &Pair, counters: &Counters, kinds: &[Kind], end: fn(&Pair) -> Result<()>) -> Result<u64> {
    let mut open = Vec::new();
    for kind in kinds {
        for to in kind.destinations() {
            for _ in 0..EACH {
                open.extend((kind.make)(pair, to)?);
            }
        }
    }
    until("table", || {
        let held = table(pair)?;
        let there = |kind: &Kind| {
            let exactly = BTreeMap::from([(kind.state.to_owned(), usize::try_from(EACH)?)]);
            let differs = |to: &SocketAddr| held.get(to) != Some(&exactly);
            let different = kind.destinations().into_iter().find(differs);
            Ok(different.map(|to| format!("of {to} it shows {:?}, not {exactly:?}", held.get(&to))))
        };
        kinds.iter().map(there).find(|different| !matches!(different, Ok(None))).unwrap_or(Ok(None))
    })?;
    let expected = |gone| kinds.iter().flat_map(|kind| kind.expected(gone)).collect::<Vec<_>>();
    counters.expect(&expected(false)).context("while they are in the table")?;
    end(pair)?;
    until("table", || {
        let held = table(pair)?;
        Ok((!held.is_empty()).then(|| format!("it still shows {held:?}")))
    })?;
    counters.expect(&expected(true)).context("when they are gone")?;
    drop(open);
    Ok(2 * EACH * u64::try_from(kinds.len())?)
}

/// Entries by destination and state, as the tool shows them. Whoever reads the table throws out what has expired.
fn table(pair: &Pair) -> Result<BTreeMap<SocketAddr, BTreeMap<String, usize>>> {
    let mut table = BTreeMap::new();
    for protocol in [conntrack::Protocol::Tcp, conntrack::Protocol::Udp] {
        let held = conntrack::held_by_destination(&pair.node, protocol)?;
        table.extend(held.into_iter().map(|(to, held)| (to, held.states)));
    }
    Ok(table)
}

/// Waits until nothing differs.
fn until(what: &str, different: impl Fn() -> Result<Option<String>>) -> Result<()> {
    let began = Instant::now();
    while let Some(why) = different()? {
        ensure!(began.elapsed() < PATIENCE, "{what}: {why}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Source ports on the way to the second destinations come from the NodePort range. No timer runs out by itself.
fn translate(pair: &Pair) -> Result<()> {
    for protocol in ["tcp", "udp"] {
        let rule =
            ["POSTROUTING", "-p", protocol, "--dport", "8101:8199", "-j", "MASQUERADE", "--to-ports", "30000-32767"];
        pair.node.exec("iptables", &[&["-w", "-t", "nat", "-A"], &rule[..]].concat())?;
    }
    for name in ["udp_timeout", "tcp_timeout_time_wait", "tcp_timeout_close", "tcp_timeout_syn_sent"] {
        pair.node.set_sysctl(&format!("net.netfilter.nf_conntrack_{name}"), "900")?;
    }
    Ok(())
}

/// Removes some one by one, and the rest with the whole table.
fn remove(pair: &Pair) -> Result<()> {
    pair.node.exec("conntrack", &["-D", "-p", "udp", "--dport", "8005"])?;
    pair.node.exec("conntrack", &["-F"]).map(drop)
}

/// A connection, both ends.
fn connect(pair: &Pair, to: SocketAddr) -> Result<(TcpStream, TcpStream)> {
    let listener = load::listen(&pair.outside, to)?;
    let client = pair.node.run(|| TcpStream::connect_timeout(&to, load::SOON).context("connect"))?;
    let (server, _) = listener.accept().context("accept")?;
    server.set_read_timeout(Some(PATIENCE)).context("limit the wait for the end")?;
    Ok((client, server))
}

/// Closed by one end, then by the other.
fn closed(pair: &Pair, to: SocketAddr) -> Result<Open> {
    let (client, mut server) = connect(pair, to)?;
    drop(client);
    ensure!(server.read(&mut [0]).context("wait for the end")? == 0, "something was sent");
    Ok(Vec::new())
}

/// Reset by who opened it.
fn reset(pair: &Pair, to: SocketAddr) -> Result<Open> {
    let (client, mut server) = connect(pair, to)?;
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).context("have it reset")?;
    drop(client);
    let ended = server.read(&mut [0]);
    ensure!(ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), "it ended with {ended:?}");
    Ok(Vec::new())
}

/// Stays open.
fn open(pair: &Pair, to: SocketAddr) -> Result<Open> {
    connect(pair, to).map(|(client, server)| vec![client, server])
}

/// One SYN, and nothing after it: whoever closes a socket that was not answered sends nothing more.
fn unanswered(pair: &Pair, to: SocketAddr) -> Result<Open> {
    pair.node.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).context("make a socket")?;
        let begun = socket.connect(&to.into());
        ensure!(
            begun.as_ref().is_err_and(|error| error.raw_os_error() == Some(IN_PROGRESS)),
            "connecting gave {begun:?}"
        );
        Ok(Vec::new())
    })
}

/// `EINPROGRESS` of `include/uapi/asm-generic/errno.h`.
const IN_PROGRESS: i32 = 115;

fn datagram(pair: &Pair, to: SocketAddr) -> Result<Open> {
    pair.node.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("bind")?;
        socket.send_to(b"x", to).context("send").map(|_bytes| Vec::new())
    })
}

/// Hash buckets of a table so small that the eight that the kernel looks through for room are never empty.
const BUCKETS: &str = "512";
/// Entries that it may have.
const ROOM: usize = 300;
/// Flows that want in.
const FLOWS: u16 = 500;

/// A table that is full evicts what has not been answered.
fn evicted(scene: &Scene) -> Result<String> {
    if !scene.throwaway {
        return Err(Cannot("this machine's table is not ours to shrink".to_owned()).into());
    }
    let pair = Pair::build("full")?;
    translate(&pair)?;
    let counters = Counters::start(&pair.node)?.map_err(Cannot)?;
    // The chains of a small table would be too long with what the checks before have left.
    for netns in [scene.node(), scene.gateway()] {
        netns.exec("conntrack", &["-F"])?;
    }
    let [elsewhere, inside] = [8008, 8108].map(|port| SocketAddr::new(NOWHERE, port));
    let sent = {
        let _buckets = Setting::change("/sys/module/nf_conntrack/parameters/hashsize", BUCKETS)?;
        let _room = Setting::change("/proc/sys/net/netfilter/nf_conntrack_max", &ROOM.to_string())?;
        [send(&pair, elsewhere)?, send(&pair, inside)?]
    };
    let early = statistic(&pair.node, "early_drop")?;
    ensure!(early > 0, "nothing was evicted to make room");
    let all: u64 = sent.iter().sum();
    let mut left = 0;
    until("counters", || {
        let held = conntrack::held_by_destination(&pair.node, conntrack::Protocol::Udp)?;
        let mut different = None;
        for (to, sent, into_node_ports) in [(elsewhere, sent[0], false), (inside, sent[1], true)] {
            let held = held.get(&to).and_then(|held| held.states.get("UDP")).copied().unwrap_or_default();
            let ended = sent - u64::try_from(held)?;
            let [node_port_inserted, node_port_ended] = if into_node_ports { [sent, ended] } else { [0, 0] };
            let expected =
                Counts { inserted: sent, ended_other: ended, node_port_inserted, node_port_ended, ..Counts::default() };
            let counted = counters.of(Protocol::UDP, to)?;
            if counted != [expected; 2] {
                different = Some(format!("to {to}: {counted:?}, not {expected:?}"));
            }
        }
        Ok(different)
    })?;
    left += table(&pair)?.values().flat_map(BTreeMap::values).sum::<usize>();
    Ok(format!("{} of {all} entries, {early} of them to make room for one more", all - u64::try_from(left)?))
}

/// Sends flows until the table has long been full. Gives how many went in: who finds no room is told.
fn send(pair: &Pair, to: SocketAddr) -> Result<u64> {
    pair.node.run(|| {
        let mut sent = 0;
        for port in 20_000..20_000 + FLOWS / 2 {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).context("bind")?;
            match socket.send_to(b"x", to) {
                Ok(_bytes) => sent += 1,
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
                Err(error) => return Err(error).context("send"),
            }
        }
        Ok(sent)
    })
}

/// A setting of the whole machine, which is put back.
struct Setting {
    path: &'static str,
    before: String,
}

impl Setting {
    fn change(path: &'static str, value: &str) -> Result<Self> {
        let before = std::fs::read_to_string(path).with_context(|| format!("read `{path}`"))?;
        std::fs::write(path, value).with_context(|| format!("write `{value}` to `{path}`"))?;
        Ok(Self { path, before })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        // The machine is thrown away.
        drop(std::fs::write(self.path, self.before.trim()));
    }
}
