//! The expressions of a rule of `nf_tables`: what they hold, not yet what they mean.

use std::collections::BTreeMap;

use super::super::message::{Attributes, Malformed};
use super::{nfta, text, verdict};

/// Verdicts (`enum nft_verdicts`); those of netfilter, DROP and ACCEPT, are not below zero.
pub(super) const JUMP: i32 = -3;
pub(super) const GOTO: i32 = -4;
pub(super) const RETURN: i32 = -5;
pub(super) const CONTINUE: i32 = -1;

/// One expression.
pub(super) struct Expression<'a> {
    pub(super) name: &'a [u8],
    pub(super) data: Attributes<'a>,
}

/// `NFTA_LIST_ELEM`, with `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA` in it.
pub(super) fn expressions<'a>(list: Attributes<'a>) -> impl Iterator<Item = Result<Expression<'a>, Malformed>> {
    list.map(|one| {
        let (mut name, mut data) = (&[][..], Attributes::new(&[]));
        for part in one?.nested() {
            let part = part?;
            match part.kind {
                1 => name = part.payload.strip_suffix(b"\0").unwrap_or(part.payload),
                2 => data = part.nested(),
                _ => {}
            }
        }
        Ok(Expression { name, data })
    })
}

/// Name, revision and data of a `match` or `target`.
pub(super) fn extension(data: Attributes<'_>) -> Result<(&[u8], u8, &[u8]), Malformed> {
    let (mut name, mut revision, mut info) = (&[][..], 0, &[][..]);
    for attribute in data {
        let attribute = attribute?;
        match attribute.kind {
            1 => name = attribute.payload.split(|byte| *byte == 0).next().unwrap_or_default(),
            2 => revision = u8::try_from(attribute.be32("NFTA_TARGET_REV")?).unwrap_or(u8::MAX),
            3 => info = attribute.payload,
            _ => {}
        }
    }
    Ok((name, revision, info))
}

/// A verdict and, where it jumps, the name of the chain.
pub(super) type Verdict<'a> = (i32, Option<&'a [u8]>);

/// The verdict of an `immediate`, if it holds one.
pub(super) fn immediate_verdict(data: Attributes<'_>) -> Result<Option<Verdict<'_>>, Malformed> {
    for attribute in data {
        let attribute = attribute?;
        // NFTA_IMMEDIATE_DATA
        if attribute.kind == 2 {
            for part in attribute.nested() {
                let part = part?;
                if part.kind == nfta::data::VERDICT {
                    return verdict(part.nested()).map(Some);
                }
            }
        }
    }
    Ok(None)
}

/// `NFTA_LOOKUP_*`
#[derive(Default)]
pub(super) struct Lookup {
    pub(super) set: String,
    pub(super) source: u32,
    pub(super) destination: Option<u32>,
    pub(super) inverted: bool,
    /// Its result is a verdict.
    pub(super) leads: bool,
}

pub(super) fn lookup(data: Attributes<'_>) -> Result<Lookup, Malformed> {
    let mut lookup = Lookup::default();
    for attribute in data {
        let attribute = attribute?;
        match attribute.kind {
            1 => lookup.set = text(attribute.payload),
            2 => lookup.source = attribute.be32("NFTA_LOOKUP_SREG")?,
            3 => lookup.destination = Some(attribute.be32("NFTA_LOOKUP_DREG")?),
            5 => lookup.inverted = attribute.be32("NFTA_LOOKUP_FLAGS")? & 1 != 0,
            _ => {}
        }
    }
    // NFT_REG_VERDICT
    lookup.leads = lookup.destination == Some(0);
    Ok(lookup)
}

/// Numbers and bytes of an expression, by attribute.
pub(super) struct Fields<'a>(pub(super) BTreeMap<u16, &'a [u8]>);

impl<'a> Fields<'a> {
    pub(super) fn of(data: Attributes<'a>) -> Result<Self, Malformed> {
        data.map(|attribute| attribute.map(|attribute| (attribute.kind, attribute.payload)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn number(&self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes((*self.0.get(&kind)?).try_into().ok()?))
    }

    pub(super) fn bytes(&self, kind: u16) -> Result<Option<&'a [u8]>, Malformed> {
        self.0.get(&kind).map(|nested| super::value(Attributes::new(nested))).transpose()
    }
}
