//! What became of every program: attached, or headroom's own sentence about why not.

use anyhow::Result;
use headroom_host::ebpf::{HookKind, ProgramRow, ProgramStatus};
use headroom_host::root::HostRoot;
use headroom_host::source::conntrack::ConntrackSource;

use crate::check::Cannot;
use crate::flows;
use crate::network::Scene;

/// The name of a program's row.
pub(crate) fn name(row: &ProgramRow) -> String {
    format!("program: {} attaches", row.name)
}

/// One row per program.
pub(crate) fn all(scene: &Scene) -> Result<Vec<(String, Result<String>)>> {
    let mut programs = scene.tcp().programs();
    // In the node's namespace, whose table these count.
    let options = flows::options(1024);
    programs.extend(scene.node().run(|| Ok(ConntrackSource::start(&HostRoot::live(), options).programs()))?);
    let row = |program: &ProgramStatus| {
        let kind = match program.row.kind {
            HookKind::RawTracepoint => "raw tracepoint",
            HookKind::Function => "function",
        };
        let outcome = match &program.attached {
            Ok(()) => Ok(format!("{kind} {}, since {}", program.row.hook, program.row.since)),
            Err(why) => Err(Cannot(why.to_string()).into()),
        };
        (name(&program.row), outcome)
    };
    Ok(programs.iter().map(row).collect())
}
