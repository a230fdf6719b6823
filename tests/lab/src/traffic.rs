//! Traffic that counts itself: the modes `serve`, `connect`, `burst` and `sink` of the binary `headroom-lab`, and how a
//! test starts them inside a namespace.

pub mod burst;
pub mod connect;
pub mod serve;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::conntrack::Protocol;
use crate::netns::Netns;
use crate::process::Process;

pub use burst::{Burst, Sink};
pub use connect::Connect;
pub use serve::{Mode, Serve};

/// One line of what a mode writes to stdout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// All sockets are bound.
    Ready { bound: Vec<SocketAddr> },
    /// The generator so far, when it was asked for progress.
    Progress(Statistics),
    /// The generator at its end.
    Done(Statistics),
    /// The server at its end.
    Served { accepted: u64, closed: u64, datagrams: u64 },
}

/// What the generator did. `attempted` = opened + timed_out + refused + failed + those still connecting.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Connects begun (UDP: first datagrams sent).
    pub attempted: u64,
    /// Connects that were answered.
    pub opened: u64,
    /// Connects given up after the time-out; their socket was closed in SYN_SENT.
    pub timed_out: u64,
    /// Connects answered with a reset (UDP: port unreachable).
    pub refused: u64,
    /// Connects that failed otherwise (no route, no local port).
    pub failed: u64,
    /// Opened connections that we closed after their time.
    pub closed: u64,
    /// Opened connections that the other end closed or reset before.
    pub closed_by_peer: u64,
    /// Opened connections that could not be used any more.
    #[serde(default)]
    pub broken: u64,
    /// Connections open now.
    pub holding: u64,
    /// Time since the start.
    pub elapsed_secs: f64,
}

/// The path of the binary `headroom-lab`: `$HEADROOM_LAB_BIN`, this program itself, or its neighbour (cargo builds the
/// binary into the directory above the one of the tests).
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HEADROOM_LAB_BIN") {
        return Ok(path.into());
    }
    let this = std::env::current_exe().context("find this program's own path")?;
    let candidates = this.ancestors().take(3).map(|dir| dir.join("headroom-lab"));
    match std::iter::once(this.clone())
        .chain(candidates)
        .find(|path| path.file_name().is_some_and(|name| name == "headroom-lab") && path.is_file())
    {
        Some(path) => Ok(path),
        None => bail!("no `headroom-lab` beside `{}`; set HEADROOM_LAB_BIN", this.display()),
    }
}

/// A server in a namespace, bound and ready.
#[derive(Debug)]
pub struct Server(Process);

impl Server {
    /// Starts it and waits until all its sockets are bound.
    pub fn start(netns: &Netns, serve: &Serve) -> Result<Self> {
        let args = serve.to_args();
        let process = netns.spawn(netns.command(binary()?, &args.iter().map(String::as_str).collect::<Vec<_>>()))?;
        process.wait_for_line(r#""event":"ready""#, Duration::from_secs(10))?;
        Ok(Self(process))
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.0
    }

    /// Stops it; returns its last line.
    pub fn stop(self) -> Result<Event> {
        last_event(&self.0.terminate(Duration::from_secs(10))?.success("headroom-lab serve")?.stdout)
    }
}

/// A generator in a namespace.
#[derive(Debug)]
pub struct Generator(Process);

impl Sink {
    /// Starts it in a namespace and waits until it listens; killed when dropped.
    pub fn start(&self, netns: &Netns) -> Result<Process> {
        let args = self.to_args();
        let process = netns.spawn(netns.command(binary()?, &args.iter().map(String::as_str).collect::<Vec<_>>()))?;
        process.wait_for_line(r#""event":"ready""#, Duration::from_secs(10))?;
        Ok(process)
    }
}

impl Burst {
    /// Starts it in a namespace.
    pub fn start(&self, netns: &Netns) -> Result<Generator> {
        let args = self.to_args();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Ok(Generator(netns.spawn(netns.command(binary()?, &args))?))
    }
}

impl Generator {
    /// Starts it.
    pub fn start(netns: &Netns, connect: &Connect) -> Result<Self> {
        let args = connect.to_args();
        let process = netns.spawn(netns.command(binary()?, &args.iter().map(String::as_str).collect::<Vec<_>>()))?;
        Ok(Self(process))
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.0
    }

    /// The newest progress (only if `progress` was asked for).
    pub fn progress(&self) -> Result<Statistics> {
        match last_event(&self.0.stdout())? {
            Event::Progress(statistics) | Event::Done(statistics) => Ok(statistics),
            event @ (Event::Ready { .. } | Event::Served { .. }) => bail!("the generator said {event:?}"),
        }
    }

    /// Waits for its own end.
    pub fn wait(self, timeout: Duration) -> Result<Statistics> {
        statistics(&self.0.wait(timeout)?.success("headroom-lab connect")?.stdout)
    }

    /// Stops it (its connections are closed); what it had done by then.
    pub fn stop(self) -> Result<Statistics> {
        statistics(&self.0.terminate(Duration::from_secs(10))?.success("headroom-lab connect")?.stdout)
    }
}

fn statistics(stdout: &str) -> Result<Statistics> {
    match last_event(stdout)? {
        Event::Done(statistics) => Ok(statistics),
        event @ (Event::Progress(_) | Event::Ready { .. } | Event::Served { .. }) => {
            bail!("the generator's last word is {event:?}")
        }
    }
}

fn last_event(stdout: &str) -> Result<Event> {
    let line = stdout.lines().next_back().context("nothing was written yet")?;
    serde_json::from_str(line).with_context(|| format!("understand `{line}`"))
}

/// A duration as the command line takes it: `500ms`, `5s`, `2m`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: f64 =
        digits.parse().map_err(|error| format!("`{text}` is no duration such as `500ms` or `5s`: {error}"))?;
    let unit = match text.get(digits.len()..).unwrap_or_default() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("`{other}` is no unit of time; take ms, s, m or h")),
    };
    Duration::try_from_secs_f64(number * unit).map_err(|error| format!("`{text}`: {error}"))
}

/// What [`parse_duration`] reads back.
fn show_duration(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

fn show_protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "",
        Protocol::Udp => "--udp",
    }
}

/// Writes one event to stdout, whole.
#[expect(clippy::print_stdout, reason = "the events are this program's output")]
fn say(event: &Event) -> Result<()> {
    use std::io::Write;
    println!("{}", serde_json::to_string(event).context("write an event")?);
    std::io::stdout().flush().context("write to stdout")
}

/// Lets this process have as many sockets as the system allows.
fn raise_file_limit() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of open files")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises durations on the command line. If this fails, a test's generator runs for another time than it says.
    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert!(parse_duration("5 apples").is_err());
        assert_eq!(parse_duration(&show_duration(Duration::from_millis(1500))), Ok(Duration::from_millis(1500)));
    }
}
