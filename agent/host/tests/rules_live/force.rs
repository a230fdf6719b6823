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
