//! The daemon's cleaner: `ipam clean --apply` again and again, within limits, and only where the configuration wants it.
//!
//! It looks with sources and a ledger of its own: what it does rests on nothing but what it saw itself, right before.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use headroom_core::plan::clean::Limits;
use headroom_core::plan::rate::HourlyLimit;
use headroom_host::clock;

use crate::command::clean::{apply, eyes, look};
use crate::settings::{CleanSettings, Settings};

/// The running cleaner. Dropped, it finishes the run that is under way and ends.
#[derive(Debug)]
pub(crate) struct Cleaner {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Starts it, if the settings say so.
///
/// # Errors
/// The thread could not be started.
pub(crate) fn start(settings: &Settings) -> std::io::Result<Option<Cleaner>> {
    let Some(clean) = settings.clean.clone() else { return Ok(None) };
    let (stop, stopped) = sync_channel::<()>(0);
    let settings = settings.clone();
    let thread = thread::Builder::new().name("cleaner".to_owned()).spawn(move || {
        tracing::info!(interval = ?clean.interval, max = clean.limits.max, "leaked pod IPs will be given back");
        let mut rate = HourlyLimit::new(clean.max_per_hour);
        while stopped.recv_timeout(clean.interval) == Err(RecvTimeoutError::Timeout) {
            run(&settings, &clean, &mut rate);
        }
    })?;
    Ok(Some(Cleaner { stop: Some(stop), thread: Some(thread) }))
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the cleaner's thread panicked");
        }
    }
}

/// One run: look, plan, carry out, say so.
fn run(settings: &Settings, clean: &CleanSettings, rate: &mut HourlyLimit) {
    let _span = tracing::info_span!("clean").entered();
    let left = rate.left(clock::node_time());
    let limits = Limits { max: clean.limits.max.min(left), ..clean.limits.clone() };
    let mut eyes = eyes(settings);
    let (_report, plan) = look(&mut eyes, &limits, &settings.policy);
    let planned = plan.releases.len();
    let cleaned = apply(&plan, &mut eyes, settings.policy.leak_grace);
    rate.note(clock::node_time(), cleaned.applied.len());
    for taken in &cleaned.applied {
        tracing::info!(address = %taken.address, network = taken.network, container = taken.container_id, entry = taken.entry, "given back");
    }
    for refused in &cleaned.refused {
        tracing::warn!(address = %refused.address, network = refused.network, why = refused.why, "planned and refused");
    }
    for remark in &cleaned.remarks {
        tracing::warn!(remark, "cleaning had trouble");
    }
    let (applied, refused, lock) = (cleaned.applied.len(), plan.refused.len(), cleaned.longest_lock);
    if planned > 0 || refused > 0 {
        tracing::info!(planned, applied, refused, ?lock, left_this_hour = left, "looked for leaked pod IPs");
    }
}
