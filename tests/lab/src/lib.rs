//! The lab: a Kubernetes-like node on one machine, out of network namespaces, a NAT gateway that can run dry, and real
//! pods made by a private containerd with real CNI plugins.
//!
//! Everything is a guard. What a guard made is gone when it is dropped, also after a panic; on SIGINT, SIGTERM and
//! SIGHUP a handler takes down the whole lab; and what a killed run left behind is found by its name
//! (`hrlab<pid>-…`) and removed by [`Lab::sweep`], which every new lab does first.
//!
//! The lab needs root. It never touches the machine's own network: every link, rule and address lives in a namespace
//! made here. What a bench needs larger that only the whole machine has is put back with the lab. It does not judge: what the agent should have said is the tests' business.

pub mod accuracy;
pub mod bench;
pub mod cilium;
pub mod conntrack;
pub mod cri;
pub mod headroom;
pub mod image;
pub mod lab;
mod machine;
pub mod nat;
pub mod netns;
pub mod pods;
pub mod process;
pub mod scenario;
mod sweep;
pub mod traffic;

pub use lab::Lab;
pub use nat::{NatLab, NatOptions};
pub use netns::Netns;
pub use pods::{Node, NodeOptions, Pod};
pub use process::Process;
