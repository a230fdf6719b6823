//! `x_tables`, the kernel interface of `iptables-legacy`, and what it shares with `iptables-nft`.
//!
//! [`kernel`] gets a table as the kernel holds it, [`blob`] walks over its entries, [`xt`] decodes matches and targets. The
//! latter come in the same layout inside `nf_tables` rules that `iptables-nft` has made.

pub mod blob;
pub mod kernel;
pub mod xt;
