//! Netlink: the kernel's binary messages about conntrack.
//!
//! [`message`] walks over messages and attributes, [`conntrack`] decodes what is in them; both are pure, allocate nothing
//! and take their bytes for hostile; so are the decoders of [`conntrack_stats`]. [`socket`] is the one place that talks to the
//! kernel. Nothing here changes anything: the only requests ever sent are "dump the table" and "tell the statistics".

pub mod conntrack;
pub mod conntrack_stats;
mod filter;
pub mod message;
pub mod nftables;
pub mod query;
pub mod socket;
