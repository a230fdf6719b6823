//! Under which name a function of conntrack can be probed: compilers inline, split and rename functions, and where
//! `nf_conntrack` is a module another function may have the same name.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read as _};

use super::LoadError;
use super::programs::{CT_CONFIRM, CT_DELETE, CT_INSERT};
use crate::root::HostRoot;

/// The module that the functions are in, unless it is built in.
const MODULE: &[u8] = b"nf_conntrack";
/// `/proc/kallsyms` has some 10 MiB.
const LIMIT_BYTES: u64 = 64 << 20;
/// Names that begin like a function's and are told apart; kernels have two or three.
const MAX_NAMES: usize = 64;

/// What the kernel lists of the functions that are probed.
#[derive(Debug, Default)]
pub(super) struct Functions {
    /// By name, with what compilers append to it.
    listed: BTreeMap<String, Places>,
}

/// How often a name is listed.
#[derive(Debug, Default, Clone, Copy)]
struct Places {
    in_module: u32,
    elsewhere: u32,
}

/// What to probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// What to ask for, one after the other.
    pub(super) names: Vec<String>,
    /// It is the part into which the compiler has moved what follows the function's first test.
    pub(super) part: bool,
}

impl Functions {
    /// Reads the kernel's list. Where it cannot be read, attaching tells what is there; only a split function would be missed,
    /// which the comparison with the table then shows.
    pub(super) fn read(root: &HostRoot) -> Self {
        std::fs::File::open(root.path("/proc/kallsyms"))
            .map(|file| Self::of(BufReader::with_capacity(256 << 10, file.take(LIMIT_BYTES))))
            .unwrap_or_default()
    }

    /// What a text in the format of `/proc/kallsyms` lists: `ffffffffc0a01230 t nf_ct_delete.part.0`, and behind a tab
    /// `[nf_conntrack]` where it is a module's.
    fn of(mut lines: impl BufRead) -> Self {
        let mut functions = Self::default();
        let mut line = Vec::with_capacity(256);
        while lines.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            functions.note(&line);
            line.clear();
        }
        functions
    }

    fn note(&mut self, line: &[u8]) {
        let mut words = line.split(u8::is_ascii_whitespace).skip(1).filter(|word| !word.is_empty());
        // Data may have any name.
        if !matches!(words.next(), Some(b"t" | b"T" | b"w" | b"W")) {
            return;
        }
        let Some(name) = words.next().and_then(|name| std::str::from_utf8(name).ok()) else { return };
        let (function, suffix) = name.split_once('.').unwrap_or((name, ""));
        // `.cold` is where a function jumps to, never where it begins.
        let ours = [CT_INSERT.hook, CT_CONFIRM.hook, CT_DELETE.hook].contains(&function);
        if !ours || suffix.split('.').any(|word| word == "cold") {
            return;
        }
        if self.listed.len() >= MAX_NAMES && !self.listed.contains_key(name) {
            return;
        }
        let places = self.listed.entry(name.to_owned()).or_default();
        let module = words.next().and_then(|word| word.strip_prefix(b"[")?.strip_suffix(b"]"));
        let place = if module == Some(MODULE) { &mut places.in_module } else { &mut places.elsewhere };
        *place = place.saturating_add(1);
    }

    /// How to ask for a function whose callers may all enter a part of it, as those of `nf_ct_delete` do.
    ///
    /// # Errors
    /// See [`Functions::target`].
    pub(super) fn target_or_part(&self, function: &str) -> Result<Target, LoadError> {
        let is_part = |suffix: &str| {
            suffix.strip_prefix("part.").is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let others = || self.suffixes(function);
        // Some callers then enter what has other arguments.
        if let Some((found, _)) = others().find(|(name, _)| !suffix_of(name).starts_with("part.")) {
            return Err(changed(function, found));
        }
        if let Some((name, places)) = others().find(|(name, _)| is_part(suffix_of(name))) {
            return Ok(Target { names: names(name, places)?, part: true });
        }
        // Callers pass by the function itself and enter a part whose arguments are not known.
        match others().find(|(name, _)| suffix_of(name).starts_with("part.")) {
            Some((found, _)) => Err(changed(function, found)),
            None => self.target(function),
        }
    }

    /// How to ask for a function.
    ///
    /// # Errors
    /// The compiler has changed its arguments, for some callers at least, or it cannot be said which of several it is.
    pub(super) fn target(&self, function: &str) -> Result<Target, LoadError> {
        // Beside the function itself, too: some callers then enter what has other arguments.
        if let Some((found, _)) = self.suffixes(function).next() {
            return Err(changed(function, found));
        }
        // Attaching tells: it may be that nothing is listed because we may not read the list.
        let places = self.listed.get(function).copied().unwrap_or_default();
        Ok(Target { names: names(function, places)?, part: false })
    }

    /// What the compiler made of a function beside itself.
    fn suffixes(&self, function: &str) -> impl Iterator<Item = (&str, Places)> {
        let of_it = move |name: &&String| name.split_once('.').is_some_and(|(base, _)| base == function);
        self.listed.iter().filter(move |(name, _)| of_it(name)).map(|(name, places)| (name.as_str(), *places))
    }
}

fn suffix_of(name: &str) -> &str {
    name.split_once('.').map_or("", |(_, suffix)| suffix)
}

fn changed(function: &str, found: &str) -> LoadError {
    LoadError::FunctionChanged { function: function.to_owned(), found: found.to_owned() }
}

/// Some kernels find a module's function only with the module's name, others only without.
fn names(name: &str, places: Places) -> Result<Vec<String>, LoadError> {
    let in_module = format!("{}:{name}", String::from_utf8_lossy(MODULE));
    match (places.in_module, places.elsewhere) {
        (2.., _) | (0, 2..) => Err(LoadError::FunctionAmbiguous { function: name.to_owned() }),
        // Without the module's name kernels before 6.1.60 would take the first they find, and later ones none.
        (1, 1..) => Ok(vec![in_module]),
        _ => Ok(vec![name.to_owned(), in_module]),
    }
}

/// Attaches under the first name that the kernel takes, as long as it finds no function of a name, or several. Gives what it
/// said to the first name, if none will do.
pub(super) fn attach_under<E>(
    names: &[String],
    kind: impl Fn(&E) -> Option<ErrorKind>,
    mut attach: impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    let mut first = Ok(());
    for name in names {
        match attach(name) {
            Ok(()) => return Ok(()),
            Err(error) => {
                let next = matches!(kind(&error), Some(ErrorKind::NotFound | ErrorKind::AddrNotAvailable));
                first = first.and(Err(error));
                if !next {
                    break;
                }
            }
        }
    }
    first
}

#[cfg(test)]
mod tests;
