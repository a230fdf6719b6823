//! The CNI configuration of a node, as far as host-local's stores need it: which network draws addresses from where.
//!
//! Files are chosen and ordered the way libcni does it: `*.conf`, `*.conflist` and `*.json` by name, the first that names a
//! network wins. What the runtime adds when it calls a plugin (`ipRanges`) is not in any file and is not seen here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use headroom_core::known::Known;
use headroom_core::observe::AddressRange;
use ipnet::IpNet;
use serde_json::Value;

use crate::bounded::{self, Entry, Refusal, shown};
use crate::root::HostRoot;

/// Where host-local keeps its networks unless `dataDir` says otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";
/// Where the configuration is unless told otherwise.
pub const DEFAULT_CONF_DIR: &str = "/etc/cni/net.d";

/// More than any configuration file is long.
const FILE_LIMIT: usize = 1 << 20;
/// More than any node has configuration files.
const FILES_LIMIT: usize = 256;

/// What is wrong with a configuration file. The text continues a sentence that has named the file.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// Not a file that can be read.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Not JSON.
    #[error("is not valid JSON ({0})")]
    Json(String),
    /// The network's name cannot be a directory's name.
    #[error("names its network `{0}`, which cannot be a directory below host-local's dataDir")]
    Name(String),
    /// `dataDir` is not an absolute path without `..`.
    #[error("has the dataDir `{0}`, which is not an absolute path")]
    DataDir(String),
}

/// One network with host-local as its IPAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredNetwork {
    /// The file, as seen on the node.
    pub file: String,
    /// The network's name.
    pub name: String,
    /// `dataDir`, if it is not the default.
    pub data_dir: Option<PathBuf>,
    /// The range sets; unknown where a range cannot be read.
    pub range_sets: Known<Vec<Vec<AddressRange>>>,
}

/// All that the configuration says about host-local.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniConfig {
    /// In the order in which the runtime reads the files.
    pub networks: Vec<ConfiguredNetwork>,
    /// What could not be read; each a sentence.
    pub warnings: Vec<String>,
    /// Networks whose addresses are kept where headroom does not look; each a sentence. That nothing of them is seen does not
    /// mean that nothing of them is used.
    pub elsewhere: Vec<String>,
    /// One of those hands out of the node's own range: how much of it is left is not known.
    pub unread_range: bool,
    /// IPAMs that another source reads, and the file that names each first.
    pub others: BTreeMap<&'static str, String>,
    /// There is no such directory.
    pub missing: bool,
}

/// Reads the configuration directory. A directory that does not exist is an empty one, and said to be missing.
pub fn read(root: &HostRoot, directory: &Path) -> CniConfig {
    let mut config = CniConfig::default();
    let opened = bounded::open_dir(root, directory)
        .and_then(|mut dir| bounded::entries(&mut dir, FILES_LIMIT).map(|entries| (dir, entries)));
    let (dir, (entries, more)) = match opened {
        Ok(opened) => opened,
        Err(Refusal::Missing) => return CniConfig { missing: true, ..config },
        Err(refusal) => {
            config.warnings.push(format!("CNI configuration `{}` {refusal}", directory.display()));
            return config;
        }
    };
    if more {
        config.warnings.push(format!(
            "CNI configuration `{}` has more than {FILES_LIMIT} files; the others were not read",
            directory.display()
        ));
    }
    for Entry { name, .. } in entries.iter().filter(|entry| is_configuration(entry.name.to_bytes())) {
        let file = format!("{}/{}", directory.display(), shown(name.to_bytes()));
        let networks = bounded::read_at(&dir, name.as_c_str(), FILE_LIMIT)
            .map_err(BadConfig::from)
            .and_then(|bytes| parse(&file, &bytes).map(|networks| (networks, bytes)));
        let networks = networks.map(|(networks, bytes)| {
            config.elsewhere.extend(elsewhere(&file, &bytes));
            let named = ipams(&bytes);
            config.unread_range |= named.iter().any(|ipam| UNREAD_RANGE.contains(&ipam.as_str()));
            for ipam in READ_BY_OTHERS.iter().filter(|ipam| named.iter().any(|named| named == *ipam)) {
                config.others.entry(ipam).or_insert_with(|| file.clone());
            }
            networks
        });
        match networks {
            Ok(networks) => config.networks.extend(networks),
            // Replaced by an installer between readdir and open.
            Err(BadConfig::Refused(Refusal::Missing)) => {}
            Err(bad) => config.warnings.push(format!("CNI configuration `{file}` {bad}")),
        }
    }
    config
}

impl CniConfig {
    /// The range sets of a network below `data_dir`, the directory that stands for host-local's default one.
    pub fn range_sets(&self, name: &str, data_dir: &Path) -> Known<Vec<Vec<AddressRange>>> {
        let mut elsewhere = None;
        for network in self.networks.iter().filter(|network| network.name == name) {
            if network.data_dir.as_deref().is_none_or(|configured| configured == data_dir) {
                return network.range_sets.clone();
            }
            elsewhere.get_or_insert(network);
        }
        match elsewhere {
            Some(network) => Known::because(format!(
                "`{}` configures network `{name}` with the dataDir `{}`, not with this one",
                network.file,
                network.data_dir.as_deref().unwrap_or(Path::new(DEFAULT_DATA_DIR)).display()
            )),
            None => Known::because(format!(
                "no readable CNI configuration names network `{name}` with host-local as its ipam; is the CNI configuration elsewhere?"
            )),
        }
    }
}

/// Whether libcni would read a file of this name.
fn is_configuration(name: &[u8]) -> bool {
    [".conf", ".conflist", ".json"].iter().any(|extension| name.ends_with(extension.as_bytes()))
}

/// The host-local networks of one file: at most one, since a file has one name.
///
/// # Errors
/// What makes the file useless.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Vec<ConfiguredNetwork>, BadConfig> {
    let config: Value = serde_json::from_slice(bytes).map_err(|error| BadConfig::Json(error.to_string()))?;
    let single = std::slice::from_ref(&config);
    let plugins = config.get("plugins").and_then(Value::as_array).map_or(single, Vec::as_slice);
    let ipams = plugins
        .iter()
        .filter_map(|plugin| plugin.get("ipam"))
        .filter(|ipam| ipam.get("type").and_then(Value::as_str) == Some("host-local"));
    let mut network: Option<ConfiguredNetwork> = None;
    for ipam in ipams {
        let data_dir = data_dir(ipam)?;
        let sets = range_sets(ipam).unwrap_or_else(|why| Known::because(format!("`{file}` {why}")));
        match &mut network {
            None => {
                let name = config.get("name").and_then(Value::as_str).unwrap_or_default();
                if name.is_empty() || name.contains(['/', '\0']) || matches!(name, "." | "..") {
                    return Err(BadConfig::Name(shown(name.as_bytes())));
                }
                network = Some(ConfiguredNetwork {
                    file: file.to_owned(),
                    name: name.to_owned(),
                    data_dir,
                    range_sets: sets,
                });
            }
            // Two interfaces of one network share its store, hence its ranges.
            Some(network) if network.data_dir == data_dir => join(&mut network.range_sets, sets),
            Some(_elsewhere) => {}
        }
    }
    Ok(network.into_iter().collect())
}

/// IPAMs that keep nothing, and the one that is read here.
const NOT_ELSEWHERE: [&str; 3] = ["host-local", "static", "dhcp"];
/// Those that another source reads.
const READ_BY_OTHERS: [&str; 3] = ["azure-vnet-ipam", "azure-vnet-ipamv6", "azure-cns"];

/// Those that hand out of the node's own range and are not read. Calico's and whereabouts' pools are the cluster's.
const UNREAD_RANGE: [&str; 1] = ["metis"];

/// The IPAMs that a file names.
fn ipams(bytes: &[u8]) -> Vec<String> {
    let Ok(config) = serde_json::from_slice::<Value>(bytes) else { return Vec::new() };
    let single = std::slice::from_ref(&config);
    let plugins = config.get("plugins").and_then(Value::as_array).map_or(single, Vec::as_slice);
    plugins.iter().filter_map(|plugin| plugin.get("ipam")?.get("type")?.as_str()).map(str::to_owned).collect()
}

/// The networks of a file whose IPAM is one that headroom does not read (GKE's metis, Calico, whereabouts), each a sentence.
pub fn elsewhere(file: &str, bytes: &[u8]) -> Vec<String> {
    let Ok(config) = serde_json::from_slice::<Value>(bytes) else { return Vec::new() };
    let name = config.get("name").and_then(Value::as_str).unwrap_or_default();
    ipams(bytes)
        .iter()
        .filter(|ipam| !NOT_ELSEWHERE.contains(&ipam.as_str()) && !READ_BY_OTHERS.contains(&ipam.as_str()))
        .map(|ipam| {
            format!(
                "network `{}` (`{file}`) has its addresses from the ipam `{}`, whose store is not read: how many are used is not known",
                shown(name.as_bytes()),
                shown(ipam.as_bytes())
            )
        })
        .collect()
}

/// Appends range sets, unless they are known already.
fn join(known: &mut Known<Vec<Vec<AddressRange>>>, more: Known<Vec<Vec<AddressRange>>>) {
    match (known, more) {
        (Known::Present(sets), Known::Present(more)) => {
            for set in more {
                if !sets.contains(&set) {
                    sets.push(set);
                }
            }
        }
        (Known::Unknown(_), _) | (_, Known::Absent) => {}
        (known, more) => *known = more,
    }
}

/// `dataDir`, if it is not the default.
fn data_dir(ipam: &Value) -> Result<Option<PathBuf>, BadConfig> {
    let Some(text) = ipam.get("dataDir").and_then(Value::as_str).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    // Collecting the components takes away doubled and trailing slashes.
    let path: PathBuf = Path::new(text).components().collect();
    let plain =
        path.is_absolute() && !text.contains('\0') && !path.components().any(|part| part == Component::ParentDir);
    if plain {
        Ok((path != Path::new(DEFAULT_DATA_DIR)).then_some(path))
    } else {
        Err(BadConfig::DataDir(shown(text.as_bytes())))
    }
}

/// The range sets: the older form `subnet` first, as host-local does, then `ranges`.
fn range_sets(ipam: &Value) -> Result<Known<Vec<Vec<AddressRange>>>, String> {
    let mut sets = Vec::new();
    if ipam.get("subnet").is_some_and(|subnet| !subnet.is_null()) {
        sets.push(vec![range(ipam)?]);
    }
    match ipam.get("ranges") {
        None | Some(Value::Null) => {}
        Some(Value::Array(ranges)) => {
            for set in ranges {
                let set = set.as_array().ok_or("has a range set that is not a list")?;
                sets.push(set.iter().map(range).collect::<Result<Vec<_>, _>>()?);
            }
        }
        Some(_other) => return Err("has `ranges` that are not a list".to_owned()),
    }
    if sets.is_empty() {
        Err("gives host-local no ranges; the runtime may add them".to_owned())
    } else {
        Ok(Known::Present(sets))
    }
}

/// One range.
fn range(value: &Value) -> Result<AddressRange, String> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let address = |key: &str| {
        text(key)
            .map(|text| {
                text.parse::<IpAddr>().map_err(|_not_an_address| {
                    format!("has the {key} `{}`, which is not an address", shown(text.as_bytes()))
                })
            })
            .transpose()
    };
    let subnet = text("subnet").ok_or("has a range without a subnet")?;
    let subnet: IpNet = subnet
        .parse()
        .map_err(|_not_a_prefix| format!("has the subnet `{}`, which is not a prefix", shown(subnet.as_bytes())))?;
    Ok(AddressRange {
        subnet: subnet.trunc(),
        first: address("rangeStart")?,
        last: address("rangeEnd")?,
        gateway: address("gateway")?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks(text: &str) -> Vec<ConfiguredNetwork> {
        parse("10-test.conflist", text.as_bytes()).unwrap()
    }

    fn subnets(network: &ConfiguredNetwork) -> Vec<Vec<String>> {
        let sets = network.range_sets.present().unwrap();
        sets.iter().map(|set| set.iter().map(|range| range.subnet.to_string()).collect()).collect()
    }

    #[test]
    fn gkes_conflist_gives_one_range() {
        let found = networks(
            r#"{"name":"gke-pod-network","cniVersion":"0.3.1","plugins":[
              {"type":"ptp","mtu":1460,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.48.131.0/26"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
              {"type":"portmap","capabilities":{"portMappings":true}}]}"#,
        );
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), &found[0].data_dir), ("gke-pod-network", &None));
        assert_eq!(subnets(&found[0]), [["10.48.131.0/26"]]);
    }

    #[test]
    fn the_older_form_comes_before_the_range_sets() {
        let found = networks(
            r#"{"name":"n","type":"bridge","ipam":{"type":"host-local","dataDir":"/run//cni-ipam-state/",
              "subnet":"10.1.0.0/24","rangeStart":"10.1.0.10","rangeEnd":"10.1.0.20","gateway":"10.1.0.254",
              "ranges":[[{"subnet":"10.2.0.0/24"},{"subnet":"10.3.0.0/24"}],[{"subnet":"fd00::/64"}]]}}"#,
        );
        assert_eq!(found[0].data_dir.as_deref(), Some(Path::new("/run/cni-ipam-state")));
        let config = CniConfig { networks: found.clone(), ..CniConfig::default() };
        assert!(config.range_sets("n", Path::new("/run/cni-ipam-state/")).present().is_some());
        let why = config.range_sets("n", Path::new(DEFAULT_DATA_DIR)).unknown().unwrap().to_string();
        assert!(why.contains("with the dataDir `/run/cni-ipam-state`"), "{why}");
        assert_eq!(subnets(&found[0]), [vec!["10.1.0.0/24"], vec!["10.2.0.0/24", "10.3.0.0/24"], vec!["fd00::/64"]]);
        let first = &found[0].range_sets.present().unwrap()[0][0];
        assert_eq!(first.first, Some("10.1.0.10".parse().unwrap()));
        assert_eq!(first.gateway, Some("10.1.0.254".parse().unwrap()));
    }

    #[test]
    fn a_placeholder_subnet_is_unknown_and_says_which() {
        let found = networks(
            r#"{"name":"k8s-pod-network","plugins":[{"type":"calico","ipam":{"type":"host-local","subnet":"usePodCidr"}}]}"#,
        );
        let why = found[0].range_sets.unknown().unwrap().to_string();
        assert!(why.contains("usePodCidr") && why.contains("10-test.conflist"), "{why}");
    }

    #[test]
    fn other_ipams_and_files_without_plugins_are_no_concern() {
        assert!(networks(r#"{"name":"aws-cni","plugins":[{"type":"aws-cni"}]}"#).is_empty());
        assert!(networks(r#"{"name":"x","plugins":[{"ipam":{"type":"whereabouts"}}]}"#).is_empty());
        assert!(networks("[]").is_empty());
        let metis =
            r#"{"name":"gke-pod-network","plugins":[{"type":"gke","ipam":{"type":"metis"}},{"type":"portmap"}]}"#;
        let said = elsewhere("10-gke.conflist", metis.as_bytes());
        assert!(said[0].contains("`metis`") && said[0].contains("not known"), "{said:?}");
        assert!(elsewhere("f", br#"{"name":"n","ipam":{"type":"host-local"}}"#).is_empty());
        assert!(elsewhere("f", b"{").is_empty());
    }

    #[test]
    fn hostile_configurations_are_named_not_believed() {
        let bad = |text: &str| parse("f", text.as_bytes()).unwrap_err().to_string();
        assert!(bad("{").contains("not valid JSON"));
        assert!(bad(&"[".repeat(100_000)).contains("not valid JSON"));
        assert!(bad(r#"{"name":"../../etc","ipam":{"type":"host-local"}}"#).contains("../../etc"));
        assert!(bad(r#"{"name":"n","ipam":{"type":"host-local","dataDir":"var/lib"}}"#).contains("not an absolute"));
        assert!(
            bad(r#"{"name":"n","ipam":{"type":"host-local","dataDir":"/run/../etc"}}"#).contains("not an absolute")
        );
    }

    #[test]
    fn a_directory_with_bad_files_yields_the_good_ones_and_a_warning_for_each() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(
            at("20-good.conf"),
            r#"{"name":"n","type":"ptp","ipam":{"type":"host-local","subnet":"10.0.0.0/24"}}"#,
        )
        .unwrap();
        std::fs::write(at("10-torn.conflist"), "{\"name\":").unwrap();
        std::fs::write(at("README.md"), "not read").unwrap();
        std::os::unix::fs::symlink("/etc/shadow", at("30-link.conflist")).unwrap();
        nix::unistd::mkfifo(&at("40-fifo.conf"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::File::create(at("50-huge.json")).unwrap().set_len(1 << 30).unwrap();
        let config = read(&HostRoot::live(), dir.path());
        assert_eq!(config.networks.len(), 1);
        let warnings = config.warnings.join("\n");
        assert_eq!(config.warnings.len(), 4, "{warnings}");
        for word in ["10-torn.conflist` is not valid JSON", "symbolic link", "FIFO", "longer than 1048576 bytes"] {
            assert!(warnings.contains(word), "{word}: {warnings}");
        }
        assert!(config.range_sets("n", Path::new("/any")).present().is_some());
        assert!(config.range_sets("m", Path::new("/any")).unknown().unwrap().as_str().contains("network `m`"));
        let missing = CniConfig { missing: true, ..CniConfig::default() };
        assert_eq!(read(&HostRoot::live(), &at("missing")), missing);
    }

    proptest! {
        /// Exercises the parser with JSON-like text. If this fails, a hostile configuration brings the agent down.
        #[test]
        fn any_text_is_read_without_a_panic(text in r#"(\{|\}|\[|\]|"|:|,|name|plugins|ipam|type|host-local|ranges|subnet|10\.0\.0\.0/8|null|1|.){0,60}"#) {
            let _networks = parse("f", text.as_bytes());
        }
    }
}
