//! The bounds of what is read of native rules.

use std::ops::ControlFlow;
use std::time::Instant;

use headroom_host::netlink::nftables;
use headroom_host::netlink::query::Query;

use super::*;

/// Exercises the bound of chains that are read in full. If this fails, a table that nobody can tell holds the agent up, or none
/// of its rules is told.
#[test]
fn chains_that_translate_are_read_up_to_the_bound_and_that_there_are_more_is_said() {
    // With the one at the hook, 2048.
    let chains = |many: usize| {
        let chains: String = (1..many).map(|number| format!("chain c{number} {{ masquerade\n}}\n")).collect();
        let jumps: String = (1..many)
            .map(|number| format!("ip saddr 10.0.{}.{} jump c{number}\n", number / 256, number % 256))
            .collect();
        read_native(&native(&chains, &jumps))
    };
    let most = chains(2048);
    assert_eq!((most.source_nat.len(), most.missing.len()), (2047, 0), "{:?}", most.missing);
    let more = chains(2100);
    assert_eq!(
        more.missing,
        ["nftables table `ip mine`: of 2100 chains that lead to a translating rule 2048 were read"]
    );
    // Those to which the hook's chain leads first, and nothing is said of them that is not so.
    assert_eq!(more.source_nat.len(), 2047);
    assert!(more.source_nat.iter().all(|rule| rule.unreached.is_none() && rule.place.chain != "c2048"));
}

/// Exercises the bound of rules that are read in full.
#[test]
fn rules_beside_a_translating_one_are_read_up_to_the_bound() {
    let rules = |many: usize| read_native(&native("", &format!("masquerade\n{}", "counter\n".repeat(many - 1))));
    let most = rules(16_384);
    assert_eq!((most.source_nat.len(), most.rules, most.missing.len()), (1, 16_384, 0), "{:?}", most.missing);
    let more = rules(16_385);
    assert_eq!(more.source_nat.len(), 1);
    assert_eq!(
        more.missing,
        ["nftables table `ip mine`: of the rules in chains that lead to a translating one the first 16384 were read"]
    );
}

/// Exercises the bounds of sets, by which elements of kube-proxy's maps are counted, too. If this fails, a long set fills the
/// screen, or is told in part.
#[test]
fn sets_are_told_up_to_the_bound_and_by_their_name_beyond_it() {
    let told = |flags: &str, many: usize, suffix: &str| {
        let elements: Vec<_> = (1..=many).map(|number| format!("10.{number}.0.0{suffix}")).collect();
        let set = format!("set some {{ type ipv4_addr; {flags} elements = {{ {} }} }}", elements.join(", "));
        let reading = read_native(&native(&set, "ip daddr @some masquerade"));
        assert_eq!(reading.missing, [""; 0]);
        reading.source_nat[0].conditions.join(" ")
    };
    for (flags, suffix) in [("", ""), ("flags interval;", "/16")] {
        let all: Vec<_> = (1..=16).map(|number| format!("10.{number}.0.0{suffix}")).collect();
        assert_eq!(told(flags, 16, suffix), format!("-d in {{{}}}", all.join(", ")));
        assert_eq!(told(flags, 17, suffix), "-d in @some");
        assert_eq!(told(flags, 200, suffix), "-d in @some");
    }
    let sets: String =
        (1..=65).map(|number| format!("set s{number} {{ type ipv4_addr; elements = {{ 10.0.0.1 }} }}\n")).collect();
    let rules: String = (1..=65).map(|number| format!("ip daddr @s{number} masquerade\n")).collect();
    let reading = read_native(&native(&sets, &rules));
    let by_name: Vec<_> =
        reading.source_nat.iter().map(|rule| rule.conditions.join(" ")).filter(|what| what.contains('@')).collect();
    assert_eq!(by_name, ["-d in @s65"]);
}

/// Exercises the bound of time. If this fails, a kernel with many rules holds the agent up.
#[test]
fn a_list_that_is_not_read_in_time_is_none() {
    let error = in_a_namespace(|| {
        run("nft", &["-f", "-"], &native("", "masquerade"));
        let mut query = Query::open().unwrap();
        let request = nftables::request(&nftables::Request::Chains, query.next_sequence());
        query.list("chains", &request, Instant::now(), |_| Ok(ControlFlow::Continue(()))).unwrap_err()
    });
    assert_eq!(error.to_string(), "listing chains takes too long");
}

/// Exercises the bound of kube-proxy's maps. If this fails, a map of somebody's making takes the agent's time and memory, or
/// NodePorts are missing without a word.
#[test]
fn node_ports_of_a_map_are_read_up_to_the_bound_and_that_there_are_more_is_said() {
    let map = |elements: u32| {
        let all = (1..=elements).map(|number| {
            let protocol = if number > 65_535 { "udp" } else { "tcp" };
            format!("{protocol} . {} : goto none", (number - 1) % 65_535 + 1)
        });
        let elements = all.collect::<Vec<_>>().join(", ");
        let map = "map service-nodeports { type inet_proto . inet_service : verdict";
        let chain = "chain out { type nat hook postrouting priority srcnat; masquerade\n }";
        read_native(&format!(
            "table ip kube-proxy {{\nchain none {{ }}\n{map}; elements = {{ {elements} }} }}\n{chain}\n}}\n"
        ))
    };
    let most = map(65_536);
    assert_eq!((most.node_ports.len(), most.missing.as_slice()), (65_536, &[][..]));
    let more = map(65_537);
    assert_eq!(more.node_ports.len(), 65_536);
    assert_eq!(more.missing, ["kube-proxy's map `ip service-nodeports` has more than 65536 elements"]);
}
