//! Stores of IPAMs other than host-local: nodes as they are found, and servers that do not behave.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use headroom_core::known::Known;
use headroom_core::observe::{CoverageDetail, Fact, Network, Outcome, Pool, Reservation};
use headroom_host::root::HostRoot;
use headroom_host::source::Source;
use headroom_host::source::aws_vpc_cni::{ASK_LIMIT, AwsVpcCniSource, Server};
use headroom_host::source::azure_cni::AzureCniSource;
use headroom_host::source::cilium::CiliumSource;
use headroom_host::source::cni;
use headroom_host::source::host_local::HostLocalSource;

/// What one round said.
#[derive(Debug)]
struct Round {
    networks: Vec<Network>,
    reservations: Vec<Reservation>,
    outcome: Outcome,
    coverage: Known<CoverageDetail>,
}

fn node(name: &str) -> HostRoot {
    HostRoot::at(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/nodes").join(name))
}

fn azure(root: HostRoot) -> AzureCniSource {
    AzureCniSource::new(root, PathBuf::from(cni::DEFAULT_CONF_DIR))
}

fn observe(source: &mut dyn Source) -> Round {
    let (mut networks, mut reservations, mut outcome, mut coverage) = (vec![], vec![], None, None);
    source.observe(&mut |observation| match observation.fact {
        Fact::Begin(_) => {}
        Fact::Network(network) => networks.push(network),
        Fact::Reservation(reservation) => reservations.push(Reservation::clone(&reservation)),
        Fact::End { outcome: how, .. } => outcome = Some(how),
        Fact::Coverage(known) => coverage = Some(known),
        other => panic!("{other:?}"),
    });
    Round { networks, reservations, outcome: outcome.unwrap(), coverage: coverage.unwrap() }
}

impl Round {
    fn of(&self, address: &str) -> &Reservation {
        let address: IpAddr = address.parse().unwrap();
        self.reservations.iter().find(|reservation| reservation.address == address).unwrap()
    }

    fn pool(&self) -> &Pool {
        self.networks.first().unwrap().pool.present().unwrap()
    }

    fn degraded(&self) -> String {
        self.coverage.present().unwrap().degraded.as_ref().map(ToString::to_string).unwrap_or_default()
    }
}

#[test]
fn an_eks_node_is_read_from_its_checkpoint() {
    let round = observe(&mut AwsVpcCniSource::new(node("eks-r5-xlarge"), None));
    assert_eq!((round.reservations.len(), &round.outcome), (20, &Outcome::Complete));
    let second = round.of("10.0.32.11");
    assert_eq!(second.pod.as_ref().unwrap().to_string(), "shop/checkout-7d9f6c5b8-00001");
    assert!(second.modified.present().is_some());
    assert_eq!(round.of("10.0.32.10").holder.present().unwrap().ifname, None, "migrated");
    let why = round.networks[0].pool.unknown().unwrap();
    assert!(why.as_str().contains("captured tree"), "{why}");
}

#[test]
fn an_aks_node_tells_how_many_addresses_it_was_given() {
    let round = observe(&mut azure(node("aks-azure-cni")));
    assert_eq!((round.pool().total, round.pool().assigned, round.reservations.len()), (30, 28, 28));
    assert_eq!(round.of("10.240.0.36").pod.as_ref().unwrap().to_string(), "default/web-1");
    let half = round.of("10.240.0.62");
    assert!(half.pod.is_none() && half.holder.present().is_some(), "{half:?}");
}

#[test]
fn an_aks_node_with_an_overlay_has_both_families() {
    let round = observe(&mut azure(node("aks-overlay")));
    assert_eq!((round.networks.len(), round.reservations.len()), (1, 6));
    assert_eq!(round.of("fd12:3456:789a:1::11").pod.as_ref().unwrap().to_string(), "default/web-1");
    assert_eq!(round.networks[0].pool, Known::Absent);
}

/// Exercises a container that does not see the node's `/var/run`. If this fails, a node of 30 pods looks like one without
/// pod addresses.
#[test]
fn azures_files_are_missed_where_the_cni_configuration_names_azures_ipam() {
    for (ipam, file) in
        [("azure-vnet-ipam", "/var/run/azure-vnet-ipam.json"), ("azure-cns", "/var/run/azure-cns/azure-endpoints.json")]
    {
        let bare = tempfile::tempdir().unwrap();
        let conf = bare.path().join("etc/cni/net.d");
        std::fs::create_dir_all(&conf).unwrap();
        let plugin = serde_json::json!({ "type": "azure-vnet", "ipam": { "type": ipam } });
        let list =
            serde_json::json!({ "cniVersion": "0.3.0", "name": "azure", "plugins": [plugin, { "type": "portmap" }] });
        std::fs::write(conf.join("10-azure.conflist"), list.to_string()).unwrap();
        let round = observe(&mut azure(HostRoot::at(bare.path())));
        let why = round.coverage.unknown().unwrap().to_string();
        assert!(why.contains(&format!("`{file}` does not exist here")) && why.contains(ipam), "{why}");
        assert!(why.contains("/etc/cni/net.d/10-azure.conflist") && why.contains("overlays/azure-cni"), "{why}");
        assert!(matches!(round.outcome, Outcome::Partial(_)), "{:?}", round.outcome);
    }
}

#[test]
fn cilium_tells_its_endpoints_from_either_file_and_passes_old_states_over() {
    let round = observe(&mut CiliumSource::new(node("gke-dataplane-v2")));
    assert_eq!((round.reservations.len(), &round.outcome), (3, &Outcome::Complete), "{round:?}");
    for (address, pod) in [("10.48.131.2", "default/web-2"), ("10.48.131.4", "default/web-4")] {
        assert_eq!(round.of(address).pod.as_ref().unwrap().to_string(), pod);
    }
}

#[test]
fn a_node_without_such_a_store_says_so() {
    let bare = tempfile::tempdir().unwrap();
    let root = || HostRoot::at(bare.path());
    for source in
        [&mut AwsVpcCniSource::new(root(), None) as &mut dyn Source, &mut azure(root()), &mut CiliumSource::new(root())]
    {
        let round = observe(source);
        assert_eq!((round.coverage, round.outcome), (Known::Absent, Outcome::Complete));
    }
}

/// If this fails, a GKE node whose addresses are kept elsewhere looks empty.
#[test]
fn an_empty_directory_beside_another_ipam_is_not_zero_use() {
    let mut source = HostLocalSource::new(node("gke-metis"), "/var/lib/cni/networks".into(), "/etc/cni/net.d".into());
    let round = observe(&mut source);
    assert!(round.networks.is_empty());
    assert!(round.degraded().contains("`metis`, whose store is not read"), "{}", round.degraded());
    assert!(matches!(&round.outcome, Outcome::Partial(why) if why.as_str().contains("`metis`")), "{:?}", round.outcome);

    // Calico's addresses come from pools of the cluster: no range of this node can be used up.
    let tree = tempfile::tempdir().unwrap();
    let conf = tree.path().join("etc/cni/net.d");
    std::fs::create_dir_all(&conf).unwrap();
    std::fs::write(
        conf.join("10-calico.conflist"),
        r#"{"name":"c","plugins":[{"type":"calico","ipam":{"type":"calico-ipam"}}]}"#,
    )
    .unwrap();
    let root = HostRoot::at(tree.path());
    let round = observe(&mut HostLocalSource::new(root, "/var/lib/cni/networks".into(), "/etc/cni/net.d".into()));
    assert!(round.degraded().contains("`calico-ipam`, whose store is not read"), "{}", round.degraded());
    assert_eq!(round.outcome, Outcome::Complete);
}

#[test]
fn a_state_that_cannot_be_read_is_named_and_proves_nothing() {
    let tree = tempfile::tempdir().unwrap();
    let at = |path: &str| {
        let path = tree.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    std::os::unix::fs::symlink("/etc/shadow", at("var/run/aws-node/ipam.json")).unwrap();
    std::fs::File::create(at("var/run/azure-vnet-ipam.json")).unwrap().set_len(1 << 30).unwrap();
    std::fs::write(at("var/run/cilium/state/7/ep_config.json"), "{").unwrap();
    std::os::unix::fs::symlink("/etc", at("var/run/cilium/state/8")).unwrap();
    nix::unistd::mkfifo(&at("var/run/cilium/state/9/ep_config.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let root = || HostRoot::at(tree.path());
    let started = Instant::now();
    for (source, says) in [
        (&mut AwsVpcCniSource::new(root(), None) as &mut dyn Source, "symbolic link"),
        (&mut azure(root()), "longer than"),
        (&mut CiliumSource::new(root()), "2 endpoints of"),
    ] {
        let round = observe(source);
        assert!(matches!(&round.outcome, Outcome::Partial(why) if why.as_str().contains(says)), "{round:?}");
        assert!(round.networks.iter().all(|network| !network.complete), "{round:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// A server on loopback that answers every request with `answer`, given the path.
fn serve(answer: impl Fn(&mut TcpStream, &str) + Send + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap();
            let path = String::from_utf8_lossy(request.get(..length).unwrap_or_default())
                .split(' ')
                .nth(1)
                .unwrap_or_default()
                .to_owned();
            answer(&mut stream, &path);
        }
    });
    Server::Tcp(address)
}

fn ask(server: Server) -> Round {
    observe(&mut AwsVpcCniSource::new(HostRoot::live(), Some(server)))
}

const ENIS: &str = r#"{"0":{"TotalIPs":42,"AssignedIPs":1,"ENIs":{"eni-1":{"IsPrimary":true,"DeviceNumber":0,
  "AvailableIPv4Cidrs":{"10.0.0.5/32":{"IPAddresses":{"10.0.0.5":{"IPAMKey":{"networkName":"aws-cni","containerID":"","ifName":""},
  "IPAMMetadata":{"k8sPodNamespace":"default","k8sPodName":"web-1"}}}}}}}}}"#;

#[test]
fn ipamd_itself_stands_in_where_its_checkpoint_is_not_mounted() {
    let round = ask(serve(|stream, path| {
        let body = if path == "/v1/enis" { ENIS } else { r#"{"WARM_ENI_TARGET":1,"MINIMUM_IP_TARGET":0}"# };
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{body}").unwrap();
    }));
    assert_eq!((round.pool().total, round.pool().assigned), (42, 1));
    assert_eq!(round.pool().targets.present().unwrap().warm_eni, Some(1));
    assert_eq!(round.of("10.0.0.5").pod.as_ref().unwrap().to_string(), "default/web-1");
    assert!(round.degraded().contains("mount `/var/run/aws-node`"), "{}", round.degraded());
}

/// If this fails, whoever has the port can keep the agent waiting or fill its memory.
#[test]
fn a_server_that_hangs_trickles_or_floods_is_given_up_in_time() {
    let started = Instant::now();
    let silent = serve(|_stream, _path| std::thread::sleep(Duration::from_secs(30)));
    let trickle = serve(|stream, _path| {
        while stream.write_all(b"H").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let flood = serve(|stream, _path| while stream.write_all(&[b'x'; 65_536]).is_ok() {});
    let other = serve(|stream, _path| stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n<html>").unwrap());
    for server in [silent, trickle, flood, other] {
        let round = ask(server);
        // Nothing else speaks for the AWS VPC CNI on this machine.
        assert_eq!((round.coverage, round.networks.len()), (Known::Absent, 0));
    }
    assert!(started.elapsed() < 4 * ASK_LIMIT + Duration::from_secs(2), "{:?}", started.elapsed());
}
