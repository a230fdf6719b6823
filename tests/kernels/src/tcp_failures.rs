//! Subject `tcp`: connections that end badly, and connects that come to nothing.

use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use headroom_core::observe::TcpCounter;

use crate::check::{Cannot, Check};
use crate::load::{self, SOON, Tried};
use crate::network::{NODE_V6, OUTSIDE, Scene};

pub(crate) const CHECKS: [Check; 8] = [
    Check { name: "tcp: resets are told from orderly ends", run: resets },
    Check { name: "tcp: refused connects are counted", run: refused },
    Check { name: "tcp: connects without a local port are counted", run: no_local_port },
    Check { name: "tcp: unanswered connects and their repeated SYNs are counted", run: unanswered },
    Check { name: "tcp: connects that time out are told from those given up", run: timed_out },
    Check { name: "tcp: connects that find no way are counted", run: unreachable },
    Check { name: "tcp: connects that get no port of a NAT are counted", run: dry_nat },
    Check { name: "tcp: SYNs that the own namespace drops are seen when sent again", run: dropped_at_home },
];

/// Long enough for a SYN to be sent again, after one second; the next would be two seconds later.
const UNANSWERED: Duration = Duration::from_millis(2200);

fn outside(port: u16) -> SocketAddr {
    SocketAddr::new(OUTSIDE.into(), port)
}

/// Rules of a namespace that go when this is dropped.
struct Rule<'a> {
    netns: &'a headroom_lab::Netns,
    rule: Vec<&'a str>,
}

impl<'a> Rule<'a> {
    fn insert(netns: &'a headroom_lab::Netns, table: &'a str, rule: &[&'a str]) -> Result<Self> {
        let rule = Self { netns, rule: [&["-t", table], rule].concat() };
        rule.iptables("-I")?;
        Ok(rule)
    }

    fn iptables(&self, how: &str) -> Result<()> {
        let (table, chain) = self.rule.split_at(2);
        self.netns.exec("iptables", &[&["-w"], table, &[how], chain].concat()).map(drop)
    }
}

impl Drop for Rule<'_> {
    fn drop(&mut self) {
        // The namespace goes soon anyway.
        drop(self.iptables("-D"));
    }
}

fn resets(scene: &Scene) -> Result<String> {
    let count = 200;
    for address in [IpAddr::from(OUTSIDE), NODE_V6.into()] {
        let to = SocketAddr::new(address, 7400);
        let listener = load::listen(scene.server_of(address), to)?;
        for _ in 0..count {
            let client = scene.pod().run(|| TcpStream::connect(to).context("connect"))?;
            let (mut server, _) = listener.accept().context("accept")?;
            server.write_all(b"x").context("send")?;
            // Closing with unread bytes sends a reset.
            client.peek(&mut [0]).context("wait for a byte")?;
        }
        scene.expect(&[TcpCounter { attempted: count, opened: count, reset: count, ..scene.nothing(to) }])?;
    }
    Ok(format!("{} of {}", 2 * count, 2 * count))
}

fn refused(scene: &Scene) -> Result<String> {
    let (rounds, each) = (20, 25);
    for address in [IpAddr::from(OUTSIDE), NODE_V6.into()] {
        let to = SocketAddr::new(address, 7401);
        let mut refused = 0;
        for _ in 0..rounds {
            refused += load::try_all(scene.pod(), to, each, SOON)?.refused;
        }
        ensure!(refused == rounds * each, "{refused} were refused");
        scene.expect(&[TcpCounter { attempted: refused, refused, ..scene.nothing(to) }])?;
    }
    Ok(format!("{} of {}", 2 * rounds * each, 2 * rounds * each))
}

fn no_local_port(scene: &Scene) -> Result<String> {
    let to = outside(7402);
    let _listener = load::listen(scene.outside(), to)?;
    let sysctl = "net.ipv4.ip_local_port_range";
    let default = scene.pod().sysctl(sysctl)?;
    scene.pod().set_sysctl(sysctl, "61002 61005")?;
    let connect = || scene.pod().run(|| TcpStream::connect(to).context("connect"));
    let open: Vec<_> = (0..4).map(|_| connect()).collect();
    let without = (0..6).filter(|_| connect().is_err()).count();
    scene.pod().set_sysctl(sysctl, &default)?;
    let opened = open.iter().filter(|stream| stream.is_ok()).count();
    ensure!((opened, without) == (4, 6), "{opened} of 4 opened, {without} of 6 without a port");
    scene.expect(&[TcpCounter { attempted: 10, opened: 4, no_local_port: 6, ..scene.nothing(to) }])?;
    Ok("6 of 6".to_owned())
}

/// Connects while something keeps SYNs or their answers away; gives what became of them and the SYNs sent again.
fn without_answer(scene: &Scene, to: SocketAddr, count: u64) -> Result<(Tried, u64)> {
    let before = load::syns_sent_again(scene.pod())?;
    let tried = load::try_all(scene.pod(), to, count, UNANSWERED)?;
    let again = load::syns_sent_again(scene.pod())? - before;
    ensure!(again >= tried.unanswered, "{again} SYNs of {} were sent again", tried.unanswered);
    Ok((tried, again))
}

fn unanswered(scene: &Scene) -> Result<String> {
    let (to, count) = (outside(7403), 50);
    let _rule = Rule::insert(scene.gateway(), "filter", &["FORWARD", "-p", "tcp", "--dport", "7403", "-j", "DROP"])?;
    let (tried, again) = without_answer(scene, to, count)?;
    ensure!(tried.unanswered == count, "{} of {count} were unanswered", tried.unanswered);
    scene.expect(&[TcpCounter { attempted: count, given_up: count, syn_retransmitted: again, ..scene.nothing(to) }])?;
    Ok(format!("{count} of {count}, {again} of {again} SYNs"))
}

/// With one SYN sent again a connect times out after three seconds, not after two minutes.
fn timed_out(scene: &Scene) -> Result<String> {
    let (to, count) = (outside(7406), 20);
    let _rule = Rule::insert(scene.gateway(), "filter", &["FORWARD", "-p", "tcp", "--dport", "7406", "-j", "DROP"])?;
    // Since 6.5 there are others before those that are counted.
    let shorter = [("net.ipv4.tcp_syn_retries", "1"), ("net.ipv4.tcp_syn_linear_timeouts", "0")];
    let defaults: Vec<_> = shorter.iter().map(|(sysctl, _)| scene.pod().sysctl(sysctl).ok()).collect();
    let known = || shorter.iter().zip(&defaults).filter_map(|(set, default)| Some((set, default.as_ref()?)));
    known().try_for_each(|((sysctl, short), _)| scene.pod().set_sysctl(sysctl, short))?;
    let before = load::syns_sent_again(scene.pod())?;
    let (began, tried) = (std::time::Instant::now(), load::try_all(scene.pod(), to, count, SOON));
    let took = began.elapsed();
    known().try_for_each(|((sysctl, _), default)| scene.pod().set_sysctl(sysctl, default))?;
    let tried = tried?;
    ensure!(took < SOON, "nothing timed out within {} s", SOON.as_secs());
    ensure!(tried.unanswered == count, "{} of {count} timed out", tried.unanswered);
    let again = load::syns_sent_again(scene.pod())? - before;
    scene.expect(&[TcpCounter {
        attempted: count,
        timed_out: count,
        syn_retransmitted: again,
        ..scene.nothing(to)
    }])?;
    Ok(format!("{count} of {count}, {again} of {again} SYNs"))
}

/// Few: the kernel answers no more than a handful of packets at once with an error. And they wait: the first answer may come while
/// the socket is still being dialled, which notes it only (`sock_owned_by_user` in `tcp_v4_err`, `net/ipv4/tcp_ipv4.c`); whoever asks
/// for it then and closes has given up.
fn unreachable(scene: &Scene) -> Result<String> {
    let (to, count) = (outside(7407), 3);
    let rule = ["FORWARD", "-p", "tcp", "--dport", "7407", "-j", "REJECT", "--reject-with", "icmp-host-prohibited"];
    let _rule = Rule::insert(scene.gateway(), "filter", &rule)?;
    for number in 0..count {
        let connected = scene.pod().run(|| Ok(TcpStream::connect(to)))?;
        let error = connected.err().context("a connect found its way")?;
        ensure!(error.kind() == ErrorKind::HostUnreachable, "connect {number}: {error}");
    }
    // Those that were answered too early are sent again.
    let again = scene.counters()?.into_values().find(|counter| counter.destination == scene.nothing(to).destination);
    let syn_retransmitted = again.map_or(0, |counter| counter.syn_retransmitted);
    let expected = TcpCounter { attempted: count, unreachable: count, syn_retransmitted, ..scene.nothing(to) };
    scene.expect(&[expected])?;
    Ok(format!("{count} of {count}"))
}

fn dry_nat(scene: &Scene) -> Result<String> {
    let (to, ports, count) = (outside(7404), 8, 20);
    let rule =
        ["POSTROUTING", "-o", "outside", "-p", "tcp", "--dport", "7404", "-j", "MASQUERADE", "--to-ports", "1024-1031"];
    let _rule = Rule::insert(scene.gateway(), "nat", &rule)?;
    let listener = load::listen(scene.outside(), to)?;
    let (tried, again) = without_answer(scene, to, count)?;
    let opened = u64::try_from(tried.open.len()).context("count")?;
    let given_up = tried.unanswered;
    ensure!(
        (opened, given_up) == (ports, count - ports),
        "a NAT with {ports} ports let {opened} through, and {given_up} of {count} were unanswered"
    );
    scene.expect(&[TcpCounter {
        attempted: count,
        opened,
        given_up,
        syn_retransmitted: again,
        ..scene.nothing(to)
    }])?;
    drop(tried);
    // Ends the other half, too: a socket whose FIN is acknowledged while another CPU is still closing it waits a minute for it
    // (`sock_owned_by_user` in FIN_WAIT1, `net/ipv4/tcp_input.c`), instead of becoming a TIME_WAIT at once.
    drop(listener);
    scene.expect(&[TcpCounter {
        attempted: count,
        opened,
        given_up,
        closed: opened,
        syn_retransmitted: again,
        ..scene.nothing(to)
    }])?;
    Ok(format!("{opened} opened and {given_up} failed of {count}, {again} of {again} SYNs"))
}

fn dropped_at_home(scene: &Scene) -> Result<String> {
    let (to, count) = (outside(7405), 20);
    let _rule = Rule::insert(scene.pod(), "filter", &["OUTPUT", "-p", "tcp", "--dport", "7405", "-j", "DROP"])?;
    let (tried, again) = without_answer(scene, to, count)?;
    ensure!(tried.unanswered == count, "{} of {count} were unanswered", tried.unanswered);
    let silent = TcpCounter { attempted: count, given_up: count, ..scene.nothing(to) };
    match scene.expect_one_of(&[&[TcpCounter { syn_retransmitted: again, ..silent }], &[silent]])? {
        0 => Ok(format!("{again} of {again} SYNs")),
        _ => Err(Cannot(format!("none of {again} SYNs was seen")).into()),
    }
}
