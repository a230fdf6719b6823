//! What headroom's eBPF programs and its agent say to each other: the bytes of map keys, values and load-time constants.
//!
//! Every type is `#[repr(C)]` without padding, `bool`, `Option` or enums, because both sides read each other's raw bytes;
//! sizes are asserted at compile time. One module per kernel subject, of the same name as in `ebpf/programs` and in
//! `agent/host/src/source`.
#![no_std]
#![deny(missing_docs)]

pub mod conntrack;
pub mod tcp;
