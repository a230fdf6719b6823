//! Maps of the layout that Cilium pins on a node's bpffs: real kernel maps, filled by hand. There is no Cilium here.
//!
//! They are pinned on a bpffs of the lab's own. A program that is to find them where Cilium pins them runs in a mount namespace
//! of its own, with that bpffs at `/sys/fs/bpf`: the machine's stays as it is.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::lab::Lab;
use crate::netns::Netns;
use crate::process;

/// The addresses that stand for a pod that talks to itself.
const SELF: Ipv4Addr = Ipv4Addr::new(169, 254, 42, 1);
const SELF_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// A bpffs with maps on it. Unmounted with the lab's directory.
#[derive(Debug)]
pub struct CiliumMaps {
    lab: Lab,
    bpffs: PathBuf,
}

/// What became of a pod's connection to itself, as its two entries show it (cilium's issue 23913).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hairpin {
    /// Both are open.
    Open,
    /// The dialling side's is alone: it never saw the other close.
    Alone,
    /// Made over one that was left behind: the other is blank.
    Broken,
}

impl CiliumMaps {
    /// Mounts the bpffs, and makes an empty map of connections as Cilium 1.11 to 1.18 lays it out.
    pub fn new(lab: &Lab) -> Result<Self> {
        Self::with_sizes(lab, 14, 56)
    }

    /// The same with keys and values of other sizes.
    pub fn with_sizes(lab: &Lab, key_bytes: u32, value_bytes: u32) -> Result<Self> {
        let bpffs = lab.make_dir("bpf")?;
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount a bpffs at `{}`", bpffs.display()))?;
        let maps = Self { lab: lab.clone(), bpffs };
        std::fs::create_dir_all(maps.globals()).context("make Cilium's directory on the bpffs")?;
        maps.pin("cilium_ct4_global", key_bytes, value_bytes)?;
        Ok(maps)
    }

    /// Makes a further map of connections, empty.
    pub fn pin(&self, name: &str, key_bytes: u32, value_bytes: u32) -> Result<()> {
        self.make(name, "lru_hash", (key_bytes, value_bytes), 131_072)
    }

    fn globals(&self) -> PathBuf {
        self.bpffs.join("tc/globals")
    }

    fn make(&self, name: &str, kind: &str, (key_bytes, value_bytes): (u32, u32), entries: u32) -> Result<()> {
        let path = self.globals().join(name);
        let [key, value, entries] = [key_bytes, value_bytes, entries].map(|number| number.to_string());
        // The kernel's names have 15 letters.
        let short: String = name.chars().take(15).collect();
        let path = path.to_string_lossy();
        let args = ["map", "create", &*path, "type", kind, "key", &key, "value", &value, "entries", &entries];
        process::run(&self.lab, "bpftool", &[&args[..], &["name", &short]].concat()).map(drop)
    }

    /// Makes the map of Services as Cilium 1.8 to 1.18 lays it out, with NodePorts of TCP in it.
    pub fn allocate(&self, node_ports: impl IntoIterator<Item = u16>) -> Result<()> {
        const NAME: &str = "cilium_lb4_services_v2";
        self.make(NAME, "hash", (12, 12), 65_536)?;
        let mut batch = String::new();
        for (number, port) in (1_u16..).zip(node_ports) {
            // `struct lb4_key`: any address, the port, slot 0, TCP; `struct lb4_service`: one backend, SVC_FLAG_NODEPORT.
            let key = [&[0; 4][..], &port.to_be_bytes(), &[0, 0, 6, 0, 0, 0]].concat();
            let value = [&[0, 0, 0, 0, 1, 0][..], &number.to_ne_bytes(), &[2, 0, 0, 0]].concat();
            self.update(&mut batch, NAME, &key, &value)?;
        }
        self.enter(&batch)
    }

    /// Enters connections of a pod to itself, from as many source ports as there are; those of IPv6 have a map of their own.
    pub fn add(&self, pod: SocketAddr, from: impl IntoIterator<Item = u16>, what: Hairpin) -> Result<()> {
        let mut batch = String::new();
        for port in from {
            // RxClosing 1, TxClosing 2, LBLoopback 8, SeenNonSyn 0x10; 0x1a is what `cilium bpf ct list` showed of a leak.
            let (out, twin) = match what {
                Hairpin::Open => (0x18, Some((0x18, 5))),
                Hairpin::Alone => (0x1a, None),
                Hairpin::Broken => (0x1a, Some((0, 0))),
            };
            self.write(&mut batch, pod, port, 0, (out, 5))?;
            if let Some(flags) = twin {
                self.write(&mut batch, pod, port, 1, flags)?;
            }
        }
        self.enter(&batch)
    }

    fn enter(&self, batch: &str) -> Result<()> {
        let file = self.lab.dir().join("entries.batch");
        std::fs::write(&file, batch).context("write entries for bpftool")?;
        process::run(&self.lab, "bpftool", &["batch", "file", &file.to_string_lossy()]).map(drop)
    }

    fn update(&self, batch: &mut String, map: &str, key: &[u8], value: &[u8]) -> Result<()> {
        let path = self.globals().join(map);
        writeln!(batch, "map update pinned {} key hex {} value hex {}", path.display(), hex(key), hex(value))
            .context("write an entry")
    }

    /// One entry: `struct ipv4_ct_tuple` (addresses the wrong way round) and `struct ct_entry`.
    fn write(
        &self,
        batch: &mut String,
        pod: SocketAddr,
        from: u16,
        direction: u8,
        (flags, rev_nat): (u16, u16),
    ) -> Result<()> {
        let ports = [pod.port().to_be_bytes(), from.to_be_bytes()].concat();
        let (map, addresses) = match pod.ip() {
            IpAddr::V4(own) => ("cilium_ct4_global", [SELF.octets(), own.octets()].concat()),
            IpAddr::V6(own) => ("cilium_ct6_global", [SELF_V6.octets(), own.octets()].concat()),
        };
        let key = [&addresses[..], &ports, &[6, direction]].concat();
        let mut value = vec![0_u8; 32];
        value.extend(21_600_u32.to_ne_bytes());
        value.extend([flags, rev_nat].map(u16::to_ne_bytes).concat());
        value.resize(56, 0);
        self.update(batch, map, &key, &value)
    }

    /// A command in a namespace, to be started with [`Netns::spawn`], that finds the maps where Cilium pins them.
    pub fn command(&self, netns: &Netns, program: &str, args: &[&str]) -> Command {
        let script = r#"mount --bind "$0" /sys/fs/bpf && exec "$@""#;
        let bpffs = self.bpffs.to_string_lossy();
        let wrapped = ["--mount", "sh", "-c", script, &*bpffs, program];
        netns.command("unshare", &[&wrapped[..], args].concat())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
