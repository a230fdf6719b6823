//! Everything of headroom that touches a node.
//!
//! A [`source::Source`] reads, decodes and stamps [`headroom_core::observe::Observation`]s; it never decides. Every path
//! is taken from a [`root::HostRoot`], so that a captured tree can stand in for the node. Nothing here writes to the node,
//! except that eBPF programs are loaded and their own maps are filled, and that [`act`] carries out a plan.
#![deny(missing_docs)]

pub mod act;
pub mod bounded;
pub mod btf;
pub mod clock;
pub mod ebpf;
pub mod iptables;
pub mod memory;
pub mod nat_documents;
pub mod netlink;
pub mod netns;
pub mod own_network;
pub mod privileges;
pub mod root;
pub mod rules;
pub mod source;
