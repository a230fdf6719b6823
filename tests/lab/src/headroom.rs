//! The binary under test, run on a lab's node.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::netns::Netns;
use crate::process::Process;

/// What one run of headroom said.
#[derive(Debug, Clone)]
pub struct Said {
    pub exit_code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// Its one JSON document.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| {
            format!("read headroom's JSON (exit code {}): {}{}", self.exit_code, self.stdout, self.stderr)
        })
    }
}

/// The binary: `HEADROOM_BIN`, as `cargo xtask test` sets it.
pub fn binary() -> Result<PathBuf> {
    let path = std::env::var_os("HEADROOM_BIN").map(PathBuf::from);
    path.context("HEADROOM_BIN is not set: run the tests with `cargo xtask test`, or build and name the binary")
}

/// Runs headroom in a namespace to its end.
pub fn run(netns: &Netns, args: &[&str]) -> Result<Said> {
    said(netns, netns.command(binary()?, args))
}

/// Runs a command that ends in headroom, in a namespace.
pub fn said(netns: &Netns, command: Command) -> Result<Said> {
    let output = netns.spawn(command)?.wait(Duration::from_secs(120))?;
    Ok(Said { exit_code: output.code(), stdout: output.stdout, stderr: output.stderr })
}

/// A daemon in a namespace. Killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    netns: Netns,
    process: Process,
    port: u16,
}

impl Daemon {
    /// Starts `headroom agent` on a port of the namespace's loopback and waits for its first report.
    pub fn start(netns: &Netns, port: u16, args: &[&str]) -> Result<Self> {
        Self::start_binary(netns, &binary()?, port, &[&["--tick", "1s"], args].concat())
    }

    /// The same with the binary given, and its own idea of how often to report.
    pub fn start_binary(netns: &Netns, binary: &Path, port: u16, args: &[&str]) -> Result<Self> {
        let listen = format!("127.0.0.1:{port}");
        let process = netns.spawn(netns.command(binary, &[&["agent", "--listen", &listen], args].concat()))?;
        let daemon = Self { netns: netns.clone(), process, port };
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            match daemon.get("/readyz") {
                Ok((200, _)) => return Ok(daemon),
                last if std::time::Instant::now() > deadline => {
                    bail!("headroom agent did not become ready: {last:?}; {}", daemon.process.stderr())
                }
                _ => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Status and body of a path.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        self.request("GET", path)
    }

    /// Status and body of a request.
    pub fn request(&self, method: &str, path: &str) -> Result<(u16, String)> {
        use std::io::{Read, Write};
        let (port, request) = (self.port, format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"));
        let answer = self.netns.run(move || {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).context("connect to the agent")?;
            stream.set_read_timeout(Some(Duration::from_secs(5))).context("set a time-out")?;
            stream.write_all(request.as_bytes()).context("send a request")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).context("read the answer")?;
            Ok(answer)
        })?;
        let (head, body) = answer.split_once("\r\n\r\n").context("find the end of the answer's head")?;
        let status =
            head.split_whitespace().nth(1).and_then(|status| status.parse().ok()).context("read the status")?;
        Ok((status, body.to_owned()))
    }

    /// The report of now.
    pub fn report(&self) -> Result<Value> {
        let (status, body) = self.get("/report.json")?;
        if status != 200 {
            bail!("/report.json answers {status}: {body}");
        }
        serde_json::from_str(&body).context("read the report")
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Asks it to end; its exit code and stderr.
    pub fn stop(self) -> Result<(i32, String)> {
        let output = self.process.terminate(Duration::from_secs(10))?;
        Ok((output.code(), output.stderr))
    }
}
