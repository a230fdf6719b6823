//! Rules that are there and do nothing: of dormant tables, and behind rules that take every packet.

use super::*;

/// The share of TCP that the report tells, and why rules are not in force.
fn judged() -> (Option<f64>, Vec<String>) {
    let overlap = judged::report().overlap;
    let share = overlap.shares.iter().find(|row| row.protocol == Protocol::TCP).and_then(|row| row.share);
    (share, overlap.masquerade.into_iter().filter_map(|row| row.unreached).collect())
}

/// Exercises `flags dormant`. If this fails, a table that the kernel does not apply is blamed for collisions.
#[test]
fn a_dormant_table_is_there_and_not_in_force_until_it_is_woken() {
    in_a_namespace(|| {
        let nft = |command: &str| run("nft", &["-f", "-"], command);
        let drawn = (Some(2768.0 / 65_536.0), Vec::new());
        nft(&native("", "masquerade fully-random"));
        assert_eq!(judged(), drawn);
        nft("add table ip mine { flags dormant; }\n");
        let asleep = reading();
        assert_eq!((asleep.dormant, asleep.source_nat.len()), (1, 1));
        let why = "never reached: its table is dormant (`flags dormant`)".to_owned();
        assert_eq!(judged(), (None, vec![why]));
        nft("add table ip mine\n");
        assert_eq!((reading().dormant, judged()), (0, drawn));
    });
}

/// A dormant table of kube-proxy serves no NodePort.
#[test]
fn a_dormant_table_of_kube_proxy_is_no_proxy() {
    let reading = in_a_namespace(|| {
        run("nft", &["-f", "-"], &KUBE_PROXY_NFTABLES.replace("comment \"rules", "flags dormant; comment \"rules"));
        reading()
    });
    assert_eq!((reading.dormant, reading.node_ports.len(), reading.proxies.len()), (1, 0, 0), "{reading:?}");
}

/// Exercises what follows a rule that takes everything, as the real programs write it. If this fails, a forgotten rule is blamed, or
/// one in force is not.
#[test]
fn what_follows_a_rule_that_takes_every_packet_is_never_reached() {
    let never = |positions: &[u32]| -> Vec<String> {
        let said = |ahead| format!("never reached: behind rule {ahead}, which takes every packet");
        positions.iter().map(said).collect()
    };
    let random = "-A POSTROUTING -j MASQUERADE --random-fully\n";
    let drawn = Some(2768.0 / 65_536.0);
    for (rules, expected) in [
        (format!("-A POSTROUTING -m comment --comment all -j MASQUERADE\n{random}"), (Some(0.0), never(&[1]))),
        (format!("-A POSTROUTING -j ACCEPT\n{random}{random}"), (None, never(&[1, 1]))),
        (format!("-A POSTROUTING -o eth0 -j ACCEPT\n-A POSTROUTING -j RETURN\n{random}"), (None, never(&[2]))),
        // What these take is not everything.
        (format!("-A POSTROUTING -p icmp -j MASQUERADE\n{random}"), (drawn, never(&[]))),
        (format!("-A POSTROUTING -m mark --mark 1 -j ACCEPT\n{random}"), (drawn, never(&[]))),
        (format!("-A POSTROUTING -m recent --name here --rcheck -j RETURN\n{random}"), (drawn, never(&[]))),
    ] {
        for (backend, _) in BACKENDS {
            let found = in_a_namespace(|| {
                restore(RuleFamily::Ip, backend, &format!("*nat\n{rules}COMMIT\n"));
                judged()
            });
            assert_eq!(found, expected, "{backend}: {rules}");
        }
    }
    let random = "masquerade fully-random\n";
    for (rules, expected) in [
        (format!("counter masquerade comment \"all\"\n{random}"), (Some(0.0), never(&[1]))),
        (format!("accept\n{random}"), (None, never(&[1]))),
        (format!("log prefix \"x\" return\n{random}"), (None, never(&[1]))),
        // A set that is full, a map without the key, a limit that is reached.
        (format!("update @seen {{ ip saddr }} accept\n{random}"), (drawn, never(&[]))),
        (format!("snat to ip saddr map @to\n{random}"), (drawn, never(&[]))),
        (format!("limit name \"some\" accept\n{random}"), (drawn, never(&[]))),
    ] {
        let before = "set seen { type ipv4_addr; size 16; flags dynamic; timeout 1m; }\n\
            map to { type ipv4_addr : ipv4_addr; elements = { 10.0.0.1 : 192.0.2.1 } }\n\
            limit some { rate 1/second }\n";
        let (share, unreached) = in_a_namespace(|| {
            run("nft", &["-f", "-"], &native(before, &rules));
            judged()
        });
        assert_eq!((share, &unreached), (expected.0, &expected.1), "{rules}");
    }
}

/// SNAT of an `inet` table is for packets of its address's family.
#[test]
fn what_follows_snat_of_one_family_is_reached_by_the_other() {
    let told = in_a_namespace(|| {
        let rules = "table inet mine { chain out { type nat hook postrouting priority srcnat\n\
            snat ip to 192.0.2.1\n masquerade fully-random\n masquerade\n }\n }\n";
        run("nft", &["-f", "-"], rules);
        reading().source_nat.into_iter().map(|rule| rule.unreached).collect::<Vec<_>>()
    });
    let behind = Some("never reached: behind rule 2, which takes every packet".to_owned());
    assert_eq!(told, [None, None, behind]);
}

/// The protocols that the report tells shares for, and what it says of rules that are not in force.
fn protocols() -> (Vec<String>, Vec<String>) {
    let overlap = judged::report().overlap;
    let mut protocols: Vec<String> = overlap.shares.iter().map(|row| row.protocol.to_string()).collect();
    protocols.sort();
    (protocols, overlap.masquerade.into_iter().filter_map(|row| row.unreached).collect())
}

/// Exercises protocols that a rule leaves out or that others have taken, as the real programs write it. If this fails, a rule
/// is blamed for connections that it never translates.
#[test]
fn no_share_is_told_for_protocols_that_do_not_come_to_a_rule() {
    let random = "-A POSTROUTING -j MASQUERADE --random-fully\n";
    for (family, icmp) in [(RuleFamily::Ip, "icmp"), (RuleFamily::Ip6, "ipv6-icmp")] {
        for (rules, expected) in [
            ("-A POSTROUTING ! -p tcp -j MASQUERADE --random-fully\n".to_owned(), "sctp udp"),
            (format!("-A POSTROUTING -p tcp -j ACCEPT\n{random}"), "sctp udp"),
            (format!("-A POSTROUTING -p tcp -j RETURN\n{random}"), "sctp udp"),
            (format!("-A POSTROUTING ! -p udp -j ACCEPT\n{random}"), "udp"),
            // Only some of TCP.
            (format!("-A POSTROUTING -p tcp -m tcp --dport 80 -j ACCEPT\n{random}"), "sctp tcp udp"),
            (format!("-A POSTROUTING -p tcp -m mark --mark 1 -j ACCEPT\n{random}"), "sctp tcp udp"),
            (format!("-A POSTROUTING -p {icmp} -j ACCEPT\n{random}"), "sctp tcp udp"),
            (["tcp", "udp", "sctp"].map(|one| format!("-A POSTROUTING -p {one} -j ACCEPT\n")).concat() + random, ""),
            (
                format!(":MQ - [0:0]\n-A POSTROUTING -j MQ\n-A MQ ! -p tcp -j RETURN\n-A MQ -j MASQUERADE\n{random}"),
                "sctp tcp udp",
            ),
            (
                format!(":NO - [0:0]\n-A POSTROUTING -j NO\n-A NO -p tcp -j ACCEPT\n-A NO -p udp -j RETURN\n{random}"),
                "sctp udp",
            ),
        ] {
            for (backend, _) in BACKENDS {
                let (protocols, unreached) = in_a_namespace(|| {
                    restore(family, backend, &format!("*nat\n{rules}COMMIT\n"));
                    protocols()
                });
                assert_eq!(protocols.join(" "), expected, "{backend} {family:?}: {rules}");
                assert_eq!(unreached, [""; 0], "{backend} {family:?}: {rules}");
            }
        }
    }
    for (rules, expected) in [
        ("meta l4proto { tcp, udp } masquerade fully-random", "tcp udp"),
        ("meta l4proto != { tcp, udp } masquerade fully-random", "sctp"),
        ("meta l4proto != tcp masquerade fully-random", "sctp udp"),
        ("ip protocol != tcp masquerade fully-random", "sctp udp"),
        ("ip protocol { udp, 100-255 } accept\nmasquerade fully-random", "tcp"),
        ("meta l4proto 17-200 masquerade fully-random", "sctp udp"),
        ("meta l4proto < 17 masquerade fully-random", "tcp"),
        ("meta l4proto { tcp, udp } accept\nmasquerade fully-random", "sctp"),
        ("meta l4proto tcp limit rate 1/second accept\nmasquerade fully-random", "sctp tcp udp"),
        ("meta l4proto tcp numgen random mod 2 1 accept\nmasquerade fully-random", "sctp tcp udp"),
        ("meta l4proto @some masquerade fully-random", "tcp"),
        ("meta l4proto != @some accept\nmasquerade fully-random", "tcp"),
    ] {
        let (protocols, unreached) = in_a_namespace(|| {
            run("nft", &["-f", "-"], &native("set some { type inet_proto; elements = { tcp, icmp } }", rules));
            protocols()
        });
        assert_eq!(protocols.join(" "), expected, "{rules}");
        assert_eq!(unreached, [""; 0], "{rules}");
    }
}

/// Exercises chains that are called and in which everything ends, with and without rules of their own that translate. If this
/// fails, what is behind them is blamed, or what comes back from them is not.
#[test]
fn what_is_behind_a_chain_in_which_everything_ends_is_never_reached() {
    let taken = "never reached: rules in front of it take every packet that it asks for";
    let leads = |chain: &str| {
        format!("never reached: behind rule 1, which leads the last packets that were left to `{chain}`, where all end")
    };
    let (to_no, to_a) = (leads("NO"), leads("A"));
    let random = "-A POSTROUTING -o eth0 -j MASQUERADE --random-fully\n";
    let out = |rules: &str| format!(":NO - [0:0]\n-A POSTROUTING -o eth0 -j NO\n{random}{rules}");
    for (rules, shares, expected) in [
        (out("-A NO -j ACCEPT\n"), 0, Some(taken)),
        (out("-A NO -p tcp -j MASQUERADE\n-A NO ! -p tcp -j ACCEPT\n"), 1, Some(taken)),
        (out("-A NO -d 10.0.0.0/8 -j RETURN\n-A NO -j MASQUERADE\n"), 6, None),
        (out("-A NO -d 10.0.0.0/8 -j ACCEPT\n"), 3, None),
        (out("-A NO -m mark --mark 1 -j ACCEPT\n-A NO -m mark ! --mark 1 -j ACCEPT\n"), 3, None),
        (out("-A NO -m statistic --mode random --probability 0.5 -j ACCEPT\n"), 3, None),
        (out("-A NO -m recent --name here --rcheck -j ACCEPT\n"), 3, None),
        (
            format!(
                ":NO - [0:0]\n-A POSTROUTING -j NO\n{random}-A NO -s 10.0.0.0/8 -j ACCEPT\n-A NO ! -s 10.0.0.0/8 -j ACCEPT\n"
            ),
            0,
            Some(&*to_no),
        ),
        (format!(":A - [0:0]\n:B - [0:0]\n-A POSTROUTING -j A\n{random}-A A -g B\n-A B -j ACCEPT\n"), 0, Some(&*to_a)),
        (
            format!(":A - [0:0]\n:B - [0:0]\n-A POSTROUTING -j A\n{random}-A A -g B\n-A B -j RETURN\n-A A -j ACCEPT\n"),
            3,
            None,
        ),
    ] {
        for (backend, _) in BACKENDS {
            let (protocols, unreached) = in_a_namespace(|| {
                restore(RuleFamily::Ip, backend, &format!("*nat\n{rules}COMMIT\n"));
                protocols()
            });
            assert_eq!(
                (protocols.len(), unreached.first().map(String::as_str)),
                (shares, expected),
                "{backend}: {rules}"
            );
        }
    }
    let families = "table inet mine { chain out { type nat hook postrouting priority srcnat\n\
        meta nfproto ipv4 masquerade random\n meta nfproto ipv6 masquerade random\n masquerade fully-random\n }\n }\n";
    let vmap = native(
        "chain no { accept\n }\nchain some { ip saddr vmap { 10.0.0.1 : accept }\n }",
        "oifname eth0 jump no\noifname eth0 masquerade\nip daddr 10.0.0.1 jump some\nmasquerade fully-random",
    );
    let exempt = native("chain no { ip daddr 10.0.0.0/8 accept\n }", "jump no\nip daddr 10.0.0.0/8 masquerade random");
    for (rules, expected) in [
        (families.to_owned(), vec!["never reached: behind rule 2, which takes the last packets that were left"]),
        (vmap, vec![taken]),
        (exempt, vec![taken]),
    ] {
        let (_, unreached) = in_a_namespace(|| {
            run("nft", &["-f", "-"], &rules);
            protocols()
        });
        assert_eq!(unreached, expected, "{rules}");
    }
}

/// Exercises the cluster's own fix of a rule with a condition that nobody decodes. If this fails, it keeps its warning for ever;
/// or another condition of the same name hides one.
#[test]
fn rules_that_divide_what_is_not_understood_are_told_together() {
    let bpf = |program: &str| format!("-A POSTROUTING -o eth0 -m bpf --bytecode \"1,6 0 0 {program}\"");
    let fix = |program: &str| {
        ["tcp", "udp", "sctp"].map(|protocol| {
            let rule = format!("{} -p {protocol}", bpf(program));
            format!(
                "{rule} -m statistic --mode random --probability 0.4693 -j MASQUERADE --to-ports 1024-29999 --random-fully\n\
                 {rule} -j MASQUERADE --to-ports 32768-65535 --random-fully\n"
            )
        })
    };
    let whole = format!("{} -j MASQUERADE --random-fully\n", bpf("1"));
    let drawn = 2768.0 / 65_536.0;
    for (rules, expected) in
        [(whole.clone(), drawn), (fix("1").concat() + &whole, 0.0), (fix("2").concat() + &whole, drawn)]
    {
        for (backend, _) in BACKENDS {
            let worst = in_a_namespace(|| {
                restore(RuleFamily::Ip, backend, &format!("*nat\n{rules}COMMIT\n"));
                judged::report().overlap.shares.iter().filter_map(|row| row.share).fold(0.0, f64::max)
            });
            assert!((worst - expected).abs() < 1e-9, "{backend}: {worst}, not {expected}: {rules}");
        }
    }
}

/// Exercises queues, from which nothing comes back to the table. If this fails, a rule behind one is blamed for connections that
/// never come to it.
#[test]
fn what_is_queued_does_not_come_to_the_rules_behind() {
    let random = "-A POSTROUTING -p tcp -j MASQUERADE --random-fully\n";
    let taken = "never reached: rules in front of it take every packet that it asks for";
    for queue in ["-j NFQUEUE --queue-num 3", "-j NFQUEUE --queue-num 3 --queue-bypass"] {
        for rules in [
            format!("-A POSTROUTING -p tcp {queue}\n{random}"),
            format!(":Q - [0:0]\n-A Q -p tcp {queue}\n-A POSTROUTING -j Q\n{random}"),
        ] {
            for (backend, _) in BACKENDS {
                let found = in_a_namespace(|| {
                    restore(RuleFamily::Ip, backend, &format!("*nat\n{rules}COMMIT\n"));
                    judged()
                });
                assert_eq!(found, (None, vec![taken.to_owned()]), "{backend}: {rules}");
            }
        }
    }
}

/// Exercises a mark that a chain of its own changes between two rules. If this fails, the second one is told to get what the
/// first one left over.
#[test]
fn a_mark_that_is_changed_between_two_rules_leaves_open_who_comes_to_the_second() {
    let shares = || {
        let rows = judged::report().overlap.shares.into_iter().filter(|row| row.protocol == Protocol::TCP);
        rows.map(|row| row.share).collect::<Vec<_>>()
    };
    let half_of_all = [Some(0.5 * 2768.0 / 65_536.0)];
    let by_themselves = [Some(2768.0 / 65_536.0), Some(0.0)];
    let asked = "-A POSTROUTING -p tcp -m mark --mark 0x4000/0x4000";
    for (target, expected) in
        [("MARK --set-mark 0", &by_themselves[..]), ("CONNMARK --save-mark", &by_themselves), ("LOG", &half_of_all)]
    {
        let rules = format!(
            ":S - [0:0]\n{asked} -m statistic --mode random --probability 0.5 -j MASQUERADE --random-fully\n\
             -A POSTROUTING -j S\n{asked} -j MASQUERADE --to-ports 32768-65535 --random-fully\n-A S -j {target}\n"
        );
        for (backend, _) in BACKENDS {
            let found = in_a_namespace(|| {
                restore(RuleFamily::Ip, backend, &format!("*nat\n{rules}COMMIT\n"));
                shares()
            });
            assert_eq!(found, expected, "{backend}: {target}");
        }
    }
    let asked = "meta l4proto tcp meta mark 1";
    for (sets, expected) in [
        ("meta mark set 0", &by_themselves[..]),
        ("ct mark set 1", &by_themselves),
        ("meta mark 2 counter", &half_of_all),
        ("update @seen { ip saddr }", &by_themselves),
    ] {
        let before =
            format!("set seen {{ type ipv4_addr; size 16; flags dynamic; timeout 1m; }}\nchain s {{ {sets}\n }}\n");
        let rules = format!(
            "{asked} numgen random mod 2 < 1 masquerade fully-random\njump s\n{asked} masquerade to :32768-65535 fully-random\n"
        );
        let found = in_a_namespace(|| {
            run("nft", &["-f", "-"], &native(&before, &rules));
            shares()
        });
        assert_eq!(found, expected, "{sets}");
    }
}
