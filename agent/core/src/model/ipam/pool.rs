//! Addresses attached ahead of need: how many lie idle, and how many more than was asked for.

use crate::known::Known;
use crate::observe::{Pool, WarmTargets};
use crate::report::PoolReport;
use crate::sizing::eni::{PREFIX_ADDRESSES, wanted_addresses};

/// What a pool amounts to.
pub(super) fn report(pool: &Pool) -> PoolReport {
    let targets = pool.targets.present().map(|targets| WarmTargets { prefix_delegation: pool.prefixes, ..*targets });
    let unit = if pool.prefixes { u64::from(PREFIX_ADDRESSES) } else { 1 };
    // Interfaces are filled up without a target for single addresses: the fullest one tells how many slots one has.
    let slots = pool.interfaces.iter().map(|interface| interface.total / unit).max().unwrap_or(0);
    let beyond = targets.map(|targets| pool.total.saturating_sub(wanted_addresses(&targets, pool.assigned, slots)));
    let empty = pool.interfaces.iter().filter(|interface| interface.assigned == 0).count();
    PoolReport {
        total: pool.total,
        assigned: pool.assigned,
        cooling: pool.cooling,
        idle: pool.total.saturating_sub(pool.assigned),
        beyond_target: beyond,
        targets: match &pool.targets {
            Known::Present(targets) => words(targets, pool.prefixes),
            Known::Absent => "what it keeps spare is not told".to_owned(),
            Known::Unknown(why) => why.to_string(),
        },
        interfaces: u64::try_from(pool.interfaces.len()).unwrap_or(u64::MAX),
        interfaces_empty: u64::try_from(empty).unwrap_or(u64::MAX),
    }
}

/// The settings that count, by their names.
fn words(targets: &WarmTargets, prefixes: bool) -> String {
    let named =
        |name: &str, value: Option<u32>| value.filter(|value| *value > 0).map(|value| format!("{name}={value}"));
    let by_address: Vec<String> =
        [named("WARM_IP_TARGET", targets.warm_ip), named("MINIMUM_IP_TARGET", targets.minimum_ip)]
            .into_iter()
            .flatten()
            .collect();
    if !by_address.is_empty() {
        by_address.join(", ")
    } else if prefixes {
        format!("WARM_PREFIX_TARGET={}", targets.warm_prefix.unwrap_or(0))
    } else {
        format!("WARM_ENI_TARGET={}", targets.warm_eni.unwrap_or(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::PoolInterface;

    fn pool(interfaces: &[(u64, u64)], targets: Known<WarmTargets>) -> Pool {
        let interfaces: Vec<PoolInterface> = interfaces
            .iter()
            .enumerate()
            .map(|(index, (total, assigned))| PoolInterface {
                id: format!("eni-{index}"),
                primary: index == 0,
                total: *total,
                assigned: *assigned,
                cooling: 0,
            })
            .collect();
        let sum = |of: fn(&PoolInterface) -> u64| interfaces.iter().map(of).sum();
        Pool {
            total: sum(|interface| interface.total),
            assigned: sum(|interface| interface.assigned),
            cooling: 0,
            interfaces,
            prefixes: false,
            targets,
        }
    }

    #[test]
    fn the_published_r5_xlarge_has_22_idle_addresses_and_none_beyond_its_target() {
        let got = report(&pool(&[(14, 14), (14, 6), (14, 0)], Known::Present(WarmTargets::default())));
        assert_eq!((got.total, got.idle, got.beyond_target), (42, 22, Some(0)));
        assert_eq!((got.interfaces, got.interfaces_empty, got.targets.as_str()), (3, 1, "WARM_ENI_TARGET=1"));
    }

    #[test]
    fn interfaces_with_a_pod_each_are_pinned_beyond_the_target() {
        let targets = WarmTargets { warm_ip: Some(2), minimum_ip: Some(20), ..WarmTargets::default() };
        let got = report(&pool(&[(14, 1), (14, 1), (14, 1)], Known::Present(targets)));
        assert_eq!((got.idle, got.beyond_target), (39, Some(22)));
        assert_eq!(got.targets, "WARM_IP_TARGET=2, MINIMUM_IP_TARGET=20");
        let unknown = report(&pool(&[(14, 1)], Known::because("it did not answer")));
        assert_eq!((unknown.beyond_target, unknown.targets.as_str()), (None, "it did not answer"));
    }
}
