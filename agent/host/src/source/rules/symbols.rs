//! Whether a part of netfilter is there, without asking it: a question would make the kernel load its module.

use std::path::Path;
use std::sync::OnceLock;

use crate::root::HostRoot;
use crate::source::lines::{Lines, Step};

/// The kernel's symbols: some 12 MB with all of a distribution's modules loaded.
const SYMBOLS_LIMIT_BYTES: usize = 64 << 20;

/// A part of netfilter that is a module or built in.
#[derive(Debug)]
pub(crate) struct Part {
    module: &'static str,
    /// A function that other modules use: its name is there whether the part is a module or built in.
    function: &'static [u8],
    /// Whether it is built into the running kernel: that takes 5 to 12 MB of symbols to tell, and stays true until the next
    /// boot.
    built_in: OnceLock<bool>,
}

/// `nf_tables`.
pub(super) static NF_TABLES: Part =
    Part { module: "nf_tables", function: b"nft_register_chain_type", built_in: OnceLock::new() };
/// `ip_set`.
pub(crate) static IP_SET: Part =
    Part { module: "ip_set", function: b"ip_set_type_register", built_in: OnceLock::new() };

/// Whether the kernel has that part, now.
///
/// # Errors
/// Why that cannot be told.
pub(crate) fn has(root: &HostRoot, part: &Part) -> Result<bool, String> {
    let modules = root.path("/sys/module");
    if modules.join(part.module).exists() {
        return Ok(true);
    }
    // Without a list of modules it may still be one.
    let only_built_in = modules.is_dir();
    match part.built_in.get().filter(|_| only_built_in && root.is_live()) {
        Some(built_in) => Ok(*built_in),
        None => {
            let found = search(root, part.function, only_built_in)?;
            if only_built_in && root.is_live() {
                // Somebody else may have been faster, with the same answer.
                let _same = part.built_in.set(found);
            }
            Ok(found)
        }
    }
}

/// Looks for a function in the kernel's symbols. Those of modules come last (`update_iter()` of `kernel/kallsyms.c`).
fn search(root: &HostRoot, function: &[u8], only_built_in: bool) -> Result<bool, String> {
    let path = Path::new("/proc/kallsyms");
    let say = |error: std::io::Error| format!("`{}` could not be read: {error}", path.display());
    let mut lines = Lines::open(root, path, SYMBOLS_LIMIT_BYTES).map_err(say)?;
    loop {
        match lines.step().map_err(say)? {
            Step::Line(line) if only_built_in && line.ends_with(b"]") => return Ok(false),
            Step::Line(line) if names(line, function) => return Ok(true),
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
        let symbols = |text: &str| std::fs::write(place.path().join("proc/kallsyms"), text).unwrap();
        let found = |text: &str| {
            symbols(text);
            has(&root, &NF_TABLES)
        };
        let (core, module) = ("0000 T nft_register_chain_type\n", "0000 t nft_register_chain_type\t[nf_tables]\n");
        assert_eq!(found(&format!("0000 T nf_register_net_hook\n{core}")), Ok(true));
        assert_eq!(found(module), Ok(true));
        assert_eq!(found("0000 r __ksymtab_nft_register_chain_type\n0000 T nft_register_chain_types\n"), Ok(false));
        // Where modules are listed, they need no symbols.
        std::fs::create_dir_all(place.path().join("sys/module/other")).unwrap();
        assert_eq!(found(core), Ok(true));
        assert_eq!(found(&format!("0000 t other\t[other]\n{core}")), Ok(false));
        assert_eq!(found(""), Ok(false));
        std::fs::create_dir(place.path().join("sys/module/nf_tables")).unwrap();
        assert_eq!(found(""), Ok(true));
        std::fs::remove_dir(place.path().join("sys/module/nf_tables")).unwrap();
        std::fs::remove_file(place.path().join("proc/kallsyms")).unwrap();
        assert!(has(&root, &NF_TABLES).unwrap_err().contains("/proc/kallsyms"));
        drop(place);
    }
}
