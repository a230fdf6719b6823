//! What a look at a rule of `nf_tables` tells before it is read: whether it is worth that.

use super::super::message::Malformed;
use super::expression::{CONTINUE, Expression, GOTO, JUMP, RETURN, expressions, extension, immediate_verdict, lookup};
use super::{RawRule, text};
use crate::iptables::xt;

/// What a rule is worth reading for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Glance<'a> {
    /// It translates source addresses.
    pub translates: bool,
    /// It leads to another chain, of this name.
    pub chain: Option<&'a [u8]>,
    /// It leads to chains that a map names.
    pub map: bool,
    /// Packets end there, accepted or dropped.
    pub ends: bool,
    /// It changes what other rules may ask for.
    pub changes: bool,
}

/// Looks a rule over, without decoding what it asks.
///
/// # Errors
/// Its expressions are not laid out as they should be.
pub fn glance<'a>(rule: &RawRule<'a>) -> Result<Glance<'a>, Malformed> {
    let mut glance = Glance::default();
    for expression in expressions(rule.expressions.clone()) {
        let Expression { name, data } = expression?;
        match name {
            b"masq" => glance.translates = true,
            b"nat" => {
                // NFTA_NAT_TYPE: 0 is SNAT.
                for attribute in data {
                    let attribute = attribute?;
                    if attribute.kind == 1 {
                        let source = attribute.be32("NFTA_NAT_TYPE")? == 0;
                        glance.translates |= source;
                        glance.ends |= !source;
                    }
                }
            }
            b"target" => {
                let (name, ..) = extension(data)?;
                let name = text(name);
                glance.translates |= xt::translates(&name);
                glance.ends |= xt::ends(&name);
                glance.changes |= xt::changes(&name);
            }
            b"immediate" => match immediate_verdict(data)? {
                Some((JUMP | GOTO, chain)) => glance.chain = chain,
                Some((code, _)) => glance.ends |= !matches!(code, RETURN | CONTINUE),
                None => {}
            },
            b"lookup" => glance.map |= lookup(data)?.leads,
            b"dynset" => glance.changes = true,
            b"meta" | b"ct" | b"payload" => {
                // What has no register to put it into (NFTA_META_DREG and its like) sets it.
                let mut kinds = data.map(|attribute| attribute.map(|attribute| attribute.kind));
                glance.changes |= kinds.try_fold(true, |none, kind| Ok(none && kind? != 1))?;
            }
            b"redir" | b"reject" | b"tproxy" | b"queue" => glance.ends = true,
            _ => {}
        }
    }
    Ok(glance)
}
