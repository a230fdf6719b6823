//! Checkpoints that say less than ipamd does.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use super::*;

/// ipamd with two network cards; it answers twice.
fn ipamd() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for _request in 0..2 {
            let (mut stream, _peer) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap();
            let body = match String::from_utf8_lossy(&request[..length]).contains("/v1/enis") {
                true => {
                    r#"{"0":{"TotalIPs":14,"AssignedIPs":1},"1":{"TotalIPs":14,"AssignedIPs":1,"ENIs":{"eni-1":{
                      "AvailableIPv4Cidrs":{"10.0.1.5/32":{"IPAddresses":{"10.0.1.5":{"IPAMKey":{"networkName":"aws-cni"}}}}}}}}}"#
                }
                false => "{}",
            };
            write!(stream, "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{body}").unwrap();
        }
    });
    Server::Tcp(address)
}

/// Exercises a second network card without a checkpoint, and a row that cannot be understood. If this fails, addresses that
/// pods hold are not counted, and nobody is told.
#[test]
fn a_card_without_a_checkpoint_is_told_by_ipamd_and_a_bad_row_is_no_complete_reading() {
    let directory = tempfile::tempdir().unwrap();
    let row = r#"{"version":"vpc-cni-ipam/1","allocations":[{"containerID":"","ipv4":"10.0.0.5"},{"ipv4":"10.0.0"}]}"#;
    std::fs::write(directory.path().join("ipam.json"), row).unwrap();
    let (root, directory) = (HostRoot::live(), directory.path().to_owned());
    let source = AwsVpcCniSource { root, directory: directory.clone(), server: ipamd() };
    let (mut round, mut networks, mut reserved) = (Round::default(), Vec::new(), Vec::new());
    let any = source.read(&mut round, &mut |fact| match fact {
        Fact::Network(network) => networks.push(network),
        Fact::Reservation(reservation) => reserved.push(reservation.address.to_string()),
        _other => {}
    });
    assert!(any);
    assert_eq!(reserved, ["10.0.0.5", "10.0.1.5"]);
    let totals = |network: &Network| (network.complete, network.pool.present().map(|pool| pool.total));
    assert_eq!(networks.iter().map(totals).collect::<Vec<_>>(), [(false, Some(14)), (true, Some(14))]);
    assert!(networks[1].store.ends_with("/v1/enis#1"), "{}", networks[1].store);
    let missing = format!("`{}` does not exist", directory.join("ipam-nic-1.json").display());
    assert!(round.missing.iter().any(|said| said.starts_with(&missing)), "{:?}", round.missing);
    assert!(round.partial.iter().any(|said| said.contains("1 allocations have no address")), "{:?}", round.partial);
}
