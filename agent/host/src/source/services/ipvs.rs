//! Services of IPVS (`/proc/net/ip_vs`, `net/netfilter/ipvs/ip_vs_ctl.c`), and kube-proxy's sets of NodePorts.

use std::io;
use std::ops::ControlFlow;
use std::time::Instant;

use headroom_core::flow::Protocol;
use headroom_core::observe::{NodePort, RuleFamily, ServiceProxy};
use headroom_core::ports::PortRange;

use super::Reading;
use crate::netlink::ipset;
use crate::netlink::query::{Query, QueryError};
use crate::root::HostRoot;
use crate::source::lines::{Lines, Step, own_table};
use crate::source::rules::symbols;

/// Ten thousand Services with a hundred Endpoints each have 70 MB.
const TABLE_LIMIT_BYTES: usize = 64 << 20;
/// kube-proxy's sets of NodePorts (`pkg/proxy/ipvs/ipset.go`), for IPv4 and IPv6.
const SETS: [(&str, RuleFamily, Protocol); 6] = [
    ("KUBE-NODE-PORT-TCP", RuleFamily::Ip, Protocol::TCP),
    ("KUBE-NODE-PORT-UDP", RuleFamily::Ip, Protocol::UDP),
    ("KUBE-NODE-PORT-SCTP-HASH", RuleFamily::Ip, Protocol::SCTP),
    ("KUBE-6-NODE-PORT-TCP", RuleFamily::Ip6, Protocol::TCP),
    ("KUBE-6-NODE-PORT-UDP", RuleFamily::Ip6, Protocol::UDP),
    ("KUBE-6-NODE-PORT-SCTP-HASH", RuleFamily::Ip6, Protocol::SCTP),
];

/// Reads Services of IPVS, if there are any.
pub(super) fn read(reading: &mut Reading, root: &HostRoot, range: PortRange, deadline: Instant) {
    let path = own_table(root, "ip_vs");
    let services = match services(root, TABLE_LIMIT_BYTES, deadline) {
        Ok(Some(services)) => services,
        Ok(None) if root.is_live() => return,
        // The file is there where IPVS is: whoever captured the tree may have left it out.
        Ok(None) => {
            return reading.missing.push(format!("`{}` is not in this tree: IPVS may have Services", path.display()));
        }
        Err(why) => return reading.missing.push(format!("`{}`: {why}", path.display())),
    };
    if services.is_empty() {
        return;
    }
    reading.proxies.push(ServiceProxy::Ipvs);
    let mut push = |(family, protocol, port)| {
        reading.node_ports.push(NodePort { proxy: ServiceProxy::Ipvs, family, protocol, port, service: None });
    };
    match sets(root, deadline) {
        Ok(Some(ports)) => {
            ports.into_iter().for_each(&mut push);
            reading.seen.push(format!("{} Services of IPVS, NodePorts by ipset", services.len()));
        }
        // Somebody else's IPVS, or sets that cannot be read.
        outcome => {
            services.iter().copied().filter(|(.., port)| range.contains(*port)).for_each(&mut push);
            reading.seen.push(format!("{} Services of IPVS, NodePorts by their range", services.len()));
            if let Err(why) = outcome {
                reading.missing.push(format!("which Services of IPVS are NodePorts: {why}"));
            }
        }
    }
}

/// A port of a Service: whose packets it is for, protocol and number.
pub type ServicePort = (RuleFamily, Protocol, u16);

/// The port of every Service; `None` where there is no IPVS.
fn services(root: &HostRoot, limit_bytes: usize, deadline: Instant) -> Result<Option<Vec<ServicePort>>, String> {
    let mut lines = match Lines::open(root, &own_table(root, "ip_vs"), limit_bytes) {
        Ok(lines) => lines,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut services = Vec::new();
    for read in 1_usize.. {
        match lines.step().map_err(|error| error.to_string())? {
            Step::Line(line) => services.extend(service(line)),
            Step::TooLong => return Err("a line is too long".to_owned()),
            Step::Limit => return Err(format!("it has {limit_bytes} bytes or more")),
            Step::End => break,
        }
        if read.is_multiple_of(1024) && Instant::now() > deadline {
            return Err("reading it takes too long".to_owned());
        }
    }
    services.sort_unstable();
    services.dedup();
    Ok(Some(services))
}

/// `TCP  C0000201:7580 rr` and `TCP  [2001:0db8:…:0001]:7580 rr`; other lines are headings, Endpoints (`  -> …`) and marks.
pub fn service(line: &[u8]) -> Option<ServicePort> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let protocol = match words.next()? {
        "TCP" => Protocol::TCP,
        "UDP" => Protocol::UDP,
        "SCTP" => Protocol::SCTP,
        _ => return None,
    };
    let (address, port) = words.next()?.rsplit_once(':')?;
    let family = if address.starts_with('[') { RuleFamily::Ip6 } else { RuleFamily::Ip };
    Some((family, protocol, u16::from_str_radix(port, 16).ok()?))
}

/// The ports in kube-proxy's sets; `None` where it has none.
///
/// # Errors
/// Why they cannot be read.
pub fn sets(root: &HostRoot, deadline: Instant) -> Result<Option<Vec<ServicePort>>, String> {
    if !root.is_live() || !symbols::has(root, &symbols::IP_SET)? {
        return Ok(None);
    }
    let (mut ports, mut there) = (Vec::new(), false);
    for (set, family, protocol) in SETS {
        match list(set, deadline, |port| ports.push((family, protocol, port))) {
            Ok(()) => there = true,
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(there.then_some(ports))
}

/// Shows the ports in a set.
fn list(set: &str, deadline: Instant, mut each: impl FnMut(u16)) -> Result<(), QueryError> {
    let mut query = Query::open()?;
    let request = ipset::request(set, query.next_sequence());
    query.list("ports of an ipset", &request, deadline, |message| {
        ipset::ports(message, &mut each)?;
        Ok(ControlFlow::Continue(()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::services::read;
    use proptest::prelude::*;

    const TABLE: &str = "IP Virtual Server version 1.2.1 (size=4096)\n\
        Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
        TCP  C0000201:7580 rr \n  -> 0A400005:1F90      Masq    1      0          0         \n\
        TCP  0A600001:01BB rr \n\
        UDP  [2001:0db8:0000:0000:0000:0000:0000:0001]:7558 rr \nFWM  00000001 wlc \n";

    /// Exercises the table as `net/netfilter/ipvs/ip_vs_ctl.c` prints it. If this fails, NodePorts of ipvs are not seen.
    #[test]
    fn services_in_the_range_are_node_ports_where_no_set_tells() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(place.path().join("proc/net")).unwrap();
        std::fs::write(place.path().join("proc/net/ip_vs"), TABLE).unwrap();
        let reading = read(&HostRoot::at(place.path()), PortRange::NODE_PORTS);
        let ports: Vec<_> = reading.node_ports.iter().map(|port| (port.family, port.protocol, port.port)).collect();
        let expected = [(RuleFamily::Ip, Protocol::TCP, 30_080), (RuleFamily::Ip6, Protocol::UDP, 30_040)];
        assert_eq!(ports, expected);
        assert_eq!(reading.proxies, [ServiceProxy::Ipvs]);
        assert_eq!(reading.missing, ["`/sys/fs/bpf/tc/globals` is not in this tree: Cilium may have Services"]);
        // No IPVS, and one without Services: nobody is a proxy.
        std::fs::write(place.path().join("proc/net/ip_vs"), TABLE.lines().next().unwrap()).unwrap();
        assert!(read(&HostRoot::at(place.path()), PortRange::NODE_PORTS).proxies.is_empty());
        // Left out of a captured tree: nobody knows.
        std::fs::remove_file(place.path().join("proc/net/ip_vs")).unwrap();
        let nothing = read(&HostRoot::at(place.path()), PortRange::NODE_PORTS);
        assert!(nothing.proxies.is_empty());
        assert_eq!(nothing.missing.first().unwrap(), "`/proc/net/ip_vs` is not in this tree: IPVS may have Services");
    }

    /// Exercises the bounds of size and time. If this fails, half a table is taken for the whole one, or the agent is held up.
    #[test]
    fn a_table_is_read_up_to_the_bound_and_until_the_deadline() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(place.path().join("proc/net")).unwrap();
        let write = |table: &str| std::fs::write(place.path().join("proc/net/ip_vs"), table).unwrap();
        let root = HostRoot::at(place.path());
        let (past, future) = (Instant::now(), Instant::now() + std::time::Duration::from_secs(600));
        write(TABLE);
        assert_eq!(services(&root, TABLE.len() + 1, future).unwrap().map(|services| services.len()), Some(3));
        let error = services(&root, TABLE.len(), future).unwrap_err();
        assert_eq!(error, format!("it has {} bytes or more", TABLE.len()));
        // Endpoints count as Services do.
        write(&"  -> 0A400005:1F90      Masq    1      0          0         \n".repeat(1023));
        assert_eq!(services(&root, TABLE_LIMIT_BYTES, past), Ok(Some(Vec::new())));
        write(&"  -> 0A400005:1F90      Masq    1      0          0         \n".repeat(1024));
        assert_eq!(services(&root, TABLE_LIMIT_BYTES, past), Err("reading it takes too long".to_owned()));
    }

    proptest! {
        #[test]
        fn any_line_is_a_service_or_none(line in prop::collection::vec(any::<u8>(), 0..80)) {
            let _service = service(&line);
        }
    }
}
