//! libcni's cache of results: for which pod a container got which addresses.
//!
//! An entry is written when the whole chain of plugins has succeeded in ADD, and removed when all have in DEL. So it names
//! the pod of a reservation that leaked in a DEL; one that leaked in an ADD has none. It is evidence, not a verdict. The
//! shape is that of `libcni/api.go` of containernetworking/cni v1.3.0. A round reads at most [`ENTRIES_LIMIT`] files and takes
//! at most [`ROUND_LIMIT`].

use std::path::Path;
use std::time::Duration;

use headroom_core::ids::{ContainerId, PodName};
use headroom_core::known::Why;
use headroom_core::observe::{Attachment, Fact, Outcome, Snapshot, SourceId};
use serde::Deserialize;

use crate::bounded::{self, Refusal, shown};
use crate::clock;
use crate::root::HostRoot;
use crate::source::host_local::holder::is_container_id;
use crate::source::pod_store::{self, BadState};
use crate::source::{Sink, Source, absent, degraded, observation, unreadable, works};

/// Where containerd and CRI-O keep it, and where cri-dockerd does.
pub const DIRECTORIES: [&str; 2] = ["/var/lib/cni/results", "/var/lib/cni/cache/results"];
/// How many files are read: sixty-four times what a node has pods.
pub const ENTRIES_LIMIT: usize = 16_384;
/// How long one round may take.
pub const ROUND_LIMIT: Duration = Duration::from_secs(2);
/// An entry holds its network's configuration in base64: a few kilobytes.
const FILE_LIMIT: usize = 256 << 10;
/// After how many files the clock is looked at.
const FILES_PER_CLOCK: usize = 64;

/// libcni's cache.
#[derive(Debug)]
pub struct CniCacheSource {
    root: HostRoot,
}

impl CniCacheSource {
    /// Reads the caches below [`DIRECTORIES`].
    pub fn new(root: HostRoot) -> Self {
        Self { root }
    }

    /// Reads one directory; whether it is there.
    fn read(&self, directory: &str, missing: &mut Vec<String>, emit: &mut dyn FnMut(Fact)) -> bool {
        let deadline = clock::node_time().after(ROUND_LIMIT);
        let opened = bounded::open_dir(&self.root, Path::new(directory))
            .and_then(|mut dir| bounded::entries(&mut dir, ENTRIES_LIMIT).map(|entries| (dir, entries)));
        let (dir, (entries, more)) = match opened {
            Ok(opened) => opened,
            Err(Refusal::Missing) => return false,
            Err(refusal) => {
                missing.push(format!("`{directory}` {refusal}"));
                return false;
            }
        };
        if more {
            missing.push(format!("`{directory}` has more than {ENTRIES_LIMIT} entries"));
        }
        let (mut bad, mut first_bad) = (0_usize, None);
        for (done, entry) in entries.iter().enumerate() {
            if done % FILES_PER_CLOCK == FILES_PER_CLOCK - 1 && clock::node_time() > deadline {
                missing.push(format!("the time ran out after {done} of {} entries of `{directory}`", entries.len()));
                break;
            }
            let read = bounded::read_at(&dir, entry.name.as_c_str(), FILE_LIMIT);
            let parsed = match read {
                // Removed meanwhile.
                Err(Refusal::Missing) => continue,
                Err(refusal) => Err(refusal.to_string()),
                Ok(bytes) => parse(&bytes).map_err(|bad| bad.to_string()),
            };
            match parsed {
                Ok(Some(attachment)) => emit(Fact::Attachment(attachment)),
                Ok(None) => {}
                Err(why) => {
                    bad += 1;
                    first_bad.get_or_insert_with(|| format!("`{}` {why}", shown(entry.name.to_bytes())));
                }
            }
        }
        missing.extend(first_bad.map(|first| format!("{bad} entries of `{directory}` cannot be read; {first}")));
        true
    }
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    kind: String,
    #[serde(default, rename = "containerId")]
    container: String,
    #[serde(default, rename = "ifName")]
    ifname: String,
    #[serde(default, rename = "networkName")]
    network: String,
    #[serde(default, rename = "cniArgs")]
    args: Option<Vec<Vec<String>>>,
    #[serde(default)]
    result: Option<CniResult>,
}

#[derive(Deserialize)]
struct CniResult {
    #[serde(default)]
    ips: Option<Vec<CniAddress>>,
    /// cniVersion 0.2.0 and before.
    #[serde(default)]
    ip4: Option<OldAddress>,
    #[serde(default)]
    ip6: Option<OldAddress>,
}

#[derive(Deserialize)]
struct CniAddress {
    #[serde(default)]
    address: String,
}

#[derive(Deserialize)]
struct OldAddress {
    #[serde(default)]
    ip: String,
}

/// The attachment that an entry of the cache tells of; `None` for one of the older form, a result that names no container.
///
/// # Errors
/// Bytes of another shape.
pub fn parse(bytes: &[u8]) -> Result<Option<Attachment>, BadState> {
    let entry: Entry = pod_store::json(bytes)?;
    if entry.kind != "cniCacheV1" {
        return if entry.kind.is_empty() { Ok(None) } else { Err(BadState::Version(shown(entry.kind.as_bytes()))) };
    }
    if !is_container_id(&entry.container) {
        return Err(BadState::Missing("container id"));
    }
    let args = entry.args.unwrap_or_default();
    let arg =
        |name: &str| args.iter().find(|pair| pair.first().is_some_and(|key| key == name)).and_then(|pair| pair.get(1));
    let pod: Option<PodName> =
        arg("K8S_POD_NAMESPACE").zip(arg("K8S_POD_NAME")).and_then(|(namespace, name)| pod_store::pod(namespace, name));
    let result = entry.result.unwrap_or(CniResult { ips: None, ip4: None, ip6: None });
    let texts = result.ips.into_iter().flatten().map(|ip| ip.address);
    let texts = texts.chain([result.ip4, result.ip6].into_iter().flatten().map(|old| old.ip));
    // With the length of the prefix behind it.
    let address = |text: String| text.split('/').next().and_then(|address| address.parse().ok());
    Ok(Some(Attachment {
        container: ContainerId(entry.container),
        ifname: shown(entry.ifname.as_bytes()),
        network: shown(entry.network.as_bytes()),
        pod,
        addresses: texts.filter_map(address).collect(),
    }))
}

impl Source for CniCacheSource {
    fn id(&self) -> SourceId {
        SourceId::CniCache
    }

    /// Coverage comes last: what is missing is known only after the reading.
    fn observe(&mut self, sink: Sink<'_>) {
        let mut emit = |fact| sink(observation(SourceId::CniCache, fact));
        emit(Fact::Begin(Snapshot::Attachments));
        let mut missing = Vec::new();
        let found: Vec<&str> =
            DIRECTORIES.into_iter().filter(|directory| self.read(directory, &mut missing, &mut emit)).collect();
        let why = missing.join("; ");
        let outcome = match (found.is_empty(), missing.is_empty()) {
            (_, true) => Outcome::Complete,
            (false, false) => Outcome::Partial(Why::new(why.as_str())),
            (true, false) => Outcome::Failed(Why::new(why.as_str())),
        };
        // A node without a cache tells nothing about who is remembered in it.
        let outcome = if found.is_empty() && missing.is_empty() {
            Outcome::Partial(Why::new("there is no cache here"))
        } else {
            outcome
        };
        emit(Fact::End { snapshot: Snapshot::Attachments, outcome });
        let how = format!("results below `{}`", found.join("`, `"));
        emit(match (found.is_empty(), missing.is_empty()) {
            (true, true) => absent(),
            (true, false) => unreadable(why),
            (false, true) => works(how),
            (false, false) => degraded(how, why),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const ID: &str = "3f2b9c0de1a4f5b6c7d8e9f00112233445566778899aabbccddeeff001122334";

    #[test]
    fn an_entry_names_the_pod_and_its_addresses() {
        let text = format!(
            r#"{{"kind":"cniCacheV1","containerId":"{ID}","config":"e30=","ifName":"eth0","networkName":"gke-pod-network",
             "netns":"/var/run/netns/cni-1","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","default"],
             ["K8S_POD_NAME","web-1"],["K8S_POD_INFRA_CONTAINER_ID","{ID}"]],"capabilityArgs":{{"portMappings":[]}},
             "result":{{"cniVersion":"0.3.1","interfaces":[],"ips":[{{"version":"4","address":"10.48.131.5/26","gateway":"10.48.131.1"}},
             {{"version":"6","address":"fd00::5/64"}}],"routes":[],"dns":{{}}}}}}"#
        );
        let attachment = parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(attachment.container.0, ID);
        assert_eq!(attachment.pod.unwrap().to_string(), "default/web-1");
        assert_eq!(attachment.network, "gke-pod-network");
        assert_eq!(attachment.addresses, ["10.48.131.5", "fd00::5"].map(|text| text.parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn an_older_entry_names_nobody_and_a_newer_one_is_not_guessed_at() {
        assert_eq!(parse(br#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.5/24"}}"#).unwrap(), None);
        assert!(parse(br#"{"kind":"cniCacheV2","containerId":"a"}"#).unwrap_err().to_string().contains("cniCacheV2"));
        assert!(parse(br#"{"kind":"cniCacheV1","containerId":"../x"}"#).is_err());
        assert!(parse(b"\xff").is_err());
        let odd =
            br#"{"kind":"cniCacheV1","containerId":"a","cniArgs":[["K8S_POD_NAME"],[]],"result":null,"ifName":"e\n"}"#;
        let odd = parse(odd).unwrap().unwrap();
        assert_eq!((odd.pod, odd.ifname.as_str(), odd.addresses.len()), (None, "e\\n", 0));
    }

    #[test]
    fn a_cache_with_bad_entries_yields_the_good_ones() {
        let tree = tempfile::tempdir().unwrap();
        let at = tree.path().join("var/lib/cni/results");
        std::fs::create_dir_all(&at).unwrap();
        std::fs::write(at.join("net-a-eth0"), r#"{"kind":"cniCacheV1","containerId":"a","ifName":"eth0"}"#).unwrap();
        std::fs::write(at.join("torn"), "{").unwrap();
        std::os::unix::fs::symlink("/etc/shadow", at.join("link")).unwrap();
        std::fs::File::create(at.join("huge")).unwrap().set_len(1 << 30).unwrap();
        let mut facts = Vec::new();
        CniCacheSource::new(HostRoot::at(tree.path())).observe(&mut |observation| facts.push(observation.fact));
        let attachments = facts.iter().filter(|fact| matches!(fact, Fact::Attachment(_))).count();
        assert_eq!(attachments, 1, "{facts:?}");
        let partial = facts.iter().any(|fact| matches!(fact, Fact::End { outcome: Outcome::Partial(why), .. } if why.as_str().contains("3 entries")));
        assert!(partial, "{facts:?}");
    }
}
