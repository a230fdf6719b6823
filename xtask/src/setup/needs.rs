//! The table of what is needed.

use std::path::Path;

use super::Purpose;
use crate::shell::which;
use crate::toolchain;

/// One thing that has to be there.
pub(super) struct Need {
    /// Its name.
    pub(super) what: &'static str,
    /// What it is for.
    pub(super) why: &'static str,
    /// For which purpose it is needed.
    pub(super) purpose: Purpose,
    /// What to do where it cannot be installed from here.
    pub(super) hint: &'static str,
    /// Debian packages that bring it.
    pub(super) packages: &'static [&'static str],
    check: Check,
}

impl Need {
    /// Whether it is there.
    pub(super) fn is_there(&self) -> bool {
        match self.check {
            Check::Program(name) => which(name).is_some(),
            Check::Holds(holds) => holds(),
        }
    }

    /// Whether that purpose fails without it. A binary can be built without eBPF programs, and says so when it runs; a
    /// tool that is only compared with is left out of the comparison.
    pub(super) fn required_for(&self, purpose: Purpose) -> bool {
        match self.purpose {
            Purpose::Build => purpose >= Purpose::Test || self.what != EBPF_TOOLCHAIN,
            Purpose::Test => true,
            Purpose::Bench => false,
        }
    }
}

pub(super) const EBPF_TOOLCHAIN: &str = "eBPF toolchain";
pub(super) const KUBERNETES_VALIDATE: &str = "kubernetes-validate";

pub(super) const NEEDS: [Need; 21] = [
    Need {
        what: "C compiler",
        why: "cargo links with it",
        purpose: Purpose::Build,
        hint: "install gcc and the C library's headers",
        packages: &["gcc", "libc6-dev"],
        check: Check::Program("cc"),
    },
    Need {
        what: "protoc",
        why: "compiles the container runtime's interface",
        purpose: Purpose::Build,
        hint: "install the protocol buffers compiler",
        packages: &["protobuf-compiler"],
        check: Check::Holds(|| std::env::var_os("PROTOC").is_some() || which("protoc").is_some()),
    },
    Need {
        what: EBPF_TOOLCHAIN,
        why: "compiles the eBPF programs; without it headroom builds, but counts no TCP connections in the kernel",
        purpose: Purpose::Build,
        hint: "`rustup component add rust-src` and `cargo install bpf-linker`",
        // What apt has depends on the release: `setup` chooses.
        packages: &[],
        check: Check::Holds(|| toolchain::find().is_ok()),
    },
    program("ip", "tests make network namespaces", &["iproute2"]),
    program("iptables", "tests translate addresses", &["iptables"]),
    program("nft", "tests translate addresses", &["nftables"]),
    program("conntrack", "tests compare with it", &["conntrack"]),
    program("ipset", "tests list NodePorts as kube-proxy does", &["ipset"]),
    program("bpftool", "tests pin maps as Cilium does", &["bpftool"]),
    program("containerd", "tests run pods", &["containerd"]),
    program("runc", "tests run pods", &["runc"]),
    Need {
        what: "CNI plugins",
        why: "tests give addresses to pods",
        purpose: Purpose::Test,
        hint: "install the reference plugins into /opt/cni/bin",
        packages: &["containernetworking-plugins"],
        check: Check::Holds(|| {
            ["/usr/lib/cni/host-local", "/opt/cni/bin/host-local"].iter().any(|path| Path::new(path).is_file())
        }),
    },
    program("qemu-system-x86_64", "tests boot other kernels", &["qemu-system-x86"]),
    program("modprobe", "tests boot other kernels", &["kmod"]),
    Need {
        what: "static busybox",
        why: "tests boot other kernels",
        purpose: Purpose::Test,
        hint: "install a busybox that needs no shared libraries",
        packages: &["busybox-static"],
        check: Check::Holds(crate::kernels::has_static_busybox),
    },
    program("tc", "tests take packets away before netfilter", &["iproute2"]),
    program("buildah", "tests build the image", &["buildah"]),
    Need {
        what: KUBERNETES_VALIDATE,
        why: "tests check manifests against the API's schemas",
        purpose: Purpose::Test,
        hint: "`python3 -m venv target/venv && target/venv/bin/pip install kubernetes-validate`",
        packages: &["python3-venv"],
        check: Check::Holds(|| super::kubernetes_validate().is_file()),
    },
    peer("bpftrace", &["bpftrace"]),
    peer("tcplife", &["libbpf-tools"]),
    peer("tcpstates", &["libbpf-tools"]),
];

/// How to tell whether something is there.
enum Check {
    /// A program of that name can be found.
    Program(&'static str),
    /// Something else holds.
    Holds(fn() -> bool),
}

/// A program that is measured beside headroom.
const fn peer(what: &'static str, packages: &'static [&'static str]) -> Need {
    let (why, hint) = ("its cost is measured beside headroom's", "install it");
    Need { what, why, purpose: Purpose::Bench, hint, packages, check: Check::Program(what) }
}

/// A program that tests run.
const fn program(what: &'static str, why: &'static str, packages: &'static [&'static str]) -> Need {
    Need { what, why, purpose: Purpose::Test, hint: "install it", packages, check: Check::Program(what) }
}
