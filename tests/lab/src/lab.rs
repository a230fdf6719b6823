//! The guard everything else hangs on: a name prefix, a directory, and the promise that both will be gone.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

use crate::sweep;

/// The environment variable that marks every process the lab starts; its value is the lab's prefix.
pub(crate) const MARKER: &str = "HEADROOM_LAB";

/// Set once a signal has arrived: from then on nothing new may be made.
static STOPPING: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU32 = AtomicU32::new(0);
static SIGNALS: OnceLock<Result<(), String>> = OnceLock::new();

/// A lab. Cheap to clone; the last clone takes everything down, and every guard of this crate holds one.
#[derive(Debug, Clone)]
pub struct Lab(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    prefix: String,
    dir: PathBuf,
}

impl Lab {
    /// Removes what crashed labs left, then makes a new one. Needs root.
    pub fn new() -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the lab makes network namespaces and mounts; run it as root");
        }
        clean_up_on_signals()?;
        Self::sweep()?;
        let prefix = format!("{}{}-", sweep::process_prefix(), COUNT.fetch_add(1, Ordering::Relaxed));
        // The directory keeps a crashed lab findable: made first, removed last.
        let dir = std::env::temp_dir().join(format!("{prefix}d"));
        std::fs::DirBuilder::new()
            .mode(0o711)
            .create(&dir)
            .with_context(|| format!("create the lab's directory `{}`", dir.display()))?;
        let lab = Self(Arc::new(Inner { prefix, dir }));
        share_mounts(lab.dir())?;
        Ok(lab)
    }

    /// Removes everything that labs of dead processes left behind; returns what was found, one line each.
    pub fn sweep() -> Result<Vec<String>> {
        let mut removed = Vec::new();
        for prefix in sweep::dead_prefixes()? {
            removed.extend(sweep::remove(&prefix)?);
        }
        Ok(removed)
    }

    /// The prefix of every name this lab makes: `hrlab<pid>-<number>-`.
    pub fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// A name that is this lab's own.
    pub fn name(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.0.prefix)
    }

    /// The lab's directory; removed with everything in it, mounts included.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// A new directory inside the lab's directory.
    pub fn make_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.0.dir.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("create the directory `{}`", dir.display()))?;
        Ok(dir)
    }

    /// Removes by name whatever of this lab is still there, without waiting for the drop.
    pub fn take_down(&self) -> Result<Vec<String>> {
        sweep::remove(&self.0.prefix)
    }
}

/// Makes a directory a mount that is shared, as systemd makes all of a node's: containers may then follow what is mounted
/// below it later (`HostToContainer`).
fn share_mounts(dir: &Path) -> Result<()> {
    let none = None::<&str>;
    mount(Some(dir), dir, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("bind `{}` to itself", dir.display()))?;
    mount(none, dir, none, MsFlags::MS_SHARED, none).with_context(|| format!("share the mount `{}`", dir.display()))
}

impl Drop for Inner {
    #[expect(clippy::print_stderr, reason = "a drop has nobody to return its error to")]
    fn drop(&mut self) {
        if stopping() {
            // The signal handler is removing everything and then ends the process; returning would end it half-way.
            loop {
                std::thread::park();
            }
        }
        if let Err(error) = sweep::remove(&self.prefix) {
            eprintln!("headroom-lab: could not take down `{}`: {error:#}", self.prefix);
        }
    }
}

/// Whether a signal is taking the process down.
pub(crate) fn stopping() -> bool {
    STOPPING.load(Ordering::SeqCst)
}

/// Refuses to go on once a signal is taking the lab down.
pub(crate) fn refuse_if_stopping() -> Result<()> {
    if stopping() {
        bail!("the lab is being taken down by a signal");
    }
    Ok(())
}

/// Starts, once per process, the thread that takes all labs of this process down on a signal.
fn clean_up_on_signals() -> Result<()> {
    let started = SIGNALS.get_or_init(|| {
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .name("lab-signals".into())
            .spawn(move || wait_for_signal(&ready))
            .map_err(|error| error.to_string())?;
        is_ready.recv().unwrap_or_else(|_closed| Err("the signal thread ended".into()))
    });
    started.clone().map_err(anyhow::Error::msg).context("start the signal handler")
}

/// The signal thread: says on `ready` whether the handlers are in place, then waits for one signal.
#[expect(clippy::print_stderr, reason = "the process is about to end; this is its last word")]
fn wait_for_signal(ready: &std::sync::mpsc::Sender<Result<(), String>>) {
    use tokio::signal::unix::{SignalKind, signal};
    let code = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
        runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            let mut hangup = signal(SignalKind::hangup())?;
            if ready.send(Ok(())).is_err() {
                return Ok(1);
            }
            Ok(tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
                _ = hangup.recv() => 129,
            })
        })
    });
    match code {
        Ok(code) => {
            STOPPING.store(true, Ordering::SeqCst);
            eprintln!("headroom-lab: signal; taking the lab down");
            // Twice: a thread may have been in the middle of making something.
            for _ in 0..2 {
                if let Err(error) = sweep::remove(&sweep::process_prefix()) {
                    eprintln!("headroom-lab: {error:#}");
                }
            }
            std::process::exit(code);
        }
        Err(error) => {
            // Only the starter listens; if it is gone there is nobody to tell.
            drop(ready.send(Err(error.to_string())));
        }
    }
}
