//! `x_tables`, the kernel interface of `iptables-legacy`, and what it shares with `iptables-nft`.
//!
//! [`kernel`] gets a table as the kernel holds it, [`blob`] walks over its entries, [`xt`] decodes matches and targets. The
//! latter come in the same layout inside `nf_tables` rules that `iptables-nft` has made. [`ipset`] knows the names of sets.

pub mod blob;
pub mod ipset;
pub mod kernel;
pub mod xt;
