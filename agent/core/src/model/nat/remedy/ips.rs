//! How many NAT IPs, or gateways, hold the ports that nodes take together.

use super::{Remedy, Target, caution, changes};
use crate::model::nat::NatSettings;

/// How many NAT IPs hold so many ports, if that is more than there are; one there is, whoever says nothing.
pub fn more_ips(nat: &NatSettings, ports: u64) -> Option<u32> {
    let capacity = nat.profile.capacity()?;
    let needed = ports.div_ceil(u64::from(nat.ports_of_an_ip(capacity.ports_per_ip).max(1)));
    let needed = u32::try_from(needed).unwrap_or(u32::MAX);
    (!nat.auto_ips && needed > nat.ips_counted()).then_some(needed)
}

/// Ports that all nodes take together with `each` of them, as far as that is known: by their number, or by the NAT IPs that the
/// gateway says it lacks for `reserved` of them.
pub(super) fn together(nat: &NatSettings, reserved: u32, each: u32) -> Option<u64> {
    let by_number = nat.nodes.map(|nodes| u64::from(nat.with_surge(nodes)) * u64::from(each));
    let by_lack = nat.missing_ips.filter(|missing| *missing > 0).and_then(|missing| {
        let ips = u64::from(nat.ips_counted().saturating_add(missing));
        let of_an_ip = nat.ports_of_an_ip(nat.profile.capacity()?.ports_per_ip);
        (ips * u64::from(of_an_ip)).saturating_mul(u64::from(each)).checked_div(u64::from(reserved))
    });
    by_number.max(by_lack)
}

/// The same where this node takes so many of its `own`.
pub(super) fn with_own(nat: &NatSettings, (reserved, each): (u32, u32), own: u32) -> Option<u64> {
    Some(together(nat, reserved, each)?.saturating_add(own.saturating_sub(each).into()))
}

/// NAT IPs that ports take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ips {
    /// There are enough.
    There,
    /// So many, which a gateway can have.
    More(u32),
    /// More than a gateway can have: so many gateways, at least.
    Gateways(u32),
}

impl Ips {
    pub(super) fn holding(nat: &NatSettings, ports: u64) -> Self {
        more_ips(nat, ports).map_or(Self::There, |ips| Self::of(nat, ips))
    }

    /// So many, which are more than there are.
    pub(super) fn of(nat: &NatSettings, ips: u32) -> Self {
        let most = nat.max_ips().unwrap_or(u32::MAX);
        if ips <= most { Self::More(ips) } else { Self::Gateways(ips.div_ceil(most)) }
    }

    pub(super) fn remedy(self, nat: &NatSettings, what: &str) -> Remedy {
        match self {
            Self::There => Remedy::default(),
            Self::More(ips) => {
                let target = Target { nat_ips: Some(ips), ..Target::default() };
                let plural = if ips == 1 { "" } else { "s" };
                let says = format!("use {ips} {what}{plural}");
                Remedy { says, mind: caution(nat, target, 0), changes: changes(nat, target), settings: vec![target] }
            }
            Self::Gateways(gateways) => {
                Remedy::words(format!("split the nodes over several gateways ({gateways} at least)"))
            }
        }
    }
}
