//! What has to be on a machine to build headroom and to test it, and how to get it.
//!
//! Looks first and does nothing twice. On Debian and Ubuntu, as root, it installs what is missing; elsewhere it says what
//! is missing, what for, and what to type.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::shell::{cargo, is_root, output, run as run_command, target_dir, which};
use crate::{say, toolchain};

mod needs;

use needs::{NEEDS, Need};

/// What the machine is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Purpose {
    /// Building and running
    Build,
    /// All that, and testing
    Test,
    /// All that, and measuring beside other tools
    Bench,
}

/// `cargo xtask setup`.
pub(crate) fn run(purpose: Purpose) -> Result<()> {
    let missing = install_what_is_missing(purpose)?;
    if !missing.is_empty() {
        explain(&missing);
        bail!("not everything that is needed to {} is there", verb(purpose));
    }
    if purpose >= Purpose::Test && which("kubectl").is_none() {
        say::line("kubectl is not here; manifests are checked without `kubectl kustomize`");
    }
    say::line(format_args!("ready to {}", verb(purpose)));
    Ok(())
}

/// Before another command: the same, but quiet when all is there, and content without what it can do without.
pub(crate) fn require(purpose: Purpose) -> Result<()> {
    let missing = install_what_is_missing(purpose)?;
    if missing.is_empty() {
        return Ok(());
    }
    explain(&missing);
    if missing.iter().any(|need| need.required_for(purpose)) {
        bail!("not everything that is needed to {} is there; see `cargo xtask setup`", verb(purpose));
    }
    Ok(())
}

fn verb(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Build => "build",
        Purpose::Test => "test",
        Purpose::Bench => "measure",
    }
}

/// Tries to get what is missing; gives what still is.
fn install_what_is_missing(purpose: Purpose) -> Result<Vec<&'static Need>> {
    let missing = still_missing(purpose);
    if missing.is_empty() {
        return Ok(missing);
    }
    if can_apt() {
        let packages: Vec<&str> = missing.iter().flat_map(|need| need.packages).copied().collect();
        apt_install(&packages)?;
        if purpose >= Purpose::Build && toolchain::find().is_err() {
            ebpf_toolchain()?;
        }
    }
    if missing.iter().any(|need| need.what == needs::KUBERNETES_VALIDATE) && which("python3").is_some() {
        python_tools()?;
    }
    Ok(still_missing(purpose))
}

fn still_missing(purpose: Purpose) -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| need.purpose <= purpose && !need.is_there()).collect()
}

/// Says what is missing, what for, and what to type.
fn explain(missing: &[&Need]) {
    for need in missing {
        say::error(format_args!("missing: {} ({}); {}", need.what, need.why, need.hint));
        if need.what == needs::EBPF_TOOLCHAIN
            && let Err(missing) = toolchain::find()
        {
            let places: Vec<String> = missing.looked_at.iter().map(|path| path.display().to_string()).collect();
            say::error(format_args!("         {missing}; looked for {}", places.join(", ")));
        }
    }
    let packages: Vec<&str> = missing.iter().flat_map(|need| need.packages).copied().collect();
    if is_debian() && !is_root() && !packages.is_empty() {
        say::error(format_args!("to install: sudo apt-get install {}", packages.join(" ")));
    }
    if !is_debian() {
        say::error("`cargo xtask setup` installs by itself only on Debian and Ubuntu, as root");
    }
}

fn is_debian() -> bool {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    release.lines().any(|line| {
        line.strip_prefix("ID=")
            .or_else(|| line.strip_prefix("ID_LIKE="))
            .is_some_and(|ids| ids.trim_matches('"').split_whitespace().any(|id| id == "debian" || id == "ubuntu"))
    })
}

fn can_apt() -> bool {
    is_debian() && is_root() && which("apt-get").is_some()
}

/// Installs those packages that apt knows and that are not installed.
fn apt_install(packages: &[&str]) -> Result<()> {
    let wanted: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    if !wanted.iter().all(|package| apt_knows(package)) {
        run_command(Command::new("apt-get").arg("update"))?;
    }
    let (known, unknown): (Vec<&str>, Vec<&str>) = wanted.into_iter().partition(|package| apt_knows(package));
    for package in unknown {
        say::line(format_args!("apt has no package {package}"));
    }
    if known.is_empty() {
        return Ok(());
    }
    let mut apt = Command::new("apt-get");
    apt.args(["install", "--yes", "--no-install-recommends"]).args(known).env("DEBIAN_FRONTEND", "noninteractive");
    run_command(&mut apt)
}

fn is_installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]))
        .is_some_and(|status| status == "installed")
}

fn apt_knows(package: &str) -> bool {
    output(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C")).is_some_and(|policy| {
        policy.lines().any(|line| line.trim().starts_with("Candidate: ") && !line.contains("(none)"))
    })
}

/// Gets a compiler with the sources of `core`, and a `bpf-linker` of the same LLVM.
fn ebpf_toolchain() -> Result<()> {
    if toolchain::find_compiler().is_none() {
        // rustc-web is Debian's newer compiler, kept for browsers; Ubuntu and later Debian have a new enough rustc.
        let pair = if apt_knows("rustc-web") { ["rustc-web", "rust-web-src"] } else { ["rustc", "rust-src"] };
        apt_install(&pair)?;
    }
    if toolchain::find_compiler().is_none() && which("rustup").is_some() {
        // Not a reason to fail: what is still missing is said at the end.
        if let Err(error) = run_command(Command::new("rustup").args(["component", "add", "rust-src"])) {
            say::line(format_args!("{error:#}"));
        }
    }
    let Some(rustc) = toolchain::find_compiler() else {
        say::line("no compiler with its sources can be had from apt or rustup: the eBPF programs cannot be built here");
        return Ok(());
    };
    if toolchain::find().is_ok() {
        return Ok(());
    }
    let version =
        output(Command::new(&rustc).arg("-vV")).with_context(|| format!("ask {} for its version", rustc.display()))?;
    let llvm =
        version.lines().find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()).unwrap_or_default();
    bpf_linker(llvm)
}

/// Builds `bpf-linker` with an LLVM at least as new as the compiler's: an older one cannot read its bitcode.
fn bpf_linker(llvm: &str) -> Result<()> {
    let dev = format!("llvm-{llvm}-dev");
    let mut install = cargo(["install", "--locked", "bpf-linker"]);
    if apt_knows(&dev) {
        apt_install(&[&dev, &format!("libpolly-{llvm}-dev"), "libzstd-dev", "zlib1g-dev"])?;
        let prefix = format!("/usr/lib/llvm-{llvm}");
        let mut path = std::ffi::OsString::from(format!("{prefix}/bin:"));
        path.push(std::env::var_os("PATH").unwrap_or_default());
        install.args(["--no-default-features", "--features", &format!("llvm-{llvm}")]);
        install.env("LLVM_PREFIX", &prefix).env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix).env("PATH", path);
    } else {
        say::line(format_args!("apt has no {dev}; bpf-linker is built with the LLVM that rustc brings"));
    }
    if let Err(error) = run_command(&mut install) {
        say::line(format_args!("{error:#}"));
    }
    Ok(())
}

/// The checker of manifests, in a virtual environment beside what cargo builds.
pub(crate) fn kubernetes_validate() -> std::path::PathBuf {
    target_dir().join("venv/bin/kubernetes-validate")
}

/// A virtual environment with what is only on PyPI.
fn python_tools() -> Result<()> {
    let venv = target_dir().join("venv");
    run_command(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    let mut pip = Command::new(venv.join("bin/pip"));
    run_command(pip.args(["install", "--quiet", "--disable-pip-version-check", "kubernetes-validate"]))
}
