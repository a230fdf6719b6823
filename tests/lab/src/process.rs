//! Child processes that cannot outlive their guard, and programs run to their end.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::lab::{Lab, MARKER, refuse_if_stopping};

/// What a finished process said.
#[derive(Debug, Clone)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// The exit code; 128 + signal for a process that was killed, as a shell says it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Itself if the program succeeded, otherwise an error with what it wrote to stderr.
    pub fn success(self, what: &str) -> Result<Self> {
        if !self.status.success() {
            bail!("`{what}` ended with {}: {}{}", self.code(), self.stdout.trim(), self.stderr.trim());
        }
        Ok(self)
    }
}

/// A command marked as the lab's own, in its own process group, without standard input.
pub fn command(lab: &Lab, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).env(MARKER, lab.prefix()).stdin(Stdio::null()).process_group(0);
    command
}

/// Runs a program to its end and returns what it wrote to stdout; its failure is an error.
pub fn run(lab: &Lab, program: &str, args: &[&str]) -> Result<String> {
    run_command(&mut command(lab, program, args))
}

/// Runs a command to its end and returns what it wrote to stdout; its failure is an error.
pub fn run_command(command: &mut Command) -> Result<String> {
    refuse_if_stopping()?;
    let what = describe(command);
    let output = command.output().with_context(|| format!("run `{what}`; is it installed?"))?;
    let output = Output {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    Ok(output.success(&what)?.stdout)
}

/// The command as one would type it.
fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(std::ffi::OsStr::to_string_lossy));
    words.join(" ")
}

/// One output of a process, read line by line as it comes.
#[derive(Debug, Default)]
struct Lines {
    state: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Lines {
    fn follow(self: &Arc<Self>, from: impl Read + Send + 'static) -> JoinHandle<()> {
        let lines = Arc::clone(self);
        std::thread::spawn(move || {
            for line in BufReader::new(from).split(b'\n').map_while(|line| line.ok()) {
                let line = String::from_utf8_lossy(&line).into_owned();
                lines.state.lock().unwrap_or_else(PoisonError::into_inner).0.push(line);
                lines.changed.notify_all();
            }
            lines.state.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
            lines.changed.notify_all();
        })
    }

    fn text(&self) -> String {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.iter().map(|line| format!("{line}\n")).collect()
    }

    /// The first line that fits, waiting for it; none at the end of the output or of the time.
    fn wait_for(&self, fits: impl Fn(&str) -> bool, timeout: Duration) -> Option<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = |(lines, _): &(Vec<String>, bool)| lines.iter().find(|line| fits(line)).cloned();
        let (state, _) = self
            .changed
            .wait_timeout_while(state, timeout, |state| fitting(state).is_none() && !state.1)
            .unwrap_or_else(PoisonError::into_inner);
        fitting(&state)
    }
}

/// A running child process. Dropped, it and its process group are killed and waited for.
#[derive(Debug)]
pub struct Process {
    what: String,
    child: Child,
    stdout: Arc<Lines>,
    stderr: Arc<Lines>,
    readers: Vec<JoinHandle<()>>,
    _lab: Lab,
}

impl Process {
    /// Starts a command made with [`command`]; both outputs are kept.
    pub fn spawn(lab: &Lab, mut command: Command) -> Result<Self> {
        refuse_if_stopping()?;
        let what = describe(&command);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start `{what}`; is it installed?"))?;
        let (stdout, stderr) = (Arc::new(Lines::default()), Arc::new(Lines::default()));
        let mut readers = Vec::new();
        readers.extend(child.stdout.take().map(|pipe| stdout.follow(pipe)));
        readers.extend(child.stderr.take().map(|pipe| stderr.follow(pipe)));
        Ok(Self { what, child, stdout, stderr, readers, _lab: lab.clone() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits for a line on stdout that contains `part`.
    pub fn wait_for_line(&self, part: &str, timeout: Duration) -> Result<String> {
        self.stdout.wait_for(|line| line.contains(part), timeout).with_context(|| {
            format!("`{}` did not say `{part}` within {timeout:?}: {}{}", self.what, self.stdout(), self.stderr())
        })
    }

    /// Sends a signal to the process group.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("a pid fits an i32")?);
        killpg(pid, signal).with_context(|| format!("send {signal} to `{}`", self.what))
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().with_context(|| format!("look after `{}`", self.what))?.is_none())
    }

    /// Waits for its end; past `timeout` it is an error (and the drop kills it).
    pub fn wait(mut self, timeout: Duration) -> Result<Output> {
        let deadline = Instant::now() + timeout;
        let status = loop {
            if let Some(status) = self.child.try_wait().with_context(|| format!("wait for `{}`", self.what))? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("`{}` is still running after {timeout:?}: {}{}", self.what, self.stdout(), self.stderr());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        // A grandchild may hold the pipe open: what it says is not waited for.
        let until = Instant::now() + Duration::from_secs(1);
        while self.readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(Output { status, stdout: self.stdout(), stderr: self.stderr() })
    }

    /// Asks it to end (SIGTERM) and waits.
    pub fn terminate(self, timeout: Duration) -> Result<Output> {
        self.signal(Signal::SIGTERM)?;
        self.wait(timeout)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has gone already.
        drop(self.signal(Signal::SIGKILL));
        drop(self.child.wait());
    }
}
