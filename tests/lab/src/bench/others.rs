//! What events of sockets cost that are not the agent's to count: those of an accepted connection.
//!
//! In the lab both ends of a connection are on one machine, and the kernel counts a program's time over all events. So the
//! agent's own program is run, as it is attached, with the events of one end alone (`BPF_PROG_TEST_RUN`): in the order in
//! which an accepted connection has them, of a socket whose address no other has.

use anyhow::{Context, Result};
use aya::programs::{RawTracePoint, loaded_programs};
use aya::{RawTracePointRunOptions, TestRun as _};

use super::meter::{self, Spread};

/// The program that is shown every change of a socket's state.
const PROGRAM: &str = "tcp_state";
/// No socket's, and not even the kernel's: the program reads nothing of such a socket.
const SOCKET: u64 = 0x7777_7777_0000;
/// From which state to which, numbered as in `include/net/tcp_states.h`: LISTEN, SYN_RECV, ESTABLISHED, CLOSE_WAIT, LAST_ACK,
/// CLOSE.
const ACCEPTED: [(u64, u64); 5] = [(10, 3), (3, 1), (1, 8), (8, 9), (9, 7)];
/// Connections of one measurement, and how many measurements there are.
const CONNECTIONS: u64 = 20_000;
const ROUNDS: usize = 5;

/// Nanoseconds of the program for all events of an accepted connection, in a process that has it attached.
pub(super) fn accepted_ns(pid: u32) -> Result<Spread> {
    let ids = meter::bpf_ids(pid)?;
    let program = loaded_programs()
        .filter_map(std::result::Result::ok)
        .find(|program| program.name_as_str() == Some(PROGRAM) && ids.contains(&u64::from(program.id())))
        .with_context(|| format!("find the program `{PROGRAM}` of the agent"))?;
    let id = u64::from(program.id());
    let program = RawTracePoint::from_program_info(program, PROGRAM.into()).context("open the agent's program")?;
    let _counting = meter::count_bpf()?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let before = meter::bpf_of(pid, |other| other == id)?;
        for _ in 0..CONNECTIONS {
            for (old, new) in ACCEPTED {
                let mut options = RawTracePointRunOptions::new();
                options.args = [SOCKET, old, new, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                program.test_run(options).context("run the agent's program")?;
            }
        }
        let counted = meter::bpf_of(pid, |other| other == id)?.since(before);
        // Other sockets of the machine have few events meanwhile, and are in it.
        rounds.push(meter::float(counted.time_ns) / meter::float(counted.runs) * 5.0);
    }
    Spread::of(rounds).context("measure at least once")
}
