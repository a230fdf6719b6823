//! Whether a part of netfilter is there, without asking it: a question would make the kernel load its module.

use std::path::Path;

use crate::root::HostRoot;
use crate::source::lines::{Lines, Step};

/// The kernel's symbols: some 12 MB with all of a distribution's modules loaded.
const SYMBOLS_LIMIT_BYTES: usize = 64 << 20;
/// A function of `nf_tables` that other modules use: its name is there whether it is a module or built in.
pub(super) const NF_TABLES: &[u8] = b"nft_register_chain_type";
/// Likewise of `ip_set`.
pub(crate) const IP_SET: &[u8] = b"ip_set_type_register";

/// Whether the kernel has a symbol of that name.
///
/// # Errors
/// Why that cannot be told.
pub(crate) fn has(root: &HostRoot, symbol: &[u8]) -> Result<bool, String> {
    let path = Path::new("/proc/kallsyms");
    let say = |error: std::io::Error| format!("`{}` could not be read: {error}", path.display());
    let mut lines = Lines::open(root, path, SYMBOLS_LIMIT_BYTES).map_err(say)?;
    loop {
        match lines.step().map_err(say)? {
            Step::Line(line) if names(line, symbol) => return Ok(true),
            Step::Line(_) | Step::TooLong => {}
            Step::End => return Ok(false),
            Step::Limit => return Err(format!("`{}` is longer than {SYMBOLS_LIMIT_BYTES} bytes", path.display())),
        }
    }
}

/// `ffffffff81f64660 T nft_register_chain_type`, with `\t[nf_tables]` behind it for a module.
fn names(line: &[u8], symbol: &[u8]) -> bool {
    let mut words = line.split(u8::is_ascii_whitespace);
    words.nth(2) == Some(symbol)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the way to tell. If this fails, a module is loaded by asking for it, or rules are overlooked.
    #[test]
    fn nf_tables_is_found_built_in_and_as_a_module_and_not_by_half_a_name() {
        let place = tempfile::tempdir().unwrap();
        let root = HostRoot::at(place.path());
        std::fs::create_dir(place.path().join("proc")).unwrap();
        let found = |text: &str| {
            std::fs::write(place.path().join("proc/kallsyms"), text).unwrap();
            has(&root, NF_TABLES)
        };
        assert_eq!(found("0000 T nf_register_net_hook\n0000 T nft_register_chain_type\n"), Ok(true));
        assert_eq!(found("0000 t nft_register_chain_type\t[nf_tables]\n"), Ok(true));
        assert_eq!(found("0000 r __ksymtab_nft_register_chain_type\n0000 T nft_register_chain_types\n"), Ok(false));
        drop(place);
        assert!(has(&root, NF_TABLES).unwrap_err().contains("/proc/kallsyms"));
    }
}
