//! The developer's one door: `cargo xtask …`. One module per command; none needs anything but cargo to begin with.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod build;
mod fuzz;
mod kernels;
mod layers;
mod lint;
mod say;
mod setup;
mod shell;
mod test;
#[path = "../../ebpf/toolchain.rs"]
mod toolchain;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Sets up, builds, runs and checks headroom", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing to build and test (Debian and Ubuntu, as root), or say what is missing
    Setup {
        /// For what
        #[arg(long = "for", value_enum, default_value = "test")]
        purpose: setup::Purpose,
    },
    /// Build the binary; `--release` leaves it at target/release/headroom
    Build {
        /// With optimisations
        #[arg(long)]
        release: bool,
        /// Without shared libraries (implies --release)
        #[arg(long = "static")]
        static_: bool,
    },
    /// Build and run the binary, as root
    Run {
        /// What to hand to it
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Build the container image into target/headroom-image.tar
    Image,
    /// Run all tests, as root; the last line is the sum
    Test,
    /// Run the eBPF programs on other kernels, in VMs, and on this one, against ground truth
    Kernels {
        /// Only this one
        #[arg(long, value_parser = kernels::NAMES)]
        only: Option<String>,
        /// Only the checks with this in their names
        #[arg(long, default_value = "")]
        check: String,
        /// Check nothing, but measure what conntrack costs an agent: counted in the kernel, against events and dumps
        #[arg(long, conflicts_with = "check")]
        cost: bool,
    },
    /// Format, clippy, rustdoc, layers: no warnings
    Lint,
    /// Check the rules of the house that no other tool checks
    Layers,
    /// lint, then test
    Ci,
    /// Measure, and write down what was measured
    Bench {
        #[command(subcommand)]
        what: bench::Bench,
    },
    /// Feed every parser of foreign bytes with inputs that are found by trying
    Fuzz {
        /// How long, for each target
        #[arg(long, default_value_t = 60)]
        secs: u32,
        /// Only these targets
        targets: Vec<String>,
    },
    /// Build a node on this machine and run one scenario on it
    Lab {
        /// The scenario and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            say::error(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup { purpose } => setup::run(purpose)?,
        Command::Build { static_: true, .. } => build::static_binary().map(drop)?,
        Command::Build { release, static_: false } => build::binary(release).map(drop)?,
        Command::Run { arguments } => return build::run(&arguments),
        Command::Image => build::image()?,
        Command::Test => test::run()?,
        Command::Kernels { only, cost: true, .. } => kernels::run(only.as_deref(), &kernels::Task::Cost)?,
        Command::Kernels { only, check, cost: false } => kernels::run(only.as_deref(), &kernels::Task::Check(check))?,
        Command::Lint => lint::run()?,
        Command::Layers => layers::run()?,
        Command::Ci => {
            lint::run()?;
            test::run()?;
        }
        Command::Bench { what } => bench::run(&what)?,
        Command::Fuzz { secs, targets } => fuzz::run(secs, &targets)?,
        Command::Lab { arguments } => return build::lab(&arguments),
    }
    Ok(ExitCode::SUCCESS)
}
