//! Builds the eBPF programs and puts the object where `src/ebpf/object.rs` embeds it.
//!
//! Without a toolchain for the bpf target the object is empty, the build goes on with a warning, and the agent says at
//! run time what it lacks. `HEADROOM_EBPF=off` asks for exactly that.
#![expect(clippy::unwrap_used, reason = "a build script may panic")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "../../ebpf/toolchain.rs"]
mod toolchain;

use toolchain::Toolchain;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    let ebpf = Path::new(&env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../../ebpf");
    for watched in ["common", "programs", "toolchain.rs"] {
        println!("cargo::rerun-if-changed={}", ebpf.join(watched).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=HEADROOM_EBPF");

    let (object, without) = match find() {
        Ok(toolchain) => (std::fs::read(build(&toolchain, &ebpf, &out)).unwrap(), String::new()),
        Err(why) => (Vec::new(), why),
    };
    std::fs::write(out.join("headroom.bpf.o"), object).unwrap();
    println!("cargo::rustc-env=HEADROOM_WITHOUT_EBPF={without}");
}

/// A toolchain, or why there will be no programs.
fn find() -> Result<Toolchain, String> {
    if env::var_os("HEADROOM_EBPF").is_some_and(|wanted| wanted == "off") {
        return Err("HEADROOM_EBPF=off".to_owned());
    }
    toolchain::find().map_err(|missing| {
        println!("cargo::warning=built without eBPF programs: {missing}; run `cargo xtask setup`");
        // Something that is not there counts as changed: the next build looks again.
        for path in &missing.looked_at {
            println!("cargo::rerun-if-changed={}", path.display());
        }
        missing.to_string()
    })
}

/// The outer build's target directory, which cargo marks: debug, release, tests and clippy build the same programs, and need
/// not build `core` for bpf once each. An inner cargo waits while another one is at work there.
fn shared(out: &Path) -> &Path {
    out.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file()).unwrap_or(out)
}

/// Runs the inner cargo; gives the path of the object.
fn build(toolchain: &Toolchain, ebpf: &Path, out: &Path) -> PathBuf {
    let target = match env::var("CARGO_CFG_TARGET_ENDIAN").unwrap().as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap();
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        format!("-Clinker={}", toolchain.linker.display()),
        "-Clink-arg=--btf".to_owned(),
    ];
    let target_dir = shared(out).join("ebpf");
    // The cargo that belongs to the compiler, where it brings one.
    let own = Some(toolchain.rustc.with_file_name("cargo")).filter(|cargo| cargo.is_file());
    let cargo = own.unwrap_or_else(|| env::var_os("CARGO").unwrap().into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--release", "-Zbuild-std=core", "--target", target])
        .arg("--manifest-path")
        .arg(ebpf.join("programs/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir);
    // What the outer build set for its own target (crt-static, clippy's wrapper, profiles) must not reach this one.
    for (name, _value) in env::vars_os() {
        let text = name.to_string_lossy();
        let leaks = ["RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_MAKEFLAGS"];
        let prefixes =
            ["RUSTC_", "CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_TARGET_", "CARGO_FEATURE_", "CARGO_CFG_", "CLIPPY_"];
        if leaks.contains(&text.as_ref()) || prefixes.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_STRIP", "none");
    let status = command.status().unwrap();
    assert!(
        status.success(),
        "building the eBPF programs with {toolchain} failed, see above; HEADROOM_EBPF=off builds without them"
    );
    target_dir.join(target).join("release/headroom-ebpf")
}
