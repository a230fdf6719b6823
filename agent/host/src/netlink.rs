//! Netlink: the kernel's binary messages about conntrack.
//!
//! [`message`] walks over messages and attributes, [`conntrack`] decodes what is in them; both are pure, allocate nothing
//! and take their bytes for hostile. [`socket`] is the one place that talks to the kernel. Nothing here changes anything:
//! the only request ever sent is "dump the table".

pub mod conntrack;
mod filter;
pub mod message;
pub mod socket;
