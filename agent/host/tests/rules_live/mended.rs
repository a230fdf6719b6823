//! The fix that a finding offers, given to the programs that it is meant for.

use headroom_core::findings::FindingId;

use super::*;

/// The rules of the fix, for each protocol that it names.
fn offered(native: bool) -> Vec<String> {
    let report = judged::report();
    let finding = report.findings.iter().find(|finding| finding.id == FindingId::MasqueradeOverlapsNodeport).unwrap();
    let lines: Vec<&str> = finding.remedy.split('`').skip(1).step_by(2).collect();
    assert!(finding.remedy.contains("and the same for udp and sctp"), "{}", finding.remedy);
    let of = |protocol: &str, line: &str| {
        let word = if native { "l4proto" } else { "-p" };
        line.replace(&format!("{word} tcp"), &format!("{word} {protocol}"))
    };
    ["tcp", "udp", "sctp"].iter().flat_map(|protocol| lines.iter().map(|line| of(protocol, line))).collect()
}

/// All shares that are told, with the protocols.
fn shares() -> Vec<(Protocol, Option<f64>)> {
    judged::report().overlap.shares.iter().map(|row| (row.protocol, row.share)).collect()
}

#[track_caller]
fn assert_mended(before: &[(Protocol, Option<f64>)], after: &[(Protocol, Option<f64>)], what: &str) {
    let protocols = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];
    assert_eq!(before, protocols.map(|protocol| (protocol, Some(2768.0 / 65_536.0))), "{what}");
    assert_eq!(after, protocols.map(|protocol| (protocol, Some(0.0))), "{what}");
}

/// Exercises the fix of rules of one's own, with addresses of both families. If this fails, somebody types what no program takes,
/// or what does not help.
#[test]
fn the_fix_is_taken_by_the_program_and_helps() {
    for (family, target) in [
        (RuleFamily::Ip, "MASQUERADE"),
        (RuleFamily::Ip6, "MASQUERADE"),
        (RuleFamily::Ip, "SNAT --to-source 192.0.2.1-192.0.2.4"),
        (RuleFamily::Ip6, "SNAT --to-source 2001:db8::9"),
        (RuleFamily::Ip6, "SNAT --to-source 2001:db8::9-2001:db8::c"),
    ] {
        for (backend, _) in BACKENDS {
            in_a_namespace(|| {
                let own = format!("-A POSTROUTING -o eth0 -j {target} --random-fully\n");
                let whole = |rules: &str| format!("*nat\n{rules}COMMIT\n");
                restore(family, backend, &whole(&own));
                let before = shares();
                let fix: String =
                    offered(false).iter().map(|line| format!("-A POSTROUTING -o eth0 {line}\n")).collect();
                restore(family, backend, &whole(&format!("{fix}{own}")));
                assert_mended(&before, &shares(), &format!("{backend} {target}"));
            });
        }
    }
    for (table, statement) in [
        ("ip", "masquerade"),
        ("inet", "masquerade"),
        ("ip", "snat to 192.0.2.1"),
        ("ip6", "snat to 2001:db8::9"),
        ("ip6", "snat to 2001:db8::9-2001:db8::c"),
        ("inet", "snat ip to 192.0.2.1-192.0.2.4"),
        ("inet", "snat ip6 to 2001:db8::9-2001:db8::c"),
    ] {
        in_a_namespace(|| {
            let own = format!("oifname eth0 {statement} fully-random\n");
            let write = |rules: &str| {
                let chain = format!("chain out {{ type nat hook postrouting priority srcnat\n{rules}}}\n");
                run("nft", &["-f", "-"], &format!("flush ruleset\ntable {table} mine {{\n{chain}}}\n"));
            };
            write(&own);
            let before = shares();
            let fix: String = offered(true).iter().map(|line| format!("oifname eth0 {line}\n")).collect();
            write(&format!("{fix}{own}"));
            assert_mended(&before, &shares(), &format!("{table} {statement}"));
        });
    }
}
