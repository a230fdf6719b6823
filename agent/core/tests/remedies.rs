//! What findings on NAT ports tell people to do: it has to work, and to say what it costs.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

#[path = "node/nat.rs"]
mod nat;
#[path = "node/pods.rs"]
mod node;

use std::net::IpAddr;

use headroom_core::findings::{FindingId, Severity};
use headroom_core::flow::Endpoint;
use headroom_core::ledger::{Ledger, LedgerLimits, SourceFilter};
use headroom_core::model::nat::remedy::Names;
use headroom_core::model::nat::{Described, Mode, NatSettings, ObservedPorts, Profile};
use headroom_core::observe::ConntrackTcpState;
use headroom_core::report::Report;
use headroom_core::time::WallTime;
use nat::{finding, of, report, static_ports};
use node::{Node, entry};

/// What a node that is out of ports is told to do.
fn used_up(nat: NatSettings, held: u64) -> String {
    finding(&report(nat, held), FindingId::NatPortsExhausted).unwrap().remedy.clone()
}

/// Exercises a node without ports on a gateway that has said that it has too few. If this fails, a line is pasted that takes the ports
/// of every other node.
#[test]
fn a_gateway_that_lacks_ips_is_not_told_to_give_each_node_more_of_them() {
    let lacking = used_up(of(Profile::Gcp, Described { missing_ips: Some(1), ..static_ports() }), 1030);
    let (dynamic, own) = lacking.split_once(", or set ").unwrap();
    assert!(
        dynamic.contains("switch to dynamic allocation") && dynamic.contains("max_ports_per_vm = 2048"),
        "{dynamic}"
    );
    // Two IPs hold the nodes with 1,024 ports each, four with 2,048.
    assert!(own.starts_with("min_ports_per_vm = 2048 and at least 4 NAT IPs (there are 1)"), "{own}");
    assert!(own.contains("# instead:\nmin_ports_per_vm = 2048\nnat_ips"), "{own}");
    let mut failed = of(Profile::Gcp, static_ports());
    failed.allocation_failed = Some(WallTime::from_secs(1_800_000_990));
    let failed = used_up(failed, 1030);
    assert!(failed.contains("then serves 31 nodes (63 now), and there are too few as it is: add some"), "{failed}");
    assert!(failed.contains("--max-ports-per-vm=2048") && !failed.contains("--min-ports-per-vm=2048"), "{failed}");
}

/// Exercises lines to paste where nobody knows how many nodes there are. If this fails, the ports that one node gets are another's,
/// and nobody was told.
#[test]
fn more_ports_for_each_node_come_with_what_they_cost() {
    let unknown = used_up(of(Profile::Gcp, static_ports()), 1030);
    assert!(unknown.contains("serves 31 nodes (63 now); add NAT IPs if there are more nodes\nmind: "), "{unknown}");
    assert!(
        unknown.contains("mind: nodes may fall back to the minimum for a while, which cuts connections\n"),
        "{unknown}"
    );
    let automatic = Described { auto_ips: Some(true), nat_ips: None, ..static_ports() };
    let automatic = used_up(of(Profile::Gcp, automatic), 1030);
    assert!(automatic.contains("(63 now), and the gateway adds NAT IPs as far as the quota goes"), "{automatic}");
    let dynamic = |nodes| Described {
        mode: Some(Mode::Dynamic),
        min_ports: Some(64),
        max_ports: Some(1024),
        nodes,
        ..static_ports()
    };
    let unknown = used_up(of(Profile::Gcp, dynamic(None)), 1030);
    assert!(
        unknown.contains(
            "max_ports_per_vm = 2048 on Cloud NAT: each NAT IP then serves 31 nodes at their maximum (63 now)"
        ),
        "{unknown}"
    );
    let whole = used_up(of(Profile::Gcp, Described { max_ports: Some(32_768), ..dynamic(None) }), 32_768);
    assert!(
        whole.contains("max_ports_per_vm = 65536 on Cloud NAT: a node may then take more than one NAT IP has"),
        "{whole}"
    );
    // 976 x 64 and 2,048 are all that an IP has.
    for (nodes, ips) in [(977, None), (978, Some("at least 2 NAT IPs (there are 1) for 978 nodes"))] {
        let remedy = used_up(of(Profile::Gcp, dynamic(Some(nodes))), 1030);
        assert!(
            remedy.contains("max_ports_per_vm = 2048") && remedy.contains("\nmind: nodes may fall back"),
            "{remedy}"
        );
        assert!(ips.is_none_or(|ips| remedy.contains(ips)), "{remedy}");
        assert_eq!(remedy.contains("NAT IPs"), ips.is_some(), "{remedy}");
    }
    let by_hand = Described { min_ports: Some(1024), nat_ips: Some(1), ..Described::default() };
    let by_hand = used_up(of(Profile::AzureLb, by_hand), 1030);
    assert!(by_hand.contains("each NAT IP then serves 49 nodes (62 now)"), "{by_hand}");
}

/// Exercises a node that nothing on Cloud NAT's static side serves. If this fails, somebody is told that there is no way.
#[test]
fn what_static_allocation_cannot_give_dynamic_can() {
    let nat = |nodes| of(Profile::Gcp, Described { nodes, min_ports: Some(32_768), ..static_ports() });
    let large = used_up(nat(Some(1)), 40_000);
    assert!(large.contains("switch to dynamic allocation") && large.contains("max_ports_per_vm = 65536"), "{large}");
    let larger = used_up(nat(Some(1)), 60_000);
    assert!(larger.contains("gives no node more ports"), "{larger}");
    let many = used_up(of(Profile::Gcp, Described { nodes: Some(20_000), ..static_ports() }), 1030);
    assert!(many.contains("split the nodes over several gateways (3 at least), or switch to dynamic"), "{many}");
}

/// A node with a flow from each of so many sources, each to a destination of its own; the first one waits for an answer if so.
fn spread(endpoint_independent: Option<bool>, assumed: bool, flows: u8, waiting: bool) -> Report {
    let mode = (!assumed).then_some(Mode::Static);
    let described = Described { mode, alias_ranges: Some(false), endpoint_independent, ..Described::default() };
    let nat = of(Profile::Gcp, described);
    let mut node = Node::new();
    if endpoint_independent == Some(true) {
        let (scope, hold) = (node.policy.scope(&nat), nat.hold);
        node.ledger = Ledger::new(LedgerLimits::default()).telling_sources_apart(SourceFilter { scope, hold });
    }
    node.policy.nat = Some(nat);
    node.dump(
        1000,
        (1..=flows).map(|number| {
            let (state, left) = if waiting && number == 1 {
                (ConntrackTcpState::SynSent, 119)
            } else {
                (ConntrackTcpState::Established, 431_999)
            };
            entry(u16::from(number), Endpoint::new(IpAddr::from([203, 0, 113, number]), 443), state, left)
        }),
    );
    node.report(1000)
}

/// Exercises sources that use up the ports of a mapping while each destination needs one. If this fails, an assumption wakes somebody
/// up, and who is to change what is not told.
#[test]
fn what_a_mapping_takes_is_told_with_who_takes_it_and_how_to_do_without() {
    for (assumed, waiting, severity) in
        [(false, false, Severity::Critical), (true, false, Severity::Warning), (true, true, Severity::Critical)]
    {
        let report = spread(Some(true), assumed, 66, waiting);
        let full = finding(&report, FindingId::NatPortsExhausted).unwrap();
        assert!(full.severity == severity && full.title.contains("over all destinations"), "{assumed} {full:?}");
        let said = |text: &str| full.evidence.iter().any(|evidence| evidence.said.contains(text));
        assert_eq!(said("the allocation is assumed"), assumed, "{full:?}");
        assert!(said("10.64.0.5 (10.64.0.5): 6") && said("held to 6"), "{full:?}");
        assert!(
            full.remedy.starts_with(
                "turn endpoint-independent mapping off: a port then serves every destination once, and 1 of 64 would do, \
                 or reuse connections in the pods named above"
            ),
            "{}",
            full.remedy
        );
        for line in [
            "\nmind: connections may end when the mapping changes; what needs one address",
            "\nterraform: enable_endpoint_independent_mapping = false\n",
            "\ngcloud: gcloud compute routers nats update NAT --router=ROUTER --region=REGION \
             --no-enable-endpoint-independent-mapping\n",
        ] {
            assert!(full.remedy.contains(line), "{}", full.remedy);
        }
    }
}

/// Exercises a mapping that nobody has told of. If this fails, a node that is out of ports looks as if it needed one.
#[test]
fn a_mapping_that_is_not_told_of_is_noted_where_it_would_matter() {
    let note = |mapping, flows| {
        let notes = spread(mapping, false, flows, false).nat.allocation.notes;
        notes.into_iter().find(|note| note.contains("endpoint-independent"))
    };
    let unknown = note(None, 52).unwrap();
    assert!(unknown.contains("if it is, tcp needs 1 to 52 of 64 ports"), "{unknown}");
    assert_eq!(note(None, 51), None, "less than 80 per cent whatever is set");
    for said in [true, false] {
        assert_eq!(note(Some(said), 60), None);
    }
}

/// The same with the names of what is to be changed.
fn remedy_of(nat: NatSettings, names: &Names, held: u64) -> String {
    let report = report(NatSettings { names: names.clone(), ..nat }, held);
    finding(&report, FindingId::NatPortsExhausted).unwrap().remedy.clone()
}

/// Exercises remedies line by line. If this fails, somebody pastes what his tool refuses, or what does not help.
#[test]
fn the_lines_to_type_are_those_of_the_nat_at_hand() {
    let names = Names {
        gateway: Some("nat-gke".to_owned()),
        cluster: None,
        router: Some("r1".to_owned()),
        region: Some("asia-northeast1".to_owned()),
        group: Some("p1".to_owned()),
    };
    let remedy = |nat: NatSettings, held| remedy_of(nat, &names, held);
    let gcp = of(Profile::Gcp, Described { nat_ips: Some(1), nodes: Some(60), ..Described::default() });
    assert_eq!(
        remedy(gcp.clone(), 1024),
        "reuse connections in the pods named above, or set min_ports_per_vm = 2048 and 2 NAT IPs (there are 1) for 60 nodes \
         on Cloud NAT, or switch to dynamic allocation with min_ports_per_vm = 64 and max_ports_per_vm = 2048 \
         (endpoint-independent mapping off): 977 nodes fit with 2048 ports for this one\n\
         mind: nodes may fall back to the minimum for a while, which cuts connections; the list of NAT IPs is replaced: name \
         those it has now as well, or their connections end; going back to static allocation later closes all \
         connections\n\
         terraform: min_ports_per_vm = 2048\n\
         nat_ips = google_compute_address.nat[*].self_link  # count = 2\n\
         gcloud: gcloud compute routers nats update nat-gke --router=r1 --region=asia-northeast1 --project=p1 \
         --min-ports-per-vm=2048 --nat-external-ip-pool=ADDRESS-1,…,ADDRESS-2\n\
         terraform: # instead:\n\
         enable_dynamic_port_allocation = true\n\
         enable_endpoint_independent_mapping = false\n\
         min_ports_per_vm = 64\n\
         max_ports_per_vm = 2048\n\
         gcloud: # instead:\n\
         gcloud compute routers nats update nat-gke --router=r1 --region=asia-northeast1 --project=p1 \
         --enable-dynamic-port-allocation --no-enable-endpoint-independent-mapping --min-ports-per-vm=64 \
         --max-ports-per-vm=2048"
    );
    let dynamic = NatSettings { mode: Mode::Dynamic, max_ports: Some(1024), ..gcp };
    assert!(
        remedy(dynamic, 1024)
            .contains("nats update nat-gke --router=r1 --region=asia-northeast1 --project=p1 --max-ports-per-vm=2048")
    );
    let aws = of(Profile::Aws, Described { nat_ips: Some(1), ..Described::default() });
    assert_eq!(
        remedy(aws.clone(), 55_000),
        "reuse connections in the pods named above, or set 2 NAT IPs (there are 1) on an AWS NAT gateway\n\
         terraform: secondary_allocation_ids = slice(aws_eip.nat[*].id, 1, 2)\n\
         aws: aws ec2 associate-nat-gateway-address --nat-gateway-id nat-gke --allocation-ids EIPALLOC-1"
    );
    let full = NatSettings { nat_ips: Some(8), ..aws };
    assert!(remedy(full, 440_000).contains("spread them over more destination addresses or nodes"));
    let gateway = of(Profile::AzureNatgw, Described { nat_ips: Some(1), ..Described::default() });
    let expected = "az: az network nat gateway update -g p1 -n nat-gke --public-ip-addresses IP-1 … IP-2";
    assert!(remedy(gateway.clone(), 50_000).contains(expected));
    assert!(remedy(gateway.clone(), 50_000).contains("\nmind: the list of NAT IPs is replaced"));
    let names = Names { gateway: None, cluster: Some("aks1".to_owned()), ..names };
    let remedy = |nat: NatSettings, held| remedy_of(nat, &names, held);
    let expected = "az: az aks update -g p1 -n aks1 --nat-gateway-managed-outbound-ip-count 2";
    assert!(remedy(gateway, 50_000).contains(expected));
    let lb = of(Profile::AzureLb, Described { nat_ips: Some(1), nodes: Some(48), ..Described::default() });
    assert_eq!(
        remedy(lb, 1030),
        "reuse connections in the pods named above, or set allocated outbound ports = 1288 on an Azure load balancer\n\
         terraform: load_balancer_profile {\n  outbound_ports_allocated = 1288\n}\n\
         az: az aks update -g p1 -n aks1 --load-balancer-outbound-ports 1288"
    );
    let linux = of(Profile::Linux, Described { nat_ips: Some(1), ..Described::default() });
    assert!(remedy(linux, 64_512).contains("iptables: iptables -t nat -I POSTROUTING"));
}

/// Exercises remedies where the number of NAT IPs is not known. If this fails, somebody who pastes them loses NAT IPs.
#[test]
fn a_number_of_ips_is_set_only_where_it_is_known_that_there_are_fewer() {
    let described = |min_ports, nat_ips| Described {
        min_ports: Some(min_ports),
        alias_ranges: Some(false),
        nodes: Some(100),
        nat_ips,
        ..Described::default()
    };
    let remedy = |nat| finding(&report(nat, 4000), FindingId::NatPortsExhausted).unwrap().remedy.clone();
    let gcp = |nat_ips| remedy(of(Profile::Gcp, described(64, nat_ips)));
    let unknown = gcp(None);
    assert!(unknown.contains("at least 13 NAT IPs in all") && unknown.contains("--min-ports-per-vm=8192"), "{unknown}");
    assert!(!unknown.contains("ip-pool") && !unknown.contains("count ="), "{unknown}");
    assert!(gcp(Some(1)).contains("--nat-external-ip-pool=ADDRESS-1,…,ADDRESS-13"));
    let azure = |nat_ips| remedy(of(Profile::AzureLb, described(96, nat_ips)));
    assert!(!azure(None).contains("outbound-ip-count"), "{}", azure(None));
    assert!(azure(Some(1)).contains("--load-balancer-managed-outbound-ip-count 8"), "{}", azure(Some(1)));
    let aws = report(of(Profile::Aws, Described::default()), 60_000);
    let aws = &finding(&aws, FindingId::NatPortsExhausted).unwrap().remedy;
    assert!(aws.contains("at least 2 NAT IPs in all") && !aws.contains("EIPALLOC"), "{aws}");
}

/// Exercises a setting that has not reached the gateway. If this fails, the remedy lowers it.
#[test]
fn a_setting_is_not_lowered_to_what_is_missing() {
    let observed = Some(ObservedPorts { ports: 64, why: "as the mapping has it".to_owned(), at: None });
    let set = |min_ports| Described { min_ports: Some(min_ports), observed: observed.clone(), ..Described::default() };
    let remedy = |described| {
        let report = report(of(Profile::Gcp, described), 95);
        finding(&report, FindingId::NatPortsExhausted).unwrap().remedy.clone()
    };
    let higher = remedy(set(4096));
    assert!(higher.contains("min_ports_per_vm = 4096 is in force") && !higher.contains("gcloud"), "{higher}");
    let same = remedy(Described { alias_ranges: Some(false), ..set(64) });
    assert!(same.contains("--min-ports-per-vm=128"), "{same}");
}

/// Exercises masquerading with a narrow range. If this fails, addresses are bought where a range was to be widened, and the first
/// connections fail before anybody was warned.
#[test]
fn a_narrow_range_of_a_linux_nat_is_to_be_widened() {
    let nat = of(Profile::Linux, Described { port_range: "1024-1123".parse().ok(), ..Described::default() });
    let low = report(nat.clone(), 95);
    let low = finding(&low, FindingId::NatPortsLow).unwrap();
    assert!(
        low.remedy.contains("widen --to-ports of the masquerading to 32768-65535 (1024-1123 now), or spread"),
        "{low:?}"
    );
    assert!(low.remedy.contains("MASQUERADE --random-fully --to-ports 32768-65535  # and -p udp"), "{low:?}");
    assert!(!low.remedy.contains("NAT IPs") && !low.remedy.contains("NodePorts"), "{low:?}");
    let much = report(nat.clone(), 40_000);
    let much = &finding(&much, FindingId::NatPortsExhausted).unwrap().remedy;
    assert!(
        much.contains("to 1024-65535") && much.contains("mind: the NodePorts 30000-32767 are among them"),
        "{much}"
    );
    assert!(low.evidence.iter().any(|evidence| evidence.said.contains("248 ports")), "{low:?}");
    let calm = report(nat, 92);
    let calm = finding(&calm, FindingId::NatPortsLow).unwrap();
    assert!(calm.evidence.iter().all(|evidence| !evidence.said.contains("248 ports")), "{calm:?}");
}
