//! What a look at a rule of `nf_tables` tells before it is read: whether it is worth that.

use super::super::message::Malformed;
use super::RawRule;
use super::expression::{CONTINUE, Expression, GOTO, JUMP, RETURN, expressions, extension, immediate_verdict, lookup};

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
                glance.translates |= matches!(name, b"MASQUERADE" | b"SNAT" | b"NETMAP");
                glance.ends |= name == b"REJECT";
            }
            b"immediate" => match immediate_verdict(data)? {
                Some((JUMP | GOTO, chain)) => glance.chain = chain,
                Some((code, _)) => glance.ends |= !matches!(code, RETURN | CONTINUE),
                None => {}
            },
            b"lookup" => glance.map |= lookup(data)?.leads,
            b"redir" | b"reject" | b"tproxy" | b"queue" => glance.ends = true,
            _ => {}
        }
    }
    Ok(glance)
}
