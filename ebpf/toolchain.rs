//! Finds what can compile for the bpf target. Shared by `agent/host/build.rs` (to build) and `xtask` (to set up), hence
//! plain `std` only.
//!
//! `core` has to be compiled for that target, so the compiler's own sources are needed, and a linker that speaks LLVM
//! bitcode. Two ways are known to work: a rustup toolchain with the component `rust-src`, and Debian's `rustc-web` with
//! `rust-web-src`. Nothing is installed or changed here.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A compiler with the sources of `core`, and a linker.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// The compiler.
    pub(crate) rustc: PathBuf,
    /// `bpf-linker`.
    pub(crate) linker: PathBuf,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {}", self.rustc.display(), self.linker.display())
    }
}

/// What is not there.
#[derive(Debug)]
pub(crate) struct Missing {
    /// A compiler with the sources of `core`.
    pub(crate) compiler: bool,
    /// `bpf-linker`.
    pub(crate) linker: bool,
    /// Where it was looked for: when one of these appears, looking again is worth it.
    pub(crate) looked_at: Vec<PathBuf>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.compiler, self.linker) {
            (true, true) => "no Rust compiler with its sources (rust-src) and no bpf-linker",
            (true, false) => "no Rust compiler with its sources (rust-src)",
            (false, _) => "no bpf-linker",
        })
    }
}

/// Looks for a toolchain: the compiler in use, then rustup's nightly ones, then Debian's.
///
/// # Errors
/// What is missing.
pub(crate) fn find() -> Result<Toolchain, Missing> {
    let linker = linkers().into_iter().find(|linker| linker.is_file());
    match (find_compiler(), linker) {
        (Some(rustc), Some(linker)) => Ok(Toolchain { rustc, linker }),
        (compiler, linker) => {
            let mut looked_at = Vec::new();
            if compiler.is_none() {
                looked_at.extend(compilers().iter().map(Compiler::sources));
            }
            if linker.is_none() {
                looked_at.extend(linkers());
            }
            Err(Missing { compiler: compiler.is_none(), linker: linker.is_none(), looked_at })
        }
    }
}

/// Looks for a compiler that has the sources of `core`.
pub(crate) fn find_compiler() -> Option<PathBuf> {
    let complete = |compiler: &Compiler| compiler.sources().is_dir() && compiler.rustc.is_file();
    compilers().into_iter().find(complete).map(|compiler| compiler.rustc)
}

/// A compiler that may have its sources beside it.
struct Compiler {
    rustc: PathBuf,
    sysroot: PathBuf,
}

impl Compiler {
    fn sources(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust/library")
    }

    fn in_sysroot(sysroot: PathBuf) -> Self {
        Self { rustc: sysroot.join("bin/rustc"), sysroot }
    }
}

fn compilers() -> Vec<Compiler> {
    let mut compilers: Vec<Compiler> = sysroot_in_use().map(Compiler::in_sysroot).into_iter().collect();
    let rustup = std::env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".rustup")));
    if let Some(toolchains) = rustup.and_then(|rustup| std::fs::read_dir(rustup.join("toolchains")).ok()) {
        let mut nightly: Vec<PathBuf> = toolchains
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nightly")))
            .collect();
        nightly.sort();
        // The undated "nightly" is the one that is kept up to date, dated ones come before it in the order.
        compilers.extend(nightly.into_iter().rev().map(Compiler::in_sysroot));
    }
    compilers.push(Compiler::in_sysroot(PathBuf::from("/usr")));
    compilers
}

/// The sysroot of the compiler that builds the workspace.
fn sysroot_in_use() -> Option<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(path.trim()))
}

fn linkers() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".cargo")));
    let mut folders: Vec<PathBuf> = cargo_home.map(|cargo| cargo.join("bin")).into_iter().collect();
    folders.extend(std::env::split_paths(&path).filter(|folder| folder.is_absolute()));
    folders.iter().map(|folder: &PathBuf| Path::join(folder, "bpf-linker")).collect()
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from)
}
