//! Rules that seem to ask the same as others, or the opposite, and do not: none of them may be called dead.

use super::*;

/// The rules that translate, as they are told, or why nothing comes to them.
fn found(reading: &Reading) -> Vec<String> {
    assert_eq!(reading.missing, [""; 0]);
    reading.source_nat.iter().map(|rule| rule.unreached.clone().unwrap_or_else(|| told(rule))).collect()
}

/// Exercises Calico's rule for its tunnel (Antrea has the same). If this fails, it is called dead on every node.
#[test]
fn an_address_may_be_local_and_not_be_local_to_its_interface() {
    assert_told(
        RuleFamily::Ip,
        "*nat\n:cali-POSTROUTING - [0:0]\n\
        -A POSTROUTING -j cali-POSTROUTING\n\
        -A cali-POSTROUTING -o tunl0 -m addrtype ! --src-type LOCAL --limit-iface-out -m addrtype --src-type LOCAL -j MASQUERADE --random-fully\n\
        COMMIT\n",
        &[
            "ip POSTROUTING>cali-POSTROUTING 1: -o tunl0 ! --src-type LOCAL --limit-iface-out --src-type LOCAL Masquerade RandomFully",
        ],
    );
    assert_told(
        RuleFamily::Ip,
        "*nat\n-A POSTROUTING -m addrtype ! --dst-type LOCAL -j RETURN\n\
        -A POSTROUTING -m addrtype ! --dst-type LOCAL --limit-iface-out -j MASQUERADE\n\
        COMMIT\n",
        &["ip POSTROUTING 2: ! --dst-type LOCAL --limit-iface-out --dst-type LOCAL Masquerade Keep"],
    );
}

/// Exercises names of interfaces that look the same. If this fails, a rule for all of them is called dead behind one for one.
#[test]
fn a_name_that_ends_in_a_plus_is_not_a_pattern() {
    let reading = read_native(&native("", "oifname \"eth+\" return\noifname \"eth*\" masquerade\n"));
    assert_eq!(found(&reading), ["ip out 2: -o eth+ (no. 2) but -o eth+ Masquerade Keep"]);
    let reading = read_native(&native(
        "",
        "oifname { \"eth+\", \"lo\" } return\noifname { \"eth*\", \"lo\" } masquerade\n\
        oifname \"lo\" return\noifname \"lo\" masquerade\n",
    ));
    let found = found(&reading);
    assert!(found[0].starts_with("ip out 2: -o in {eth+, lo} but -o in @__set"), "{found:?}");
    assert_eq!(found[1], "never reached: rules in front of it take every packet that it asks for");
    for (backend, _) in BACKENDS {
        let reading = in_a_namespace(|| {
            use std::os::unix::ffi::OsStrExt as _;
            for (name, target) in [(b"\xfe", "RETURN"), (b"\xff", "MASQUERADE")] {
                let name = std::ffi::OsStr::from_bytes(name);
                let mut program = Command::new(format!("iptables-{backend}"));
                let program = program.args(["-t", "nat", "-A", "POSTROUTING", "-j", target, "-o"]).arg(name);
                assert!(program.status().unwrap().success());
            }
            super::reading()
        });
        assert_eq!(reading.source_nat[0].unreached, None, "{backend}");
    }
}

/// Exercises headers in front of the protocol of IPv6. If this fails, UDP with an option is not told to be masqueraded.
#[test]
fn an_extension_header_says_nothing_of_the_protocol_behind_it() {
    let told_of = |asked: &str| {
        let rules =
            format!("table ip6 six {{ chain out {{ type nat hook postrouting priority srcnat; {asked}\n }}\n }}\n");
        found(&read_native(&rules))
    };
    for (number, name) in
        [(0, "0"), (43, "43"), (44, "44"), (50, "50"), (51, "51"), (60, "60"), (135, "135"), (140, "140")]
    {
        assert_eq!(
            told_of(&format!("ip6 nexthdr {number} masquerade")),
            [format!("ip6 out 1: nexthdr {name} Masquerade Keep")]
        );
    }
    let either = told_of("ip6 nexthdr { 0, 6 } masquerade");
    assert!(either[0].starts_with("ip6 out 1: nexthdr in {") && !either[0].contains("-p"), "{either:?}");
    assert_eq!(told_of("ip6 nexthdr 6 masquerade"), ["ip6 out 1: -p tcp Masquerade Keep"]);
    // And that it is not the first header does not say that the protocol is another one.
    let behind = told_of("ip6 nexthdr != udp return\nmeta l4proto icmp masquerade");
    assert_eq!(behind, ["ip6 out 2: -p icmp nexthdr udp Masquerade Keep"]);
}

/// Exercises packets that have no ports. If this fails, a rule is called dead that gets them.
#[test]
fn neither_a_port_nor_its_opposite_is_asked_of_a_packet_without_ports() {
    let rest = |protocol: &str| {
        let rules = format!("{protocol} @th,16,16 53 accept\n{protocol} @th,16,16 != 53 accept\nmasquerade\n");
        found(&read_native(&native("", &rules))).remove(0)
    };
    assert_eq!(rest(""), "ip out 3: but some of --dport 53; some of ! --dport 53 Masquerade Keep");
    assert!(rest("meta l4proto { tcp, icmp }").starts_with("ip out 3: but"));
    // Others than these do not come there.
    let among = |protocols: &str| {
        let (first, second) = ("@th,16,16 53 accept", "@th,16,16 != 53 accept");
        let rules = format!("meta l4proto != {{ {protocols} }} accept\n{first}\n{second}\nmasquerade\n");
        let with = rules.replace("@th", &format!("meta l4proto {{ {protocols} }} @th"));
        found(&read_native(&native("", &with))).remove(0)
    };
    assert_eq!(among("tcp, udp"), "never reached: behind rule 3, which takes the last packets that were left");
    assert!(among("tcp, icmp").starts_with("ip out 4: "), "{}", among("tcp, icmp"));
}

/// Exercises a set that rules fill. If this fails, what is not in it yet is told never to be.
#[test]
fn what_is_in_a_set_that_rules_fill_does_not_say_what_will_be() {
    let dynamic =
        "set dyn { type inet_proto; flags dynamic; size 10; }\nset named { type inet_proto; elements = { tcp } }";
    let reading = read_native(&native(
        dynamic,
        "add @dyn { ip protocol }\nmeta l4proto @dyn masquerade\nmeta l4proto @named masquerade\nmeta l4proto { udp } masquerade\n",
    ));
    assert_eq!(
        found(&reading),
        [
            "ip out 2: -p in @dyn Masquerade Keep",
            // Only its owner fills it.
            "ip out 3: -p tcp Masquerade Keep",
            "ip out 4: -p udp Masquerade Keep"
        ]
    );
}

/// Exercises sets that hold nothing. If this fails, a rule through which no packet passes is told to give NodePorts away.
#[test]
fn a_rule_that_looks_into_a_set_without_elements_takes_nothing_now() {
    let sets = "set none { type ipv4_addr; }\nset dyn { type ipv4_addr; flags dynamic,timeout; timeout 1h; }";
    let rules = "ip saddr @none masquerade\nip saddr @dyn masquerade\nip saddr != @none masquerade\n";
    let reading = read_native(&native(sets, rules));
    let never = "never reached: no packet that comes to its chain is what it asks";
    assert_eq!(
        found(&reading),
        [never, "ip out 2: -s in @dyn Masquerade Keep", "ip out 3: ! -s in @none Masquerade Keep"]
    );
}

/// Exercises maps whose keys are numbers. If this fails, a rule behind one that takes every packet is told to be in force, or
/// one that takes a part is told to take what nobody knows.
#[test]
fn a_map_of_numbers_takes_the_part_of_those_that_it_holds() {
    for (number, taken) in [
        ("inc mod 2 map { 0 : 1.1.1.1, 1 : 1.1.1.2 }", None),
        ("inc mod 4 map { 0 : 1.1.1.1, 1 : 1.1.1.2 }", Some("chance 0.5000 ")),
        ("random mod 4 map { 0-2 : 1.1.1.1, 3 : 1.1.1.2 }", None),
        ("random mod 4 offset 10 map { 10-12 : 1.1.1.1, 99 : 1.1.1.2 }", Some("chance 0.7500 ")),
    ] {
        let told = found(&read_native(&native("", &format!("snat to numgen {number}\nmasquerade\n"))));
        let first = format!("ip out 1: {}Snat ? Keep", taken.unwrap_or_default());
        let behind = match taken {
            None => "never reached: behind rule 1, which takes every packet",
            Some(_) => "ip out 2: Masquerade Keep",
        };
        assert_eq!(told, [first.as_str(), behind], "{number}");
    }
}

/// Exercises sets of `ipset`, of which rules hold numbers. If this fails, somebody has to find out which set is no. 0.
#[test]
fn sets_of_ipset_have_their_names() {
    let rules = "*nat\n:Q - [0:0]\n-A POSTROUTING -m set ! --match-set pods src -j Q\n\
        -A POSTROUTING -m set --match-set services dst,dst -j MASQUERADE\n-A Q -j ACCEPT\nCOMMIT\n";
    for (backend, _) in BACKENDS {
        let told = in_a_namespace(|| {
            run("ipset", &["restore"], "create pods hash:net\ncreate services hash:ip,port\n");
            restore(RuleFamily::Ip, backend, rules);
            all_told(&reading())
        });
        let expected =
            "ip POSTROUTING 2: -m set --match-set services dst,dst but -m set ! --match-set pods src Masquerade Keep";
        assert_eq!(told, [expected], "{backend}");
    }
}
