//! headroom: node-level diagnosis of the network resources that fail silently.

use std::process::ExitCode;

use clap::Parser;
use headroom::args::{Cli, Command};
use headroom::command::{self, USAGE, UsageError};
use headroom::telemetry;

/// Could not tell: no answer at all is not a clean bill of health.
const COULD_NOT_TELL: u8 = 3;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors.
            let code = if error.use_stderr() { USAGE } else { 0 };
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let daemon = matches!(cli.command, Command::Agent(_));
    if daemon {
        // The others give all of it back in a moment, and want it quickly until then.
        headroom_host::memory::keep_little();
    }
    // One-shot commands say in their answer what is missing; only the daemon has a log that somebody reads later.
    let default = if daemon { "info" } else { "error" };
    let logging = telemetry::start(cli.log.as_deref().unwrap_or(default));
    let result = logging.map_err(|error| UsageError(error).into()).and_then(|()| command::run(cli));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let usage = error.downcast_ref::<UsageError>().is_some();
            headroom::output::complain(&error);
            ExitCode::from(if usage { USAGE } else { COULD_NOT_TELL })
        }
    }
}
