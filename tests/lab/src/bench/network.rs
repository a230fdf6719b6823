//! The shortest way out of a pod: pod, node with MASQUERADE, outside. A second translation would hide what one costs.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::lab::Lab;
use crate::nat::{NODE_ADDRESS, PlainPod, masquerade_on_node, plain_pod};
use crate::netns::{Netns, veth};
use crate::process::Process;
use crate::traffic::{Burst, Sink, Statistics};

/// The first address of the outside that answers; 65,536 do (198.18.0.0/15 is reserved for benchmarks, RFC 2544).
const ANSWERS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The first address where packets vanish.
const VANISHES: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
/// How many destinations the load has.
const LOAD_DESTINATIONS: u32 = 64;
/// Longer than any of this takes.
const PATIENCE: Duration = Duration::from_secs(300);

/// The three namespaces, wired, and the outside's server.
#[derive(Debug)]
pub(super) struct Network {
    _sink: Process,
    pod: PlainPod,
    /// How many pods there have been.
    pods: u8,
    pub(super) node: Netns,
    _outside: Netns,
}

impl Network {
    /// Where the load goes.
    pub(super) const PORT: u16 = 443;

    pub(super) fn build(lab: &Lab) -> Result<Self> {
        let (node, outside) = (Netns::add(lab, "node")?, Netns::add(lab, "outside")?);
        veth((&node, "eth0"), (&outside, "eth0"))?;
        node.add_address("eth0", &format!("{NODE_ADDRESS}/24"))?;
        outside.add_address("eth0", "10.0.0.1/24")?;
        node.add_route(&["default", "via", "10.0.0.1"])?;
        node.set_sysctl("net.ipv4.ip_forward", "1")?;
        // On a loopback the whole of a prefix is local.
        outside.add_address("lo", &format!("{ANSWERS}/16"))?;
        outside.add_route(&["blackhole", "198.19.0.0/16"])?;
        masquerade_on_node(&node, false)?;
        let pod = new_pod(&node, 0)?;
        let sink = Sink { bind: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, Self::PORT), threads: 4 }.start(&outside)?;
        Ok(Self { _sink: sink, pod, pods: 1, node, _outside: outside })
    }

    fn load(&self, count: u64, rate: f64) -> Burst {
        Burst {
            to: SocketAddrV4::new(ANSWERS, Self::PORT),
            destinations: LOAD_DESTINATIONS,
            count,
            rate,
            threads: 4,
            udp: false,
        }
    }

    /// Opens that many connections, and waits for the last to close.
    pub(super) fn burst(&self, count: u64, rate: f64) -> Result<Statistics> {
        done(&self.load(count, rate), &self.pod.netns)
    }

    /// A load that goes on beside what is measured.
    pub(super) fn load_in_background(&self, count: u64, rate: f64) -> Result<crate::traffic::Generator> {
        self.load(count, rate).start(&self.pod.netns)
    }

    /// Fills the node's table: half of the destinations by a TCP connection each, all other entries by datagrams.
    pub(super) fn fill(&self, entries: u32, destinations: u32) -> Result<()> {
        // A table that is nearly full would be one more finding; its limit is the whole machine's.
        self.node
            .lab()
            .raise_machine_setting("net.netfilter.nf_conntrack_max", u64::from(entries) * 100 / 95 + 1_000)?;
        let half = destinations / 2;
        let tcp = Burst { destinations: half, ..self.load(half.into(), 0.0) };
        done(&tcp, &self.pod.netns)?;
        let count = u64::from(entries.saturating_sub(half));
        let to = SocketAddrV4::new(VANISHES, Self::PORT);
        done(&Burst { to, destinations: half, count, rate: 0.0, threads: 1, udp: true }, &self.pod.netns)?;
        let there: u32 = self.node.sysctl("net.netfilter.nf_conntrack_count")?.parse()?;
        if there < entries / 100 * 99 {
            bail!("the node's table has {there} of {entries} entries");
        }
        Ok(())
    }

    /// Gives every measurement the same beginning: an empty table, and a pod without sockets in TIME_WAIT.
    pub(super) fn renew(&mut self) -> Result<()> {
        let pod = new_pod(&self.node, self.pods % 100)?;
        self.pods = self.pods.wrapping_add(1);
        let old = std::mem::replace(&mut self.pod, pod);
        let address = old.address.to_string();
        drop(old);
        // The kernel takes a namespace down in its own time.
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.node.ip(&["route", "show", &address])?.contains(&address) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.flush()
    }

    /// Empties the node's table.
    pub(super) fn flush(&self) -> Result<()> {
        self.node.exec("conntrack", &["-F"]).map(drop)
    }

    /// How long the node's table remembers what has ended, and datagrams.
    pub(super) fn remember(&self, ended: Duration, datagrams: Duration) -> Result<()> {
        for (name, value) in [
            ("tcp_timeout_time_wait", ended),
            ("tcp_timeout_close", ended),
            ("udp_timeout", datagrams),
            ("udp_timeout_stream", datagrams),
        ] {
            self.node.set_sysctl(&format!("net.netfilter.nf_conntrack_{name}"), &value.as_secs().to_string())?;
        }
        Ok(())
    }
}

fn new_pod(node: &Netns, number: u8) -> Result<PlainPod> {
    let pod = plain_pod(node, number)?;
    // Ports, and room for those in TIME_WAIT, for some minutes of load; a lost SYN must not cost a minute.
    pod.netns.set_sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
    pod.netns.set_sysctl("net.ipv4.tcp_max_tw_buckets", "1000000")?;
    pod.netns.set_sysctl("net.ipv4.tcp_syn_retries", "2")?;
    Ok(pod)
}

fn done(burst: &Burst, from: &Netns) -> Result<Statistics> {
    let statistics = burst.start(from)?.wait(PATIENCE)?;
    if statistics.failed * 1000 > statistics.attempted {
        bail!("{} of {} connections failed", statistics.failed, statistics.attempted);
    }
    Ok(statistics)
}
