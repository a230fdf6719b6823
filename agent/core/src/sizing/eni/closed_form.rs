//! What ipamd wants for a number of pods, without the steps to it.

use super::PREFIX_ADDRESSES;
use crate::observe::WarmTargets;

/// How many addresses ipamd's settings ask for while pods hold `assigned`, with so many slots on an interface. What is
/// attached beyond them is there for another reason: interfaces that cannot be given back, for the most part.
pub fn wanted_addresses(targets: &WarmTargets, assigned: u64, slots: u64) -> u64 {
    let (warm_ip, minimum_ip) = (u64::from(targets.warm_ip.unwrap_or(0)), u64::from(targets.minimum_ip.unwrap_or(0)));
    let prefix = u64::from(PREFIX_ADDRESSES);
    if warm_ip > 0 || minimum_ip > 0 {
        let wanted = if warm_ip > 0 { minimum_ip.max(assigned.saturating_add(warm_ip)) } else { minimum_ip };
        let wanted = wanted.max(assigned);
        return if targets.prefix_delegation { wanted.max(1).div_ceil(prefix).saturating_mul(prefix) } else { wanted };
    }
    if targets.prefix_delegation {
        let warm = u64::from(targets.warm_prefix.unwrap_or(0));
        return assigned.div_ceil(prefix).saturating_add(warm).max(1).saturating_mul(prefix);
    }
    let slots = slots.max(1);
    let warm = u64::from(targets.warm_eni.unwrap_or(1));
    assigned.div_ceil(slots).saturating_add(warm).max(1).saturating_mul(slots)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sizing::eni::{Limits, Question, plan};

    proptest! {
        /// Exercises the steps and the formula against each other. If this fails, waste is seen where there is none, or the
        /// plan is wrong.
        #[test]
        fn the_steps_lead_to_what_the_formula_says(
            enis in 1_u32..16, slots in 1_u32..50, pods in 0_u32..800,
            warm_eni in 1_u32..4, warm_ip in 0_u32..40, minimum_ip in 0_u32..60, warm_prefix in 1_u32..2, prefix_delegation: bool,
        ) {
            let targets = WarmTargets {
                warm_eni: Some(warm_eni), warm_ip: Some(warm_ip), minimum_ip: Some(minimum_ip),
                warm_prefix: Some(warm_prefix), prefix_delegation,
            };
            let limits = Limits { enis, addresses_per_eni: slots + 1 };
            let got = plan(&Question { limits, targets, pods, max_pods: None }).unwrap();
            let assigned = u64::from(pods - got.pods_failing);
            let room = u64::from(enis * slots * if prefix_delegation { 16 } else { 1 });
            let wanted = wanted_addresses(&targets, assigned, u64::from(slots));
            prop_assert_eq!(u64::from(got.addresses), wanted.min(room));
        }
    }
}
