//! Where the running kernel keeps the members of its structs, from its own BTF (`/sys/kernel/btf/vmlinux`).
//!
//! A small reader for a few questions: offset of a member, size of a struct, value of an enumerator, parameters of a
//! tracepoint. One pass over the type records, which remembers only where each begins; names are compared when asked for.
//! It takes the bytes for hostile: every read is bounded, every walk has a budget, nothing panics. It does not read split
//! BTF of modules, and says so by not finding their types.
//!
//! The format: <https://docs.kernel.org/bpf/btf.html>.

use std::io::{self, Read as _};
use std::path::PathBuf;

use crate::root::HostRoot;

mod record;

use record::{Kind, RECORD_BYTES, Record, u32_at};

/// Where the kernel shows its types, since 5.4.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

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

/// The types of a kernel.
pub struct Btf {
    bytes: Vec<u8>,
    /// Where the strings are; they end with the last byte that is taken into account.
    strings: std::ops::Range<usize>,
    /// Where each type's record begins. The first type has id 1; id 0 is `void`.
    records: Vec<u32>,
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
        let unreadable = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => BtfError::NotThere { path: path.clone() },
            _ => BtfError::Unreadable { path: path.clone(), source },
        };
        let file = std::fs::File::open(&path).map_err(unreadable)?;
        let mut bytes =
            Vec::with_capacity(usize::try_from(file.metadata().map_err(unreadable)?.len().min(MAX_BYTES)).unwrap_or(0));
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
        Self::parse(bytes)
    }

    /// Types from bytes.
    ///
    /// # Errors
    /// The bytes are not BTF of this machine's byte order, or lie about their lengths.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
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
        Ok(Self { bytes, strings, records })
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
        let mut walk = Walk { btf: self, budget: BUDGET };
        let mut found_struct = false;
        // Several types can have one name; it is meant the one that has the members.
        for record in self.named(name, |kind| matches!(kind, Kind::Struct | Kind::Union)) {
            found_struct = true;
            match walk.member_of(record, members) {
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
            .map(|record| record.size_or_type)
            .ok_or_else(|| BtfError::NoType { kind: "struct", name: name.to_owned() })
    }

    /// The value of an enumerator.
    ///
    /// # Errors
    /// No such enum or enumerator in this kernel.
    pub fn enum_value(&self, name: &str, enumerator: &str) -> Result<i64, BtfError> {
        let mut found_enum = false;
        for record in self.named(name, |kind| matches!(kind, Kind::Enum | Kind::Enum64)) {
            found_enum = true;
            if let Some(value) =
                record.enumerators(&self.bytes).find(|(at, _)| self.has_name(*at, enumerator)).map(|(_, value)| value)
            {
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
        let typedef =
            self.named(&format!("btf_trace_{tracepoint}"), |kind| kind == Kind::Typedef).next().ok_or_else(missing)?;
        let pointer =
            self.record(typedef.size_or_type).filter(|record| record.kind == Kind::Ptr).ok_or_else(missing)?;
        let function =
            self.record(pointer.size_or_type).filter(|record| record.kind == Kind::FuncProto).ok_or_else(missing)?;
        Ok(function.count().saturating_sub(1))
    }

    /// All types of a name and kind, in order of their ids.
    fn named<'a>(&'a self, name: &'a str, kind: impl Fn(Kind) -> bool + 'a) -> impl Iterator<Item = Record> + 'a {
        self.records
            .iter()
            .filter_map(|&at| Record::at(&self.bytes, usize::try_from(at).ok()?))
            .filter(move |record| kind(record.kind) && self.has_name(record.name, name))
    }

    /// The type of an id.
    fn record(&self, id: u32) -> Option<Record> {
        let index = usize::try_from(id.checked_sub(1)?).ok()?;
        Record::at(&self.bytes, usize::try_from(*self.records.get(index)?).ok()?)
    }

    /// Whether the string at an offset is this name.
    fn has_name(&self, offset: u32, name: &str) -> bool {
        let strings = self.bytes.get(self.strings.clone()).unwrap_or(&[]);
        let text = usize::try_from(offset).ok().and_then(|offset| strings.get(offset..)).unwrap_or(&[]);
        text.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// A question went on for too long.
struct Exhausted;

/// One question, with what is left of its budget.
struct Walk<'a> {
    btf: &'a Btf,
    budget: u32,
}

impl Walk<'_> {
    fn spend(&mut self) -> Result<(), Exhausted> {
        self.budget = self.budget.checked_sub(1).ok_or(Exhausted)?;
        Ok(())
    }

    /// Follows a path of member names from a struct or union.
    fn member_of(&mut self, mut record: Record, path: &[&str]) -> Result<Option<Member>, Exhausted> {
        let mut offset_bits = 0_u32;
        for (index, name) in path.iter().enumerate() {
            let Some((member, type_id)) = self.find(record, name, 0)? else { return Ok(None) };
            let Some(offset) = offset_bits.checked_add(member.offset_bits) else { return Ok(None) };
            offset_bits = offset;
            if index + 1 == path.len() {
                return Ok(Some(Member { offset_bits, ..member }));
            }
            let Some(next) = self.resolved(type_id)? else { return Ok(None) };
            record = next;
        }
        Ok(None)
    }

    /// Looks for a member in a struct or union, and in the nameless ones inside it.
    fn find(&mut self, record: Record, name: &str, depth: u32) -> Result<Option<(Member, u32)>, Exhausted> {
        if depth > MAX_DEPTH {
            return Err(Exhausted);
        }
        if !matches!(record.kind, Kind::Struct | Kind::Union) {
            return Ok(None);
        }
        for index in 0..record.count() {
            self.spend()?;
            let Some(raw) = record.member(&self.btf.bytes, index) else { return Ok(None) };
            if raw.name == 0 {
                let Some(inner) = self.resolved(raw.type_id)? else { continue };
                if let Some((found, type_id)) = self.find(inner, name, depth + 1)? {
                    let Some(offset_bits) = raw.offset_bits.checked_add(found.offset_bits) else { return Ok(None) };
                    return Ok(Some((Member { offset_bits, ..found }, type_id)));
                }
            } else if self.btf.has_name(raw.name, name) {
                let Some(size_bytes) = self.size(raw.type_id, 0)? else { return Ok(None) };
                let member = Member { offset_bits: raw.offset_bits, bitfield_bits: raw.bitfield_bits, size_bytes };
                return Ok(Some((member, raw.type_id)));
            }
        }
        Ok(None)
    }

    /// A type behind its typedefs and qualifiers.
    fn resolved(&mut self, mut id: u32) -> Result<Option<Record>, Exhausted> {
        loop {
            self.spend()?;
            let Some(record) = self.btf.record(id) else { return Ok(None) };
            if !record.kind.is_alias() {
                return Ok(Some(record));
            }
            id = record.size_or_type;
        }
    }

    /// The size of a type in bytes.
    fn size(&mut self, id: u32, depth: u32) -> Result<Option<u32>, Exhausted> {
        if depth > MAX_DEPTH {
            return Err(Exhausted);
        }
        let Some(record) = self.resolved(id)? else { return Ok(None) };
        Ok(match record.kind {
            Kind::Int | Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::Float => {
                Some(record.size_or_type)
            }
            // The kernel's pointers are as wide as ours: a program of another width could not load BPF.
            Kind::Ptr => u32::try_from(size_of::<usize>()).ok(),
            Kind::Array => {
                let Some((element, count)) = record.array(&self.btf.bytes) else { return Ok(None) };
                self.size(element, depth + 1)?.and_then(|size| size.checked_mul(count))
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests;
