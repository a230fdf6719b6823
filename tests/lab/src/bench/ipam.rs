//! What headroom's work on pod IPs costs, beside what people do today: `headroom-lab bench-ipam`.

mod clean;
mod scan;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::lab::Lab;

/// Measure the reading of 65,536 reservations, and the clean-up of leaked ones beside the published shell loop; prints Markdown
#[derive(Debug, Clone, clap::Args)]
pub struct Ipam {
    /// The headroom binary to measure
    #[arg(long, env = "HEADROOM_BIN", default_value = "headroom")]
    pub headroom: PathBuf,
    /// A short run, to see whether it works: its numbers mean little
    #[arg(long)]
    pub quick: bool,
}

impl Ipam {
    /// Measures everything, then prints it.
    #[expect(clippy::print_stdout, reason = "its result")]
    pub fn run(&self) -> Result<ExitCode> {
        let lab = Lab::new()?;
        let scan = scan::measure(&self.headroom, self.quick)?;
        let clean = clean::measure(&lab, &self.headroom, self.quick)?;
        print!("{scan}\n{clean}");
        Ok(ExitCode::SUCCESS)
    }
}
