//! The eBPF programs on other kernels: loaded, attached and counted against ground truth, in VMs and on this machine.
//!
//! A VM is a kernel package of Debian, an initramfs with a busybox and few modules, and this machine's own file system, read
//! only: what was just built runs as it is. Everything is kept under `target/kernels`; nothing else is written. Emulation is
//! enough, so it runs wherever qemu does: a boot takes some ten seconds, all checks one or two minutes; all VMs run at once.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::build::as_root;
use crate::say;
use crate::setup::{self, Purpose};
use crate::shell::{cargo, run as run_command, target_dir, which};
use crate::test::Sum;

mod initramfs;
mod packages;
mod table;

use packages::Package;
use table::Table;

/// The kernels: the oldest that headroom supports, and those of the two latest long-term series in wide use.
const KERNELS: [Kernel; 3] = [
    Kernel { version: "5.10", cpus: "1", suite: "bullseye" },
    Kernel { version: "6.1", cpus: "1", suite: "bookworm" },
    Kernel { version: "6.12", cpus: "2", suite: "trixie" },
];
/// This machine's own kernel.
const HOST: &str = "host";
/// What `--only` takes.
pub(crate) const NAMES: [&str; 4] = [HOST, "5.10", "6.1", "6.12"];

/// When the program in a guest gives up, by its own clock.
const GUEST_LIMIT_SECS: u64 = 310;
/// When a VM is ended from outside: all of them, since they run at the same time.
const VM_LIMIT: Duration = Duration::from_secs(360);

/// A kernel to boot.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    /// The series.
    version: &'static str,
    /// How many CPUs it gets; two where packets are to race.
    cpus: &'static str,
    /// The Debian release that has it, for machines whose own package lists do not.
    suite: &'static str,
}

/// What a kernel is to do.
#[derive(Debug)]
pub(crate) enum Task {
    /// The checks with this in their names.
    Check(String),
    /// Measure what conntrack costs an agent, which is no check.
    Cost,
}

impl Task {
    /// As the program that runs there has it.
    fn arguments(&self) -> Vec<&str> {
        match self {
            Self::Check(part) => vec!["--check", part],
            Self::Cost => vec!["--cost"],
        }
    }
}

/// `cargo xtask kernels`.
pub(crate) fn run(only: Option<&str>, task: &Task) -> Result<()> {
    setup::require(Purpose::Test)?;
    check(only, task)?.conclude();
    Ok(())
}

/// Has every kernel do it, or one; shows the table.
pub(crate) fn check(only: Option<&str>, task: &Task) -> Result<Sum> {
    // The lab's own binary makes some of the traffic.
    run_command(&mut cargo(["build", "--release", "--package", "headroom-kernels", "--package", "headroom-lab"]))?;
    let program = std::path::absolute(target_dir().join("release/headroom-kernels")).context("find what was built")?;
    let wanted = |name: &str| only.is_none_or(|only| only == name);
    let mut table = Table::default();
    // Before the VMs: they take every core there is.
    if wanted(HOST) {
        let results = folder(HOST)?.join("results");
        std::fs::create_dir_all(&results).with_context(|| format!("create {}", results.display()))?;
        let results = results.join(RESULTS);
        remove(&results)?;
        let start = Instant::now();
        say::line("this machine's kernel …");
        let mut command = Command::new(&program);
        command.args(task.arguments()).arg(&results);
        let mut command = as_root(command)?;
        // How it ended is in the results.
        let _status = command.stdin(Stdio::null()).status().context("run the checks on this machine's kernel")?;
        table.add("this machine", &results, start.elapsed());
    }
    let vms: Vec<&Kernel> = KERNELS.iter().filter(|kernel| wanted(kernel.version)).collect();
    for (kernel, ran) in boot_all(&vms, &program, task)? {
        match ran {
            Ok(Ran { results, took }) => table.add(kernel, &results, took),
            Err(error) => table.fail(kernel, format!("{error:#}")),
        }
    }
    table.show();
    Ok(table.sum())
}

/// A guest that has ended.
struct Ran {
    results: PathBuf,
    took: Duration,
}

/// The file of results in a folder of its own, the only one that a guest can write to.
const RESULTS: &str = "results.jsonl";

/// Gets and boots the kernels, all at once, however few cores there are: most of the time a guest waits, for connects that
/// nobody answers or for a round of a source. Gives them in the order of the list.
fn boot_all(kernels: &[&Kernel], program: &Path, task: &Task) -> Result<Vec<(&'static str, Result<Ran>)>> {
    if kernels.is_empty() {
        return Ok(Vec::new());
    }
    if std::env::consts::ARCH != "x86_64" {
        bail!("the VMs run this machine's programs, and kernels are only known for x86-64");
    }
    let get = |kernel: &&Kernel| packages::get(kernel).with_context(|| format!("get a kernel {}", kernel.version));
    let packages: Vec<_> = kernels.iter().map(get).collect();
    Ok(std::thread::scope(|scope| {
        let boot = |(kernel, package): (&&Kernel, Result<Package>)| {
            let kernel = **kernel;
            (kernel.version, scope.spawn(move || boot(&kernel, &package?, program, task)))
        };
        let guests: Vec<_> = kernels.iter().zip(packages).map(boot).collect();
        let end = |(version, guest): (_, std::thread::ScopedJoinHandle<'_, Result<Ran>>)| {
            (version, guest.join().unwrap_or_else(|_panic| bail!("xtask itself failed: booting panicked")))
        };
        guests.into_iter().map(end).collect()
    }))
}

/// Boots one kernel and waits for its end.
fn boot(kernel: &Kernel, package: &Package, program: &Path, task: &Task) -> Result<Ran> {
    let folder = folder(kernel.version)?;
    let (out, console) = (folder.join("results"), folder.join("console.log"));
    std::fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    let results = out.join(RESULTS);
    remove(&results)?;
    let guest = initramfs::Guest { package, program, out: &out, results: &results, limit_secs: GUEST_LIMIT_SECS, task };
    let initramfs = folder.join("initramfs.cpio");
    initramfs::write(&guest, &folder.join("initramfs"), &initramfs)?;
    let mut qemu = Command::new("qemu-system-x86_64");
    // Enough memory for a conntrack table of 65,536 entries; below 1 GiB the kernel makes it much smaller.
    qemu.args(["-accel", "tcg", "-smp", kernel.cpus, "-m", "1536M", "-nodefaults", "-no-reboot", "-display", "none"]);
    qemu.arg("-serial")
        .arg(prefixed("file:", &console))
        .arg("-kernel")
        .arg(&package.image)
        .arg("-initrd")
        .arg(&initramfs);
    // The guest is thrown away: it need not defend itself against its own programs.
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
    let share = |path: &Path, tag: &str, more: &str| {
        format!(
            "local,path={},mount_tag={tag},security_model=none{more}",
            path.display().to_string().replace(',', ",,")
        )
    };
    qemu.arg("-virtfs").arg(share(Path::new("/"), initramfs::ROOT_TAG, ",readonly=on,multidevs=remap"));
    qemu.arg("-virtfs").arg(share(&out, initramfs::OUT_TAG, ""));
    say::line(format_args!("booting {} …", package.release));
    let start = Instant::now();
    let mut vm = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .context("start qemu-system-x86_64")?;
    while vm.try_wait().context("wait for the VM")?.is_none() {
        if start.elapsed() > VM_LIMIT {
            vm.kill().and_then(|()| vm.wait()).context("end the VM")?;
            say::error(format_args!("{} did not end by itself, see {}", package.release, console.display()));
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(Ran { results, took: start.elapsed() })
}

/// Whether there is a busybox that runs where there is nothing else: one that names no dynamic loader.
pub(crate) fn has_static_busybox() -> bool {
    let loader = b"/ld-linux";
    which("busybox")
        .and_then(|path| std::fs::read(path).ok())
        .is_some_and(|bytes| !bytes.windows(loader.len()).any(|window| window == loader))
}

/// Where everything of one kernel is kept; absolute, because a guest sees the same path.
fn folder(name: &str) -> Result<PathBuf> {
    let folder = std::path::absolute(target_dir().join("kernels").join(name)).context("find the target folder")?;
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

/// Removes a file of an earlier run.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// An argument such as `file:PATH`.
fn prefixed(prefix: &str, path: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(prefix);
    argument.push(path);
    argument
}
