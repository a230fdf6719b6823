//! What to do where endpoint-independent mapping takes a port for each source, and few are needed without it.

use super::need::with_air;
use super::{Remedy, Target, changes};
use crate::model::nat::{NatSettings, NodePorts, Profile};

/// What turning the mapping off takes away.
pub(super) const LOST: &str = "connections may end when the mapping changes; what needs one address and port towards all peers (STUN, \
                               peer-to-peer UDP) works no longer";

/// Turning the mapping off, where the busiest destination then has ports to spare; nothing where it would be the next to lack some.
pub fn mapping_off(nat: &NatSettings, ports: &NodePorts, busiest: u32) -> Remedy {
    if nat.profile != Profile::Gcp || with_air(busiest) > ports.ports {
        return Remedy::default();
    }
    let target = Target { endpoint_independent: Some(false), ..Target::default() };
    Remedy {
        says: format!(
            "turn endpoint-independent mapping off: a port then serves every destination once, and {busiest} of {} \
             would do",
            ports.ports
        ),
        mind: vec![LOST.to_owned()],
        changes: changes(nat, target),
        settings: vec![target],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::nat::remedy::{Target, caution};
    use crate::model::nat::{Basis, Mode};

    #[test]
    fn the_mapping_is_turned_off_where_the_busiest_destination_has_ports_to_spare_then() {
        let nat = NatSettings::of(Profile::Gcp, Basis::Configured);
        let ports =
            NodePorts { ports: 64, reserved: 64, capacity_nodes: None, basis: Basis::Configured, why: String::new() };
        assert!(mapping_off(&nat, &ports, 51).says.contains("51 of 64 would do"));
        // 80 per cent and more is what the next finding is about.
        assert_eq!(mapping_off(&nat, &ports, 52).says, "");
    }

    #[test]
    fn dynamic_allocation_says_that_it_takes_the_mapping_away() {
        let target = Target { mode: Some(Mode::Dynamic), ..Target::default() };
        let lost = |endpoint_independent| {
            let nat = NatSettings { endpoint_independent, ..NatSettings::of(Profile::Gcp, Basis::Configured) };
            caution(&nat, target, 1024).iter().any(|mind| mind == LOST)
        };
        assert_eq!([Some(true), Some(false), None].map(lost), [true, false, false]);
    }
}
