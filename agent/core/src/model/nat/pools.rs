//! Pools of nodes behind a NAT, and the nodes that an upgrade adds to each of them.

/// Nodes that are alike and upgraded together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodePool {
    /// How many, at most.
    pub nodes: u32,
    /// How many there are.
    pub now: u32,
    /// How many more while they are upgraded.
    pub surge: Surge,
}

/// Nodes that an upgrade adds to a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surge {
    /// So many.
    Nodes(u32),
    /// A share of the pool, rounded up to whole nodes.
    Percent(u32),
}

/// Nodes of all pools.
pub(super) fn nodes(pools: &[NodePool]) -> u32 {
    pools.iter().map(|pool| pool.nodes).fold(0, u32::saturating_add)
}

/// Nodes that all pools have now.
pub(super) fn now(pools: &[NodePool]) -> u32 {
    pools.iter().map(|pool| pool.now).fold(0, u32::saturating_add)
}

/// Nodes that upgrades of all pools add, where there are so many nodes in place of those that the pools have: each pool is
/// taken to have its share of them. Pools without nodes have equal shares.
pub(super) fn surge(pools: &[NodePool], wanted: u32) -> u32 {
    let all = nodes(pools);
    let added = pools.iter().map(|pool| match pool.surge {
        Surge::Nodes(nodes) => nodes,
        Surge::Percent(percent) => {
            let (part, of) = if all == 0 { (1, pools.len() as u128) } else { (pool.nodes.into(), all.into()) };
            let hundredths = u128::from(wanted) * u128::from(percent) * part;
            u32::try_from(hundredths.div_ceil(of.saturating_mul(100).max(1))).unwrap_or(u32::MAX)
        }
    });
    added.fold(0, u32::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises shares of pools that are to grow. If this fails, an upgrade crosses an edge of Azure's table unannounced.
    #[test]
    fn shares_grow_with_the_nodes_and_numbers_do_not() {
        let pool = |nodes, surge| NodePool { nodes, now: nodes, surge };
        let share = [pool(48, Surge::Percent(10))];
        assert_eq!([48, 90, 95, 100, 101].map(|wanted| surge(&share, wanted)), [5, 9, 10, 10, 11]);
        assert_eq!([48, 95].map(|wanted| surge(&[pool(48, Surge::Nodes(3))], wanted)), [3, 3]);
        // Each pool is rounded up for itself.
        let two = [pool(3, Surge::Percent(33)), pool(10, Surge::Nodes(1))];
        assert_eq!([13, 26].map(|wanted| surge(&two, wanted)), [2, 3]);
        assert_eq!(surge(&[pool(5, Surge::Percent(33)), pool(5, Surge::Percent(33))], 10), 4);
        assert_eq!(surge(&[pool(0, Surge::Percent(50)), pool(0, Surge::Percent(10))], 20), 6);
        assert_eq!(surge(&[pool(u32::MAX, Surge::Percent(u32::MAX))], u32::MAX), u32::MAX);
        assert_eq!(surge(&[], 9), 0);
    }
}
