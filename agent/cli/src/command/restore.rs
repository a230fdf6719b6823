//! `headroom ipam restore`: what a run of the cleaner took is put back.

use std::path::{Path, PathBuf};

use headroom_host::act::{self, NoJournal, Restored};
use headroom_host::source::cni;

use crate::args::{Format, NatArgs, RestoreArgs};
use crate::command::UsageError;
use crate::output::table::{RestoreAnswer, Width};
use crate::output::{self, table};
use crate::settings::Settings;

/// Runs the command.
///
/// # Errors
/// Wrong settings, a journal that is none or cannot be read, a closed stdout.
pub(super) fn run(args: &RestoreArgs) -> anyhow::Result<u8> {
    let settings = Settings::new(&args.node, &NatArgs::default()).map_err(UsageError)?;
    if !settings.root.is_live() {
        return Err(
            UsageError(anyhow::anyhow!("a captured tree (--root) is not a node: nothing can be put back")).into()
        );
    }
    let answer = match &args.journal {
        Some(journal) => answer(std::slice::from_ref(journal)).map_err(|error| UsageError(error.into()))?,
        None => {
            let journals = act::list(&data_dirs(&settings))?;
            if args.list {
                RestoreAnswer { journals, ..RestoreAnswer::default() }
            } else {
                answer(&act::newest(&journals))?
            }
        }
    };
    match args.output {
        Format::Json => output::json(&answer)?,
        Format::Table => output::print(&table::restore(&answer, args.list, Width::of_stdout()))?,
    }
    let unread = !answer.remarks.is_empty() || answer.journals.iter().any(|kept| kept.why.is_some());
    Ok(match () {
        () if !answer.refused.is_empty() => 1,
        () if unread => 3,
        () => 0,
    })
}

/// Puts back what these runs took.
fn answer(runs: &[PathBuf]) -> Result<RestoreAnswer, NoJournal> {
    let mut all = Restored::default();
    for run in runs {
        let Restored { restored, refused, remarks } = act::restore(run, &mut |_| {})?;
        all.restored.extend(restored);
        all.refused.extend(refused);
        all.remarks.extend(remarks);
    }
    let Restored { restored, refused, remarks } = all;
    let journal = runs.first().map(|run| run.display().to_string());
    Ok(RestoreAnswer { journal, restored, refused, remarks, journals: Vec::new() })
}

/// host-local's directories: the usual one and those that the CNI configuration names.
pub(super) fn data_dirs(settings: &Settings) -> Vec<PathBuf> {
    let configured = cni::read(&settings.root, &settings.cni_conf_dir).networks;
    let elsewhere = configured.into_iter().filter_map(|network| network.data_dir);
    let mut all: Vec<PathBuf> = std::iter::once(settings.cni_dir.clone()).chain(elsewhere).collect();
    // Two names of one directory would list its runs twice.
    let identity = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_missing| path.to_owned());
    let mut seen = Vec::new();
    all.retain(|path| {
        let identity = identity(path);
        let new = !seen.contains(&identity);
        seen.push(identity);
        new
    });
    all
}
