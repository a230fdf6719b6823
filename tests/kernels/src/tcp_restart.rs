//! Subject `tcp`: counting that begins while somebody dials all the time, with connections that are older.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use headroom_core::flow::Endpoint;
use headroom_core::ledger::{Ledger, LedgerLimits, Spans};
use headroom_host::clock;
use headroom_host::root::HostRoot;
use headroom_host::source::Source as _;
use headroom_host::source::connections::{ConnectionsSource, Options, READING};

use crate::check::Check;
use crate::load;
use crate::network::{OUTSIDE, Scene};

pub(crate) const CHECKS: [Check; 1] =
    [Check { name: "tcp: started anew under load, it ends with the connections there are", run: restart }];

/// Connections that stay.
const OLD: u64 = 200;
/// Between two that come and go.
const PAUSE: Duration = Duration::from_millis(5);
/// So long the load goes on under the agent's eyes.
const UNDER_LOAD: Duration = Duration::from_secs(8);
/// What may take so long on a slow machine.
const PATIENCE: Duration = Duration::from_secs(75);
const DIALLED: &str = "dialled";

/// Dials so that some connections stay, and others come and go until one is answered: `--dial`. A process of its own, for whoever
/// reads the sockets of its network namespace.
pub(crate) fn dial(to: SocketAddr) -> Result<()> {
    let connect = |what: &[u8]| -> Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&to, load::SOON).context("connect")?;
        stream.write_all(what).context("send")?;
        Ok(stream)
    };
    let old: Result<Vec<_>> = (0..OLD).map(|_| connect(b"k")).collect();
    let old = old?;
    let mut out = std::io::stdout();
    writeln!(out, "{DIALLED}").and_then(|()| out.flush()).context("say how it goes")?;
    let mut answer = Vec::new();
    while answer.is_empty() {
        // It is closed there first, and here then.
        connect(b"x")?.read_to_end(&mut answer).context("wait for the end")?;
        std::thread::sleep(PAUSE);
    }
    // The others stay until this process is killed.
    std::thread::sleep(2 * PATIENCE);
    drop(old);
    Ok(())
}

/// Accepts until told to stop, keeps those that say so, and ends the load when it is told to.
fn serve(listener: &TcpListener, calm: &AtomicBool, done: &AtomicBool) -> Result<()> {
    listener.set_nonblocking(true).context("make accepting not wait")?;
    let mut kept = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        stream.set_nonblocking(false).context("make reading wait")?;
        stream.set_read_timeout(Some(load::SOON)).context("limit the wait")?;
        let mut what = [0];
        if stream.read_exact(&mut what).is_ok() && what == *b"k" {
            kept.push(stream);
        } else if calm.load(Ordering::Relaxed) {
            stream.write_all(b"s").context("end the load")?;
        }
    }
    Ok(())
}

/// An agent's TCP, and what it holds true of one destination.
struct Watch {
    source: ConnectionsSource,
    ledger: Ledger,
    to: Endpoint,
}

impl Watch {
    fn look(&mut self) {
        let ledger = &mut self.ledger;
        self.source.observe(&mut |observation| ledger.apply(observation));
    }

    fn open(&self) -> u64 {
        let rows = self.ledger.tcp().iter(clock::node_time(), Spans::all(Duration::from_secs(60)));
        rows.filter(|(to, ..)| *to == self.to).map(|(.., tally)| tally.open).sum()
    }

    /// By how many the number may be wrong; others on this machine dial, too.
    fn doubt(&self) -> u64 {
        self.ledger.tcp().uncertain().map_or(0, |uncertain| uncertain.by)
    }
}

fn restart(scene: &Scene) -> Result<String> {
    let to = SocketAddr::new(OUTSIDE.into(), 7450);
    let listener = load::listen(scene.outside(), to)?;
    let (calm, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let server = scope.spawn(|| serve(&listener, &calm, &done));
        let watched = under_load(scene, to, &calm);
        done.store(true, Ordering::Relaxed);
        match server.join() {
            Ok(served) => served?,
            Err(_panic) => bail!("the server panicked"),
        }
        watched
    })
}

fn under_load(scene: &Scene, to: SocketAddr, calm: &AtomicBool) -> Result<String> {
    let program = std::env::current_exe().context("find this program")?;
    let dialling = scene.pod().spawn(scene.pod().command(program, &["--dial", &to.to_string()]))?;
    dialling.wait_for_line(DIALLED, PATIENCE)?;
    let source = ConnectionsSource::start(&HostRoot::live(), Options { max_destinations: 65_536, reading: READING });
    ensure!(source.is_counting(), "connects and closes are not counted");
    let ledger = Ledger::new(LedgerLimits::default());
    let mut watch = Watch { source, ledger, to: Endpoint::new(to.ip(), to.port()) };
    let (began, mut widest, mut looks) = (Instant::now(), 0, 0);
    while began.elapsed() < UNDER_LOAD {
        watch.look();
        if watch.ledger.tcp().is_compared() {
            let (open, doubt) = (watch.open(), watch.doubt());
            // Of those that come and go there is one at most, which is known.
            ensure!(
                (OLD..=OLD + 1).any(|truth| truth.abs_diff(open) <= doubt),
                "{open} open, not {OLD} within {doubt}"
            );
            (widest, looks) = (doubt.max(widest), looks + 1);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let under_load = watch.doubt();
    ensure!(looks > 0, "the sockets were not read in {} s", UNDER_LOAD.as_secs());
    calm.store(true, Ordering::Relaxed);
    let until = Instant::now() + PATIENCE;
    while watch.open() != OLD || watch.doubt() > 0 {
        ensure!(Instant::now() < until, "{} open, not {OLD}, within {}", watch.open(), watch.doubt());
        std::thread::sleep(Duration::from_millis(100));
        watch.look();
    }
    drop(dialling);
    scene.note(format!("under load {widest} at most, {under_load} at its end, of {OLD} were not certain"));
    Ok(format!("{OLD} of {OLD}"))
}
