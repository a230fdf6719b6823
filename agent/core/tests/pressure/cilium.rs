//! Cilium's conntrack maps that fill.

use super::*;

fn map(name: &str, entries: u64, lru: bool, complete: bool) -> CiliumMap {
    CiliumMap { name: name.to_owned(), entries, max: 1000, lru, complete }
}

fn low(maps: Vec<CiliumMap>) -> Vec<Finding> {
    let mut node = Node::new(LedgerLimits::default());
    node.used(1, 1, ConntrackStats::ZERO);
    let read = CiliumConntrack { maps, hairpins: Vec::new(), hairpins_omitted: 0, left_behind_omitted: 0, unjudged: 0 };
    node.put(1, SourceId::CiliumConntrack, Fact::CiliumConntrack(read));
    node.report(1).findings.into_iter().filter(|finding| finding.id == FindingId::ConntrackLow).collect()
}

/// Exercises the table that fills with Dataplane V2. If this fails, connections break on a node that has a clean report.
#[test]
fn a_map_of_cilium_that_fills_is_named_with_the_exact_setting() {
    let tcp = |entries| low(vec![map("cilium_ct4_global", entries, true, true)]);
    assert_eq!(tcp(799), []);
    let [some] = tcp(800).try_into().unwrap();
    assert_eq!((some.severity, some.subject.as_str()), (Severity::Warning, "cilium_ct4_global"));
    assert_eq!(tcp(949)[0].severity, Severity::Warning);
    let [full] = tcp(1000).try_into().unwrap();
    assert_eq!(full.severity, Severity::Critical);
    assert_eq!(full.title, "Cilium's conntrack map cilium_ct4_global holds 1000 of 1000 entries (100 %)");
    assert!(said(&full).contains("LRU map: a full one evicts"), "{}", said(&full));
    assert!(full.remedy.contains("`bpf-ct-global-tcp-max: 2000`"), "{}", full.remedy);
    assert!(full.remedy.contains("bpf.mapDynamicSizeRatio"), "{}", full.remedy);
}

/// Exercises what is not TCP, a map that evicts nothing, and one that was read in part. If this fails, the setting is the wrong one,
/// or the harm is.
#[test]
fn each_map_is_told_by_itself_as_it_is() {
    let other = map("cilium_ct_any6_global", 900, false, false);
    let found = low(vec![map("cilium_ct4_global", 100, true, true), other]);
    let [found] = found.try_into().unwrap();
    assert_eq!(found.title, "Cilium's conntrack map cilium_ct_any6_global holds at least 900 of 1000 entries (90 %)");
    assert!(found.remedy.contains("`bpf-ct-global-any-max: 2000`"), "{}", found.remedy);
    assert!(said(&found).contains("it evicts nothing"), "{}", said(&found));
    // Of none there is nothing to say.
    assert_eq!(low(vec![CiliumMap { max: 0, ..map("cilium_ct4_global", 0, true, true) }]), []);
}

/// Exercises captures of before the kind was told. If this fails, they cannot be read any more.
#[test]
fn a_map_of_an_older_capture_is_as_cilium_makes_them() {
    let old = r#"{"name":"cilium_ct4_global","entries":1,"max":2,"complete":true}"#;
    assert!(serde_json::from_str::<CiliumMap>(old).unwrap().lru);
}
