//! Debian's kernel packages: found by series, since exact names age, downloaded and unpacked, never installed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Kernel, folder};
use crate::shell::{output, run as run_command};

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Package {
    /// What `uname -r` will say.
    pub(super) release: String,
    /// What is booted.
    pub(super) image: PathBuf,
    /// Where its `lib/modules` is.
    pub(super) root: PathBuf,
}

/// Finds the unpacked kernel of an earlier run, or gets one. To get a newer one, remove its folder.
pub(super) fn get(kernel: &Kernel) -> Result<Package> {
    let folder = folder(kernel.version)?;
    let root = folder.join("root");
    if let Ok(package) = find(&root) {
        return Ok(package);
    }
    let (options, name) = choose(kernel, &folder)?;
    // Only a download that is whole gets the name that `find` looks for.
    let unpacking = folder.join("unpacking");
    for left_over in [&unpacking, &root] {
        if left_over.exists() {
            std::fs::remove_dir_all(left_over).with_context(|| format!("remove {}", left_over.display()))?;
        }
    }
    std::fs::create_dir_all(&unpacking).with_context(|| format!("create {}", unpacking.display()))?;
    let download = ["-o", "APT::Sandbox::User=root", "download", &name];
    run_command(Command::new("apt-get").args(&options).args(download).current_dir(&unpacking))?;
    let archive = only_entry(&unpacking, "a downloaded package")?;
    run_command(Command::new("dpkg").arg("-x").arg(&archive).arg(&unpacking))?;
    std::fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
    let release = find(&unpacking)?.release;
    run_command(Command::new("depmod").arg("-b").arg(&unpacking).arg(release))?;
    std::fs::rename(&unpacking, &root).with_context(|| format!("rename {}", unpacking.display()))?;
    find(&root)
}

/// What was unpacked there.
fn find(root: &Path) -> Result<Package> {
    let modules = only_entry(&root.join("lib/modules"), "the modules of a kernel")?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let image = root.join("boot").join(format!("vmlinuz-{release}"));
    if !image.is_file() {
        bail!("{} is not there", image.display());
    }
    Ok(Package { release, image, root: root.to_owned() })
}

/// The one file or folder in a folder.
fn only_entry(folder: &Path, what: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut entries: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    match (entries.pop(), entries.is_empty()) {
        (Some(entry), true) => Ok(entry),
        _ => bail!("{} is not {what} and nothing else", folder.display()),
    }
}

/// The newest package of a series in the machine's own lists or, if those have none, in the lists of another Debian release;
/// with the options that make apt use those lists.
fn choose(kernel: &Kernel, folder: &Path) -> Result<(Vec<OsString>, String)> {
    if let Some(name) = newest(kernel, &[]) {
        return Ok((Vec::new(), name));
    }
    let options = lists_of(kernel.suite, folder)?;
    let mut update = Command::new("apt-get");
    run_command(update.args(&options).args(["-o", "APT::Sandbox::User=root", "update"]))?;
    match newest(kernel, &options) {
        Some(name) => Ok((options, name)),
        None => bail!("apt knows no kernel {} here, nor in Debian {}", kernel.version, kernel.suite),
    }
}

/// Makes lists for another Debian release, from the mirror that this machine uses, in a folder of ours.
fn lists_of(suite: &str, folder: &Path) -> Result<Vec<OsString>> {
    let mut indextargets = Command::new("apt-get");
    indextargets.args(["indextargets", "--format", "$(SITE) $(COMPONENT)", "Created-By: Packages", "Origin: Debian"]);
    let targets = output(&mut indextargets).unwrap_or_default();
    let of_debian = |line: &str| {
        let (site, component) = line.split_once(' ')?;
        // Security updates come from an archive of their own, which has other packages.
        (component == "main" && !site.contains("security")).then(|| site.to_owned())
    };
    let mirror =
        targets.lines().find_map(of_debian).context("no Debian mirror among apt's sources; kernels are Debian's")?;
    let apt = folder.join("apt");
    for part in ["lists/partial", "archives/partial"] {
        std::fs::create_dir_all(apt.join(part)).with_context(|| format!("create {part} in {}", apt.display()))?;
    }
    let sources = apt.join("sources.list");
    // The key ring holds the keys of older and newer releases too.
    let line = format!("deb [signed-by={KEY_RING}] {mirror} {suite} main\n");
    std::fs::write(&sources, line).with_context(|| format!("write {}", sources.display()))?;
    let option = |name: &str, path: &Path| -> [OsString; 2] {
        let mut option = OsString::from(format!("{name}="));
        option.push(path);
        ["-o".into(), option]
    };
    Ok([
        option("Dir::Etc::SourceList", &sources),
        option("Dir::Etc::SourceParts", Path::new("/dev/null")),
        option("Dir::State::Lists", &apt.join("lists")),
        option("Dir::Cache", &apt),
    ]
    .concat())
}

/// What signs Debian's archives; on every Debian.
const KEY_RING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The newest package of a series that apt knows.
fn newest(kernel: &Kernel, options: &[OsString]) -> Option<String> {
    let pattern = format!("^linux-image-{}[.].*-amd64-unsigned$", kernel.version.replace('.', "[.]"));
    let mut search = Command::new("apt-cache");
    let found = output(search.args(options).args(["search", "--names-only", &pattern]))?;
    newest_of(found.lines().filter_map(|line| line.split_whitespace().next()))
}

/// The newest of the plain kernels; clouds' and real-time ones are configured otherwise.
fn newest_of<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let plain = names.filter(|name| !name.contains("-cloud-") && !name.contains("-rt-"));
    plain.max_by_key(|name| numbers(name)).map(str::to_owned)
}

/// The numbers in a name, which sort as versions do.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|letter: char| !letter.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the choice. If this fails, an old or a special kernel is tested.
    #[test]
    fn the_newest_plain_kernel_is_chosen() {
        let names = [
            "linux-image-6.1.0-9-amd64-unsigned",
            "linux-image-6.1.0-56-amd64-unsigned",
            "linux-image-6.1.0-57-cloud-amd64-unsigned",
            "linux-image-6.1.0-58-rt-amd64-unsigned",
            "linux-image-6.1.0-55-amd64-unsigned",
        ];
        assert_eq!(newest_of(names.into_iter()).as_deref(), Some("linux-image-6.1.0-56-amd64-unsigned"));
        assert_eq!(newest_of(std::iter::empty()), None);
    }
}
