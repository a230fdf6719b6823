//! What this node needs: whatever a NAT is told to change, and why, this has to be left.

use crate::model::nat::NodePorts;

/// Ports that this node needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Need {
    /// To its busiest destination; for all its sources, where they are mapped endpoint-independently and need more.
    pub ports: u32,
    /// To its busiest destination.
    pub busiest: u32,
    /// It has used up most of what it has, so that it is told to get more.
    pub short: bool,
}

impl Need {
    /// With some air: more than it has where this runs low, else not more than it has.
    pub(super) fn wanted(self, ports: &NodePorts) -> u32 {
        let wanted = with_air(self.ports);
        if self.short {
            wanted.max(ports.ports.saturating_add(1))
        } else if ports.ports > 0 {
            wanted.min(ports.ports)
        } else {
            wanted
        }
    }
}

/// A quarter on top of the demand, so that there is some air.
pub(super) fn with_air(demand: u32) -> u32 {
    demand.saturating_add(demand / 4)
}
