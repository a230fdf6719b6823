//! The daemon's cleaner: `ipam clean --apply` again and again, within limits, and only where the configuration wants it.
//!
//! It looks with sources and a ledger of its own: what it does rests on nothing but what it saw itself, right before.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use headroom_core::findings::{Evidence, FindingId};
use headroom_core::model::leak::Verdict;
use headroom_core::observe::{Ipam, SourceId};
use headroom_core::plan::clean::{Plan, blind};
use headroom_core::plan::rate::HourlyLimit;
use headroom_core::report::{CleanerMode, CleanerReport, Report, VerdictCounts};
use headroom_core::time::WallTime;
use headroom_host::act::Cleaned;
use headroom_host::clock;

use crate::command::clean::{apply, eyes, look};
use crate::settings::{CleanSettings, Settings};

/// What it did so far, for the report.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<Mutex<CleanerReport>>);

impl Progress {
    /// Of a cleaner that has not run yet, or is off.
    pub(crate) fn new(settings: &Settings) -> Self {
        let interval_secs = settings.clean.as_ref().map(|clean| clean.interval.as_secs());
        let mode = if interval_secs.is_some() { CleanerMode::Interval } else { CleanerMode::Off };
        Self(Arc::new(Mutex::new(CleanerReport { mode, interval_secs, ..CleanerReport::default() })))
    }

    /// As it is now.
    pub(crate) fn report(&self) -> CleanerReport {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, plan: &Plan, cleaned: &Cleaned, blind: Option<String>, at: WallTime) {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), plan, cleaned, blind, at);
    }
}

/// Adds a run. Trouble is what an operator has to look at: a limit that holds something back, or a reservation that came
/// into use meanwhile, is none.
fn note(report: &mut CleanerReport, plan: &Plan, cleaned: &Cleaned, blind: Option<String>, at: WallTime) {
    report.last_run = Some(at.to_string());
    report.last_run_unix_secs = Some(at.as_millis().div_euclid(1000));
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    report.released_total = report.released_total.saturating_add(count(cleaned.applied.len()));
    report.refused_last = VerdictCounts::default();
    plan.refused.iter().chain(&cleaned.refused).for_each(|refused| report.refused_last.add(&refused.verdict));
    let left = plan.refused.iter().chain(&cleaned.refused).find(|refused| refused.verdict == Verdict::Leaked);
    report.refused_why = left.map(|refused| refused.why.clone());
    // What keeps all that was planned is no matter of a single reservation.
    let stuck = cleaned.refused.first().filter(|_| cleaned.applied.is_empty()).map(|refused| refused.why.clone());
    report.error_last = blind.or_else(|| cleaned.remarks.first().cloned()).or(stuck);
    report.errors_total = report.errors_total.saturating_add(u64::from(report.error_last.is_some()));
    if let Some(journal) = cleaned.journals.first() {
        report.journal = Some(journal.display().to_string());
    }
}

/// Puts what the cleaner did into a report. Where addresses are leaked and it left them, the finding says why: somebody who
/// has switched it on relies on it.
pub(crate) fn tell(report: &mut Report, cleaner: CleanerReport) {
    let left = match (&cleaner.refused_why, &cleaner.error_last) {
        (Some(why), _) => {
            Some(format!("the agent's cleaner left {} when it ran last: {why}", cleaner.refused_last.leaked))
        }
        (None, Some(error)) => Some(format!("the agent's cleaner had trouble when it ran last: {error}")),
        (None, None) => None,
    };
    let networks = &report.ipam.networks;
    let ours =
        |subject: &str| networks.iter().any(|network| network.network == subject && network.ipam == Ipam::HostLocal);
    for finding in report.findings.iter_mut().filter(|finding| finding.id == FindingId::IpamLeaked) {
        let said = left.as_ref().filter(|_| ours(&finding.subject));
        finding.evidence.extend(said.map(|said| Evidence::seen(SourceId::HostLocal, said.as_str())));
    }
    report.ipam.cleaner = Some(cleaner);
}

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
pub(crate) fn start(settings: &Settings, progress: &Progress) -> std::io::Result<Option<Cleaner>> {
    let Some(clean) = settings.clean.clone() else { return Ok(None) };
    let (stop, stopped) = sync_channel::<()>(0);
    let (settings, progress) = (settings.clone(), progress.clone());
    let thread = thread::Builder::new().name("cleaner".to_owned()).spawn(move || {
        tracing::info!(interval = ?clean.interval, max = clean.limits.max, "leaked pod IPs will be given back");
        let mut rate = HourlyLimit::new(clean.max_per_hour);
        while stopped.recv_timeout(clean.interval) == Err(RecvTimeoutError::Timeout) {
            run(&settings, &clean, &mut rate, &progress);
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
fn run(settings: &Settings, clean: &CleanSettings, rate: &mut HourlyLimit, progress: &Progress) {
    let _span = tracing::info_span!("clean").entered();
    let left = rate.left(clock::node_time());
    let mut limits = clean.limits.clone();
    if left < limits.max {
        let hourly = clean.max_per_hour;
        limits.max = left;
        limits.max_why = Some(format!("{hourly} are given back in any hour at most (`max_per_hour` of `[clean]`)"));
    }
    let mut eyes = eyes(settings);
    let (_report, plan) = look(&mut eyes, &limits, &settings.policy);
    let planned = plan.releases.len();
    // Where nothing is reserved, nobody need be asked.
    let blind = blind(eyes.ledger()).filter(|_| !eyes.ledger().reservations().is_empty());
    let cleaned = apply(&plan, &mut eyes, settings.policy.leak_grace);
    rate.note(clock::node_time(), cleaned.applied.len());
    progress.note(&plan, &cleaned, blind, clock::now().wall);
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

#[cfg(test)]
mod tests {
    use headroom_core::plan::clean::Refused;

    use super::*;

    fn refused(verdict: Verdict, why: &str) -> Refused {
        Refused {
            network: "n".to_owned(),
            store: "/s/n".to_owned(),
            address: "10.0.0.5".parse().unwrap(),
            verdict,
            why: why.to_owned(),
        }
    }

    /// Exercises what the report says of runs. If this fails, a cleaner that does not work looks as if it did.
    #[test]
    fn runs_add_up_and_only_trouble_is_an_error() {
        let mut report = CleanerReport::default();
        let at = WallTime::from_millis(1_795_304_621_250);
        let held_back = Plan { refused: vec![refused(Verdict::Settling, "young")], ..Plan::default() };
        note(&mut report, &held_back, &Cleaned::default(), None, at);
        assert_eq!((report.refused_last.settling, report.errors_total, &report.error_last), (1, 0, &None));
        assert_eq!(report.refused_why, None, "it is not leaked");
        assert_eq!(report.last_run.as_deref(), Some("2026-11-21T23:43:41.250Z"));
        assert_eq!(report.last_run_unix_secs, Some(1_795_304_621));

        let taken = headroom_host::act::Taken {
            network: "n".to_owned(),
            store: "/s/n".to_owned(),
            address: "10.0.0.6".parse().unwrap(),
            container_id: "c".to_owned(),
            entry: "e".to_owned(),
        };
        let changed = refused(Verdict::Leaked, "it was reserved anew since the plan was made");
        let some = Cleaned {
            applied: vec![taken],
            refused: vec![changed],
            journals: vec!["/s/.headroom-journal/1".into()],
            ..Cleaned::default()
        };
        note(&mut report, &Plan::default(), &some, None, at);
        assert_eq!((report.released_total, report.refused_last.leaked, report.errors_total), (1, 1, 0));
        assert_eq!(report.journal.as_deref(), Some("/s/.headroom-journal/1"));

        let full = Cleaned { refused: vec![refused(Verdict::Leaked, "the journal is full")], ..Cleaned::default() };
        note(&mut report, &Plan::default(), &full, None, at);
        assert_eq!((report.errors_total, report.error_last.as_deref()), (1, Some("the journal is full")));
        assert_eq!(report.refused_why.as_deref(), Some("the journal is full"));
        note(&mut report, &Plan::default(), &Cleaned::default(), Some("no answer".to_owned()), at);
        assert_eq!((report.errors_total, report.error_last.as_deref()), (2, Some("no answer")));
        note(&mut report, &Plan::default(), &Cleaned::default(), None, at);
        assert_eq!((report.errors_total, report.error_last, report.released_total), (2, None, 1));
    }
}
