//! What to do where endpoint-independent mapping takes a port for each source, and few are needed without it.

use super::lines::gcloud_update;
use super::{Change, Remedy};
use crate::model::nat::{NatSettings, NodePorts, Profile};

/// Turning the mapping off, where the busiest destination needs so few ports that they are enough; nothing where they are not.
pub fn mapping_off(nat: &NatSettings, ports: &NodePorts, busiest: u32) -> Remedy {
    if nat.profile != Profile::Gcp || busiest >= ports.ports {
        return Remedy::default();
    }
    let change = |tool: &str, text: String| Change { tool: tool.to_owned(), text };
    Remedy {
        says: format!(
            "turn endpoint-independent mapping off: a port then serves every destination once, and {busiest} of {} \
             would do",
            ports.ports
        ),
        mind: vec![
            "connections may end when the mapping changes; what needs one address and port towards all peers (STUN, \
             peer-to-peer UDP) works no longer"
                .to_owned(),
        ],
        changes: vec![
            change("terraform", "enable_endpoint_independent_mapping = false".to_owned()),
            change("gcloud", format!("{} --no-enable-endpoint-independent-mapping", gcloud_update(nat))),
        ],
    }
}
