//! AWS NAT gateways, zonal and regional.

use headroom_core::model::nat::Profile;

use super::{refused, said};

#[test]
fn an_aws_gateway_has_the_addresses_that_serve() {
    let said = said(
        r#"{"NatGateways":[{"NatGatewayId":"nat-0","State":"deleted","NatGatewayAddresses":[{}]},
            {"NatGatewayId":"nat-1","State":"available","ConnectivityType":"public","NatGatewayAddresses":[
             {"AllocationId":"eipalloc-1","PublicIp":"198.51.100.1","IsPrimary":true,"Status":"succeeded"},
             {"AllocationId":"eipalloc-2","Status":"failed"},{"AllocationId":"eipalloc-3","Status":"succeeded"}]}]}"#,
    );
    assert_eq!((said.described.profile, said.described.nat_ips), (Some(Profile::Aws), Some(2)));
    assert_eq!(said.described.names.gateway.as_deref(), Some("nat-1"));
    assert!(refused(r#"{"NatGateways":[]}"#).contains("no NAT in it"));
}

fn regional(addresses: &str) -> super::Said {
    said(&format!(
        r#"{{"NatGateways":[{{"NatGatewayId":"nat-1","State":"available","AvailabilityMode":"regional",
            "NatGatewayAddresses":[{addresses}]}}]}}"#
    ))
}

fn address(zone: &str) -> String {
    format!(r#"{{"PublicIp":"198.51.100.1","Status":"succeeded","AvailabilityZone":"{zone}"}}"#)
}

/// Exercises a gateway that spans zones. If this fails, a node is said to have the ports of zones that it is not in, or a gateway with
/// more than eight addresses is refused.
#[test]
fn a_regional_gateway_has_the_addresses_of_one_zone() {
    let of = |zones: &[&str]| regional(&zones.iter().map(|zone| address(zone)).collect::<Vec<_>>().join(","));
    for (zones, ips, note) in [
        (&["a", "b", "c"][..], Some(1), "1 NAT IP in 3 zones, counted are one zone and its nodes"),
        (&["a", "a", "b", "b"], Some(2), "2 NAT IPs in 2 zones"),
        (&["a", "a", "a", "b"], Some(1), "zones have 1 to 3 NAT IPs, counted are those of b"),
        (&["a"; 9], Some(9), "9 NAT IPs in 1 zone"),
    ] {
        let said = of(zones);
        assert!(said.described.regional && said.described.nat_ips == ips, "{zones:?} {said:?}");
        let notes = &said.described.ip_notes;
        assert!(notes.iter().any(|found| found.contains(note)), "{zones:?} {notes:?}");
        assert!(said.described.settings(Profile::Aws).is_ok(), "{zones:?}");
    }
    let unsaid = regional(r#"{"Status":"succeeded"}"#);
    assert_eq!(unsaid.described.nat_ips, None);
    assert!(unsaid.described.ip_notes.iter().any(|note| note.contains("--nat-ips")), "{:?}", unsaid.described.ip_notes);
    let zonal = said(&format!(
        r#"{{"NatGateways":[{{"NatGatewayId":"nat-1","AvailabilityMode":"zonal","NatGatewayAddresses":[{},{}]}}]}}"#,
        address("a"),
        address("a")
    ));
    assert_eq!((zonal.described.nat_ips, zonal.described.regional), (Some(2), false));
}

#[test]
fn the_list_of_addresses_has_a_place() {
    let listed = said(r#"{"NatGateways":[{"State":"deleted"},{"NatGatewayAddresses":[{}]}]}"#);
    assert_eq!(listed.places["nat-ips"], "NatGateways[1].NatGatewayAddresses");
    let created = said(r#"{"NatGateway":{"NatGatewayAddresses":[{}]}}"#);
    assert_eq!(created.places["nat-ips"], "NatGateway.NatGatewayAddresses");
}
