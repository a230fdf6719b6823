//! Sets of every type that has words, made by `nft`.

use super::*;

/// Exercises the types and the byte orders that `nft` gives keys. If this fails, marks and names of interfaces are told as
/// addresses, and who is masqueraded is a riddle.
#[test]
fn elements_of_sets_are_told_by_the_type_of_their_keys() {
    let sets = "set big { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 240.0.0.0/4 } }
        set everything { type ipv4_addr; flags interval; elements = { 0.0.0.0/0 } }
        set ports { type inet_service; flags interval; elements = { 80, 443-445, 60000-65535 } }
        set marks { type mark; elements = { 0x1, 0x4000 } }
        set ranges { type mark; flags interval; elements = { 0x1-0x5, 0x4000 } }
        set links { type ifname; elements = { \"eth0\", \"eth1\" } }
        set patterns { type ifname; flags interval; elements = { \"eth*\", \"lo\" } }
        set pairs { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/8 . 80-90, 1.2.3.4 . 443 } }
        set numbers { type mark . inet_service; flags interval; elements = { 0x1-0x5 . 80 } }
        set macs { type ether_addr; elements = { 00:11:22:33:44:55 } }";
    let rules = [
        ("ip daddr @big", "-d in {10.0.0.0/8, 240.0.0.0/4}"),
        ("ip daddr @everything", "-d in {0.0.0.0/0}"),
        ("tcp dport @ports", "--dport in {80, 443-445, 60000-65535}"),
        ("meta mark @marks", "mark in {0x1, 0x4000}"),
        ("meta mark @ranges", "mark in {0x1-0x5, 0x4000}"),
        ("oifname @links", "-o in {eth0, eth1}"),
        ("oifname @patterns", "-o in {eth+, lo}"),
        ("ip daddr . tcp dport @pairs", "-d . --dport in {1.2.3.4 . 443, 10.0.0.0/8 . 80-90}"),
        ("ip daddr . tcp dport { 1.2.3.4 . 80 }", "-d . --dport in {1.2.3.4 . 80}"),
        ("oifname . ip saddr { \"eth0\" . 10.0.0.1 }", "-o . -s in {eth0 . 10.0.0.1}"),
        ("meta l4proto { tcp, udp }", "-p tcp,udp"),
        ("meta mark { 0x1, 0x2 }", "mark in {0x1, 0x2}"),
        ("meta mark . tcp dport @numbers", "mark . --dport in {0x1-0x5 . 80}"),
        ("meta mark 0x1-0x7", "mark <= 0x7"),
        ("ether saddr @macs", "@macs"),
        ("meta mark & 0xff @marks", "mark in {0x1, 0x4000}"),
    ];
    let lines: String = rules.iter().map(|(rule, _)| format!("{rule} masquerade\n")).collect();
    let reading = read_native(&native(sets, &lines));
    assert_eq!(reading.missing, [""; 0]);
    assert_eq!(reading.source_nat.len(), rules.len(), "{:?}", all_told(&reading));
    for (rule, (written, expected)) in reading.source_nat.iter().zip(rules) {
        let told = [&rule.conditions[..], &rule.unclear, &Vec::from_iter(rule.protocols.asked())].concat();
        // Elements of a hash come in any order.
        let sorted = |words: &str| {
            let mut words: Vec<String> = words.split(['{', '}']).map(str::to_owned).collect();
            if let Some(elements) = words.get_mut(1) {
                let mut one_by_one: Vec<&str> = elements.split(", ").collect();
                one_by_one.sort_unstable();
                *elements = one_by_one.join(", ");
            }
            words.concat()
        };
        assert!(
            told.iter().any(|said| sorted(said).contains(&sorted(expected))),
            "{written}: {told:?}, not {expected}"
        );
    } // What is not told in full is not told as understood.
    let unclear: Vec<_> = reading.source_nat.iter().filter(|rule| !rule.unclear.is_empty()).collect();
    let positions: Vec<_> = unclear.iter().map(|rule| rule.place.position).collect();
    assert_eq!(positions, [15, 16], "{unclear:?}");
}
