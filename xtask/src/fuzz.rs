//! Fuzzing: `tests/fuzz`, built with the coverage that libFuzzer asks for, by the ordinary compiler.
//!
//! cargo-fuzz is not needed, nor a nightly compiler: the instrumentation is a pass of LLVM that any rustc can be told to
//! run. There is no address sanitizer: what is fuzzed has no unsafe code, so a crash is a panic, a hang or hunger for
//! memory.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::say;
use crate::setup::{self, Purpose};
use crate::shell::{cargo, host_triple, run as run_command, shown, target_dir, which, workspace};

/// Every target, as `tests/fuzz/Cargo.toml` names it.
const TARGETS: [&str; 20] = [
    "btf",
    "btf_module",
    "cilium_conntrack",
    "cni_configuration",
    "conntrack_line",
    "conntrack_stats",
    "cri_status",
    "host_local_reservation",
    "introspection",
    "ipam_states",
    "iptables",
    "journal",
    "namespace_addresses",
    "nat_document",
    "netlink",
    "netlink_stats",
    "nftables",
    "process_cgroup",
    "services",
    "socket_table",
];
/// What tells libFuzzer where an input went: edges, their addresses, and the operands of comparisons.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";
/// No input may take longer. By the clock on the wall: on a busy machine an honest one has waited for two seconds.
const TIMEOUT_SECS: u32 = 10;
/// No parser of a few kilobytes may want more address space (KiB).
const MEMORY_KIB: u32 = 1 << 20;

/// Builds all targets and runs them one after the other, so many seconds each.
pub(crate) fn run(secs: u32, targets: &[String]) -> Result<()> {
    if let Some(unknown) = targets.iter().find(|target| !TARGETS.contains(&target.as_str())) {
        bail!("there is no fuzz target `{unknown}`; there are {}", TARGETS.join(", "));
    }
    setup::require(Purpose::Build)?;
    if which("c++").is_none() {
        bail!("libFuzzer is compiled with a C++ compiler, and there is no `c++`; install g++ or clang");
    }
    let built = build()?;
    let mut broken = Vec::new();
    for target in TARGETS.iter().filter(|target| targets.is_empty() || targets.iter().any(|wanted| wanted == *target)) {
        if !feed(&built, target, secs)? {
            broken.push(*target);
        }
    }
    if !broken.is_empty() {
        bail!("fuzzing broke {}", broken.join(", "));
    }
    Ok(())
}

/// Builds them; gives the folder they are in.
fn build() -> Result<PathBuf> {
    let (host, folder) = (host_triple()?, target_dir().join("fuzz"));
    let mut command =
        cargo(["build", "--release", "--locked", "--manifest-path", "tests/fuzz/Cargo.toml", "--target", &host]);
    // Naming the target keeps the flags from build scripts and macros. The eBPF programs are not what is fuzzed.
    run_command(command.arg("--target-dir").arg(&folder).env("RUSTFLAGS", FLAGS).env("HEADROOM_EBPF", "off"))?;
    Ok(folder.join(host).join("release"))
}

/// Runs one; whether it survived. What broke it is kept beside its corpus.
fn feed(built: &std::path::Path, target: &str, secs: u32) -> Result<bool> {
    let folder = target_dir().join("fuzz/corpus").join(target);
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let artifacts = target_dir().join("fuzz/broke").join(target);
    std::fs::create_dir_all(&artifacts).with_context(|| format!("create {}", artifacts.display()))?;
    let mut fuzzer = Command::new("sh");
    fuzzer.args(["-c", &format!(r#"ulimit -v {MEMORY_KIB}; exec "$@""#), "sh"]).arg(built.join(target));
    fuzzer.arg(&folder).arg(format!("-artifact_prefix={}/", artifacts.display()));
    fuzzer.args([format!("-max_total_time={secs}"), format!("-timeout={TIMEOUT_SECS}")]);
    // An input of 64 KiB is longer than any file or message a parser is given whole, but for BTF.
    fuzzer.args(["-max_len=65536", "-rss_limit_mb=512", "-print_final_stats=1"]);
    let output = fuzzer
        .env("HEADROOM_FUZZ_CORPUS", &folder)
        .stdin(Stdio::null())
        .current_dir(workspace())
        .output()
        .with_context(|| format!("run `{}`", shown(&fuzzer)))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let statistic = |name: &str| {
        said.lines().find_map(|line| line.strip_prefix(&format!("stat::{name}:"))).map_or("?", str::trim).to_owned()
    };
    if output.status.success() {
        let (runs, speed, peak) =
            (statistic("number_of_executed_units"), statistic("average_exec_per_sec"), statistic("peak_rss_mb"));
        let (begun, ended) = (edges(&said, "INITED").unwrap_or("?"), edges(&said, "DONE").unwrap_or("?"));
        say::line(format_args!(
            "{target}: {runs} inputs, {speed}/s, {peak} MiB at most, {begun} edges reached by what there was and {ended} in \
             the end: nothing broke"
        ));
    } else {
        let said: Vec<&str> = said.lines().filter(|line| !line.starts_with('#')).collect();
        let (status, artifacts, said) = (output.status, artifacts.display(), said.join("\n"));
        say::error(format_args!("{target} broke ({status}); the input is in {artifacts}\n{said}"));
    }
    Ok(output.status.success())
}

/// How many edges of the program libFuzzer says were reached, in its line about a moment (`#9 INITED cov: 1319 ft: …`).
fn edges<'a>(said: &'a str, moment: &str) -> Option<&'a str> {
    let line =
        said.lines().find(|line| line.starts_with('#') && line.split_ascii_whitespace().nth(1) == Some(moment))?;
    line.split_once("cov: ")?.1.split_ascii_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the lock file of the fuzz workspace. If this fails, somebody gave a crate a dependency without it, and nothing
    /// is fuzzed until `cargo metadata --manifest-path tests/fuzz/Cargo.toml` has been run.
    #[test]
    fn the_fuzz_workspace_has_locked_what_the_crates_depend_on() {
        let read = |file: &str| std::fs::read_to_string(workspace().join(file)).unwrap();
        let locked = read("tests/fuzz/Cargo.lock");
        for (name, folder) in
            [("headroom-core", "agent/core"), ("headroom-host", "agent/host"), ("headroom-ebpf-common", "ebpf/common")]
        {
            let manifest = read(&format!("{folder}/Cargo.toml"));
            let wanted = manifest.lines().skip_while(|line| *line != "[dependencies]").skip(1);
            let wanted = wanted.take_while(|line| !line.starts_with('[')).filter(|line| !line.contains("optional"));
            let (_, package) = locked.split_once(&format!("name = \"{name}\"\n")).unwrap();
            let package = package.split("[[package]]").next().unwrap();
            for dependency in wanted.filter_map(|line| line.split(['.', ' ', '=']).next()) {
                let there = dependency.is_empty()
                    || dependency.starts_with('#')
                    || package.contains(&format!("\"{dependency}\""))
                    || package.contains(&format!("\"{dependency} "));
                assert!(there, "{name} depends on {dependency}");
            }
        }
    }

    /// Exercises what is told of a run. If this fails, nobody sees that a target never gets into its parser.
    #[test]
    fn edges_reached_are_read_from_what_libfuzzer_says() {
        let said = "INFO: seed corpus\n#9\tINITED cov: 1319 ft: 1682 corp: 8/1080b\n#12\tNEW    cov: 1320 ft: 1\n\
                    #2384127\tDONE   cov: 2813 ft: 8103 corp: 1669/441Kb\n";
        assert_eq!((edges(said, "INITED"), edges(said, "DONE")), (Some("1319"), Some("2813")));
        assert_eq!(edges(said, "PULSE"), None);
    }

    /// Exercises the list. If this fails, a target is never run.
    #[test]
    fn every_target_of_the_fuzz_workspace_is_listed() {
        let folder = workspace().join("tests/fuzz/fuzz_targets");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        files.sort();
        assert_eq!(files, TARGETS);
        let manifest = std::fs::read_to_string(workspace().join("tests/fuzz/Cargo.toml")).unwrap();
        for target in TARGETS {
            assert!(
                manifest.contains(&format!("name = \"{target}\"\npath = \"fuzz_targets/{target}.rs\"")),
                "{target}"
            );
        }
    }
}
