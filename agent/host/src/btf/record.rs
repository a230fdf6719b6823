//! One type record of BTF: `struct btf_type` and what follows it (`include/uapi/linux/btf.h`).

/// `struct btf_type`.
pub(super) const RECORD_BYTES: usize = 12;
/// `struct btf_member`.
const MEMBER_BYTES: usize = 12;
/// `struct btf_param`.
const PARAM_BYTES: usize = 8;

/// `BTF_KIND_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Int,
    Ptr,
    Array,
    Struct,
    Union,
    Enum,
    Fwd,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Func,
    FuncProto,
    Var,
    Datasec,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
}

impl Kind {
    fn of_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Int,
            2 => Self::Ptr,
            3 => Self::Array,
            4 => Self::Struct,
            5 => Self::Union,
            6 => Self::Enum,
            7 => Self::Fwd,
            8 => Self::Typedef,
            9 => Self::Volatile,
            10 => Self::Const,
            11 => Self::Restrict,
            12 => Self::Func,
            13 => Self::FuncProto,
            14 => Self::Var,
            15 => Self::Datasec,
            16 => Self::Float,
            17 => Self::DeclTag,
            18 => Self::TypeTag,
            19 => Self::Enum64,
            _ => return None,
        })
    }

    /// Another name or a qualifier of the type it points to.
    pub(super) fn is_alias(self) -> bool {
        matches!(self, Self::Typedef | Self::Volatile | Self::Const | Self::Restrict | Self::TypeTag)
    }
}

/// A type, still undecoded beyond its head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    /// Offset of its name in the strings; 0 for none.
    pub(super) name: u32,
    pub(super) kind: Kind,
    /// Number of members, enumerators, parameters …
    count: usize,
    /// `kind_flag`: bit-fields in a struct, signed values in an enum.
    flag: bool,
    /// Size in bytes or the id of a type, depending on the kind.
    pub(super) size_or_type: u32,
    /// Where what follows begins.
    body: usize,
}

/// `struct btf_member`.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawMember {
    pub(super) name: u32,
    pub(super) type_id: u32,
    pub(super) offset_bits: u32,
    pub(super) bitfield_bits: Option<u32>,
}

impl Record {
    /// The record that begins here; `None` if it is cut short or of an unknown kind.
    pub(super) fn at(bytes: &[u8], at: usize) -> Option<Self> {
        let info = u32_at(bytes, at.checked_add(4)?)?;
        Some(Self {
            name: u32_at(bytes, at)?,
            kind: Kind::of_number(info >> 24 & 0x1f)?,
            count: usize::try_from(info & 0xffff).ok()?,
            flag: info >> 31 == 1,
            size_or_type: u32_at(bytes, at.checked_add(8)?)?,
            body: at.checked_add(RECORD_BYTES)?,
        })
    }

    /// How many bytes follow the head.
    pub(super) fn more_bytes(self) -> usize {
        match self.kind {
            Kind::Int | Kind::Var | Kind::DeclTag => 4,
            Kind::Array => 12,
            Kind::Struct | Kind::Union => self.count * MEMBER_BYTES,
            Kind::Enum => self.count * 8,
            Kind::FuncProto => self.count * PARAM_BYTES,
            Kind::Datasec | Kind::Enum64 => self.count * 12,
            Kind::Ptr
            | Kind::Fwd
            | Kind::Typedef
            | Kind::Volatile
            | Kind::Const
            | Kind::Restrict
            | Kind::Func
            | Kind::Float
            | Kind::TypeTag => 0,
        }
    }

    /// Members of a struct or union, enumerators of an enum, parameters of a function.
    pub(super) fn count(self) -> usize {
        self.count
    }

    /// A member of a struct or union.
    pub(super) fn member(self, bytes: &[u8], index: usize) -> Option<RawMember> {
        let at = self.body.checked_add(index.checked_mul(MEMBER_BYTES)?)?;
        let offset = u32_at(bytes, at.checked_add(8)?)?;
        // With the flag the upper byte is the width of a bit-field, 0 for an ordinary member. Without it, a bit-field's
        // width would be in the integer type, which compilers have not written since 2018.
        let (offset_bits, bitfield_bits) = if self.flag {
            (offset & 0x00ff_ffff, Some(offset >> 24).filter(|&bits| bits > 0))
        } else {
            (offset, None)
        };
        Some(RawMember {
            name: u32_at(bytes, at)?,
            type_id: u32_at(bytes, at.checked_add(4)?)?,
            offset_bits,
            bitfield_bits,
        })
    }

    /// Element type and number of elements of an array.
    pub(super) fn array(self, bytes: &[u8]) -> Option<(u32, u32)> {
        Some((u32_at(bytes, self.body)?, u32_at(bytes, self.body.checked_add(8)?)?))
    }

    /// Names and values of an enum.
    pub(super) fn enumerators(self, bytes: &[u8]) -> impl Iterator<Item = (u32, i64)> + '_ {
        (0..self.count).map_while(move |index| {
            let wide = self.kind == Kind::Enum64;
            let at = self.body.checked_add(index.checked_mul(if wide { 12 } else { 8 })?)?;
            let low = u32_at(bytes, at.checked_add(4)?)?;
            let value = match (wide, self.flag) {
                (true, _) => (i64::from(u32_at(bytes, at.checked_add(8)?)?) << 32) | i64::from(low),
                (false, true) => i64::from(low.cast_signed()),
                (false, false) => i64::from(low),
            };
            Some((u32_at(bytes, at)?, value))
        })
    }
}

/// Four bytes in this machine's order.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(four.try_into().ok()?))
}
