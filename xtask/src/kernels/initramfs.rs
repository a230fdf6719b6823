//! What a guest boots into: a busybox, the modules that reach this machine's files, and a script that runs the checks.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::packages::Package;
use crate::shell::{output, which};

/// The name under which a guest finds this machine's files.
pub(super) const ROOT_TAG: &str = "root";
/// The name under which it finds the folder it can write to.
pub(super) const OUT_TAG: &str = "out";

/// A guest to be.
pub(super) struct Guest<'a> {
    pub(super) package: &'a Package,
    /// What it runs.
    pub(super) program: &'a Path,
    /// The folder it can write to.
    pub(super) out: &'a Path,
    /// The file it writes.
    pub(super) results: &'a Path,
    /// When the program gives up.
    pub(super) limit_secs: u64,
    /// What it is to do.
    pub(super) task: &'a super::Task,
}

/// What a guest needs to reach files over virtio; where a kernel has one of them built in, there is nothing to load.
const MODULES: [&str; 3] = ["virtio_pci", "9pnet_virtio", "9p"];

/// Writes a guest's initramfs, by way of a folder.
pub(super) fn write(guest: &Guest<'_>, folder: &Path, archive: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    for part in ["bin", "dev", "host", "modules"] {
        std::fs::create_dir_all(folder.join(part)).with_context(|| format!("create {part} in {}", folder.display()))?;
    }
    let busybox = which("busybox").context("find busybox")?;
    std::fs::copy(&busybox, folder.join("bin/busybox")).context("copy busybox")?;
    std::os::unix::fs::symlink("busybox", folder.join("bin/sh")).context("link the shell")?;
    let modprobe = which("modprobe").context("find modprobe")?;
    for (number, module) in (100..).zip(modules(guest.package, &modprobe)?) {
        unpack(&busybox, Path::new(&module), &folder.join(format!("modules/{number}.ko")))?;
    }
    executable(&folder.join("init"), &script(guest))?;
    executable(&folder.join(LOADER.trim_start_matches('/')), &loader(guest.package, &modprobe))?;
    pack(&busybox, folder, archive)
}

/// Writes a script.
fn executable(path: &Path, script: &str) -> Result<()> {
    std::fs::write(path, script).with_context(|| format!("write {}", path.display()))?;
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, mode).with_context(|| format!("make {} executable", path.display()))
}

/// The modules' files, in the order in which they load.
fn modules(package: &Package, program: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for module in MODULES {
        let mut modprobe = Command::new(program);
        modprobe.arg("-d").arg(&package.root).args(["-S", &package.release, "--show-depends", module]);
        let shown = output(&mut modprobe).with_context(|| format!("ask modprobe for {module}"))?;
        for file in shown.lines().filter_map(|line| line.trim().strip_prefix("insmod ")) {
            if !files.iter().any(|there| there == file) {
                files.push(file.to_owned());
            }
        }
    }
    Ok(files)
}

/// Copies a module; Debian compresses them since 6.12, and busybox loads only plain ones.
fn unpack(busybox: &Path, module: &Path, to: &Path) -> Result<()> {
    if module.extension().is_none_or(|extension| extension != "xz") {
        return std::fs::copy(module, to).map(drop).with_context(|| format!("copy {}", module.display()));
    }
    let file = std::fs::File::create(to).with_context(|| format!("create {}", to.display()))?;
    succeed(Command::new(busybox).arg("xzcat").arg(module).stdout(file))
}

/// What the guest does. It sees this machine's files under their own paths, so that shared libraries and tools are found; only
/// its results and what is in memory can be written.
fn script(guest: &Guest<'_>) -> String {
    let (program, out, results) = (path(guest.program), path(guest.out), path(guest.results));
    let task: Vec<String> = guest.task.arguments().iter().map(|word| quoted(word)).collect();
    let task = task.join(" ");
    let (mount, limit) = ("$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000", guest.limit_secs);
    format!(
        "#!/bin/sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod $module; done
{mount},ro,cache=loose {ROOT_TAG} /host
for at in proc:proc sysfs:sys devtmpfs:dev tmpfs:run tmpfs:tmp; do $b mount -t ${{at%%:*}} none /host/${{at#*:}}; done
{mount} {OUT_TAG} /host{out}
echo {LOADER} > /host/proc/sys/kernel/modprobe
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
$b chroot /host {program} --may-unload --limit-secs {limit} {task} {results}
$b poweroff -f
"
    )
}

/// The program by which a guest's kernel loads modules.
const LOADER: &str = "/bin/load-module";

/// Modules are in the package's folder, not where modprobe would look.
fn loader(package: &Package, modprobe: &Path) -> String {
    let (root, modprobe) = (path(&package.root), path(modprobe));
    format!("#!/bin/sh\nexec /bin/busybox chroot /host {modprobe} -d {root} \"$@\"\n")
}

/// A path as a shell reads it.
fn path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Packs a folder as the kernel wants it.
fn pack(busybox: &Path, folder: &Path, archive: &Path) -> Result<()> {
    let mut find = Command::new(busybox)
        .args(["find", "."])
        .current_dir(folder)
        .stdout(Stdio::piped())
        .spawn()
        .context("list the initramfs")?;
    let names = find.stdout.take().context("read the list of the initramfs")?;
    let file = std::fs::File::create(archive).with_context(|| format!("create {}", archive.display()))?;
    let mut cpio = Command::new(busybox);
    cpio.args(["cpio", "--quiet", "-o", "-H", "newc"]).current_dir(folder).stdin(names).stdout(file);
    succeed(&mut cpio)?;
    find.wait().context("list the initramfs").map(drop)
}

/// Runs a small command whose output goes elsewhere.
fn succeed(command: &mut Command) -> Result<()> {
    let shown = crate::shell::shown(command);
    let status = command.status().with_context(|| format!("run `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}
