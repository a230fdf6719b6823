//! The eBPF object inside this binary, as `build.rs` left it.

/// Empty if the binary was built without a toolchain for the bpf target.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/headroom.bpf.o"));
/// Why it is empty.
const WITHOUT: &str = env!("HEADROOM_WITHOUT_EBPF");

/// This binary carries no eBPF programs.
#[derive(Debug, thiserror::Error)]
#[error("this binary was built without eBPF programs ({why}); build it again after `cargo xtask setup`")]
pub struct NotBuilt {
    /// What the build lacked.
    why: &'static str,
}

/// The object's bytes.
pub(super) fn embedded() -> Result<&'static [u8], NotBuilt> {
    if OBJECT.is_empty() { Err(NotBuilt { why: WITHOUT }) } else { Ok(OBJECT) }
}
