//! What conntrack costs the agent where the kernel counts for it, against where it hears of flows: in one run, of the same load;
//! and what the probes cost that run for somebody else's namespace. `cargo xtask kernels --only 6.12 --cost`.
//!
//! No check: an emulated machine's times mean nothing, and only their ratios are shown.

use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use headroom_core::known::Known;
use headroom_core::ledger::{Ledger, LedgerLimits};
use headroom_core::ports::PortRange;
use headroom_host::ebpf::conntrack::{Conntrack, Subject};
use headroom_host::ebpf::{CT_INSERT, count_runs};
use headroom_host::netlink::socket::EVENT_BUFFER_BYTES;
use headroom_host::root::HostRoot;
use headroom_host::source::Source as _;
use headroom_host::source::conntrack::{ConntrackSource, DUMPING, Options};

use crate::conntrack::how;
use crate::load;
use crate::pair::{NOWHERE, OUTSIDE, Pair};

pub(crate) const NAME: &str = "cost: the kernel's counters against events and dumps";

const ROUNDS: u32 = 3;
/// How long an agent looks before it is measured: its first dumps come sooner than later ones.
const SETTLE: Duration = Duration::from_secs(8);
/// How long it is measured …
const SPAN: Duration = Duration::from_secs(20);
/// … while so many datagrams, each a flow, and a quarter as many connections come in so long.
const FLOWS: u32 = 20;
const EVERY: Duration = Duration::from_millis(100);
/// Flows by which single runs are measured.
const RUNS: u16 = 2000;

/// Measures; gives what there is to read.
pub(crate) fn measure() -> Result<(String, Vec<String>)> {
    let mut notes = vec![whose()?];
    let pair = Pair::build("cost")?;
    translate(&pair)?;
    let mut ratios = Vec::new();
    for round in 1..=ROUNDS {
        let [counted, heard] = [65_536, 0].map(|max_keys| agent_cpu(&pair, max_keys));
        let ((counted, flows), (heard, of)) = (counted?, heard?);
        let per_flow = [counted.as_secs_f64() / f64::from(flows), heard.as_secs_f64() / f64::from(of)];
        let ratio = per_flow[0] / per_flow[1];
        notes.push(format!("round {round}: {ratio:.2} × ({flows} flows, then {of})"));
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(ratios.len() / 2).context("measure at least once")?;
    Ok((format!("agent CPU per flow {median:.2} × of what it is with events and dumps"), notes))
}

fn translate(pair: &Pair) -> Result<()> {
    pair.node.exec("iptables", &["-w", "-t", "nat", "-A", "POSTROUTING", "-o", "out0", "-j", "MASQUERADE"]).map(drop)
}

/// CPU time of an agent while flows come, and how many came.
fn agent_cpu(pair: &Pair, max_keys: u32) -> Result<(Duration, u32)> {
    let program = std::env::current_exe().context("find this program")?;
    let agent = pair.node.spawn(pair.node.command(program, &["--agent", &max_keys.to_string()]))?;
    let wanted = if max_keys > 0 { "by the kernel's counters" } else { "by events" };
    agent.wait_for_line(wanted, load::SOON)?;
    make_flows(pair, SETTLE)?;
    let before = cpu(agent.pid())?;
    let flows = make_flows(pair, SPAN)?;
    let took = cpu(agent.pid())?.saturating_sub(before);
    drop(agent);
    pair.node.exec("conntrack", &["-F"])?;
    Ok((took, flows))
}

/// Makes flows for so long, at a steady rate; gives how many.
fn make_flows(pair: &Pair, span: Duration) -> Result<u32> {
    let (to, nowhere) = (SocketAddr::new(OUTSIDE, 8200), SocketAddr::new(NOWHERE, 8201));
    let listener = load::listen(&pair.outside, to)?;
    pair.node.run(|| {
        let (began, mut made, mut due) = (Instant::now(), 0, Duration::ZERO);
        while began.elapsed() < span {
            for number in 0..FLOWS {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("bind")?;
                socket.send_to(b"x", nowhere).context("send")?;
                made += 1;
                if number % 4 == 0 {
                    let client = TcpStream::connect_timeout(&to, load::SOON).context("connect")?;
                    drop(listener.accept().context("accept")?);
                    drop(client);
                    made += 1;
                }
            }
            due += EVERY;
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
        Ok(made)
    })
}

/// CPU time of a process with one thread, as the scheduler counts it.
fn cpu(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/schedstat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read `{path}`"))?;
    let nanos = text.split_whitespace().next().context("find a time")?;
    Ok(Duration::from_nanos(nanos.parse().context("read a time")?))
}

/// An agent's source of conntrack, as on a node where TCP is counted, until it is killed: `--agent`.
pub(crate) fn agent(max_keys: u32) -> Result<()> {
    let options = Options {
        dump_interval: Duration::from_secs(1),
        dumping: DUMPING,
        tcp_is_counted: true,
        node_ports: PortRange::NODE_PORTS,
        max_keys,
        event_buffer_bytes: EVENT_BUFFER_BYTES,
    };
    let mut source = ConntrackSource::start(&HostRoot::live(), options);
    let mut ledger = Ledger::new(LedgerLimits::default());
    source.observe(&mut |observation| ledger.apply(observation));
    use std::io::Write as _;
    let mut out = std::io::stdout();
    writeln!(out, "{}", how(&source)).and_then(|()| out.flush()).context("say how it looks")?;
    loop {
        std::thread::sleep(Duration::from_millis(100));
        source.observe(&mut |observation| ledger.apply(observation));
    }
}

/// A run of the probe for an entry of another namespace, against one for an entry of its own.
fn whose() -> Result<String> {
    let (ours, theirs) = (Pair::build("ours")?, Pair::build("theirs")?);
    for pair in [&ours, &theirs] {
        translate(pair)?;
    }
    let namespace = u32::try_from(ours.node.inode()?).context("number a namespace")?;
    let subject = Subject { namespace, node_ports: PortRange::NODE_PORTS, max_keys: 4096 };
    let counters = Conntrack::load(&HostRoot::live(), subject).map_err(|error| anyhow::anyhow!("{}", error.why()))?;
    let _counting = count_runs().map_err(|why| anyhow::anyhow!("{why}"))?;
    let so_far = || match counters.runs(CT_INSERT) {
        Known::Present(runs) => Ok((runs.count, runs.time_ns)),
        other => Err(anyhow::anyhow!("runs are not known: {other:?}")),
    };
    let mut nanos = Vec::new();
    // Its own first: the namespace is known from then on.
    for pair in [&ours, &theirs] {
        send(pair, 0..100)?;
        let before = so_far()?;
        send(pair, 100..100 + RUNS)?;
        let after = so_far()?;
        let (runs, time_ns) = (after.0 - before.0, after.1 - before.1);
        ensure!(runs >= u64::from(RUNS), "{runs} runs for {RUNS} flows");
        nanos.push(Duration::from_nanos(time_ns).as_secs_f64() / Duration::from_nanos(runs).as_secs_f64());
    }
    let [own, other] = <[f64; 2]>::try_from(nanos).map_err(|nanos| anyhow::anyhow!("{nanos:?} are not two"))?;
    Ok(format!("a run of ct_insert for another namespace: {:.2} × of one for its own", other / own))
}

fn send(pair: &Pair, ports: std::ops::Range<u16>) -> Result<()> {
    pair.node.run(|| {
        for port in ports {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 20_000 + port)).context("bind")?;
            socket.send_to(b"x", (NOWHERE, 8202)).context("send")?;
        }
        Ok(())
    })
}
