//! On which port a translated connection lands, as the kernel chooses it (`net/netfilter/nf_nat_core.c`).
//!
//! `get_unique_tuple` keeps the source port if it is free and inside the rule's ports, unless one of the random flags is set
//! (`NF_NAT_RANGE_PROTO_RANDOM_ALL` is both). Otherwise `nf_nat_l4proto_unique_tuple` takes 16 random bits modulo the number
//! of ports as the place to begin, and the first free port from there. 65,536 is no multiple of that number as a rule, so
//! the first ports of a range come up more often than the last: of 1024-65535 the first 1,024 twice as often. Without ports
//! in the rule the range is 1024-65535 for a source port above 1023 (1-511 and 600-1023 for lower ones, which no
//! connection has that did not ask for it). Read in 6.1 and 6.12, measured on 6.18.

use crate::flow::Protocol;
use crate::observe::{PortChoice, SourceNat};
use crate::ports::{PortRange, PortSettings};

/// What 16 random bits can be.
const DRAWS: u32 = 1 << 16;

/// The ports that a rule without ports draws from.
pub(super) fn unlimited() -> PortRange {
    PortRange::new(1024, u16::MAX).unwrap_or(PortRange::NODE_PORTS)
}

/// How many ports at the beginning of a range come up once more than the others.
pub(super) fn favoured(range: PortRange) -> u32 {
    DRAWS % range.count()
}

/// The chance that a port drawn from `range` is one of `ports` (which do not overlap each other).
pub(super) fn drawn(range: PortRange, ports: impl Iterator<Item = PortRange>) -> f64 {
    let size = range.count();
    let (each, favoured) = (DRAWS / size, favoured(range));
    let draws: u32 = ports
        .filter_map(|ports| ports.intersect(range))
        .map(|ports| {
            let offset = u32::from(ports.first()) - u32::from(range.first());
            ports.count() * each + favoured.saturating_sub(offset).min(ports.count())
        })
        .sum();
    f64::from(draws) / f64::from(DRAWS)
}

/// The chance that a connection's new source port is one of `ports`, if its own is drawn from `own`, each port alike; of TCP each
/// of those that connect() hands out before all others.
pub(super) fn landing(target: &SourceNat, own: &PortSettings, protocol: Protocol, ports: &[PortRange]) -> f64 {
    let limit = target.ports.present().copied();
    let range = limit.unwrap_or_else(unlimited);
    if target.choice != PortChoice::Keep {
        return drawn(range, ports.iter().copied());
    }
    let count = |range: PortRange| match protocol {
        Protocol::TCP => own.handed_out_first(range),
        _ => own.open_in(range).into_iter().map(PortRange::count).sum(),
    };
    let usable: u32 = count(own.ephemeral);
    if usable == 0 {
        return 0.0;
    }
    let kept_in = limit.unwrap_or_else(|| own.ephemeral.hull(unlimited()));
    let kept: u32 = ports.iter().filter_map(|ports| ports.intersect(kept_in)).map(count).sum();
    let moved = usable - count(kept_in);
    f64::from(kept) / f64::from(usable) + f64::from(moved) / f64::from(usable) * drawn(range, ports.iter().copied())
}
