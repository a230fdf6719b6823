//! A NAT whose ports serve one flow to an address at a time, whatever the port there: UDP behind an Azure load balancer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use headroom_core::findings::FindingId;
use headroom_core::flow::{Endpoint, Protocol};
use headroom_core::model::nat::{Basis, NatSettings, Profile, Serves};
use headroom_core::observe::{ConntrackEntry, ConntrackTcpState};
use headroom_core::report::Report;
use proptest::prelude::*;

#[path = "node/pods.rs"]
mod node;

use node::{Node, entry, udp};

const RESOLVER: [u8; 4] = [9, 9, 9, 9];

/// A datagram flow from a source port of the pod.
fn flow(source_port: u16, address: [u8; 4], port: u16) -> ConntrackEntry {
    let to = Endpoint::new(IpAddr::from(address), port);
    let mut flow = udp(source_port, 119, true);
    (flow.destination, flow.key.dialled) = (to, to);
    flow
}

fn report(profile: Profile, flows: impl IntoIterator<Item = ConntrackEntry>) -> Report {
    let mut node = Node::new();
    let ports = (profile == Profile::AzureLb).then_some(32);
    node.policy.nat = Some(NatSettings { min_ports: ports, ..NatSettings::of(profile, Basis::Configured) });
    node.dump(1000, flows);
    node.report(1000)
}

fn resolver() -> impl Iterator<Item = ConntrackEntry> {
    (0..30).map(|number| flow(1000 + number, RESOLVER, 5000 + number))
}

/// Exercises the published rule: one port for each destination IP. If this fails, a node behind AKS' load balancer is out of UDP
/// ports while it is said to need one.
#[test]
fn azures_load_balancer_gives_udp_a_port_for_each_flow_to_an_address() {
    for (profile, needs, together) in [
        (Profile::AzureLb, 30, 30),
        (Profile::AzureNatgw, 1, 1),
        (Profile::Gcp, 1, 1),
        (Profile::Aws, 1, 1),
        (Profile::Linux, 1, 1),
    ] {
        let udp = report(profile, resolver()).nat.demand.udp;
        let worst = udp.worst.unwrap();
        assert_eq!((udp.ports, worst.destinations), (Some(needs), together), "{profile}");
        assert_eq!((worst.address, worst.port), (IpAddr::from(RESOLVER), 5000), "{profile}");
    }
    assert_eq!(Profile::AzureLb.port_serves(Protocol::TCP), Serves::Destination);
}

#[test]
fn tcp_ports_of_an_address_do_not_count_together_there() {
    let web = |number: u16| {
        let to = Endpoint::new(IpAddr::from(RESOLVER), 5000 + number);
        entry(1000 + number, to, ConntrackTcpState::Established, 431_999)
    };
    let tcp = report(Profile::AzureLb, (0..30).map(web)).nat.demand.tcp;
    assert_eq!((tcp.ports, tcp.worst.unwrap().destinations), (Some(1), 1));
}

/// Exercises what is said of it. If this fails, somebody looks for a destination that holds 30 ports and finds thirty with one.
#[test]
fn the_finding_names_the_address_the_sum_and_the_rule() {
    let other = |mut flow: ConntrackEntry| {
        flow.key.source.address = IpAddr::from([10, 64, 0, 6]);
        flow
    };
    let elsewhere = (0..20).map(|number| flow(2000 + number, [8, 8, 8, 8], 53));
    let flows = resolver().enumerate().map(|(index, flow)| if index < 12 { other(flow) } else { flow });
    let report = report(Profile::AzureLb, flows.chain(elsewhere));
    let low: Vec<_> = report.findings.iter().filter(|finding| finding.id == FindingId::NatPortsLow).collect();
    let [low] = low.as_slice() else { panic!("{low:?}") };
    assert_eq!(low.subject, "9.9.9.9/udp");
    assert_eq!(low.title, "9.9.9.9/udp holds 30 of 32 NAT ports (93 %), 18 by 10.64.0.5");
    let said: Vec<&str> = low.evidence.iter().map(|evidence| evidence.said.as_str()).collect();
    assert!(said.contains(&"30 held (30 open now), 0 wanting"), "{said:?}");
    let rule = "a port of an Azure load balancer serves one udp flow to an address at a time, whatever the port there: 30 \
                destinations count together, 9.9.9.9:5000/udp needs most of it (1)";
    assert!(said.contains(&rule), "{said:?}");
}

proptest! {
    /// The laws there: an address needs what its ports need together, the worst of them is told, and no more than there are
    /// flows; addresses that do not pass the NAT need nothing.
    #[test]
    fn demand_is_the_largest_sum_over_the_ports_of_an_address(
        flows in proptest::collection::btree_set((1_u16..20, 0_u8..4, 50_u16..55), 0..60),
    ) {
        let address = |host: u8| if host == 0 { [10, 9, 9, 9] } else { [203, 0, 113, host] };
        let report = report(Profile::AzureLb, flows.iter().map(|(source, host, port)| flow(*source, address(*host), *port)));
        let mut expected: BTreeMap<u8, u32> = BTreeMap::new();
        for (_, host, _) in flows.iter().filter(|(_, host, _)| *host != 0) {
            *expected.entry(*host).or_default() += 1;
        }
        let most = expected.values().copied().max().unwrap_or_default();
        prop_assert_eq!(report.nat.demand.udp.ports, Some(most));
        let single = report.nat.destinations.iter().filter(|row| row.in_scope).map(|row| row.held).max();
        prop_assert!(most >= single.unwrap_or_default());
        if let Some(worst) = report.nat.demand.udp.worst {
            let of_it: BTreeMap<u16, u32> = report.nat.destinations.iter()
                .filter(|row| row.address == worst.address).map(|row| (row.port, row.held)).collect();
            prop_assert_eq!(of_it.values().sum::<u32>(), most);
            prop_assert_eq!(u32::try_from(of_it.len()).unwrap(), worst.destinations);
            prop_assert_eq!(of_it.get(&worst.port), of_it.values().max());
        }
    }
}
