//! `headroom-lab burst` and `sink`: as many connections per second as threads that wait can make, for measurements.
//!
//! Unlike `connect` nothing is scheduled and nothing is held: a connection costs the kernel's work and little else, so
//! that what is measured is not the generator.

use std::io::Read;
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Event, Statistics, say};

/// Open connections and close them at once, as fast as possible or at a rate
#[derive(Debug, Clone, clap::Args)]
pub struct Burst {
    /// Where to
    #[arg(long, value_name = "ADDR:PORT")]
    pub to: SocketAddrV4,
    /// How many destinations, in turn; the others have the addresses that follow, and the same port
    #[arg(long, default_value_t = 1)]
    pub destinations: u32,
    /// How many connections in all
    #[arg(long)]
    pub count: u64,
    /// How many new ones per second; 0 is as many as possible
    #[arg(long, default_value_t = 0.0)]
    pub rate: f64,
    /// How many threads open them
    #[arg(long, default_value_t = 4)]
    pub threads: u32,
    /// UDP: a datagram each that nobody answers; a new socket after each round of destinations
    #[arg(long)]
    pub udp: bool,
}

impl Burst {
    /// The command line that means the same.
    pub fn to_args(&self) -> Vec<String> {
        let mut args = vec!["burst".to_owned()];
        args.push(format!("--to={}", self.to));
        args.push(format!("--destinations={}", self.destinations));
        args.push(format!("--count={}", self.count));
        args.push(format!("--rate={}", self.rate));
        args.push(format!("--threads={}", self.threads));
        args.extend(self.udp.then(|| "--udp".to_owned()));
        args
    }

    /// Runs to the last connection; writes the statistics.
    pub fn run(&self) -> Result<()> {
        if !self.rate.is_finite() || self.rate < 0.0 {
            bail!("the rate `{}` is not a number of connections per second", self.rate);
        }
        let start = Instant::now();
        let (next, opened, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        if self.udp {
            opened.store(self.datagrams()?, Relaxed);
        } else {
            std::thread::scope(|scope| {
                for _ in 0..self.threads.max(1) {
                    scope.spawn(|| {
                        loop {
                            let number = next.fetch_add(1, Relaxed);
                            if number >= self.count {
                                break;
                            }
                            self.wait_for_turn(start, number);
                            match open_and_close(self.destination(number)) {
                                Ok(()) => opened.fetch_add(1, Relaxed),
                                Err(_counted) => failed.fetch_add(1, Relaxed),
                            };
                        }
                    });
                }
            });
        }
        let (opened, failed) = (opened.into_inner(), failed.into_inner());
        let elapsed_secs = start.elapsed().as_secs_f64();
        say(&Event::Done(Statistics {
            attempted: opened + failed,
            opened,
            closed: opened,
            failed,
            elapsed_secs,
            ..Statistics::default()
        }))
    }

    /// One datagram to each destination from one socket, then from the next.
    fn datagrams(&self) -> Result<u64> {
        let mut socket = None;
        for number in 0..self.count {
            if number % u64::from(self.destinations.max(1)) == 0 {
                socket = None;
            }
            let socket = match &socket {
                Some(socket) => socket,
                None => socket.insert(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("bind a UDP socket")?),
            };
            // A few are refused while the neighbour is looked up, or the queue is full.
            let mut tries = 0;
            while let Err(error) = socket.send_to(b"x", self.destination(number)) {
                tries += 1;
                if tries > 1000 {
                    return Err(error).with_context(|| format!("send to {}", self.destination(number)));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(self.count)
    }

    fn destination(&self, number: u64) -> SocketAddrV4 {
        let step = u32::try_from(number % u64::from(self.destinations.max(1))).unwrap_or(0);
        SocketAddrV4::new(Ipv4Addr::from(u32::from(*self.to.ip()).wrapping_add(step)), self.to.port())
    }

    fn wait_for_turn(&self, start: Instant, number: u64) {
        if self.rate > 0.0 {
            #[expect(clippy::cast_precision_loss, reason = "nobody opens 2^52 connections")]
            let due = start + Duration::from_secs_f64(number as f64 / self.rate);
            // A thread that is late does not wait: the rate holds on average.
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
}

/// A connection from its first SYN to its last FIN. Waiting for the other end's keeps the number under way at the number
/// of threads: a listener's queue that runs over would cost whole seconds.
fn open_and_close(to: SocketAddrV4) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.shutdown(Shutdown::Write)?;
    stream.read(&mut [0; 1]).map(drop)
}

/// Take connections, wait for their end, close them
#[derive(Debug, Clone, clap::Args)]
pub struct Sink {
    /// Where to listen
    #[arg(long, value_name = "ADDR:PORT")]
    pub bind: SocketAddrV4,
    /// How many threads take them
    #[arg(long, default_value_t = 4)]
    pub threads: u32,
}

impl Sink {
    /// The command line that means the same.
    pub fn to_args(&self) -> Vec<String> {
        vec!["sink".to_owned(), format!("--bind={}", self.bind), format!("--threads={}", self.threads)]
    }

    /// Runs until it is killed.
    pub fn run(&self) -> Result<()> {
        let listener = TcpListener::bind(self.bind).with_context(|| format!("listen on `{}/tcp`", self.bind))?;
        say(&Event::Ready { bound: vec![self.bind.into()] })?;
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    loop {
                        // An error belongs to one connection, which was reset while it was queued.
                        let Ok((mut stream, _)) = listener.accept() else { continue };
                        // Who never closes must not keep the thread.
                        let bounded = stream.set_read_timeout(Some(Duration::from_secs(5)));
                        let mut buffer = [0; 64];
                        while bounded.is_ok() && stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
                    }
                });
            }
        });
        Ok(())
    }
}
