//! Demand as headroom estimates it, against the gateway's own table: the scene and its mixed load. [`compare`] judges.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::conntrack::{self, Protocol};
use crate::lab::Lab;
use crate::nat::{NatLab, NatOptions, OUTSIDE_V6, Timeouts};
use crate::netns::Netns;
use crate::traffic::{Connect, Generator, Serve, Server};

mod compare;

pub use compare::{Comparison, Errors, compare};

const TARGET: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 7), 443);
const REFUSING: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 7), 81);
const SILENT: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 7), 444);
const RESETTING: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 8), 443);
const DATAGRAMS: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 9), 443);

/// Shorter holds than Cloud NAT's, so that ports are taken and given back while somebody looks.
pub const TIMES: Timeouts = Timeouts {
    tcp_established: Duration::from_secs(1200),
    tcp_time_wait: Duration::from_secs(12),
    tcp_transitory: Duration::from_secs(6),
    tcp_close: Duration::from_secs(5),
    udp: Duration::from_secs(10),
};
/// Connections that are there before headroom is.
const BEFORE: u64 = 10;
/// How long these may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Protocol and destination.
pub type Key = (Protocol, SocketAddr);
/// Ports per destination.
pub type Ports = BTreeMap<Key, i64>;

/// What the gateway's own table held at some moment between two.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Milliseconds since 1970.
    pub begin: i64,
    pub end: i64,
    pub ports: Ports,
}

/// The gateway, the servers, and connections that are there already.
#[derive(Debug)]
pub struct Scene {
    pub nat: NatLab,
    _server: Server,
    _before: Generator,
}

impl Scene {
    /// Builds it with [`TIMES`].
    pub fn build(lab: &Lab) -> Result<Self> {
        let options = NatOptions { pods: 2, ports: 1024..=65535, timeouts: TIMES, ..NatOptions::default() };
        let nat = NatLab::build(lab, &options)?;
        nat.add_ipv6()?;
        nat.silence(SILENT.1)?;
        let tcp = [TARGET.into(), RESETTING.into(), untranslated()];
        let server = Server::start(&nat.outside, &Serve { udp: vec![DATAGRAMS.into()], ..Serve::tcp(tcp) })?;
        let one = &nat.pods.first().context("find the first pod")?.netns;
        let before = Generator::start(one, &Connect::tcp(TARGET.into(), BEFORE, Duration::from_secs(40)))?;
        let until = Instant::now() + PATIENCE;
        while u64::try_from(nat.gateway_held(Protocol::Tcp, TARGET.into())?.ports)? < BEFORE {
            ensure!(Instant::now() < until, "the first connections take longer than {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Self { nat, _server: server, _before: before })
    }

    /// Short ones like HTTP's, long-lived, refused, reset, unanswered, UDP requests, and IPv6 that nobody translates: some ten
    /// a second for that many seconds, as long as what is returned lives.
    pub fn mixed_load(&self, seconds: u32) -> Result<Vec<Generator>> {
        let mut pods = self.nat.pods.iter().map(|pod| &pod.netns);
        let (one, two) = (pods.next().context("find the first pod")?, pods.next().context("find the second pod")?);
        let (millis, secs) = (Duration::from_millis, Duration::from_secs);
        let loads: [(&Netns, f64, Connect); 7] = [
            (two, 4.0, Connect { talk: true, ..Connect::tcp(TARGET.into(), 0, millis(50)) }),
            (two, 1.0, Connect { talk: true, ..Connect::tcp(TARGET.into(), 0, secs(15)) }),
            (one, 1.0, Connect { reset: true, ..Connect::tcp(RESETTING.into(), 0, millis(300)) }),
            (one, 1.0, Connect::tcp(REFUSING.into(), 0, millis(0))),
            (two, 0.5, Connect::tcp(SILENT.into(), 0, millis(0))),
            (one, 2.0, Connect::udp(DATAGRAMS.into(), 0, millis(100))),
            (one, 1.0, Connect { talk: true, ..Connect::tcp(untranslated(), 0, secs(5)) }),
        ];
        let start = |(netns, rate, connect): (&Netns, f64, Connect)| {
            // Started apart, so that no four connects fall into the same moment.
            std::thread::sleep(millis(130));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred")]
            let count = (rate * f64::from(seconds)) as u64;
            Generator::start(netns, &Connect { rate, count, timeout: millis(1500), ..connect })
        };
        loads.into_iter().map(start).collect()
    }

    /// Reads the gateway's table again and again, once more after it was told to stop.
    pub fn follow_gateway(&self, pause: Duration, stop: &AtomicBool) -> Result<Vec<Reading>> {
        let mut readings = Vec::new();
        loop {
            let last = stop.load(Ordering::Relaxed);
            let begin = millis_now()?;
            let mut ports = Ports::new();
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for (destination, held) in conntrack::held_by_destination(&self.nat.gateway, protocol)? {
                    ports.insert((protocol, destination), i64::try_from(held.ports)?);
                }
            }
            readings.push(Reading { begin, end: millis_now()?, ports });
            if last {
                return Ok(readings);
            }
            std::thread::sleep(pause);
        }
    }
}

/// Whether a report tells of everything that the load did: ports that were taken, connects that were refused, and IPv6 that
/// does not count.
pub fn check_load(comparison: &Comparison, last: &Value, seconds: u32) -> Result<()> {
    let tcp = [TARGET, SILENT, RESETTING].map(|at| (Protocol::Tcp, at.into()));
    for key in tcp.into_iter().chain([(Protocol::Udp, DATAGRAMS.into())]) {
        let busiest = comparison.destinations.get(&key).map_or(0, |errors| errors.busiest);
        ensure!(busiest >= 3, "{busiest} ports were taken for {}/{}", key.1, key.0);
    }
    let rows = last.pointer("/nat/destinations").and_then(Value::as_array).context("find the destinations")?;
    let row = |address: IpAddr, port: u16| {
        rows.iter()
            .find(|row| row["address"] == address.to_string() && row["port"] == port)
            .with_context(|| format!("{address}:{port} is not listed in {last}"))
    };
    let refusing = row(REFUSING.0.into(), REFUSING.1)?;
    let refused = refusing["refused_total"].as_u64().unwrap_or_default();
    ensure!(refused >= u64::from(seconds / 2), "{refused} refused: {refusing}");
    let untranslated = row(untranslated().ip(), untranslated().port())?;
    ensure!(untranslated["in_scope"] == false, "{untranslated}");
    ensure!(untranslated["held"].as_u64().unwrap_or_default() >= 3, "{untranslated}");
    Ok(())
}

fn untranslated() -> SocketAddr {
    SocketAddr::new(OUTSIDE_V6.into(), 443)
}

fn millis_now() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}
