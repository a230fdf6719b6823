//! ipamd's checkpoint: who holds which address. The shape is that of `pkg/ipamd/datastore/checkpoint.go` of
//! amazon-vpc-cni-k8s v1.23.1.

use std::net::IpAddr;

use headroom_core::ids::PodName;
use headroom_core::known::Known;
use headroom_core::observe::Reservation;
use headroom_core::time::WallTime;
use serde::Deserialize;

use crate::bounded::shown;
use crate::source::pod_store::{self, BadState};

/// The version that is understood.
const VERSION: &str = "vpc-cni-ipam/1";

/// What a checkpoint says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// A reservation for each row that has an address; their store is left empty.
    pub reservations: Vec<Reservation>,
    /// Which rows could not be understood, in words.
    pub unusable: Option<String>,
}

#[derive(Deserialize)]
struct File {
    version: String,
    #[serde(default)]
    allocations: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    #[serde(default, rename = "containerID")]
    container_id: String,
    #[serde(default, rename = "ifName")]
    ifname: String,
    #[serde(default)]
    ipv4: String,
    #[serde(default)]
    ipv6: String,
    #[serde(default, rename = "allocationTimestamp")]
    allocated_nanos: i64,
    #[serde(default)]
    metadata: Metadata,
}

/// What ipamd remembers of the pod.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Metadata {
    #[serde(default, rename = "k8sPodNamespace")]
    namespace: String,
    #[serde(default, rename = "k8sPodName")]
    name: String,
}

impl Metadata {
    /// The pod, if it is named.
    pub(super) fn pod(self) -> Option<PodName> {
        pod_store::pod(&self.namespace, &self.name)
    }
}

/// Reads a checkpoint.
///
/// # Errors
/// Bytes that are not a checkpoint of a version that is known.
pub fn parse(bytes: &[u8]) -> Result<Checkpoint, BadState> {
    let File { version, allocations } = pod_store::json(bytes)?;
    if version != VERSION {
        return Err(BadState::Version(shown(version.as_bytes())));
    }
    let mut unusable = 0_usize;
    let mut reservations = Vec::with_capacity(allocations.len());
    for row in allocations {
        let text = if row.ipv4.is_empty() { &row.ipv6 } else { &row.ipv4 };
        let Ok(address) = text.parse::<IpAddr>() else {
            unusable += 1;
            continue;
        };
        // Rows that were taken over from the runtime carry `unknown`.
        let ifname = Some(row.ifname.as_str()).filter(|name| *name != "unknown");
        let millis = row.allocated_nanos / 1_000_000;
        reservations.push(Reservation {
            store: "".into(),
            address,
            holder: pod_store::holder(&row.container_id, ifname),
            modified: match millis {
                0 => Known::because("ipamd did not write when it was given"),
                millis => Known::Present(WallTime::from_millis(millis)),
            },
            pod: row.metadata.pod(),
        });
    }
    let unusable = (unusable > 0).then(|| format!("{unusable} allocations have no address that can be understood"));
    Ok(Checkpoint { reservations, unusable })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f2b9c0de1a4f5b6c7d8e9f00112233445566778899aabbccddeeff001122334";

    #[test]
    fn rows_are_reservations_with_their_pods_and_times() {
        let text = format!(
            r#"{{"version":"vpc-cni-ipam/1","allocations":[
              {{"networkName":"aws-cni","containerID":"{ID}","ifName":"eth0","ipv4":"10.0.0.5",
                "allocationTimestamp":1700000000000000000,
                "metadata":{{"k8sPodNamespace":"default","k8sPodName":"web-1","interfacesCount":1}}}},
              {{"networkName":"_migrated-from-cri","containerID":"{ID}","ifName":"unknown","ipv6":"2001:db8::5"}},
              {{"networkName":"aws-cni","containerID":"{ID}","ifName":"eth0","ipv4":"10.0.0"}}]}}"#
        );
        let checkpoint = parse(text.as_bytes()).unwrap();
        let [first, second] = checkpoint.reservations.as_slice() else { panic!("{checkpoint:?}") };
        assert_eq!(first.address, IpAddr::from([10, 0, 0, 5]));
        assert_eq!(first.holder.present().unwrap().ifname.as_deref(), Some("eth0"));
        assert_eq!(first.modified, Known::Present(WallTime::from_secs(1_700_000_000)));
        assert_eq!(first.pod.as_ref().unwrap().to_string(), "default/web-1");
        assert_eq!(second.holder.present().unwrap().ifname, None);
        assert!(second.modified.unknown().is_some() && second.pod.is_none());
        assert!(checkpoint.unusable.unwrap().starts_with("1 allocations"));
    }

    #[test]
    fn other_versions_and_other_files_are_refused_by_name() {
        assert!(parse(br#"{"version":"vpc-cni-ipam/2"}"#).unwrap_err().to_string().contains("`vpc-cni-ipam/2`"));
        assert!(parse(b"{").unwrap_err().to_string().contains("not JSON"));
        assert!(parse(b"[]").is_err());
        assert!(parse("[".repeat(200_000).as_bytes()).is_err());
        let hostile = r#"{"version":"vpc-cni-ipam/1","allocations":[{"containerID":"../../etc","ipv4":"10.0.0.5","metadata":{"k8sPodName":"a\nb","k8sPodNamespace":"x"}}]}"#;
        let checkpoint = parse(hostile.as_bytes()).unwrap();
        assert!(checkpoint.reservations[0].holder.unknown().unwrap().as_str().contains("../../etc"));
        assert_eq!(checkpoint.reservations[0].pod, None, "no pod has such a name");
    }
}
