//! `headroom-lab serve`: TCP and UDP servers on many addresses and ports.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};

use super::{Event, raise_file_limit, say};

/// What a TCP server does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Mode {
    /// Sends back what it gets, until the other end closes.
    #[default]
    Echo,
    /// Answers the first bytes, then closes first itself.
    Close,
    /// Takes connections and never reads.
    Hold,
}

/// Serve TCP and UDP until told to stop (SIGTERM, SIGINT)
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Serve {
    /// A TCP address to listen on; may be given many times
    #[arg(long, value_name = "ADDR:PORT", num_args = 1.., required_unless_present = "udp")]
    pub bind: Vec<SocketAddr>,
    /// A UDP address to echo on; may be given many times
    #[arg(long, value_name = "ADDR:PORT", num_args = 1..)]
    pub udp: Vec<SocketAddr>,
    /// What to do with a TCP connection
    #[arg(long, value_enum, default_value_t)]
    pub mode: Mode,
}

#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    closed: AtomicU64,
    datagrams: AtomicU64,
}

impl Serve {
    /// A TCP echo server on these addresses.
    pub fn tcp(bind: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self { bind: bind.into_iter().collect(), ..Self::default() }
    }

    /// The command line that means the same.
    pub fn to_args(&self) -> Vec<String> {
        let mut args = vec!["serve".to_owned()];
        args.extend(self.bind.iter().map(|address| format!("--bind={address}")));
        args.extend(self.udp.iter().map(|address| format!("--udp={address}")));
        let mode = match self.mode {
            Mode::Echo => "echo",
            Mode::Close => "close",
            Mode::Hold => "hold",
        };
        args.push(format!("--mode={mode}"));
        args
    }

    /// Serves until a signal.
    pub async fn run(self) -> Result<()> {
        raise_file_limit()?;
        let counters = Arc::new(Counters::default());
        let mut bound = Vec::new();
        for address in &self.bind {
            let listener = listen(*address).with_context(|| format!("listen on `{address}/tcp`"))?;
            bound.push(listener.local_addr().context("ask for the bound address")?);
            tokio::spawn(accept(listener, self.mode, Arc::clone(&counters)));
        }
        for address in &self.udp {
            let socket = UdpSocket::bind(address).await.with_context(|| format!("bind `{address}/udp`"))?;
            bound.push(socket.local_addr().context("ask for the bound address")?);
            tokio::spawn(echo_datagrams(socket, Arc::clone(&counters)));
        }
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        say(&Event::Ready { bound })?;
        tokio::select! {
            _ = terminate.recv() => {}
            interrupt = tokio::signal::ctrl_c() => interrupt.context("listen for SIGINT")?,
        }
        say(&Event::Served {
            accepted: counters.accepted.load(Ordering::Relaxed),
            closed: counters.closed.load(Ordering::Relaxed),
            datagrams: counters.datagrams.load(Ordering::Relaxed),
        })
    }
}

/// A listener with a long queue: bursts of connects are the point.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

async fn accept(listener: TcpListener, mode: Mode, counters: Arc<Counters>) {
    loop {
        // An error here belongs to one connection (it was reset while queued) or is a want of files that passes.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        counters.accepted.fetch_add(1, Ordering::Relaxed);
        let counters = Arc::clone(&counters);
        tokio::spawn(async move {
            // Whatever ends a connection, it has ended.
            drop(serve_one(stream, mode).await);
            counters.closed.fetch_add(1, Ordering::Relaxed);
        });
    }
}

async fn serve_one(mut stream: TcpStream, mode: Mode) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    match mode {
        Mode::Hold => {
            // Woken by errors and hang-ups only through the read side, which it never drains.
            std::future::pending::<()>().await;
        }
        Mode::Close => {
            let length = stream.read(&mut buffer).await?;
            stream.write_all(buffer.get(..length).unwrap_or_default()).await?;
            stream.shutdown().await?;
        }
        Mode::Echo => loop {
            let length = stream.read(&mut buffer).await?;
            if length == 0 {
                break;
            }
            stream.write_all(buffer.get(..length).unwrap_or_default()).await?;
        },
    }
    Ok(())
}

async fn echo_datagrams(socket: UdpSocket, counters: Arc<Counters>) {
    let mut buffer = [0; 2048];
    loop {
        // Errors are answers (port unreachable) to earlier datagrams: not ours to stop for.
        if let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            counters.datagrams.fetch_add(1, Ordering::Relaxed);
            drop(socket.send_to(buffer.get(..length).unwrap_or_default(), from).await);
        }
    }
}
