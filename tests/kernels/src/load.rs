//! Connections made as fast as emulation lets: plain threads and blocking calls, and an account of what they did.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use headroom_lab::Netns;
use socket2::{Domain, Socket, Type};

/// For connects that are answered at once, and with a slow machine in mind.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// Connects that may wait to be accepted: less than the shortest queue, so that no SYN is dropped.
const WAITING: u64 = 64;

/// Listens in a namespace.
pub(crate) fn listen(netns: &Netns, at: SocketAddr) -> Result<TcpListener> {
    netns.run(|| TcpListener::bind(at).with_context(|| format!("listen at {at}")))
}

/// Opens and closes connections one after the other, each of them answered; an error if one is not. Gives the source ports
/// they had: fewer than connections, where the kernel gave one again.
pub(crate) fn open_and_close(client: &Netns, server: &Netns, to: SocketAddr, count: u64) -> Result<BTreeSet<u16>> {
    let listener = listen(server, to)?;
    listener.set_nonblocking(true).context("make accepting not wait")?;
    let (accepted, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let accept = scope.spawn(|| -> io::Result<()> {
            // What is still in the queue at the end is closed with the listener.
            while !done.load(Ordering::Relaxed) || accepted.load(Ordering::Relaxed) < count {
                match listener.accept() {
                    Ok(connection) => {
                        drop(connection);
                        accepted.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
        let ports = client.run(|| {
            let mut ports = BTreeSet::new();
            for opened in 0..count {
                let stream = TcpStream::connect_timeout(&to, SOON)
                    .with_context(|| format!("connect to {to} after {opened} times"))?;
                ports.insert(stream.local_addr().context("ask for the source port")?.port());
                drop(stream);
                while opened.saturating_sub(accepted.load(Ordering::Relaxed)) > WAITING && !accept.is_finished() {
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
            Ok(ports)
        });
        done.store(true, Ordering::Relaxed);
        accept.join().map_err(|_panic| anyhow::anyhow!("the server panicked"))?.context("accept")?;
        ports
    })
}

/// What became of connects that were begun at the same time.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    /// Answered, and still open.
    pub(crate) open: Vec<TcpStream>,
    /// Answered with a reset.
    pub(crate) refused: u64,
    /// Given up without an answer.
    pub(crate) unanswered: u64,
}

/// Begins that many connects at the same time, and waits for each as long as given.
pub(crate) fn try_all(client: &Netns, to: SocketAddr, count: u64, patience: Duration) -> Result<Tried> {
    client.run(|| {
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..count).map(|_| scope.spawn(|| TcpStream::connect_timeout(&to, patience))).collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        let mut tried = Tried::default();
        for result in results {
            match result.map_err(|_panic| anyhow::anyhow!("a client panicked"))? {
                Ok(stream) => tried.open.push(stream),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => tried.refused += 1,
                Err(error) if error.kind() == ErrorKind::TimedOut => tried.unanswered += 1,
                Err(error) => return Err(error).with_context(|| format!("connect to {to}")),
            }
        }
        Ok(tried)
    })
}

/// How often a datagram is sent at most.
const SENDS: u32 = 5;

/// Sends a datagram from each of that many source ports to each destination, a UDP flow each, and sees it arrive: faster than
/// that the kernel's queues overflow on the way, and a flow that was never there would be missed. What is lost all the same is
/// sent again, in the same flow.
pub(crate) fn send(client: &Netns, server: &Netns, to: &[SocketAddr], ports: std::ops::Range<u16>) -> Result<()> {
    let listen = |at: &SocketAddr| -> Result<UdpSocket> {
        let socket = UdpSocket::bind(at).with_context(|| format!("bind to {at}"))?;
        socket.set_read_timeout(Some(Duration::from_secs(2))).context("limit the wait for a datagram")?;
        Ok(socket)
    };
    let servers = server.run(|| to.iter().map(listen).collect::<Result<Vec<_>>>())?;
    client.run(|| {
        for port in ports {
            let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, port))
                .with_context(|| format!("bind to UDP port {port}"))?;
            for destination in to {
                socket.send_to(b"x", destination).with_context(|| format!("send from {port} to {destination}"))?;
            }
            for (server, at) in servers.iter().zip(to) {
                let mut tries = 1;
                while let Err(error) = server.recv(&mut [0]) {
                    if tries == SENDS {
                        return Err(error).with_context(|| format!("wait at {at} for a datagram from port {port}"));
                    }
                    tries += 1;
                    socket.send_to(b"x", at).with_context(|| format!("send again from {port} to {at}"))?;
                }
            }
        }
        Ok(())
    })
}

/// Begins connects that nobody answers, many at a time, so that addresses of earlier sockets are taken again.
pub(crate) fn reuse_sockets(client: &Netns) -> Result<()> {
    client.run(|| {
        for domain in [Domain::IPV4, Domain::IPV6] {
            let nowhere: SocketAddr = match domain {
                Domain::IPV4 => (Ipv4Addr::LOCALHOST, 1).into(),
                _ => (Ipv6Addr::LOCALHOST, 1).into(),
            };
            let sockets: io::Result<Vec<_>> =
                (0..500).map(|_| Socket::new(domain, Type::STREAM.nonblocking(), None)).collect();
            for socket in &sockets.context("make sockets")? {
                // Refused, now or in a moment.
                drop(socket.connect(&nowhere.into()));
            }
        }
        Ok(())
    })
}

/// SYNs that a namespace sent again, as the kernel itself counts them (`TCPSynRetrans` of `/proc/net/netstat`).
pub(crate) fn syns_sent_again(netns: &Netns) -> Result<u64> {
    let text = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat").context("read netstat"))?;
    let mut rows = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (rows.next().unwrap_or_default(), rows.next().unwrap_or_default());
    let value = names.split_whitespace().zip(values.split_whitespace()).find(|(name, _)| *name == "TCPSynRetrans");
    value.context("find TCPSynRetrans in netstat")?.1.parse().context("read TCPSynRetrans")
}
