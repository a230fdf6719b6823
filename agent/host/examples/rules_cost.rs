//! What reading rules costs: 20,000 of them and 10,000 NodePorts, as kube-proxy makes them in each of its modes, read in full;
//! prints a table. `cargo xtask bench rules` writes it down. Needs root, iptables (both backends) and nft.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement for developers")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use headroom_host::root::HostRoot;
use headroom_host::source::rules::{Reading, read};
use nix::sched::{CloneFlags, unshare};

const NODE_PORTS: u32 = 10_000;
const ROUNDS: usize = 9;

fn feed(program: &str, arguments: &[&str], input: &str) {
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program}");
}

/// A rule for each NodePort, and one in the chain it leads to: 20,000, and kube-proxy's own.
fn iptables() -> String {
    let mut text =
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n"
            .to_owned();
    let chains = || (0..NODE_PORTS).map(|number| (number, format!("KUBE-EXT-{number:016X}")));
    chains().for_each(|(_, chain)| writeln!(text, ":{chain} - [0:0]").unwrap());
    text += "-A PREROUTING -j KUBE-SERVICES\n-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
        -A POSTROUTING -j KUBE-POSTROUTING\n-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
        -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n";
    for (number, chain) in chains() {
        let port = 20_000 + number;
        writeln!(text, "-A KUBE-NODEPORTS -p tcp -m comment --comment \"shop/service-{number}:http\" -m tcp --dport {port} -j {chain}").unwrap();
        writeln!(text, "-A {chain} -m comment --comment \"masquerade traffic for shop/service-{number}:http external destinations\" -j KUBE-MARK-MASQ").unwrap();
    }
    text + "COMMIT\n"
}

/// A chain with two rules for each NodePort, and a map to them.
fn nftables() -> String {
    let chain = |number: u32| format!("external-ULMVA6XW-shop/s{number}/tcp/http");
    let mut text = "table ip kube-proxy {\nchain tag { meta mark set meta mark | 0x4000\n}\n".to_owned();
    for number in 0..NODE_PORTS {
        writeln!(text, "chain {} {{ jump tag\nct state new counter\n}}", chain(number)).unwrap();
    }
    text += "map service-nodeports { type inet_proto . inet_service : verdict\nelements = { ";
    for number in 0..NODE_PORTS {
        write!(text, "tcp . {} : goto {}, ", 20_000 + number, chain(number)).unwrap();
    }
    text + "} }\nchain services { meta l4proto . th dport vmap @service-nodeports\n}\n\
        chain prerouting { type nat hook prerouting priority dstnat; jump services\n}\n\
        chain masquerading { meta mark & 0x4000 == 0 return\nmasquerade fully-random\n}\n\
        chain postrouting { type nat hook postrouting priority srcnat; jump masquerading\n}\n}\n"
}

fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD).unwrap();
    let micros = |time: nix::sys::time::TimeVal| u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap();
    Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
}

fn row(what: &str, make: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let measured = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            make();
            let mut rounds: Vec<(Duration, Duration, Reading)> = Vec::new();
            for _ in 0..ROUNDS {
                let (begun, cpu_begun) = (Instant::now(), cpu());
                let reading = read(&HostRoot::live());
                rounds.push((begun.elapsed(), cpu() - cpu_begun, reading));
            }
            rounds.sort_by_key(|(wall, ..)| *wall);
            rounds
        });
        let rounds = measured.join().unwrap();
        let (wall, cpu, reading) = rounds.get(ROUNDS / 2).unwrap();
        assert!(reading.missing.is_empty(), "{:?}", reading.missing);
        assert_eq!((reading.node_ports.len(), reading.source_nat.len()), (10_000, 1));
        let millis = |time: &Duration| format!("{:.0} ms", time.as_secs_f64() * 1000.0);
        let (worst, ..) = rounds.last().unwrap();
        println!(
            "| {what} | {} | {} | {} | {} | {} |",
            reading.rules,
            reading.node_ports.len(),
            millis(wall),
            millis(worst),
            millis(cpu)
        );
    });
}

fn main() {
    println!(
        "| kube-proxy by | rules | NodePorts | time, median of {ROUNDS} | longest | CPU, of which most in the kernel |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
    row("iptables-legacy", || feed("iptables-legacy-restore", &[], &iptables()));
    row("iptables-nft", || feed("iptables-nft-restore", &[], &iptables()));
    row("nftables", || feed("nft", &["-f", "-"], &nftables()));
}
