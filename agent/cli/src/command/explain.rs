//! `headroom explain`: the catalogue's page of a finding.

use headroom_core::findings::catalog::PAGES;

use crate::command::UsageError;
use crate::output::{self, table::Width};

/// Runs the command.
///
/// # Errors
/// An id that is not in the catalogue; a closed stdout.
pub(super) fn run(id: Option<&str>) -> anyhow::Result<u8> {
    let Some(id) = id else {
        output::print(&output::table::catalogue(PAGES))?;
        return Ok(0);
    };
    let Some(page) = PAGES.iter().find(|page| page.name == id) else {
        let near: Vec<&str> = PAGES.iter().map(|page| page.name).collect();
        return Err(UsageError(anyhow::anyhow!("no finding is called `{id}`; there are {}", near.join(", "))).into());
    };
    output::print(&output::table::page(page, Width::of_stdout()))?;
    Ok(0)
}
