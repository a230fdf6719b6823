//! Where the running kernel keeps the members of its structs, from its own BTF (`/sys/kernel/btf/vmlinux`) and that of
//! its modules (`/sys/kernel/btf/<module>`, since 5.11).
//!
//! A small reader for a few questions: offset of a member, size of a struct, value of an enumerator, parameters of a
//! tracepoint. One pass over the type records, which remembers only where each begins; names are compared when asked for.
//! It takes the bytes for hostile: every read is bounded, every walk has a budget, nothing panics.
//!
//! A module's types are split BTF: only those the kernel itself does not have. Their ids and string offsets continue the
//! kernel's, so they mean something only together with it, and what a module does not have is looked for there.
//!
//! The format: <https://docs.kernel.org/bpf/btf.html>.

use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::root::HostRoot;

mod record;

use record::{Kind, RECORD_BYTES, Record, u32_at};

/// Where the kernel shows its types, since 5.4.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Where the kernel shows the types of a module, beside its own.
const FOLDER: &str = "/sys/kernel/btf";

/// Larger than any kernel's (about 6 MiB; debug kernels 20).
const MAX_BYTES: u64 = 64 << 20;
/// How many records one question may touch. The largest honest question touches some hundred.
const BUDGET: u32 = 1 << 18;
/// How deep types may nest in one question.
const MAX_DEPTH: u32 = 32;

const MAGIC: [u8; 2] = 0xeb9f_u16.to_ne_bytes();
const HEADER_BYTES: usize = 24;

/// Why a question about the kernel's types has no answer.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The kernel shows no types.
    #[error("`{path}` does not exist; this kernel was built without CONFIG_DEBUG_INFO_BTF")]
    NotThere {
        /// The file.
        path: PathBuf,
    },
    /// There is no such module, or it shows no types.
    #[error(
        "`{path}` does not exist; the module is not loaded, or built in, or the kernel was built without \
         CONFIG_DEBUG_INFO_BTF_MODULES"
    )]
    NoModule {
        /// The file.
        path: PathBuf,
    },
    /// The file is there but cannot be read.
    #[error("could not read `{path}`")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The bytes are not what the format says.
    #[error("BTF is malformed at byte {at}: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Where.
        at: usize,
    },
    /// A type nests too deep, or in a circle.
    #[error("BTF of `{path}` nests too deep")]
    TooDeep {
        /// What was asked for.
        path: String,
    },
    /// There is no type of that kind and name.
    #[error("this kernel has no `{kind} {name}`")]
    NoType {
        /// `struct`, `enum` or `tracepoint`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The type is there, but not this part of it.
    #[error("this kernel has no `{path}`")]
    NoMember {
        /// `struct.member.member`, or `enum.enumerator`.
        path: String,
    },
}

/// Where a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Bits from the start of the outermost struct of the path.
    pub offset_bits: u32,
    /// Width of a bit-field; absent for an ordinary member.
    pub bitfield_bits: Option<u32>,
    /// Size of the member's type in bytes; of the type that holds it, if it is a bit-field.
    pub size_bytes: u32,
}

impl Member {
    /// Bytes from the start of the struct; `None` if it does not begin at a whole byte.
    pub fn offset_bytes(self) -> Option<u32> {
        self.offset_bits.is_multiple_of(8).then_some(self.offset_bits / 8)
    }

    /// Bytes it takes; `None` for a bit-field that is not whole bytes.
    pub fn width_bytes(self) -> Option<u32> {
        match self.bitfield_bits {
            None => Some(self.size_bytes),
            Some(bits) => bits.is_multiple_of(8).then_some(bits / 8),
        }
    }
}

/// The types of a kernel, or those of a module on top of them.
pub struct Btf {
    bytes: Vec<u8>,
    /// Where the strings are; they end with the last byte that is taken into account.
    strings: std::ops::Range<usize>,
    /// Where each type's record begins. Without a base the first type has id 1; id 0 is `void`.
    records: Vec<u32>,
    /// What the ids and string offsets of a module continue.
    base: Option<Base>,
}

struct Base {
    btf: Arc<Btf>,
    /// The first id that is not the base's.
    ids: usize,
    /// The first string offset that is not the base's.
    strings: usize,
}

/// The id of a type, and whose it is: an id in the kernel's own types never means a module's.
#[derive(Clone, Copy)]
struct Id<'a> {
    of: &'a Btf,
    id: u32,
}

/// A type, and whose ids and string offsets are in it.
#[derive(Clone, Copy)]
struct Type<'a> {
    of: &'a Btf,
    record: Record,
}

impl std::fmt::Debug for Btf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Btf").field("bytes", &self.bytes.len()).field("types", &self.records.len()).finish()
    }
}

impl Btf {
    /// The types of the running kernel.
    ///
    /// # Errors
    /// The kernel shows none, or they cannot be read or understood.
    pub fn of_kernel(root: &HostRoot) -> Result<Self, BtfError> {
        let path = root.path(VMLINUX);
        Self::parse(read(&path)?.ok_or(BtfError::NotThere { path })?)
    }

    /// The types of a module of the running kernel (`nf_conntrack`), on top of the kernel's own. Questions are answered from
    /// both, the module's first.
    ///
    /// # Errors
    /// The kernel shows no such module, or its types cannot be read or understood.
    pub fn of_module(root: &HostRoot, kernel: &Arc<Self>, module: &str) -> Result<Self, BtfError> {
        let path = root.path(FOLDER).join(module);
        // A name, not a way to some other file; and the kernel is no module of itself.
        if module.is_empty() || module.starts_with('.') || module.contains('/') || module == "vmlinux" {
            return Err(BtfError::NoModule { path });
        }
        Self::parse_module(read(&path)?.ok_or(BtfError::NoModule { path })?, kernel)
    }

    /// Types from bytes.
    ///
    /// # Errors
    /// The bytes are not BTF of this machine's byte order, or lie about their lengths.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        Self::parse_on(bytes, None)
    }

    /// Types of a module from bytes.
    ///
    /// # Errors
    /// The bytes are not BTF of this machine's byte order, or lie about their lengths.
    pub fn parse_module(bytes: Vec<u8>, kernel: &Arc<Self>) -> Result<Self, BtfError> {
        let base = Base { ids: kernel.end_of_ids(), strings: kernel.end_of_strings(), btf: Arc::clone(kernel) };
        Self::parse_on(bytes, Some(base))
    }

    fn parse_on(bytes: Vec<u8>, base: Option<Base>) -> Result<Self, BtfError> {
        let malformed = |what, at| BtfError::Malformed { what, at };
        if bytes.get(..2) != Some(&MAGIC[..]) {
            return Err(malformed("no BTF magic in this machine's byte order", 0));
        }
        let header = |at: usize| {
            u32_at(&bytes, at).and_then(|value| usize::try_from(value).ok()).ok_or(malformed("header is cut short", at))
        };
        let (header_bytes, type_at, type_bytes, string_at, string_bytes) =
            (header(4)?, header(8)?, header(12)?, header(16)?, header(20)?);
        let section = |at: usize, length: usize| {
            let start = header_bytes.max(HEADER_BYTES).checked_add(at)?;
            let end = start.checked_add(length)?;
            (end <= bytes.len()).then_some(start..end)
        };
        let types = section(type_at, type_bytes).ok_or(malformed("types reach beyond the end", 8))?;
        let strings = section(string_at, string_bytes).ok_or(malformed("strings reach beyond the end", 16))?;
        if u32::try_from(bytes.len()).is_err() {
            return Err(malformed("larger than 4 GiB", 0));
        }
        // Offset 0 is the empty name. Where it is not, the offsets continue those of a kernel that is not here.
        if base.is_none() && bytes.get(strings.clone()).and_then(<[u8]>::first).is_some_and(|&first| first != 0) {
            return Err(malformed("strings do not begin with an empty one; is it a module's?", strings.start));
        }

        // A guess from the usual mean of 25 bytes per record, against growing in steps.
        let mut records = Vec::with_capacity(types.len() / 25);
        let mut at = types.start;
        while at < types.end {
            let record = Record::at(&bytes, at).ok_or(malformed("type is cut short or of an unknown kind", at))?;
            let next = at.saturating_add(RECORD_BYTES).saturating_add(record.more_bytes());
            if next > types.end {
                return Err(malformed("type reaches beyond the end", at));
            }
            records.push(u32::try_from(at).expect("the bytes are less than 4 GiB"));
            at = next;
        }
        Ok(Self { bytes, strings, records, base })
    }

    /// Where a member is: `["sock", "__sk_common", "skc_daddr"]`. Members of nameless structs and unions count as members of
    /// what they are in, as in C.
    ///
    /// # Errors
    /// No such struct or member in this kernel.
    pub fn member(&self, path: &[&str]) -> Result<Member, BtfError> {
        let Some((&name, members)) = path.split_first() else {
            return Err(BtfError::NoMember { path: String::new() });
        };
        let mut walk = Walk { budget: BUDGET };
        let mut found_struct = false;
        // Several types can have one name; it is meant the one that has the members.
        for found in self.named(name, |kind| matches!(kind, Kind::Struct | Kind::Union)) {
            found_struct = true;
            match walk.member_of(found, members) {
                Ok(Some(member)) => return Ok(member),
                Ok(None) => {}
                Err(Exhausted) => return Err(BtfError::TooDeep { path: path.join(".") }),
            }
        }
        Err(match found_struct {
            true => BtfError::NoMember { path: path.join(".") },
            false => BtfError::NoType { kind: "struct", name: name.to_owned() },
        })
    }

    /// The size of a struct in bytes.
    ///
    /// # Errors
    /// No such struct in this kernel.
    pub fn size_of(&self, name: &str) -> Result<u32, BtfError> {
        self.named(name, |kind| kind == Kind::Struct)
            .next()
            .map(|found| found.record.size_or_type)
            .ok_or_else(|| BtfError::NoType { kind: "struct", name: name.to_owned() })
    }

    /// The value of an enumerator.
    ///
    /// # Errors
    /// No such enum or enumerator in this kernel.
    pub fn enum_value(&self, name: &str, enumerator: &str) -> Result<i64, BtfError> {
        let mut found_enum = false;
        for Type { of, record } in self.named(name, |kind| matches!(kind, Kind::Enum | Kind::Enum64)) {
            found_enum = true;
            let mut enumerators = record.enumerators(&of.bytes);
            if let Some((_, value)) = enumerators.find(|(at, _)| of.has_name(*at, enumerator)) {
                return Ok(value);
            }
        }
        Err(match found_enum {
            true => BtfError::NoMember { path: format!("{name}.{enumerator}") },
            false => BtfError::NoType { kind: "enum", name: name.to_owned() },
        })
    }

    /// How many arguments a tracepoint hands to a raw tracepoint program (`TP_PROTO`).
    ///
    /// # Errors
    /// No such tracepoint in this kernel.
    pub fn tracepoint_arguments(&self, tracepoint: &str) -> Result<usize, BtfError> {
        // The kernel keeps `typedef void (*btf_trace_NAME)(void *, TP_PROTO)` for exactly this purpose.
        let missing = || BtfError::NoType { kind: "tracepoint", name: tracepoint.to_owned() };
        let name = format!("btf_trace_{tracepoint}");
        let typedef = self.named(&name, |kind| kind == Kind::Typedef).next().ok_or_else(missing)?;
        let pointer = typedef.of.type_of(typedef.record.size_or_type).filter(|found| found.record.kind == Kind::Ptr);
        let pointer = pointer.ok_or_else(missing)?;
        let function = pointer.of.type_of(pointer.record.size_or_type);
        let function = function.filter(|found| found.record.kind == Kind::FuncProto).ok_or_else(missing)?;
        Ok(function.record.count().saturating_sub(1))
    }

    /// All types of a name and kind, in order of their ids; a module's before the kernel's.
    fn named<'a>(
        &'a self,
        name: &'a str,
        kind: impl Fn(Kind) -> bool + Copy + 'a,
    ) -> impl Iterator<Item = Type<'a>> + 'a {
        let own_and_bases = std::iter::successors(Some(self), |btf| btf.base.as_ref().map(|base| &*base.btf));
        own_and_bases.flat_map(move |of| {
            let records = of.records.iter().filter_map(|&at| Record::at(&of.bytes, usize::try_from(at).ok()?));
            records
                .filter(move |record| kind(record.kind) && of.has_name(record.name, name))
                .map(move |record| Type { of, record })
        })
    }

    /// The type of an id.
    fn type_of(&self, id: u32) -> Option<Type<'_>> {
        let id = usize::try_from(id).ok()?;
        let index = match &self.base {
            Some(base) if id < base.ids => return base.btf.type_of(u32::try_from(id).ok()?),
            Some(base) => id.checked_sub(base.ids)?,
            None => id.checked_sub(1)?,
        };
        let record = Record::at(&self.bytes, usize::try_from(*self.records.get(index)?).ok()?)?;
        Some(Type { of: self, record })
    }

    /// Whether the string at an offset is this name. A name does not reach from a kernel's strings into a module's.
    fn has_name(&self, offset: u32, name: &str) -> bool {
        let Ok(mut at) = usize::try_from(offset) else { return false };
        if let Some(base) = &self.base {
            match at.checked_sub(base.strings) {
                Some(own) => at = own,
                None => return base.btf.has_name(offset, name),
            }
        }
        let strings = self.bytes.get(self.strings.clone()).unwrap_or(&[]);
        let text = strings.get(at..).unwrap_or(&[]);
        text.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// The first id that is not in here.
    fn end_of_ids(&self) -> usize {
        self.base.as_ref().map_or(1, |base| base.ids).saturating_add(self.records.len())
    }

    /// The first string offset that is not in here.
    fn end_of_strings(&self) -> usize {
        self.base.as_ref().map_or(0, |base| base.strings).saturating_add(self.strings.len())
    }
}

/// A file's bytes; `None` if there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, BtfError> {
    let unreadable = |source| BtfError::Unreadable { path: path.to_owned(), source };
    // In a captured tree it may be a FIFO: not to be waited for.
    let opened = std::fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let length = file.metadata().map_err(unreadable)?.len().min(MAX_BYTES);
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(Some(bytes))
}

/// A question went on for too long.
struct Exhausted;

/// One question, with what is left of its budget.
struct Walk {
    budget: u32,
}

impl Walk {
    fn spend(&mut self) -> Result<(), Exhausted> {
        self.budget = self.budget.checked_sub(1).ok_or(Exhausted)?;
        Ok(())
    }

    /// Follows a path of member names from a struct or union.
    fn member_of(&mut self, mut within: Type<'_>, path: &[&str]) -> Result<Option<Member>, Exhausted> {
        let mut offset_bits = 0_u32;
        for (index, name) in path.iter().enumerate() {
            let Some((member, member_type)) = self.find(within, name, 0)? else { return Ok(None) };
            let Some(offset) = offset_bits.checked_add(member.offset_bits) else { return Ok(None) };
            offset_bits = offset;
            if index + 1 == path.len() {
                return Ok(Some(Member { offset_bits, ..member }));
            }
            let Some(next) = self.resolved(member_type)? else { return Ok(None) };
            within = next;
        }
        Ok(None)
    }

    /// Looks for a member in a struct or union, and in the nameless ones inside it.
    fn find<'a>(&mut self, within: Type<'a>, name: &str, depth: u32) -> Result<Option<(Member, Id<'a>)>, Exhausted> {
        if depth > MAX_DEPTH {
            return Err(Exhausted);
        }
        let Type { of, record } = within;
        if !matches!(record.kind, Kind::Struct | Kind::Union) {
            return Ok(None);
        }
        for index in 0..record.count() {
            self.spend()?;
            let Some(raw) = record.member(&of.bytes, index) else { return Ok(None) };
            let member_type = Id { of, id: raw.type_id };
            if raw.name == 0 {
                let Some(inner) = self.resolved(member_type)? else { continue };
                if let Some((found, found_type)) = self.find(inner, name, depth + 1)? {
                    let Some(offset_bits) = raw.offset_bits.checked_add(found.offset_bits) else { return Ok(None) };
                    return Ok(Some((Member { offset_bits, ..found }, found_type)));
                }
            } else if of.has_name(raw.name, name) {
                let Some(size_bytes) = self.size(member_type, 0)? else { return Ok(None) };
                let member = Member { offset_bits: raw.offset_bits, bitfield_bits: raw.bitfield_bits, size_bytes };
                return Ok(Some((member, member_type)));
            }
        }
        Ok(None)
    }

    /// A type behind its typedefs and qualifiers.
    fn resolved<'a>(&mut self, mut at: Id<'a>) -> Result<Option<Type<'a>>, Exhausted> {
        loop {
            self.spend()?;
            let Some(found) = at.of.type_of(at.id) else { return Ok(None) };
            if !found.record.kind.is_alias() {
                return Ok(Some(found));
            }
            at = Id { of: found.of, id: found.record.size_or_type };
        }
    }

    /// The size of a type in bytes.
    fn size(&mut self, at: Id<'_>, depth: u32) -> Result<Option<u32>, Exhausted> {
        if depth > MAX_DEPTH {
            return Err(Exhausted);
        }
        let Some(Type { of, record }) = self.resolved(at)? else { return Ok(None) };
        Ok(match record.kind {
            Kind::Int | Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::Float => {
                Some(record.size_or_type)
            }
            // The kernel's pointers are as wide as ours: a program of another width could not load BPF.
            Kind::Ptr => u32::try_from(size_of::<usize>()).ok(),
            Kind::Array => {
                let Some((element, count)) = record.array(&of.bytes) else { return Ok(None) };
                self.size(Id { of, id: element }, depth + 1)?.and_then(|size| size.checked_mul(count))
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests;
