//! What machine this is: its name, its kernel, its cloud by the words of its firmware (DMI).
//!
//! No cloud's metadata server is asked: this works offline and in a captured tree.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use headroom_core::known::Known;
use headroom_core::observe::{Cloud, Fact, Platform, SourceId};

use crate::bounded::{self, Refusal};
use crate::root::HostRoot;
use crate::source::namespaces::of_fib_trie;
use crate::source::{Sink, Source, degraded, observation, works};

/// Names and releases are short.
const LIMIT: usize = 4096;
/// Largest routing table that is searched for the node's addresses.
const MAX_ROUTES_BYTES: usize = 4 << 20;
/// Where the kernel shows what the firmware says.
const DMI: &str = "/sys/class/dmi/id";
/// Where cloud-init leaves the cloud's name.
const CLOUD_ID: &str = "/run/cloud-init/cloud-id";
/// Azure's chassis asset tag, the same on all its machines; Hyper-V elsewhere has another one.
const AZURE_ASSET_TAG: &str = "7783-7084-3265-9085-8269-3286-77";

/// What machine this is.
#[derive(Debug)]
pub struct PlatformSource {
    root: HostRoot,
    node_name: Option<String>,
}

/// The words of the firmware; empty where it says nothing.
#[derive(Debug, Default, PartialEq, Eq)]
struct Dmi {
    product_name: String,
    sys_vendor: String,
    chassis_asset_tag: String,
    bios_vendor: String,
    bios_version: String,
}

impl Dmi {
    fn cloud(&self) -> Option<Cloud> {
        // Nitro machines name their vendor; those on Xen only leave a mark in the BIOS version (`4.11.amazon`).
        let amazon = [&self.sys_vendor, &self.bios_vendor].iter().any(|vendor| *vendor == "Amazon EC2")
            || self.bios_version.ends_with(".amazon");
        if self.product_name == "Google Compute Engine" || self.sys_vendor == "Google" || self.bios_vendor == "Google" {
            Some(Cloud::Gcp)
        } else if amazon {
            Some(Cloud::Aws)
        } else if self.sys_vendor == "Microsoft Corporation" && self.chassis_asset_tag == AZURE_ASSET_TAG {
            Some(Cloud::Azure)
        } else {
            None
        }
    }
}

impl PlatformSource {
    /// `node_name` is what Kubernetes calls the node, if somebody says so; otherwise the machine's own name is taken.
    pub fn new(root: HostRoot, node_name: Option<String>) -> Self {
        Self { root, node_name: node_name.filter(|name| !name.is_empty()) }
    }

    fn line(&self, path: &str) -> Result<String, Refusal> {
        line(&self.root, path)
    }
}

/// The node's name: as somebody gave it, else the machine's own.
///
/// # Errors
/// Why there is none.
pub fn node(root: &HostRoot, given: Option<&str>) -> Result<String, String> {
    if let Some(name) = given {
        return Ok(name.to_owned());
    }
    if root.is_live()
        && let Ok(name) = nix::unistd::gethostname()
    {
        return Ok(name.to_string_lossy().into_owned());
    }
    ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .into_iter()
        .filter_map(|path| line(root, path).ok())
        .find(|name| !name.is_empty())
        .ok_or_else(|| {
            "the node's name is unknown: neither /proc/sys/kernel/hostname nor /etc/hostname tells it".to_owned()
        })
}

/// The node's own IPv4 addresses, as far as its routing table tells them; none if it cannot be read.
pub fn addresses(root: &HostRoot) -> BTreeSet<IpAddr> {
    let table = bounded::read_in(root, Path::new("/proc/1/net/fib_trie"), MAX_ROUTES_BYTES)
        .or_else(|_not_allowed| bounded::read_in(root, Path::new("/proc/self/net/fib_trie"), MAX_ROUTES_BYTES));
    let table = table.map(|table| String::from_utf8_lossy(&table).into_owned());
    table.ok().and_then(|table| of_fib_trie(&table).ok()).unwrap_or_default()
}

/// The cloud, by the words of the firmware. A file that is not there is a firmware that does not say; a captured tree without DMI says nothing.
pub fn cloud(root: &HostRoot) -> Known<Cloud> {
    if !root.is_live() && !root.path(DMI).exists() && !root.path(CLOUD_ID).exists() {
        return Known::because(format!("the captured tree has no `{DMI}`"));
    }
    let mut unread = None;
    let mut field = |name: &str| match line(root, &format!("{DMI}/{name}")) {
        Ok(text) => text,
        Err(Refusal::Missing) => String::new(),
        Err(refusal) => {
            unread.get_or_insert_with(|| format!("`{}` {refusal}", Path::new(DMI).join(name).display()));
            String::new()
        }
    };
    let dmi = Dmi {
        product_name: field("product_name"),
        sys_vendor: field("sys_vendor"),
        chassis_asset_tag: field("chassis_asset_tag"),
        bios_vendor: field("bios_vendor"),
        bios_version: field("bios_version"),
    };
    match (dmi.cloud().or_else(|| by_cloud_init(root)), unread) {
        (Some(cloud), _) => Known::Present(cloud),
        (None, Some(why)) => Known::because(why),
        (None, None) => Known::Absent,
    }
}

/// What cloud-init found out when the machine started, on firmware that says nothing: `aws`, `aws-gov`, `gce`, `azure`, …
fn by_cloud_init(root: &HostRoot) -> Option<Cloud> {
    let id = line(root, CLOUD_ID).ok()?;
    match id.split('-').next() {
        Some("gce") => Some(Cloud::Gcp),
        Some("aws") => Some(Cloud::Aws),
        Some("azure") => Some(Cloud::Azure),
        _ => None,
    }
}

fn line(root: &HostRoot, path: &str) -> Result<String, Refusal> {
    bounded::read_line_in(root, Path::new(path), LIMIT)
}

impl Source for PlatformSource {
    fn id(&self) -> SourceId {
        SourceId::Platform
    }

    fn observe(&mut self, sink: Sink<'_>) {
        const UNKNOWN: &str = "unknown";
        let node = node(&self.root, self.node_name.as_deref());
        let kernel = self
            .line("/proc/sys/kernel/osrelease")
            .map_err(|refusal| format!("the kernel's release is unknown: `/proc/sys/kernel/osrelease` {refusal}"));
        let cloud = cloud(&self.root);
        let how = "host name, kernel release and DMI";
        let missing: Vec<String> = [node.as_ref().err().cloned(), kernel.as_ref().err().cloned()]
            .into_iter()
            .flatten()
            .chain(cloud.unknown().map(|why| format!("the cloud is unknown: {why}")))
            .collect();
        let coverage = if missing.is_empty() { works(how) } else { degraded(how, missing.join("; ")) };
        sink(observation(SourceId::Platform, coverage));
        let or_unknown = |text: Result<String, String>| text.unwrap_or_else(|_named_in_coverage| UNKNOWN.to_owned());
        let platform = Platform { node: or_unknown(node), kernel: or_unknown(kernel), cloud };
        sink(observation(SourceId::Platform, Fact::Platform(platform)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(root: HostRoot, node_name: Option<&str>) -> (Platform, Known<headroom_core::observe::CoverageDetail>) {
        let mut facts = Vec::new();
        PlatformSource::new(root, node_name.map(str::to_owned))
            .observe(&mut |observation| facts.push(observation.fact));
        match facts.as_slice() {
            [Fact::Coverage(coverage), Fact::Platform(platform)] => (platform.clone(), coverage.clone()),
            other => panic!("{other:?}"),
        }
    }

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = tree.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        tree
    }

    fn cloud(files: &[(&str, &str)]) -> Known<Cloud> {
        let files: Vec<_> = files.iter().map(|(name, text)| (format!("sys/class/dmi/id/{name}"), *text)).collect();
        let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        platform(HostRoot::at(tree(&files).path()), None).0.cloud
    }

    #[test]
    fn clouds_are_told_by_their_firmware() {
        assert_eq!(
            cloud(&[("product_name", "Google Compute Engine\n"), ("sys_vendor", "Google\n")]),
            Known::Present(Cloud::Gcp)
        );
        assert_eq!(
            cloud(&[("sys_vendor", "Amazon EC2\n"), ("product_name", "m5.large\n")]),
            Known::Present(Cloud::Aws)
        );
        assert_eq!(cloud(&[("sys_vendor", "Xen\n"), ("bios_version", "4.11.amazon\n")]), Known::Present(Cloud::Aws));
        let hyper_v = ("sys_vendor", "Microsoft Corporation\n");
        assert_eq!(cloud(&[hyper_v, ("chassis_asset_tag", AZURE_ASSET_TAG)]), Known::Present(Cloud::Azure));
        assert_eq!(cloud(&[hyper_v, ("chassis_asset_tag", "1234\n")]), Known::Absent);
        assert_eq!(cloud(&[("sys_vendor", "QEMU\n")]), Known::Absent);
    }

    #[test]
    fn cloud_init_tells_where_the_firmware_does_not() {
        for (id, expected) in [
            ("gce\n", Known::Present(Cloud::Gcp)),
            ("aws-gov\n", Known::Present(Cloud::Aws)),
            ("azure\n", Known::Present(Cloud::Azure)),
            ("nocloud\n", Known::Absent),
        ] {
            let tree = tree(&[("run/cloud-init/cloud-id", id), ("sys/class/dmi/id/sys_vendor", "QEMU\n")]);
            assert_eq!(super::cloud(&HostRoot::at(tree.path())), expected, "{id}");
        }
    }

    #[test]
    fn a_name_given_by_the_user_comes_first() {
        let tree = tree(&[("proc/sys/kernel/osrelease", "6.1.0-50\n"), ("etc/hostname", "gke-node-1\n")]);
        let root = HostRoot::at(tree.path());
        assert_eq!(platform(root.clone(), Some("n1")).0.node, "n1");
        let (found, coverage) = platform(root, None);
        assert_eq!((found.node.as_str(), found.kernel.as_str()), ("gke-node-1", "6.1.0-50"));
        assert!(coverage.present().unwrap().degraded.as_ref().unwrap().as_str().contains("no `/sys/class/dmi/id`"));
    }

    #[test]
    fn an_empty_tree_says_what_is_unknown() {
        let tree = tree(&[]);
        let (found, coverage) = platform(HostRoot::at(tree.path()), None);
        assert_eq!(found.node, "unknown");
        let missing = coverage.present().unwrap().degraded.as_ref().unwrap().to_string();
        assert!(missing.contains("name is unknown") && missing.contains("osrelease` does not exist"), "{missing}");
    }

    #[test]
    fn the_running_machine_has_a_name_and_a_kernel() {
        let (found, _coverage) = platform(HostRoot::live(), None);
        assert!(!found.node.is_empty() && found.kernel.starts_with(|first: char| first.is_ascii_digit()), "{found:?}");
    }
}
