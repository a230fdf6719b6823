//! Netlink: the kernel's binary messages about conntrack, links, routes and addresses.
//!
//! [`message`] walks over messages and attributes, [`conntrack`] decodes what is in them; both are pure, allocate nothing
//! and take their bytes for hostile; so are the decoders of [`conntrack_stats`]. [`socket`] is the one place that talks to the
//! kernel about conntrack, [`route`] about links, routes and the addresses of other namespaces. Nothing here changes anything:
//! the only requests ever sent are to list and to tell.

pub mod conntrack;
pub mod conntrack_stats;
mod filter;
pub mod ipset;
pub mod message;
pub mod nftables;
pub mod query;
pub mod route;
pub mod socket;
