//! Outputs of a real report: what people see at 80 and 120 columns, and what machines get.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::path::Path;
use std::time::Duration;

use headroom::command::doctor::{CleanerDiagnosis, Diagnosis};
use headroom::output::metrics;
use headroom::output::table::{self, CleanAnswer, Width};
use headroom_core::findings::{Finding, FindingId, Severity};
use headroom_core::model::leak::Verdict;
use headroom_core::plan::clean::{Plan, Refused, Release};
use headroom_core::report::{
    CleanerMode, CleanerReport, MasqueradeReport, NetworkReport, PodDemand, PoolReport, ProgramReport, RangeSetReport,
    Report, SourcesReport, StrandedReport, VerdictCounts, WorstDestination,
};
use headroom_core::time::WallTime;
use headroom_host::act::{Cleaned, Prospect, Taken};
use serde_json::{Value, json};

/// The report of `tests/fixtures/reports/nat-exhausted.json` (what happened there is told beside it).
fn text() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/reports/nat-exhausted.json");
    std::fs::read_to_string(path).unwrap()
}

fn report() -> Report {
    serde_json::from_str(&text()).unwrap()
}

/// Exercises the table. If this fails, look at the difference: it is what an SRE sees at three in the morning.
#[test]
fn the_table_reads_well_at_80_and_at_120_columns() {
    for columns in [80, 120] {
        let table = table::report(&report(), Some(Duration::from_secs(5)), Width::plain(columns));
        for line in table.lines() {
            assert!(line.chars().count() <= columns, "{columns} columns: `{line}`");
        }
        insta::assert_snapshot!(format!("table-{columns}"), table);
    }
}

/// Exercises a NAT that gives UDP a port for each flow to an address. If this fails, the table names one port of thirty as what needs
/// them all.
#[test]
fn ports_that_count_together_are_told_as_one_address() {
    let mut report = report();
    report.nat.profile = "azure-lb".to_owned();
    report.nat.demand.udp.ports = Some(30);
    report.nat.demand.udp.worst = Some(WorstDestination { address: [9, 9, 9, 9].into(), port: 5000, destinations: 30 });
    let table = table::report(&report, None, Width::plain(120));
    assert!(table.contains("needs 30 for 9.9.9.9 (30 ports there, which count together)"), "{table}");
    assert!(table.contains("azure-lb: 64 per protocol and destination, UDP per address ("), "{table}");
}

/// Exercises what is not in the fixture: rules that do nothing, Cilium's maps, findings that do no harm. If this fails, nobody at a
/// terminal hears of them.
#[test]
fn the_table_tells_of_rules_that_are_not_in_force_of_ciliums_maps_and_of_notes() {
    let mut report = report();
    let rule = |position: u32, unreached: &str| -> MasqueradeReport {
        serde_json::from_value(json!({
            "backend": "nftables", "family": "ip", "table": "mine", "chain": "out", "position": position, "path": [],
            "owner": "other", "action": "MASQUERADE", "kind": "masquerade", "protocol": null, "conditions": [],
            "exceptions": [], "ports": null, "choice": "keep", "probability": 1.0, "share": 0.0, "share_allocated": 0.0,
            "share_why": unreached, "comments": [], "unclear": [], "unreached": unreached,
        }))
        .unwrap()
    };
    report.overlap.masquerade = (2..=6).map(|position| rule(position, "never reached: behind rule 1")).collect();
    report.overlap.masquerade.extend((7..=10).map(|position| MasqueradeReport {
        unclear: vec!["match `bpf`".to_owned()],
        unreached: None,
        ..rule(position, "")
    }));
    let map = |name: &str, complete| json!({ "name": name, "entries": 5, "max": 131_072, "complete": complete });
    report.conntrack.cilium = serde_json::from_value(json!({
        "entries": 5, "max": 131_072, "complete": false, "left_behind": 3, "left_behind_at_start": 1, "broken": 0,
        "maps": [map("cilium_ct4_global", true), map("cilium_ct6_global", false)], "hairpins": [], "hairpins_omitted": 0,
    }))
    .unwrap();
    let note = |id| Finding { id, severity: Severity::Info, ..report.findings[0].clone() };
    let notes = [FindingId::MasqueradeOverlapsNodeport, FindingId::SourceDegraded].map(note);
    let title = "shop/checkout waits for 203.0.113.7:443/tcp, which answers nobody".to_owned();
    let waits = Finding { title, ..note(FindingId::NodeportCollision) };
    report.findings.extend([&notes[..], &notes, &[waits]].concat());
    let table = table::report(&report, None, Width::plain(80));
    for expected in [
        "  not in force: nftables ip mine out rule 2: never reached: behind rule 1\n",
        "  not in force: and 2 more rules (-o json has all)\n",
        "  not understood: nftables ip mine out rule 7: match `bpf`\n",
        "  not understood: and 1 more rule (-o json has all)\n",
        "least 5 of 131072 entries; at least 3 left behind",
        "\nnotes: nodeport-collision: shop/checkout waits for 203.0.113.7:443/tcp, which\n    answers nobody\n  \
         masquerade-overlaps-nodeport (2): not known to do harm here\n  -o json has what to do\n",
    ] {
        assert!(table.contains(expected), "`{expected}` is missing in:\n{table}");
    }
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    // Where the report leaves some out, too.
    (report.overlap.masquerade_omitted, report.overlap.shares_omitted) = (9, 1);
    report.overlap.shares = serde_json::from_value(json!([{
        "backend": "nftables", "family": "ip", "table": "mine", "chain": "out", "position": 7, "owner": "other",
        "protocol": "tcp", "rules": 1, "share": 0.5, "share_allocated": 0.1, "why": "",
    }]))
    .unwrap();
    let table = table::report(&report, None, Width::plain(80));
    for expected in [
        "  not in force: and at least 2 more rules (-o json has more of them)\n",
        "  1 share of further rules left out; the largest of each maker is listed\n",
    ] {
        assert!(table.contains(expected), "`{expected}` is missing in:\n{table}");
    }
    let metrics = metrics::render(&report);
    assert!(metrics.contains("headroom_cilium_conntrack_entries{map=\"cilium_ct6_global\"} 5.0"), "{metrics}");
}

/// Exercises the promise that fields are added, never renamed. If this fails, a script that reads reports breaks.
#[test]
fn a_report_of_an_earlier_version_loads_and_loses_nothing() {
    let before: Value = serde_json::from_str(&text()).unwrap();
    let after = serde_json::to_value(report()).unwrap();
    assert_holds(&after, &before, "report");
}

/// Everything of the earlier version is there; more may be.
fn assert_holds(after: &Value, before: &Value, path: &str) {
    match (after, before) {
        (Value::Object(after), Value::Object(before)) => {
            for (name, value) in before {
                assert!(after.contains_key(name), "{path}.{name} is gone");
                assert_holds(&after[name], value, &format!("{path}.{name}"));
            }
        }
        (Value::Array(after), Value::Array(before)) => {
            assert_eq!(after.len(), before.len(), "{path}");
            after.iter().zip(before).for_each(|(after, before)| assert_holds(after, before, path));
        }
        (after, before) => assert_eq!(after, before, "{path}"),
    }
}

/// A network with more of everything than becomes series.
fn network(like: &NetworkReport, number: usize) -> NetworkReport {
    let set = |index: usize| RangeSetReport {
        ranges: match index {
            0 => vec!["10.64.0.2-10.64.0.14".to_owned()],
            _ => [format!("set {index}"), "b".into(), "c".into(), "d".into()].to_vec(),
        },
        usable: 13,
        used: 9,
        next: None,
        exhausted: false,
        exhausted_in_secs: (index == 0).then_some(600),
        exhausted_basis: None,
    };
    let pool = PoolReport {
        total: 42,
        assigned: 20,
        cooling: 3,
        idle: 22,
        beyond_target: Some(8),
        targets: String::new(),
        interfaces: 3,
        interfaces_empty: 1,
    };
    NetworkReport {
        network: format!("n{number:02}"),
        range_sets: (0..9).map(set).collect(),
        pool: Some(pool),
        stranded: Some(StrandedReport { addresses: 256, pods: 9, stranded: 224, prefix_needed: 27 }),
        ..like.clone()
    }
}

/// Exercises the metrics. If this fails, dashboards and alerts go blind.
#[test]
fn metrics_carry_the_numbers_of_the_report() {
    let mut report = report();
    let destination = report.nat.destinations.first_mut().unwrap();
    (destination.refused_total, destination.timed_out_total) = (Some(0), Some(16));
    report.ipam.cleaner = Some(CleanerReport::default());
    assert!(!metrics::render(&report).contains("headroom_ipam_cleaner"), "it is off");
    report.ipam.cleaner = Some(CleanerReport {
        mode: CleanerMode::Interval,
        last_run_unix_secs: Some(1_795_304_621),
        released_total: 5,
        refused_last: VerdictCounts { undetermined: 2, ..VerdictCounts::default() },
        errors_total: 1,
        ..CleanerReport::default()
    });
    let networks = (0..40).map(|number| network(report.ipam.networks.first().unwrap(), number));
    let networks: Vec<NetworkReport> = networks.collect();
    report.ipam.networks.extend(networks);
    let text = metrics::render(&report);
    for line in [
        "headroom_ipam_released_addresses_total 5",
        "headroom_ipam_cleaner_errors_total 1",
        "headroom_ipam_cleaner_last_run_timestamp_seconds 1795304621.0",
        "headroom_ipam_refused_addresses{verdict=\"undetermined\"} 2.0",
        "headroom_ipam_refused_addresses{verdict=\"leaked\"} 0.0",
        "headroom_ipam_usable_addresses{network=\"gke-pod-network\"} 61.0",
        "headroom_ipam_range_set_usable_addresses{network=\"n00\",ranges=\"10.64.0.2-10.64.0.14\"} 13.0",
        "headroom_ipam_range_set_reserved_addresses{network=\"n00\",ranges=\"10.64.0.2-10.64.0.14\"} 9.0",
        "headroom_ipam_range_set_exhausted_in_seconds{network=\"n00\",ranges=\"10.64.0.2-10.64.0.14\"} 600.0",
        "headroom_ipam_range_set_reserved_addresses{network=\"n00\",ranges=\"set 1, b and 2 more\"} 9.0",
        "headroom_ipam_pool_addresses{network=\"n00\",state=\"assigned\"} 20.0",
        "headroom_ipam_pool_addresses{network=\"n00\",state=\"cooling\"} 3.0",
        "headroom_ipam_pool_addresses{network=\"n00\",state=\"warm\"} 19.0",
        "headroom_ipam_pool_beyond_target_addresses{network=\"n00\"} 8.0",
        "headroom_ipam_stranded_addresses{network=\"n00\"} 224.0",
        "headroom_nat_allocated_ports 64.0",
        "headroom_nat_demand_ports{protocol=\"tcp\"} 64.0",
        "headroom_nat_destination_held_ports{protocol=\"tcp\",address=\"203.0.113.7\",port=\"443\"} 64.0",
        "headroom_nat_destination_failed_connects_total{protocol=\"tcp\",address=\"203.0.113.7\",port=\"443\",cause=\"timed_out\"} 16",
        "headroom_findings{id=\"nat-ports-exhausted\",severity=\"critical\"} 1.0",
        "headroom_source_up{source=\"tcp\"} 1.0",
    ] {
        assert!(text.lines().any(|found| found == line), "`{line}` is missing in:\n{text}");
    }
    for row in metrics::FAMILIES {
        let series = text.lines().filter(|line| line.starts_with(&format!("headroom_{}", row.name))).count();
        assert!(series <= 64, "{} has {series} series, its bound is {}", row.name, row.labels);
    }
}

/// Exercises a store that could be read only in part. If this fails, what was not read is told as free.
#[test]
fn a_network_that_was_read_in_part_has_at_least_what_was_seen() {
    let mut report = report();
    let mut partly = network(report.ipam.networks.first().unwrap(), 7);
    partly.range_sets.truncate(1);
    partly.complete = false;
    partly.counts = VerdictCounts { leaked: 9, ..VerdictCounts::default() };
    report.ipam.networks = vec![partly];
    let words = |report: &Report| {
        let text = table::report(report, None, Width::plain(80));
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let text = words(&report);
    assert!(text.contains("n07: at least 9 of 13 in 10.64.0.2-10.64.0.14 reserved n07: 42 attached"), "{text}");
    let series = metrics::render(&report);
    assert!(!series.contains("reserved_addresses{network=\"n07\""), "{series}");
    assert!(series.contains("ipam_addresses{network=\"n07\",verdict=\"leaked\"} 9.0"), "{series}");
    assert!(!series.contains("ipam_addresses{network=\"n07\",verdict=\"in_use\"}"), "{series}");
    let Some(network) = report.ipam.networks.first_mut() else { return };
    network.complete = true;
    let set = network.range_sets.first_mut().unwrap();
    (set.used, set.exhausted) = (13, true);
    let text = words(&report);
    assert!(text.contains("n07: 13 of 13 in 10.64.0.2-10.64.0.14 reserved, none is left"), "{text}");
}

/// Exercises many pods behind a NAT that maps endpoint-independently. If this fails, nobody sees who holds its ports, or a node
/// with many pods makes as many series.
#[test]
fn pods_and_sources_are_shown_as_far_as_they_are_bounded() {
    let mut report = report();
    let pod = |number: u64| PodDemand {
        namespace: Some("shop".to_owned()),
        name: (number != 3).then(|| format!("checkout-{number}")),
        address: "10.64.0.5".parse().unwrap(),
        host: false,
        held: 100 - number,
        wanting: 0,
        forgotten: 0,
        destinations: 2,
    };
    report.nat.pods = (0..50).map(pod).collect();
    let sources = SourcesReport { ports: Some(140), at_least: 64, at_most: 150, basis: String::new() };
    report.nat.demand.tcp.endpoint_independent = Some(sources.clone());
    assert!(
        !table::report(&report, None, Width::plain(80)).contains("source address and port"),
        "not behind such a NAT"
    );
    report.nat.endpoint_independent = Some(true);
    let text = metrics::render(&report);
    assert!(text.contains("headroom_nat_source_ports{protocol=\"tcp\"} 140.0\n"), "{text}");
    assert!(text.contains("headroom_nat_pod_held_ports{namespace=\"shop\",pod=\"checkout-0\"} 100.0\n"), "{text}");
    let pods: Vec<&str> = text.lines().filter(|line| line.starts_with("headroom_nat_pod_held_ports{")).collect();
    assert_eq!(pods.len(), metrics::MAX_PODS);
    assert!(pods.iter().any(|line| line.contains("checkout-20")), "one has no name");
    let shown = |report: &Report| table::report(report, None, Width::plain(200));
    let table = shown(&report);
    assert!(
        table.contains("needs 140, one for each source address and port; most of them to 203.0.113.7:443"),
        "{table}"
    );
    assert!(table.contains("per protocol (configured"), "{table}");
    assert!(table.contains("shop/checkout-0 (100 to 2 destinations)"), "{table}");
    report.nat.demand.tcp.endpoint_independent = Some(SourcesReport { ports: None, ..sources });
    assert!(shown(&report).contains("needs 64 to 150, one for each"), "{}", shown(&report));
}

/// Exercises hostile names. If this fails, a pod's name can move the cursor of whoever looks at the report.
#[test]
fn control_characters_in_names_are_shown_not_obeyed() {
    let mut report = report();
    for destination in &mut report.nat.destinations {
        for pod in &mut destination.pods {
            pod.name = Some("evil\x1b[2J\r\npod".to_owned());
        }
    }
    let table = table::report(&report, None, Width::plain(80));
    assert!(!table.contains('\x1b') && !table.contains('\r'), "{table}");
    assert!(table.contains("evil"));
}

/// Exercises the page of programs. If this fails, nobody learns what a program costs, or why it does not run.
#[test]
fn doctor_shows_how_every_program_runs_and_why_one_does_not() {
    let program = |name: &str, why: Option<&str>| ProgramReport {
        name: name.to_owned(),
        hook: "inet_sock_set_state".to_owned(),
        attached: why.is_none(),
        why: why.map(str::to_owned),
        lost_without: "SYNs that got no answer".to_owned(),
        runs: why.is_none().then_some(1000),
        time_ns: why.is_none().then_some(128_000),
        missed: why.is_none().then_some(2),
    };
    let mut diagnosis = Diagnosis {
        node: "node-1".to_owned(),
        kernel: "5.10.0-32-cloud-amd64".to_owned(),
        host_network: Some(true),
        host_network_unknown: None,
        capabilities: Vec::new(),
        coverage: Vec::new(),
        programs: vec![
            program("tcp_state", None),
            program("tcp_retransmit", Some("this kernel has no such tracepoint")),
        ],
        runs_not_counted: None,
        cleaner: CleanerDiagnosis { interval_secs: None, directories: Vec::new(), why: None },
    };
    let page = table::doctor::page(&diagnosis, Width::plain(80));
    let words = |page: &str| page.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words(&page).contains("tcp_state inet_sock_set_state attached 1000 128 ns 2"), "{page}");
    assert!(words(&page).contains("tcp_retransmit inet_sock_set_state NOT - - -"), "{page}");
    assert!(words(&page).contains("no such tracepoint; without it: no SYNs that got no answer"), "{page}");
    assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    for program in &mut diagnosis.programs {
        (program.runs, program.time_ns) = (program.runs.map(|_| 0), program.time_ns.map(|_| 0));
    }
    assert!(words(&page).contains("off, as far as is known here"), "{page}");
    let store =
        |why: Option<&str>| Prospect { data_dir: "/var/lib/cni/networks".into(), runs: 3, why: why.map(str::to_owned) };
    let directories = vec![store(Some("is mounted read-only")), store(None)];
    diagnosis.cleaner = CleanerDiagnosis { interval_secs: Some(600), directories, why: None };
    let page = table::doctor::page(&diagnosis, Width::plain(80));
    assert!(words(&page).contains("on: every 10m CANNOT `/var/lib/cni/networks` is mounted read-only"), "{page}");
    assert!(words(&page).contains("possible `/var/lib/cni/networks` can be cleaned; its journal holds 3"), "{page}");
    assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    diagnosis.runs_not_counted = Some("runs are not counted: not permitted".to_owned());
    let page = table::doctor::page(&diagnosis, Width::plain(80));
    assert!(words(&page).contains("attached - - 2") && page.contains("runs are not counted"), "{page}");
    assert!(!page.contains("conntrack"), "on the host's network there is nothing to say: {page}");
    diagnosis.host_network = Some(false);
    let page = table::doctor::page(&diagnosis, Width::plain(80));
    assert!(words(&page).contains("NOT THE HOST'S NETWORK · conntrack, its settings"), "{page}");
    assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    (diagnosis.host_network, diagnosis.host_network_unknown) = (None, Some("hostPID".to_owned()));
    let page = table::doctor::page(&diagnosis, Width::plain(80));
    assert!(words(&page).contains("or that of another network namespace, is not known: hostPID"), "{page}");
}

/// A plan and what came of it, as on a node with one leak too many.
fn clean_answer(apply: bool) -> CleanAnswer {
    let release = |address: &str, age_secs| Release {
        network: "gke-pod-network".to_owned(),
        store: "/var/lib/cni/networks/gke-pod-network".to_owned(),
        address: address.parse().unwrap(),
        container_id: "d9c488bff85a".repeat(5),
        ifname: Some("eth0".to_owned()),
        modified: WallTime::from_secs(1_795_300_000),
        age_secs,
        evidence: vec!["the runtime does not know d9c488bff85a".to_owned()],
    };
    let releases = vec![release("10.64.0.10", 86_400), release("10.64.0.11", 3600)];
    let beyond = release("10.64.0.12", 1200);
    let refused = vec![Refused::of(&beyond, "2 are given back in one run at most (--max); run again for the rest")];
    let journal = "/var/lib/cni/networks/.headroom-journal/20261122T064358.091Z-2957";
    let taken = |release: &Release| Taken {
        network: release.network.clone(),
        store: release.store.clone(),
        address: release.address,
        container_id: release.container_id.clone(),
        entry: format!("{journal}/gke-pod-network/{}.taken", release.address),
    };
    let changed = Refused::of(&release("10.64.0.11", 3600), "it was reserved anew since the plan was made");
    let cleaned = Cleaned {
        applied: releases.iter().take(1).map(taken).collect(),
        refused: vec![changed],
        journals: vec![journal.into()],
        ..Cleaned::default()
    };
    CleanAnswer::new(&report(), apply, Plan { releases, refused }, if apply { cleaned } else { Cleaned::default() })
}

/// Exercises the cleaner's answers. If this fails, look at the difference: somebody decides by it whether to add --apply.
#[test]
fn a_clean_up_reads_well_before_and_after_at_80_columns() {
    for apply in [false, true] {
        let text = table::clean(&clean_answer(apply), Width::plain(80));
        let copied = |line: &str| line.trim_start().starts_with("headroom ipam restore");
        for line in text.lines().filter(|line| !copied(line)) {
            assert!(line.chars().count() <= 80, "`{line}`");
        }
        insta::assert_snapshot!(if apply { "clean-applied" } else { "clean-planned" }, text);
    }
}

/// Exercises a runtime that did not answer. If this fails, "nothing to give back" is said by somebody who could not see.
#[test]
fn a_clean_up_that_could_not_see_does_not_say_that_nothing_is_leaked() {
    for apply in [false, true] {
        let mut answer = clean_answer(apply);
        (answer.plan, answer.applied) = (Vec::new(), Vec::new());
        answer.refused.truncate(1);
        answer.refused[0].verdict = Verdict::Undetermined;
        let text = table::clean(&answer, Width::plain(80));
        assert!(text.contains("what is leaked could not be told"), "{text}");
    }
}

/// Exercises the keys that scripts rely on. If this fails, one of them breaks.
#[test]
fn the_cleaners_json_has_its_fixed_keys() {
    let json = serde_json::to_value(clean_answer(true)).unwrap();
    assert_eq!(json["plan"][1]["address"], "10.64.0.11");
    assert_eq!(json["applied"][0]["address"], "10.64.0.10");
    assert_eq!(json["refused"][0]["why"], "2 are given back in one run at most (--max); run again for the rest");
    assert_eq!(json["journal"], "/var/lib/cni/networks/.headroom-journal/20261122T064358.091Z-2957");
    let planned = serde_json::to_value(clean_answer(false)).unwrap();
    assert_eq!((&planned["applied"], &planned["journal"]), (&serde_json::json!([]), &Value::Null));
}
