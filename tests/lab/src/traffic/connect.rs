//! `headroom-lab connect`: opens connections at a rate, holds each for a time, and counts what became of them.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::{Event, Statistics, parse_duration, raise_file_limit, say, show_duration, show_protocol};
use crate::conntrack::Protocol;

/// Open connections, hold them, count what became of them
#[derive(Debug, Clone, clap::Args)]
pub struct Connect {
    /// Where to; given many times, the connections go round
    #[arg(long, value_name = "ADDR:PORT", required = true, num_args = 1..)]
    pub to: Vec<SocketAddr>,
    /// How many connections in all
    #[arg(long, default_value_t = 1)]
    pub count: u64,
    /// How many new ones per second; 0 is all at once
    #[arg(long, default_value_t = 0.0)]
    pub rate: f64,
    /// How long to hold each
    #[arg(long, value_parser = parse_duration, default_value = "0s")]
    pub hold: Duration,
    /// When to give up a connect that is not answered
    #[arg(long, value_parser = parse_duration, default_value = "3s")]
    pub timeout: Duration,
    /// Close with a reset instead of a FIN
    #[arg(long)]
    pub reset: bool,
    /// Send a few bytes after opening and wait for the answer (UDP always does)
    #[arg(long)]
    pub talk: bool,
    /// Do so again this often while it is held; a connection on which that fails is broken
    #[arg(long, value_parser = parse_duration)]
    pub talk_every: Option<Duration>,
    /// UDP: a socket and an echoed datagram per connection
    #[arg(long)]
    pub udp: bool,
    /// Write a line of progress this often
    #[arg(long, value_parser = parse_duration)]
    pub progress: Option<Duration>,
}

#[derive(Debug, Default)]
struct Counters {
    attempted: AtomicU64,
    opened: AtomicU64,
    timed_out: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    closed: AtomicU64,
    closed_by_peer: AtomicU64,
    broken: AtomicU64,
}

impl Counters {
    fn read(&self, since: Instant) -> Statistics {
        // Ends before openings, openings before attempts: a sum never exceeds what it is part of.
        let (closed, closed_by_peer) = (self.closed.load(Relaxed), self.closed_by_peer.load(Relaxed));
        let broken = self.broken.load(Relaxed);
        let opened = self.opened.load(Relaxed);
        Statistics {
            opened,
            timed_out: self.timed_out.load(Relaxed),
            refused: self.refused.load(Relaxed),
            failed: self.failed.load(Relaxed),
            closed,
            closed_by_peer,
            broken,
            holding: opened.saturating_sub(closed).saturating_sub(closed_by_peer).saturating_sub(broken),
            attempted: self.attempted.load(Relaxed),
            elapsed_secs: since.elapsed().as_secs_f64(),
        }
    }

    fn count_failure(&self, kind: ErrorKind) {
        let counter = match kind {
            ErrorKind::TimedOut => &self.timed_out,
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => &self.refused,
            _ => &self.failed,
        };
        counter.fetch_add(1, Relaxed);
    }
}

/// How the hold of a connection ended.
enum End {
    Ours,
    Peer,
    Broken,
}

impl Connect {
    /// `count` TCP connections to one destination, each held for `hold`.
    pub fn tcp(to: SocketAddr, count: u64, hold: Duration) -> Self {
        Self {
            to: vec![to],
            count,
            rate: 0.0,
            hold,
            timeout: Duration::from_secs(3),
            reset: false,
            talk: false,
            talk_every: None,
            udp: false,
            progress: None,
        }
    }

    /// The same over UDP.
    pub fn udp(to: SocketAddr, count: u64, hold: Duration) -> Self {
        Self { udp: true, ..Self::tcp(to, count, hold) }
    }

    /// The command line that means the same.
    pub fn to_args(&self) -> Vec<String> {
        let mut args = vec!["connect".to_owned()];
        args.extend(self.to.iter().map(|address| format!("--to={address}")));
        args.push(format!("--count={}", self.count));
        args.push(format!("--rate={}", self.rate));
        args.push(format!("--hold={}", show_duration(self.hold)));
        args.push(format!("--timeout={}", show_duration(self.timeout)));
        args.extend(self.reset.then(|| "--reset".to_owned()));
        args.extend(self.talk.then(|| "--talk".to_owned()));
        args.extend(self.talk_every.map(|every| format!("--talk-every={}", show_duration(every))));
        let protocol = if self.udp { Protocol::Udp } else { Protocol::Tcp };
        args.extend(Some(show_protocol(protocol).to_owned()).filter(|flag| !flag.is_empty()));
        args.extend(self.progress.map(|every| format!("--progress={}", show_duration(every))));
        args
    }

    /// Runs until every connection has ended, or a signal ends them; writes the statistics.
    pub async fn run(self) -> Result<()> {
        if !self.rate.is_finite() || self.rate < 0.0 {
            bail!("the rate `{}` is not a number of connections per second", self.rate);
        }
        raise_file_limit()?;
        let start = Instant::now();
        let counters = Arc::new(Counters::default());
        let progress = self.progress.map(|every| tokio::spawn(report(every, Arc::clone(&counters), start)));
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let (stop, stopped) = watch::channel(false);

        let work = tokio::spawn(generate(Arc::new(self), Arc::clone(&counters), stopped));
        let mut work = std::pin::pin!(work);
        let stop_early = async {
            tokio::select! {
                _ = terminate.recv() => {}
                // Without a handler for SIGINT the default ends the process, which is as good.
                _ = tokio::signal::ctrl_c() => {}
            }
        };
        tokio::select! {
            joined = &mut work => joined.context("run the generator")?,
            () = stop_early => {
                stop.send_replace(true);
                work.await.context("stop the generator")?;
            }
        }
        if let Some(progress) = progress {
            progress.abort();
        }
        say(&Event::Done(counters.read(start)))
    }
}

/// Begins the connections at their rate and waits until all have ended.
async fn generate(connect: Arc<Connect>, counters: Arc<Counters>, mut stopped: watch::Receiver<bool>) {
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for (number, to) in (0..connect.count).zip(connect.to.iter().cycle()) {
        if connect.rate > 0.0 {
            #[expect(clippy::cast_precision_loss, reason = "nobody opens 2^52 connections")]
            let due = start + Duration::from_secs_f64(number as f64 / connect.rate);
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                _ = stopped.wait_for(|stopped| *stopped) => break,
            }
        }
        tasks.spawn(one(Arc::clone(&connect), *to, Arc::clone(&counters), stopped.clone()));
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
}

/// One connection, from its attempt to its end.
async fn one(connect: Arc<Connect>, to: SocketAddr, counters: Arc<Counters>, mut stopped: watch::Receiver<bool>) {
    counters.attempted.fetch_add(1, Relaxed);
    let opening = async {
        if connect.udp {
            timeout(connect.timeout, open_udp(to)).await.map(|socket| socket.map(|socket| Open::Udp { _held: socket }))
        } else {
            timeout(connect.timeout, open_tcp(&connect, to)).await.map(|stream| stream.map(Open::Tcp))
        }
    };
    let opened = tokio::select! {
        opened = opening => opened.unwrap_or_else(|elapsed| Err(elapsed.into())),
        _ = stopped.wait_for(|stopped| *stopped) => {
            counters.count_failure(ErrorKind::TimedOut);
            return;
        }
    };
    let mut open = match opened {
        Ok(open) => open,
        Err(error) => {
            counters.count_failure(error.kind());
            return;
        }
    };
    counters.opened.fetch_add(1, Relaxed);
    let end = tokio::select! {
        () = sleep(connect.hold) => End::Ours,
        end = open.until_it_ends(connect.talk_every) => end,
        _ = stopped.wait_for(|stopped| *stopped) => End::Ours,
    };
    drop(open);
    match end {
        End::Ours => counters.closed.fetch_add(1, Relaxed),
        End::Peer => counters.closed_by_peer.fetch_add(1, Relaxed),
        End::Broken => counters.broken.fetch_add(1, Relaxed),
    };
}

/// An opened connection; closed when dropped.
enum Open {
    Tcp(TcpStream),
    Udp { _held: UdpSocket },
}

impl Open {
    /// Ends when the connection does; talks now and then if it is to.
    async fn until_it_ends(&mut self, talk_every: Option<Duration>) -> End {
        if let (Self::Tcp(stream), Some(every)) = (&mut *self, talk_every) {
            loop {
                sleep(every).await;
                if talk(stream).await.is_err() {
                    return End::Broken;
                }
            }
        }
        self.closed_by_peer().await;
        End::Peer
    }

    /// Ends when the other end has closed or reset; never for UDP.
    async fn closed_by_peer(&self) {
        let Self::Tcp(stream) = self else { return std::future::pending().await };
        let mut buffer = [0; 1];
        // Peeking leaves late bytes where they are; any byte at all means: not closed yet.
        while stream.peek(&mut buffer).await.is_ok_and(|length| length > 0) {
            sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn open_tcp(connect: &Connect, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if connect.reset {
        socket.set_zero_linger()?;
    }
    let mut stream = socket.connect(to).await?;
    if connect.talk {
        talk(&mut stream).await?;
    }
    Ok(stream)
}

/// Says something and waits for the echo.
async fn talk(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"headroom").await?;
    stream.read_exact(&mut [0; 8]).await.map(drop)
}

async fn open_udp(to: SocketAddr) -> std::io::Result<UdpSocket> {
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(to).await?;
    socket.send(b"headroom").await?;
    let mut answer = [0; 8];
    socket.recv(&mut answer).await?;
    Ok(socket)
}

/// Writes progress until aborted.
async fn report(every: Duration, counters: Arc<Counters>, start: Instant) {
    let mut ticks = interval(every.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        if say(&Event::Progress(counters.read(start))).is_err() {
            return;
        }
    }
}
