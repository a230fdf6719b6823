//! What became of every program: attached, or headroom's own sentence about why not.

use anyhow::Result;
use headroom_host::ebpf::ProgramRow;

use crate::check::Cannot;
use crate::network::Scene;

/// The name of a program's row.
pub(crate) fn name(row: &ProgramRow) -> String {
    format!("program: {} attaches", row.name)
}

/// One row per program.
pub(crate) fn all(scene: &Scene) -> Vec<(String, Result<String>)> {
    let programs = scene.tcp().programs();
    programs
        .iter()
        .map(|program| {
            let outcome = match &program.attached {
                Ok(()) => Ok(format!("raw tracepoint {}, since {}", program.row.hook, program.row.since)),
                Err(why) => Err(Cannot(why.to_string()).into()),
            };
            (name(&program.row), outcome)
        })
        .collect()
}
