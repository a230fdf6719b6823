//! `headroom agent`: the daemon. One thread owns the ledger and makes a report every tick; every request gets the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use headroom_host::clock;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::args::AgentArgs;
use crate::cleaner;
use crate::command::UsageError;
use crate::engine::Engine;
use crate::lanes::{self, DEADLINE, Pace};
use crate::output::web::{self, Published};
use crate::settings::Settings;
use crate::settings::watch::{self as files, Looks};

/// Requests under way when it is time to stop get this long.
const DRAIN: Duration = Duration::from_secs(3);
/// Demand is sampled this often, whatever the tick …
const SAMPLE: Duration = Duration::from_secs(1);
/// … less often where there is so much to evaluate that it would take more than this part of the time: one in two hundred.
const IDLE_PER_SAMPLE: u32 = 200;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Wrong settings, an address that cannot be listened on, threads that cannot be started.
pub(super) fn run(args: &AgentArgs) -> anyhow::Result<u8> {
    let mut settings = Settings::new(&args.node, &args.nat).map_err(UsageError)?;
    settings.listen = args.listen.unwrap_or(settings.listen);
    settings.tick = args.tick.unwrap_or(settings.tick);
    settings.clean_every(args.clean_interval).map_err(UsageError)?;
    if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&settings.tick) {
        return Err(UsageError(anyhow::anyhow!("--tick must be 1s to 1h")).into());
    }
    // Few threads: the agent waits nearly all the time.
    let looks = files::start(&args.node, &args.nat, &settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(serve(settings, looks))
}

async fn serve(settings: Settings, looks: Option<Looks>) -> anyhow::Result<u8> {
    // Listen before anything is attached: a taken port is the commonest mistake.
    let listener = tokio::net::TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("listen on {}; is another agent running?", settings.listen))?;
    let address = listener.local_addr().context("read the address listened on")?;
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;

    let (publish, published) = watch::channel(None);
    let stop = Arc::new(AtomicBool::new(false));
    // The sender goes with the thread, however it ends.
    let (alive, mut owner_ended) = tokio::sync::oneshot::channel::<()>();
    let progress = cleaner::Progress::new(&settings);
    let owner = {
        let (settings, stop, progress) = (settings.clone(), Arc::clone(&stop), progress.clone());
        thread::Builder::new().name("ledger".to_owned()).spawn(move || {
            let _alive = alive;
            own(&settings, looks, &publish, &stop, &progress)
        })?
    };
    let cleaner = cleaner::start(&settings, &progress)?;
    tracing::info!(%address, tick = ?settings.tick, "listening");

    let (stopping, mut stopped) = watch::channel(false);
    let server = axum::serve(listener, web::router(published, settings.tick)).with_graceful_shutdown(async move {
        // The sender gone means stop as well.
        drop(stopped.wait_for(|stop| *stop).await);
    });
    let mut server = tokio::spawn(server.into_future());
    let mut asked = true;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM, stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT, stopping"),
        _ = &mut owner_ended => {
            asked = false;
            tracing::error!("the ledger's thread has ended by itself, stopping");
        }
        ended = &mut server => ended.context("run the server")?.context("serve requests")?,
    }
    stop.store(true, Ordering::Relaxed);
    // A batch that is under way is finished: seconds at most.
    drop(cleaner);
    stopping.send_replace(true);
    if !server.is_finished() && tokio::time::timeout(DRAIN, &mut server).await.is_err() {
        tracing::warn!("requests still under way were cut off");
        server.abort();
    }
    let ended = tokio::task::spawn_blocking(move || owner.join()).await.context("wait for the ledger's thread")?;
    match ended {
        Ok(Ok(())) if !asked => anyhow::bail!("the ledger's thread ended by itself"),
        Ok(result) => result.map(|()| 0),
        Err(_panic) => anyhow::bail!("the ledger's thread panicked"),
    }
}

/// Owns the ledger: takes in facts, publishes a report every tick.
fn own(
    settings: &Settings,
    mut looks: Option<Looks>,
    publish: &watch::Sender<Option<Published>>,
    stop: &AtomicBool,
    progress: &cleaner::Progress,
) -> anyhow::Result<()> {
    let lanes = lanes::all(settings, Pace::Steady);
    let mut engine = Engine::start(settings.ledger(), settings.policy.clone(), lanes)?;
    engine.settle(DEADLINE);
    let mut since_report = settings.tick;
    while !stop.load(Ordering::Relaxed) {
        let began = clock::thread_cpu();
        looks.iter_mut().for_each(|looks| looks.tell(&mut engine));
        let mut report = engine.report();
        cleaner::tell(&mut report, progress.report());
        let pause = SAMPLE.max(clock::thread_cpu().saturating_sub(began).saturating_mul(IDLE_PER_SAMPLE));
        if since_report >= settings.tick {
            since_report = Duration::ZERO;
            publish.send_replace(Some(Published::new(report)));
        }
        engine.watch(pause);
        since_report += pause;
    }
    Ok(())
}
