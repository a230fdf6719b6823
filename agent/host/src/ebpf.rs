//! The eBPF side of the agent: loads the embedded programs, hands them where this kernel keeps what they read, attaches
//! them, and gives typed access to their maps.
//!
//! That it cannot work here is a normal answer ([`LoadError`]), never a panic: the agent goes on with other sources and
//! says what is missing. Programs and maps live as long as the value that holds them; nothing is pinned.

use aya::programs::{KProbe, ProgramError, RawTracePoint};
use aya::{Ebpf, EbpfError, EbpfLoader};
use headroom_core::known::{Known, Why};
use headroom_core::observe::{Fact, Program, ProgramRuns};

use crate::btf::BtfError;

pub mod conntrack;
mod functions;
pub mod maps;
mod object;
mod programs;
mod runs;
pub mod tcp;

use functions::attach_under;
pub use object::NotBuilt;
pub use programs::{
    CONNTRACK, CT_CONFIRM, CT_DELETE, CT_INSERT, CT_NO_PORT, HookKind, ProgramRow, TCP, TCP_RETRANSMIT, TCP_STATE,
};
pub use runs::{Counting, count_runs};

/// Why eBPF programs are not running.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// This binary carries none.
    #[error(transparent)]
    NotBuilt(#[from] NotBuilt),
    /// The kernel does not let us.
    #[error(
        "not permitted to {what}; it takes the capabilities CAP_BPF and CAP_PERFMON (CAP_SYS_ADMIN before Linux 5.8)"
    )]
    NotPermitted {
        /// What was refused.
        what: String,
    },
    /// A distribution's kernel lets nobody with less than everything use performance events, which attach kprobes.
    #[error(
        "not permitted to probe kernel functions: `kernel.perf_event_paranoid` is {level}, and above 2 the kernels of Debian and \
         Ubuntu ask for CAP_SYS_ADMIN where others ask for CAP_PERFMON; set it to 2 on the node"
    )]
    Paranoid {
        /// The setting.
        level: i32,
    },
    /// Where the kernel keeps what the programs read is not known.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The kernel keeps it where the programs cannot read it.
    #[error("this kernel lays out `{what}` in a way that the programs do not know")]
    UnknownLayout {
        /// Which struct or member.
        what: &'static str,
    },
    /// The kernel does not have what a program attaches to.
    #[error("this kernel has no tracepoint `{hook}`")]
    HookMissing {
        /// Which.
        hook: &'static str,
    },
    /// The kernel lets nobody probe its functions.
    #[error("this kernel has no kprobes (CONFIG_KPROBES)")]
    NoProbes,
    /// The function is not there under its name.
    #[error(
        "the kernel function `{function}` cannot be found: its module is not loaded, the compiler inlined it, or this is a \
         kernel between 6.1.60 and 6.1.70, which finds no functions of modules"
    )]
    FunctionMissing {
        /// Which.
        function: String,
    },
    /// The compiler has made another function of it.
    #[error(
        "the kernel has `{found}` in the place of `{function}`: the compiler may have changed what is passed to it"
    )]
    FunctionChanged {
        /// Which.
        function: String,
        /// What is there.
        found: String,
    },
    /// There are several functions of that name.
    #[error("the kernel has several functions named `{function}`: which one is meant cannot be said")]
    FunctionAmbiguous {
        /// Which.
        function: String,
    },
    /// None of a subject's programs could be attached.
    #[error("{why}")]
    NothingAttached {
        /// Why not the most important one.
        why: Why,
        /// Why not each of them.
        programs: Vec<ProgramStatus>,
    },
    /// A program of the table is not in the object.
    #[error("the eBPF object has no `{what}`")]
    NotInObject {
        /// Which program or map.
        what: &'static str,
    },
    /// Creating maps or reading the object failed.
    #[error("could not load the eBPF object")]
    Object(#[source] EbpfError),
    /// The verifier refused a program, or it could not be attached.
    #[error("could not load or attach the eBPF program `{name}`")]
    Program {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// A map is not what the agent takes it for.
    #[error(transparent)]
    Maps(#[from] maps::MapsError),
}

impl LoadError {
    /// The whole chain in one sentence: what a report shows.
    pub fn why(&self) -> Why {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let part = error.to_string();
            // A verifier's log can be megabytes; its first line and our bound are enough for a report.
            let line: String = part.lines().next().unwrap_or_default().chars().take(200).collect();
            if !text.ends_with(&line) {
                text.push_str(": ");
                text.push_str(&line);
            }
            cause = error.source();
        }
        Why::new(text)
    }
}

/// One program and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramStatus {
    /// Which.
    pub row: ProgramRow,
    /// Attached, or why not.
    pub attached: Result<(), Why>,
}

impl ProgramStatus {
    /// As a fact; with what the kernel says of how it ran, if it is attached.
    pub fn fact(&self, runs: impl FnOnce(&str) -> Known<ProgramRuns>) -> Fact {
        Fact::Program(Program {
            name: self.row.name.to_owned(),
            hook: self.row.hook.to_owned(),
            lost_without: self.row.lost_without.to_owned(),
            runs: self.attached.as_ref().map_or_else(|why| Known::Unknown(why.clone()), |()| runs(self.row.name)),
        })
    }

    /// The status of every program, when none could be loaded.
    pub fn none(programs: &[ProgramRow], why: &Why) -> Vec<Self> {
        programs.iter().map(|&row| Self { row, attached: Err(why.clone()) }).collect()
    }
}

/// Reads an object and creates its maps.
fn create<'a>(object: &[u8], prepare: impl FnOnce(&mut EbpfLoader<'a>)) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    // No relocations by BTF: offsets come as constants, so that one program text serves and says what it needs.
    loader.btf(None);
    prepare(&mut loader);
    loader
        .load(object)
        .map_err(|error| if refused(&error) { not_permitted("create eBPF maps") } else { LoadError::Object(error) })
}

fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, LoadError> {
    ebpf.take_map(name).ok_or(LoadError::NotInObject { what: name })
}

/// Loads and attaches one program of the table.
fn attach(ebpf: &mut Ebpf, row: ProgramRow) -> Result<(), LoadError> {
    attach_to(ebpf, row, &[row.hook.to_owned()])
}

/// Where the kernel keeps what it takes to attach a kprobe.
const KPROBE_TYPE: &str = "/sys/bus/event_source/devices/kprobe/type";

/// Loads one program of the table and attaches it, to a function under the first of these names that the kernel takes.
fn attach_to(ebpf: &mut Ebpf, row: ProgramRow, names: &[String]) -> Result<(), LoadError> {
    use std::io::ErrorKind::{AddrNotAvailable, NotFound};

    let io_kind = |source: &ProgramError| io_error(source).map(std::io::Error::kind);
    let failed = |source: ProgramError| match (row.kind, io_kind(&source)) {
        (HookKind::Function, _) if refused(&source) && paranoid().is_some() => {
            LoadError::Paranoid { level: paranoid().unwrap_or_default() }
        }
        _ if refused(&source) => not_permitted(&format!("load or attach the eBPF program `{}`", row.name)),
        (HookKind::RawTracepoint, Some(NotFound)) => LoadError::HookMissing { hook: row.hook },
        (HookKind::Function, Some(NotFound)) => LoadError::FunctionMissing { function: row.hook.to_owned() },
        (HookKind::Function, Some(AddrNotAvailable)) => LoadError::FunctionAmbiguous { function: row.hook.to_owned() },
        _ => LoadError::Program { name: row.name, source },
    };
    let program = ebpf.program_mut(row.name).ok_or(LoadError::NotInObject { what: row.name })?;
    match row.kind {
        HookKind::RawTracepoint => {
            let program: &mut RawTracePoint = program.try_into().map_err(failed)?;
            program.load().map_err(failed)?;
            program.attach(row.hook).map(drop).map_err(failed)
        }
        HookKind::Function => {
            if !std::path::Path::new(KPROBE_TYPE).exists() {
                return Err(LoadError::NoProbes);
            }
            let program: &mut KProbe = program.try_into().map_err(failed)?;
            program.load().map_err(failed)?;
            attach_under(names, io_kind, |name| program.attach(name, 0).map(drop)).map_err(failed)
        }
    }
}

fn not_permitted(what: &str) -> LoadError {
    LoadError::NotPermitted { what: what.to_owned() }
}

/// Who may use performance events, where that is fewer than in the kernel as it is published: it knows levels up to 2, and those
/// of distributions refuse whoever has no CAP_SYS_ADMIN above that (`perf_paranoid_any` in their `kernel/events/core.c`).
fn paranoid() -> Option<i32> {
    let text = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").ok()?;
    text.trim().parse().ok().filter(|level| *level > 2)
}

/// Whether the kernel said EPERM or EACCES without the verifier having an opinion.
fn refused(error: &(dyn std::error::Error + 'static)) -> bool {
    io_error(error).is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// The first I/O error in a chain.
fn io_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io);
        }
        cause = error.source();
    }
    None
}
