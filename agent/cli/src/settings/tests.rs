//! Settings as people write them, and as they mistype them.

use headroom_core::flow::Protocol;
use headroom_core::observe::ServiceProxy;

use headroom_core::model::nat::Profile;

use super::*;

fn settings(toml: &str, nat: &NatArgs) -> anyhow::Result<Settings> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("headroom.toml");
    std::fs::write(&path, toml).unwrap();
    Settings::new(&NodeArgs { config: Some(path), ..NodeArgs::default() }, nat)
}

#[test]
fn flags_win_over_the_file() {
    let toml = "tick_secs = 7\n[nat]\nprofile = \"gcp\"\nmin_ports = 64\nalias_ranges = false\n";
    let flags = NatArgs { nat_min_ports: Some(128), ..NatArgs::default() };
    let nat = settings(toml, &flags).unwrap().policy.nat.unwrap();
    assert_eq!(nat.node_ports().unwrap().ports, 128);
    assert_eq!(settings(toml, &NatArgs::default()).unwrap().tick, Duration::from_secs(7));
}

#[test]
fn node_ports_and_proxy_are_taken_from_file_or_flags() {
    let toml = "node_ports = [\"30080\", \"30053/udp\"]\nservice_proxy = \"cilium\"\n";
    let policy = settings(toml, &NatArgs::default()).unwrap().policy;
    assert_eq!(policy.allocated_node_ports, [(Protocol::TCP, 30_080), (Protocol::UDP, 30_053)]);
    assert!("0".parse::<GivenNodePort>().is_err(), "no NodePort has that number");
    assert_eq!(policy.service_proxy, Some(ServiceProxy::Cilium));
    let error = settings("node_ports = [\"30080/icmp\"]\n", &NatArgs::default()).unwrap_err();
    assert!(format!("{error:#}").contains("is not a NodePort like"), "{error:#}");
}

#[test]
fn a_bad_file_is_refused_with_the_place() {
    let text = |toml: &str| format!("{:#}", settings(toml, &NatArgs::default()).unwrap_err());
    assert!(text("[nat]\nprofil = \"gcp\"\n").contains("profil"));
    assert!(text("[nat]\nmin_ports = 64\n").contains("need a profile"));
    assert!(text("[nat]\nprofile = \"gcp\"\nmode = \"dynamic\"\nmin_ports = 100\n").contains("power of two"));
    assert!(text("tick_secs = 0\n").contains("tick_secs"));
    assert!(text("node_port_range = \"9-1\"\n").contains("starts above its end"));
}

/// Exercises settings that the NAT refuses. If this fails, people with flags, a configuration and files of tools look for the
/// mistake in the wrong one.
#[test]
fn what_the_nat_refuses_is_named_with_the_key_of_the_file_unless_a_flag_set_it() {
    let text = |toml: &str, flags: NatArgs| format!("{:#}", settings(toml, &flags).unwrap_err());
    for (key, setting, value) in [
        ("tcp_time_wait_secs", "tcp-time-wait", 7200),
        ("tcp_reset_secs", "tcp-reset", 7200),
        ("tcp_transitory_secs", "tcp-reset", 7200),
        ("udp_idle_secs", "udp-idle", 7200),
        ("udp_hold_down_secs", "udp-idle", 7200),
        ("icmp_idle_secs", "icmp-idle", 7200),
        ("tcp_established_idle_secs", "tcp-established-idle", 0),
        ("udp_idle_secs", "udp-idle", 0),
        ("min_ports", "min-ports", 1),
        ("max_ports", "max-ports", 128),
        ("nat_ips", "nat-ips", 301),
        ("nodes", "nodes", 0),
    ] {
        let said = text(&format!("[nat]\nprofile = \"gcp\"\n{key} = {value}\n"), NatArgs::default());
        let place = format!("`{setting}` is `nat.{key}` of `");
        assert!(said.contains(&place) && said.contains("headroom.toml`"), "{key}: {said}");
    }
    let flags = NatArgs { nat_min_ports: Some(1), ..NatArgs::default() };
    let said = text("[nat]\nprofile = \"gcp\"\nmin_ports = 64\n", flags);
    assert!(said.contains("`min-ports` is 1") && !said.contains("headroom.toml"), "{said}");
}

#[test]
fn a_configuration_that_is_no_regular_file_is_refused_at_once() {
    let args = NodeArgs { config: Some(PathBuf::from("/dev/zero")), ..NodeArgs::default() };
    let error = Settings::new(&args, &NatArgs::default()).unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");
}

#[test]
fn the_daemon_cleans_only_when_told_and_not_in_a_hurry() {
    let plain = settings("", &NatArgs::default()).unwrap();
    assert_eq!(plain.clean, None, "off by default");
    let mut set = settings("[clean]\ninterval_secs = 600\nmax = 4\n", &NatArgs::default()).unwrap();
    let clean = set.clean.clone().unwrap();
    assert_eq!((clean.interval, clean.limits.max, clean.max_per_hour), (Duration::from_secs(600), 4, 128));
    set.clean_every(Some(Duration::from_secs(120))).unwrap();
    assert_eq!(set.clean.clone().unwrap().interval, Duration::from_secs(120));
    assert_eq!(set.clean.clone().unwrap().limits.max, 4, "the file's limits hold for the flag, too");
    assert!(set.clean_every(Some(Duration::from_secs(1))).unwrap_err().to_string().contains("10s to 1d"));
    set.policy.leak_grace = Duration::from_secs(60);
    assert!(set.clean_every(None).unwrap_err().to_string().contains("grace period of 1m"));
    let bad = |toml: &str| format!("{:#}", settings(toml, &NatArgs::default()).unwrap_err());
    assert!(bad("[clean]\ninterval_secs = 600\nmax_percent = 101\n").contains("max_percent"));
    assert!(bad("[clean]\ninterval_secs = 600\nmax = 0\n").contains("`max` of `[clean]` is 0"));
    assert!(bad("[clean]\nforce = true\n").contains("force"));
}

#[test]
fn files_about_the_nat_are_read_and_what_is_typed_wins() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nat.json");
    let two = r#"[{"name":"a","natIpAllocateOption":"MANUAL_ONLY","natIps":["1"],"minPortsPerVm":2048},
        {"name":"b","natIpAllocateOption":"MANUAL_ONLY","natIps":["1","2"]}]"#;
    std::fs::write(&path, two).unwrap();
    let toml = format!("[nat]\nfrom = [{path:?}]\ngateway = \"a\"\n");
    let nat = settings(&toml, &NatArgs::default()).unwrap().policy.nat.unwrap();
    assert_eq!((nat.profile, nat.nat_ips), (Profile::Gcp, Some(1)));
    assert_eq!(nat.node_ports().unwrap().ports, 2048);
    let flags = NatArgs { nat_min_ports: Some(4096), nat_gateway: Some("b".to_owned()), ..NatArgs::default() };
    let nat = settings(&toml, &flags).unwrap().policy.nat.unwrap();
    assert_eq!((nat.node_ports().unwrap().ports, nat.nat_ips), (4096, Some(2)));
    let error = settings(&toml.replace("\"a\"", "\"c\""), &NatArgs::default()).unwrap_err();
    assert!(format!("{error:#}").contains("nat.json"), "{error:#}");
}

#[test]
fn the_node_finds_itself_in_a_mapping_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mapping.json");
    let mapping = r#"[{"instanceName":"n1","interfaceNatMappings":[{"natIpPortRanges":["35.0.0.1:64-127"]}]}]"#;
    std::fs::write(&path, mapping).unwrap();
    let of = |name: &str| {
        let node = NodeArgs { node_name: Some(name.to_owned()), ..NodeArgs::default() };
        let nat = NatArgs { nat_from: vec![path.clone()], ..NatArgs::default() };
        Settings::new(&node, &nat).unwrap().policy.nat.unwrap()
    };
    for name in ["n1", "n1.zone.c.project.internal"] {
        assert_eq!(of(name).observed.unwrap().ports, 64, "{name}");
    }
    let other = of("n2");
    assert!(other.observed.is_none() && other.notes[0].contains("n2 is not among the 1 machine"), "{other:?}");
}

#[test]
fn prefixes_that_bypass_the_nat_count_once_and_leave_something_for_it() {
    let twice = "[nat]\nbypass = [\"198.51.100.0/24\", \"198.51.100.7/24\"]\n";
    assert_eq!(settings(twice, &NatArgs::default()).unwrap().policy.extra_private.len(), 1);
    let error = settings("[nat]\nbypass = [\"0.0.0.0/0\"]\n", &NatArgs::default()).unwrap_err();
    assert!(error.to_string().contains("leaves nothing"), "{error}");
    assert!(error.to_string().contains("(`nat.bypass` of `"), "{error}");
}

#[test]
fn nothing_said_about_the_nat_leaves_it_to_the_platform() {
    assert_eq!(settings("", &NatArgs::default()).unwrap().policy.nat, None);
}
