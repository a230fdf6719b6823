//! Rule sets made by the real programs, in a network namespace of each test, and what is read of them. Needs root, iptables
//! (both backends) and nft.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::process::{Command, Stdio};

use headroom_core::flow::Protocol;
use headroom_core::known::Known;
use headroom_core::observe::{PortChoice, RuleBackend, RuleFamily, ServiceProxy, SourceNatKind, SourceNatRule};
use headroom_host::root::HostRoot;
use headroom_host::source::rules::{Reading, read};
use nix::sched::{CloneFlags, unshare};

#[path = "rules_live/bounds.rs"]
mod bounds;
#[path = "rules_live/force.rs"]
mod force;
#[path = "rules_live/judged.rs"]
mod judged;
#[path = "rules_live/keys.rs"]
mod keys;
#[path = "rules_live/mended.rs"]
mod mended;
#[path = "rules_live/questions.rs"]
mod questions;
#[path = "rules_live/sets.rs"]
mod sets;

use sets::{
    CILIUM, IP_MASQ_AGENT_2_9, IP_MASQ_AGENT_2_10, IP_MASQ_AGENT_2_12, KUBE_PROXY_IPTABLES, KUBE_PROXY_NFTABLES,
};

/// Runs a test in a network namespace of its own.
fn in_a_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            test()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs a program, feeding it some input; it must succeed.
fn run(program: &str, arguments: &[&str], input: &str) {
    use std::io::Write as _;
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} {arguments:?}");
}

fn reading() -> Reading {
    let reading = read(&HostRoot::live());
    assert!(reading.missing.is_empty(), "{:?}", reading.missing);
    reading
}

/// The rules that translate, as `family chain position: path | -p … conditions | but for exceptions | chance | action`.
fn told(rule: &SourceNatRule) -> String {
    let target = &rule.target;
    let ports = match &target.ports {
        Known::Present(ports) => format!(" {ports}"),
        Known::Absent => String::new(),
        Known::Unknown(why) => format!(" ? ({why})"),
    };
    let chance = if rule.probability < 1.0 { format!(" chance {:.4}", rule.probability) } else { String::new() };
    let protocols = rule.protocols.asked().map(|asked| format!(" {asked}")).unwrap_or_default();
    let conditions: String = rule.conditions.iter().map(|condition| format!(" {condition}")).collect();
    let exceptions =
        if rule.exceptions.is_empty() { String::new() } else { format!(" but {}", rule.exceptions.join("; ")) };
    let unclear = if rule.unclear.is_empty() { String::new() } else { format!(" unclear {}", rule.unclear.join("; ")) };
    let addresses = target.addresses.as_ref().map(|to| format!(" {to}")).unwrap_or_default();
    let persistent = if target.persistent { " persistent" } else { "" };
    format!(
        "{} {} {}:{protocols}{conditions}{exceptions}{chance} {:?}{addresses}{ports} {:?}{persistent}{unclear}",
        rule.place.family.name(),
        rule.path.join(">"),
        rule.place.position,
        target.kind,
        target.choice,
    )
}

fn all_told(reading: &Reading) -> Vec<String> {
    reading.source_nat.iter().map(told).collect()
}

const BACKENDS: [(&str, RuleBackend); 2] = [("legacy", RuleBackend::IptablesLegacy), ("nft", RuleBackend::IptablesNft)];

/// Feeds `iptables-restore` of a backend, for IPv4 or IPv6.
fn restore(family: RuleFamily, backend: &str, rules: &str) {
    let program = if family == RuleFamily::Ip6 { "ip6tables" } else { "iptables" };
    run(&format!("{program}-{backend}-restore"), &[], rules);
}

/// Both backends must tell the same of the same rules.
#[track_caller]
fn assert_told(family: RuleFamily, rules: &str, expected: &[&str]) {
    for (name, backend) in BACKENDS {
        let reading = in_a_namespace(|| {
            restore(family, name, rules);
            reading()
        });
        assert_eq!(all_told(&reading), expected, "{name}");
        assert!(reading.source_nat.iter().all(|rule| rule.place.backend == backend), "{name}");
    }
}

/// Exercises every argument of the targets. If this fails, a share is computed from ports that no connection gets.
#[test]
fn arguments_of_targets_are_read_from_both_backends_and_families() {
    let rules = "*nat\n\
        -A POSTROUTING -s 10.64.0.0/14 ! -o eth+ -p tcp -m comment --comment \"a b\" -j MASQUERADE --to-ports 1024-29999 --random-fully\n\
        -A POSTROUTING -o eth0 -j MASQUERADE --random\n\
        -A POSTROUTING ! -d 192.0.2.0/25 -j MASQUERADE\n\
        -A POSTROUTING -p udp -m statistic --mode random --probability 0.25 -j SNAT --to-source 192.0.2.1-192.0.2.4:5000-5999 --random-fully --persistent\n\
        -A POSTROUTING -m mark --mark 0x4000/0x4000 -m statistic --mode nth --every 4 --packet 0 -j SNAT --to-source 192.0.2.9\n\
        -A POSTROUTING -s 10.9.0.0/16 -j NETMAP --to 192.0.2.0/24\n\
        -A INPUT -i lo -m addrtype --dst-type LOCAL -j SNAT --to-source 192.0.2.9\n\
        COMMIT\n";
    assert_told(
        RuleFamily::Ip,
        rules,
        &[
            "ip INPUT 1: -i lo --dst-type LOCAL Snat 192.0.2.9 Keep",
            "ip POSTROUTING 1: -p tcp ! -o eth+ -s 10.64.0.0/14 Masquerade 1024-29999 RandomFully",
            "ip POSTROUTING 2: -o eth0 Masquerade Random",
            "ip POSTROUTING 3: ! -d 192.0.2.0/25 Masquerade Keep",
            // What the third rule leaves over.
            "ip POSTROUTING 4: -p udp -d 192.0.2.0/25 chance 0.2500 Snat 192.0.2.1-192.0.2.4 5000-5999 RandomFully persistent",
            "ip POSTROUTING 5: mark 0x4000/0x4000 -d 192.0.2.0/25 chance 0.2500 Snat 192.0.2.9 Keep",
            "ip POSTROUTING 6: -s 10.9.0.0/16 -d 192.0.2.0/25 Netmap 192.0.2.0-192.0.2.255 Keep",
        ],
    );
    let rules = "*nat\n\
        -A POSTROUTING -s fd00::/8 -o eth0 -p tcp -j MASQUERADE --to-ports 1024-29999 --random-fully\n\
        -A POSTROUTING -d 2001:db8::7/128 -j SNAT --to-source 2001:db8::9\n\
        -A POSTROUTING -m iprange --src-range 2001:db8::-2001:db8::5 -j SNAT --to-source 2001:db8::\n\
        COMMIT\n";
    assert_told(
        RuleFamily::Ip6,
        rules,
        &[
            "ip6 POSTROUTING 1: -p tcp -o eth0 -s fd00::/8 Masquerade 1024-29999 RandomFully",
            "ip6 POSTROUTING 2: -d 2001:db8::7/128 Snat 2001:db8::9 Keep",
            // Addresses with bits in their first four bytes only are not of IPv4.
            "ip6 POSTROUTING 3: --src-range 2001:db8::-2001:db8::5 Snat 2001:db8:: Keep",
        ],
    );
}

/// Exercises the way to a rule. If this fails, ip-masq-agent's list of what is not masqueraded is lost.
#[test]
fn jumps_add_conditions_and_returns_and_accepts_take_packets_out() {
    let rules = "*nat\n:OUTER - [0:0]\n:INNER - [0:0]\n:DEAD - [0:0]\n\
        -A POSTROUTING -s 10.1.0.0/16 -j ACCEPT\n\
        -A POSTROUTING -m comment --comment \"to outer\" ! -o lo -j OUTER\n\
        -A POSTROUTING -j MASQUERADE\n\
        -A OUTER -d 10.0.0.0/8 -j RETURN\n\
        -A OUTER -p tcp -j INNER\n\
        -A INNER -s 10.2.0.0/16 -j ACCEPT\n\
        -A INNER -p udp -j MASQUERADE\n\
        -A INNER -p tcp -m tcp --dport 443 -j MASQUERADE --random-fully\n\
        -A DEAD -j MASQUERADE\n\
        COMMIT\n";
    assert_told(
        RuleFamily::Ip,
        rules,
        &[
            // Nothing leads there.
            "ip  1: Masquerade Keep",
            // Nothing that comes to INNER is UDP.
            "ip  2: -p udp Masquerade Keep",
            "ip POSTROUTING>OUTER>INNER 3: -p tcp ! -o lo --dport 443 but -s 10.1.0.0/16; -d 10.0.0.0/8; -s 10.2.0.0/16 Masquerade RandomFully",
            "ip POSTROUTING 3: but -s 10.1.0.0/16; -p tcp ! -o lo -s 10.2.0.0/16 ! -d 10.0.0.0/8 Masquerade Keep",
        ],
    );
}

/// Exercises what nobody decodes. If this fails, a rule for a few packets is told as one for all.
#[test]
fn a_match_that_is_not_decoded_is_named() {
    let rules = "*nat\n-A POSTROUTING -m recent --name here --rcheck -j MASQUERADE\nCOMMIT\n";
    assert_told(RuleFamily::Ip, rules, &["ip POSTROUTING 1: Masquerade Keep unclear match `recent`"]);
}

/// Exercises native rules. kernel.md: `nft -j` hides what rules of iptables say, so the kernel is asked itself.
#[test]
fn native_rules_of_nftables_are_read_in_all_families() {
    let rules = "table inet mine {\n\
        set private { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 172.16.0.0/12 } }\n\
        chain out { type nat hook postrouting priority srcnat;\n\
            meta nfproto ipv6 accept\n\
            ip daddr @private return\n\
            oifname \"eth0\" ip saddr 10.64.0.0/14 tcp dport 443 masquerade to :1024-29999 fully-random comment \"web\"\n\
            meta l4proto udp numgen random mod 100 < 46 masquerade to :1024-29999 random,persistent\n\
            meta l4proto tcp numgen random mod 4 1 snat ip to 192.0.2.1-192.0.2.4:2000-2999\n\
            ip saddr { 10.9.0.0/16, 10.11.0.0/16 } masquerade\n\
            meta mark & 0x4000 == 0x4000 jump deeper\n\
            meta l4proto tcp masquerade to :tcp dport map { 80 : 5000, 81 : 6000 }\n\
        }\n\
        chain deeper { fib daddr type != local masquerade fully-random\n }\n\
        }\n\
        table ip6 six { chain out { type nat hook postrouting priority srcnat; ip6 saddr fd00::/8 masquerade\n }\n }\n";
    let reading = in_a_namespace(|| {
        run("nft", &["-f", "-"], rules);
        reading()
    });
    // Behind the first rule there is no IPv6.
    let out = "but -d in {10.0.0.0/8, 172.16.0.0/12}";
    let expected = [
        "ip6 out 1: -s fd00::/8 Masquerade Keep".to_owned(),
        format!("inet out>deeper 1: mark 0x4000/0x4000 ! --dst-type LOCAL IPv4 {out} Masquerade RandomFully"),
        format!("inet out 3: -p tcp -o eth0 IPv4 -s 10.64.0.0/14 --dport 443 {out} Masquerade 1024-29999 RandomFully"),
        format!("inet out 4: -p udp IPv4 {out} chance 0.4600 Masquerade 1024-29999 Random persistent"),
        format!("inet out 5: -p tcp IPv4 {out} chance 0.2500 Snat 192.0.2.1-192.0.2.4 2000-2999 Keep"),
        format!("inet out 6: IPv4 -s in {{10.9.0.0/16, 10.11.0.0/16}} {out} Masquerade Keep"),
        format!(
            "inet out 8: -p tcp --dport in {{80, 81}} IPv4 {out} Masquerade ? (its ports are not in the rule but in a map) Keep"
        ),
    ];
    assert_eq!(all_told(&reading), expected);
    assert_eq!(reading.source_nat.iter().find(|rule| rule.place.position == 3).unwrap().comments, ["web"]);
}

/// Exercises a chain that only a map leads to. If this fails, a rule in force is called dead.
#[test]
fn a_rule_behind_a_map_is_not_called_dead() {
    let rules = "table ip mine {\n\
        chain here { masquerade\n }\n\
        chain out { type nat hook postrouting priority srcnat; ip saddr vmap { 10.0.0.1 : jump here }\n }\n\
        }\n";
    let reading = in_a_namespace(|| {
        run("nft", &["-f", "-"], rules);
        reading()
    });
    assert_eq!(all_told(&reading), ["ip … 1: Masquerade Keep unclear a map may lead here"]);
}

/// A node whose rules two programs have made, of both backends, is read as a whole.
#[test]
fn backends_are_read_side_by_side() {
    let reading = in_a_namespace(|| {
        restore(RuleFamily::Ip, "legacy", IP_MASQ_AGENT_2_9);
        restore(RuleFamily::Ip, "nft", IP_MASQ_AGENT_2_10);
        run("nft", &["-f", "-"], KUBE_PROXY_NFTABLES);
        reading()
    });
    let backends: std::collections::BTreeSet<_> = reading.source_nat.iter().map(|rule| rule.place.backend).collect();
    assert_eq!(backends.len(), 3, "{backends:?}");
    assert_eq!(reading.seen, ["iptables-legacy", "nftables", "iptables-nft"]);
}

/// A namespace without rules has none, and that is certain.
#[test]
fn an_empty_namespace_has_no_rules() {
    let reading = in_a_namespace(reading);
    assert!(reading.source_nat.is_empty() && reading.seen.is_empty() && reading.rules == 0, "{reading:?}");
}

/// Exercises ip-masq-agent's rules of three versions. Their shares are in `masquerade_landing`.
#[test]
fn rules_of_ip_masq_agent_keep_their_list_of_exceptions() {
    let private = "but -d 169.254.0.0/16; -d 10.0.0.0/8; -d 172.16.0.0/12; -d 192.168.0.0/16";
    let local = "! --dst-type LOCAL";
    let last = |choice: &str| format!("ip POSTROUTING>IP-MASQ 5: {local} {private} Masquerade {choice}");
    assert_told(RuleFamily::Ip, IP_MASQ_AGENT_2_9, &[&last("Keep")]);
    assert_told(RuleFamily::Ip, IP_MASQ_AGENT_2_10, &[&last("RandomFully")]);
    let mut expected = Vec::new();
    for (at, protocol) in [(5, "tcp"), (7, "udp"), (9, "sctp")] {
        let head = |at| format!("ip POSTROUTING>IP-MASQ {at}: -p {protocol} {local} {private}");
        expected.push(format!("{} chance 0.4693 Masquerade 1024-29999 RandomFully", head(at)));
        expected.push(format!("{} Masquerade 32768-65535 RandomFully", head(at + 1)));
    }
    expected.push(format!("ip POSTROUTING>IP-MASQ 11: ! -p tcp,udp,sctp {local} {private} Masquerade RandomFully"));
    assert_told(RuleFamily::Ip, IP_MASQ_AGENT_2_12, &expected.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Exercises kube-proxy's rules. If this fails, collisions are looked for at the wrong ports.
#[test]
fn node_ports_of_kube_proxy_are_read_from_its_rules_and_its_maps() {
    let expected = [
        (Protocol::TCP, 30_080, Some("shop/web:http")),
        (Protocol::TCP, 30_443, Some("shop/web:https")),
        (Protocol::UDP, 30_053, Some("kube-system/dns:dns")),
    ];
    for (name, _) in BACKENDS {
        let reading = in_a_namespace(|| {
            restore(RuleFamily::Ip, name, KUBE_PROXY_IPTABLES);
            reading()
        });
        let ports: Vec<_> =
            reading.node_ports.iter().map(|port| (port.protocol, port.port, port.service.as_deref())).collect();
        assert_eq!(ports, expected, "{name}");
        assert!(reading.node_ports.iter().all(|port| port.family == RuleFamily::Ip), "{name}");
        assert_eq!(reading.proxies, [ServiceProxy::Iptables]);
        let marked = "ip POSTROUTING>KUBE-POSTROUTING 3: mark 0x4000/0x4000 Masquerade RandomFully";
        assert_eq!(all_told(&reading), [marked], "{name}");
    }
    let reading = in_a_namespace(|| {
        run("nft", &["-f", "-"], KUBE_PROXY_NFTABLES);
        reading()
    });
    let mut ports: Vec<_> =
        reading.node_ports.iter().map(|port| (port.protocol, port.port, port.service.as_deref())).collect();
    ports.sort();
    assert_eq!(ports[..3], expected);
    // Without an endpoint it is allocated all the same.
    assert_eq!(ports[3..], [(Protocol::UDP, 31_999, None)]);
    assert!(reading.node_ports.iter().all(|port| port.family == RuleFamily::Ip));
    assert_eq!(reading.proxies, [ServiceProxy::Nftables]);
    let [rule] = reading.source_nat.as_slice() else { panic!("{:?}", reading.source_nat) };
    assert_eq!((rule.target.kind, rule.target.choice), (SourceNatKind::Masquerade, PortChoice::RandomFully));
    assert_eq!(rule.path, ["nat-postrouting", "masquerading"]);
}

/// Exercises Cilium's chains beside others.
#[test]
fn rules_of_cilium_are_read() {
    assert_told(
        RuleFamily::Ip,
        CILIUM,
        &["ip POSTROUTING>CILIUM_POST_nat 1: ! -o cilium_+ -s 10.64.0.0/24 ! -d 10.64.0.0/16 Masquerade RandomFully"],
    );
}

/// What the reference plugin makes for a pod.
fn made_by(plugin: &str, network: &serde_json::Value) -> Reading {
    use std::io::{Read as _, Write as _};
    let folders = ["/usr/lib/cni", "/opt/cni/bin"];
    let folder = folders.into_iter().find(|folder| std::path::Path::new(folder).join(plugin).is_file()).unwrap();
    in_a_namespace(|| {
        // The pod: a process in a namespace of its own, which ends with its standard input.
        let mut pod = Command::new("unshare");
        let pod = pod.args(["-n", "sh", "-c", "echo; cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut pod = pod.spawn().unwrap();
        pod.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let netns = format!("/proc/{}/ns/net", pod.id());
        let environment = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "abc"),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", folder),
        ];
        let mut plugin = Command::new(format!("{folder}/{plugin}"));
        let mut plugin = plugin.envs(environment).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        plugin.stdin.take().unwrap().write_all(network.to_string().as_bytes()).unwrap();
        let made = plugin.wait_with_output().unwrap();
        let reading = reading();
        drop(pod.stdin.take());
        pod.wait().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        reading
    })
}

/// Exercises what the reference plugins really make for a pod. If this fails, their rules are not understood any more.
#[test]
fn rules_of_the_reference_plugins_are_those_of_their_pod() {
    for plugin in ["bridge", "ptp"] {
        let place = tempfile::tempdir().unwrap();
        let network = serde_json::json!({
            "cniVersion": "0.4.0", "name": "podnet", "type": plugin, "bridge": "cbr0", "isGateway": true, "ipMasq": true,
            "ipam": { "type": "host-local", "subnet": "10.77.0.0/24", "dataDir": place.path() },
        });
        let reading = made_by(plugin, &network);
        let rules = all_told(&reading);
        let [rule] = rules.as_slice() else { unreachable!("{plugin}: {rules:?}") };
        assert!(rule.starts_with("ip POSTROUTING>CNI-"), "{plugin}: {rule}");
        assert!(
            rule.contains(" 2: -s 10.77.0.2/32 ! -d 224.0.0.0/4 but -d 10.77.0.0/24 Masquerade"),
            "{plugin}: {rule}"
        );
        assert!(reading.source_nat.iter().flat_map(|rule| &rule.comments).any(|comment| comment.contains("podnet")));
    }
}

/// A table of nftables with a chain at a hook.
fn native(before: &str, rules: &str) -> String {
    format!("table ip mine {{\n{before}\nchain out {{ type nat hook postrouting priority srcnat;\n{rules}\n}}\n}}\n")
}

/// Reads what `nft` makes of it, complete or not.
fn read_native(rules: &str) -> Reading {
    in_a_namespace(|| {
        run("nft", &["-f", "-"], rules);
        read(&HostRoot::live())
    })
}
