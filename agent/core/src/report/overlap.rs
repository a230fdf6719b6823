//! What a report says about port ranges that collide.

use serde::{Deserialize, Serialize};

use crate::ports::PortRange;

/// Port ranges that collide.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OverlapReport {
    /// The NodePort range this is about.
    pub node_port_range: PortRange,
    /// Ephemeral ranges per network namespace.
    pub ephemeral: Vec<EphemeralReport>,
    /// Masquerade rules and the share of connections they put into the range.
    pub masquerade: Vec<serde_json::Value>,
    /// NodePorts that are allocated.
    pub nodeports: Vec<serde_json::Value>,
    /// Live collisions.
    pub live: LiveOverlap,
    /// What was not looked at, and why.
    pub not_observed: Vec<String>,
}

/// Source ports of one or more network namespaces with the same settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EphemeralReport {
    /// Whose: `host`, a pod's name, or a namespace's inode.
    pub subject: String,
    /// How many namespaces have these settings (pods with equal settings are one row).
    pub namespaces: u32,
    /// `ip_local_port_range`; absent if it could not be read.
    pub range: Option<PortRange>,
    /// `ip_local_reserved_ports`.
    pub reserved: Vec<PortRange>,
    /// Ports of the NodePort range that the kernel may hand out there.
    pub overlap: Vec<PortRange>,
    /// How many ports that is.
    pub overlap_ports: Option<u32>,
    /// Why it is not known.
    pub why: Option<String>,
}

/// Flows whose source port on leaving the node is inside the NodePort range, as conntrack shows them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveOverlap {
    /// Translated flows (source address or port changed by this node) now; absent if conntrack could not be read.
    pub translated: Option<u64>,
    /// Of these, with a source port inside the range.
    pub in_node_port_range: Option<u64>,
}
