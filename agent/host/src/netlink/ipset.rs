//! Lists of `ipset` over netlink: the ports in a set.
//!
//! Attributes are those of `uapi/linux/netfilter/ipset/ip_set.h` (stable). Only LIST is ever sent.

use super::message::{Malformed, Message};

/// `NFNL_SUBSYS_IPSET << 8`, `IPSET_CMD_LIST`.
const LIST: u16 = 6 << 8 | 7;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const FLAGS_DUMP: u16 = 0x1 | 0x300;
/// `IPSET_PROTOCOL_MIN`: what every kernel understands.
const PROTOCOL: u8 = 6;

/// `IPSET_ATTR_*`
mod attribute {
    pub(super) const PROTOCOL: u16 = 1;
    pub(super) const SET_NAME: u16 = 2;
    /// Elements, each in a `DATA`.
    pub(super) const ELEMENTS: u16 = 8;
    pub(super) const DATA: u16 = 7;
    /// In an element.
    pub(super) const PORT: u16 = 4;
}

/// The request for one set.
pub fn request(set: &str, sequence: u32) -> Vec<u8> {
    let mut attributes = Vec::new();
    let mut put = |kind: u16, value: &[u8]| {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        attributes.extend_from_slice(&length.to_ne_bytes());
        attributes.extend_from_slice(&kind.to_ne_bytes());
        attributes.extend_from_slice(value);
        attributes.resize(attributes.len().next_multiple_of(4), 0);
    };
    put(attribute::PROTOCOL, &[PROTOCOL]);
    put(attribute::SET_NAME, format!("{set}\0").as_bytes());
    let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&LIST.to_ne_bytes());
    bytes.extend_from_slice(&FLAGS_DUMP.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    // Port id; family, version 0, resource 0.
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&attributes);
    bytes
}

/// Shows the ports of the elements in a message.
///
/// # Errors
/// It is not laid out as it should be.
pub fn ports(message: &Message<'_>, mut each: impl FnMut(u16)) -> Result<(), Malformed> {
    let attributes = message.payload.get(4..).unwrap_or_default();
    for attribute in super::message::Attributes::new(attributes) {
        let attribute = attribute?;
        if attribute.kind != attribute::ELEMENTS {
            continue;
        }
        for element in attribute.nested() {
            let element = element?;
            if element.kind != attribute::DATA {
                continue;
            }
            for part in element.nested() {
                let part = part?;
                if part.kind == attribute::PORT {
                    each(part.be16("IPSET_ATTR_PORT")?);
                }
            }
        }
    }
    Ok(())
}
