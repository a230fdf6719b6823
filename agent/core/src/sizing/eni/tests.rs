//! AWS's own tables, row by row, and what others have published about a node's addresses.

use super::*;

const T3_SMALL: Limits = Limits { enis: 3, addresses_per_eni: 4 };
const P3DN: Limits = Limits { enis: 15, addresses_per_eni: 50 };
const R5_XLARGE: Limits = Limits { enis: 4, addresses_per_eni: 15 };
const M4_4XLARGE: Limits = Limits { enis: 8, addresses_per_eni: 30 };
const M5_LARGE: Limits = Limits { enis: 3, addresses_per_eni: 10 };

fn warm_eni(target: u32) -> WarmTargets {
    WarmTargets { warm_eni: Some(target), ..WarmTargets::default() }
}

fn warm_ip(target: u32, minimum: u32) -> WarmTargets {
    WarmTargets { warm_ip: Some(target), minimum_ip: Some(minimum), ..WarmTargets::default() }
}

fn prefixes(targets: WarmTargets) -> WarmTargets {
    WarmTargets { prefix_delegation: true, ..targets }
}

fn warm_prefix(target: u32) -> WarmTargets {
    prefixes(WarmTargets { warm_prefix: Some(target), ..WarmTargets::default() })
}

fn of(limits: Limits, targets: WarmTargets, pods: u32) -> EniPlan {
    plan(&Question { limits, targets, pods, max_pods: None }).unwrap()
}

/// `docs/eni-and-ip-target.md`. The row of 2/5 without pods shows 2,3 there; the code fills the first interface first.
#[test]
fn every_row_of_awss_table_of_secondary_addresses_is_reproduced() {
    let rows: [(_, _, _, _, _, _, &[u32]); 16] = [
        (T3_SMALL, warm_eni(1), 0, 1, 3, 3, &[3]),
        (T3_SMALL, warm_eni(1), 5, 3, 9, 4, &[3, 3, 3]),
        (T3_SMALL, warm_eni(1), 9, 3, 9, 0, &[3, 3, 3]),
        (T3_SMALL, warm_ip(1, 1), 0, 1, 1, 1, &[1]),
        (T3_SMALL, warm_ip(1, 1), 5, 2, 6, 1, &[3, 3]),
        (T3_SMALL, warm_ip(1, 1), 9, 3, 9, 0, &[3, 3, 3]),
        (T3_SMALL, warm_ip(2, 5), 0, 2, 5, 5, &[3, 2]),
        (T3_SMALL, warm_ip(2, 5), 5, 3, 7, 2, &[3, 3, 1]),
        (T3_SMALL, warm_ip(2, 5), 9, 3, 9, 0, &[3, 3, 3]),
        (P3DN, warm_eni(1), 0, 1, 49, 49, &[49]),
        (P3DN, warm_eni(1), 3, 2, 98, 95, &[49, 49]),
        (P3DN, warm_eni(1), 95, 3, 147, 52, &[49, 49, 49]),
        (P3DN, warm_ip(5, 10), 0, 1, 10, 10, &[10]),
        (P3DN, warm_ip(5, 10), 7, 1, 12, 5, &[12]),
        (P3DN, warm_ip(5, 10), 15, 1, 20, 5, &[20]),
        (P3DN, warm_ip(5, 10), 45, 2, 50, 5, &[49, 1]),
    ];
    for (limits, targets, pods, enis, addresses, unused, per_eni) in rows {
        let got = of(limits, targets, pods);
        let row = format!("{limits:?} {targets:?} {pods} pods");
        assert_eq!((got.enis, got.addresses, got.unused, &*got.per_eni), (enis, addresses, unused, per_eni), "{row}");
        assert_eq!((got.pods_failing, got.subnet_addresses), (0, addresses + enis), "{row}");
    }
}

/// `docs/prefix-and-ip-target.md`, with what the code does in the four rows that contradict it.
#[test]
fn every_row_of_awss_table_of_prefixes_is_reproduced_as_the_code_has_it() {
    let rows: [(Limits, WarmTargets, u32, u32, u32, u32); 20] = [
        (T3_SMALL, warm_prefix(1), 0, 1, 1, 16),
        (T3_SMALL, warm_prefix(1), 5, 1, 2, 27),
        (T3_SMALL, warm_prefix(1), 16, 1, 2, 16),
        (T3_SMALL, warm_prefix(1), 17, 1, 3, 31),
        (T3_SMALL, warm_prefix(1), 58, 2, 5, 22),
        (T3_SMALL, prefixes(warm_ip(1, 1)), 0, 1, 1, 16),
        (T3_SMALL, prefixes(warm_ip(1, 1)), 5, 1, 1, 11),
        (T3_SMALL, prefixes(warm_ip(1, 1)), 17, 1, 2, 15),
        (T3_SMALL, prefixes(warm_ip(1, 1)), 58, 2, 4, 6),
        (T3_SMALL, prefixes(warm_ip(7, 20)), 0, 1, 2, 32),
        (T3_SMALL, prefixes(warm_ip(7, 20)), 5, 1, 2, 27),
        (T3_SMALL, prefixes(warm_ip(7, 20)), 17, 1, 2, 15),
        (T3_SMALL, prefixes(warm_ip(7, 20)), 58, 2, 5, 22),
        (P3DN, warm_prefix(1), 0, 1, 1, 16),
        (P3DN, warm_prefix(1), 3, 1, 2, 29),
        (P3DN, warm_prefix(1), 95, 1, 7, 17),
        (P3DN, prefixes(warm_ip(5, 10)), 0, 1, 1, 16),
        (P3DN, prefixes(warm_ip(5, 10)), 7, 1, 1, 9),
        (P3DN, prefixes(warm_ip(5, 10)), 15, 1, 2, 17),
        (P3DN, prefixes(warm_ip(5, 10)), 45, 1, 4, 19),
    ];
    for (limits, targets, pods, enis, prefixes, unused) in rows {
        let got = of(limits, targets, pods);
        let row = format!("{limits:?} {targets:?} {pods} pods");
        let attached: u32 = got.prefixes_per_eni.iter().sum();
        assert_eq!((got.enis, attached, got.unused), (enis, prefixes, unused), "{row}");
        assert_eq!((got.addresses, got.subnet_addresses), (16 * prefixes, 16 * prefixes + enis), "{row}");
    }
    assert_eq!(of(T3_SMALL, warm_prefix(1), 58).prefixes_per_eni, [3, 2]);
    assert_eq!(of(T3_SMALL, warm_prefix(1), 58).per_eni, [48, 32]);
    assert_eq!(of(T3_SMALL, prefixes(warm_ip(1, 1)), 58).prefixes_per_eni, [3, 1]);
}

/// The tables of a published report on r5.xlarge, with its two slips put right: 15 pods take 42 addresses, not 37, and 22
/// are idle with 20 pods, not 24.
#[test]
fn a_published_r5_xlarge_is_reproduced_with_its_slips_put_right() {
    for (targets, pods, addresses, enis) in [
        (warm_eni(1), 0, 14, 1),
        (warm_eni(1), 1, 28, 2),
        (warm_eni(1), 2, 28, 2),
        (warm_eni(1), 14, 28, 2),
        (warm_eni(1), 15, 42, 3),
        (warm_eni(1), 20, 42, 3),
        (warm_eni(1), 28, 42, 3),
        (warm_eni(1), 42, 56, 4),
        (warm_ip(5, 20), 1, 20, 2),
        (warm_ip(5, 20), 2, 20, 2),
        (warm_ip(5, 20), 15, 20, 2),
        (warm_ip(5, 20), 16, 21, 2),
        (warm_ip(5, 20), 23, 28, 2),
        (warm_ip(5, 20), 24, 29, 3),
        (warm_ip(5, 20), 37, 42, 3),
        (warm_ip(5, 20), 38, 43, 4),
        (warm_ip(5, 20), 51, 56, 4),
        (warm_ip(2, 20), 0, 20, 2),
        (warm_ip(2, 20), 18, 20, 2),
        (warm_ip(2, 20), 19, 21, 2),
        (warm_ip(2, 20), 20, 22, 2),
        (warm_ip(2, 20), 26, 28, 2),
        (warm_ip(2, 20), 27, 29, 3),
    ] {
        let got = of(R5_XLARGE, targets, pods);
        assert_eq!((got.addresses, got.enis, got.pods_failing), (addresses, enis, 0), "{targets:?} {pods} pods");
    }
    let full = of(R5_XLARGE, warm_eni(1), 57);
    assert_eq!((full.addresses, full.pods_failing, full.unused), (56, 1, 0));
    // Ten nodes of 20 pods, before and after: 420 and 220 for pods, 450 and 240 from the subnet, 220 and 20 idle.
    let (before, after) = (of(R5_XLARGE, warm_eni(1), 20), of(R5_XLARGE, warm_ip(2, 20), 20));
    assert_eq!((10 * before.addresses, 10 * before.subnet_addresses, 10 * before.unused), (420, 450, 220));
    assert_eq!((10 * after.addresses, 10 * after.subnet_addresses, 10 * after.unused), (220, 240, 20));
    // To unset WARM_ENI_TARGET is not required: the other two win over it.
    let both = WarmTargets { warm_eni: Some(1), ..warm_ip(2, 20) };
    let got = of(R5_XLARGE, both, 20);
    assert_eq!(got.addresses, 22);
    assert!(got.notes[0].contains("win over WARM_ENI_TARGET"), "{:?}", got.notes);
}

#[test]
fn other_instances_come_out_as_simulated() {
    for (limits, targets, pods, addresses) in [
        (M4_4XLARGE, warm_eni(1), 0, 29),
        (M4_4XLARGE, warm_eni(1), 5, 58),
        (M4_4XLARGE, warm_eni(1), 29, 58),
        (M4_4XLARGE, warm_eni(1), 30, 87),
        (M4_4XLARGE, warm_eni(2), 9, 87),
        (M4_4XLARGE, warm_ip(1, 0), 9, 10),
        (M5_LARGE, warm_eni(2), 0, 18),
        (M5_LARGE, warm_eni(2), 1, 27),
    ] {
        assert_eq!(of(limits, targets, pods).addresses, addresses, "{limits:?} {targets:?} {pods} pods");
    }
}

/// The vectors of ipamd's own unit tests.
#[test]
fn how_many_addresses_are_short_is_counted_as_ipamd_counts_them() {
    let short = |targets, units: u32| {
        let mut pool = Pool::new(R5_XLARGE, targets, None);
        pool.units = vec![units];
        pool.short()
    };
    assert_eq!(short(warm_ip(5, 0), 0), Some(5));
    assert_eq!(short(warm_ip(5, 0), 2), Some(3));
    assert_eq!(short(warm_ip(5, 0), 5), None);
    assert_eq!(short(prefixes(warm_ip(5, 0)), 0), Some(1));
    assert_eq!(short(prefixes(warm_ip(5, 0)), 2), None);
    // Two free prefixes where one suffices: one is over.
    assert_eq!(32 - wanted_addresses(&prefixes(warm_ip(5, 0)), 0, 14), 16);
}

#[test]
fn the_pool_does_not_grow_beyond_the_maximum_of_pods() {
    let capped = |max_pods, pods| {
        plan(&Question { limits: T3_SMALL, targets: warm_prefix(1), pods, max_pods: Some(max_pods) }).unwrap()
    };
    let real = capped(11, 9);
    assert_eq!((real.prefixes_per_eni.as_slice(), real.addresses), ([1].as_slice(), 16));
    assert!(real.notes.iter().any(|note| note.contains("no more than 11 pods")), "{:?}", real.notes);
    assert_eq!(capped(110, 17).prefixes_per_eni, [3]);
}

#[test]
fn a_minimum_alone_is_a_ceiling_and_a_target_of_no_interface_flaps() {
    let minimum = WarmTargets { minimum_ip: Some(10), ..WarmTargets::default() };
    let got = of(R5_XLARGE, minimum, 12);
    assert_eq!((got.addresses, got.pods_failing), (10, 2));
    assert!(got.notes.iter().any(|note| note.contains("never grows beyond 10")), "{:?}", got.notes);
    let flapping = of(R5_XLARGE, warm_eni(0), 14);
    assert_eq!(flapping.addresses, 28);
    assert!(flapping.notes.iter().any(|note| note.contains("flaps")), "{:?}", flapping.notes);
    assert_eq!(of(R5_XLARGE, warm_eni(0), 13).addresses, 14);
    // A prefix target without prefix delegation means nothing.
    let stock = WarmTargets { warm_prefix: Some(1), ..warm_eni(1) };
    assert_eq!(of(R5_XLARGE, stock, 20).addresses, 42);
}

#[test]
fn numbers_that_no_instance_has_are_refused() {
    let ask = |enis, addresses_per_eni, pods| {
        let limits = Limits { enis, addresses_per_eni };
        plan(&Question { limits, targets: warm_eni(1), pods, max_pods: None }).unwrap_err().to_string()
    };
    assert!(ask(0, 15, 1).contains("not 0"));
    assert!(ask(4, 1, 1).contains("goes to no pod"));
    assert!(ask(4, u32::MAX, 1).contains("addresses, not 4294967295"));
    assert!(ask(4, 15, u32::MAX).contains("more than 1000000"));
    let target = WarmTargets { warm_ip: Some(u32::MAX), ..WarmTargets::default() };
    let question = Question { limits: T3_SMALL, targets: target, pods: 1, max_pods: None };
    assert_eq!(plan(&question).unwrap_err(), EniError::Target(u32::MAX));
}
