//! What ipamd's introspection server answers, in every shape it had: `pkg/ipamd/introspect.go` and
//! `pkg/ipamd/datastore/data_store.go` of amazon-vpc-cni-k8s up to v1.23.1.
//!
//! `/v1/enis` is one object before v1.20 and one for each network card since. How many addresses an interface has follows
//! from its prefixes; the addresses it lists are only those that were handed out once. One is held by a pod if its key has a
//! network; since v1.23 the container in it is blank.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use headroom_core::known::Known;
use headroom_core::observe::{Pool, PoolInterface, Reservation, WarmTargets};
use headroom_core::time::WallTime;
use ipnet::Ipv4Net;
use serde::Deserialize;
use serde_json::Value;

use super::checkpoint::Metadata;
use crate::source::pod_store::{self, BadState};

/// `IP_COOLDOWN_PERIOD`, unless set otherwise: so long an address that a pod gave back is not handed out.
const COOLDOWN: Duration = Duration::from_secs(30);

/// One network card of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its number; the first one is 0.
    pub index: u32,
    /// What is attached to it; its targets are left unknown.
    pub pool: Pool,
    /// The addresses that pods hold; their store is left empty.
    pub reservations: Vec<Reservation>,
}

#[derive(Deserialize)]
struct Enis {
    #[serde(rename = "TotalIPs")]
    total: u64,
    #[serde(rename = "AssignedIPs")]
    assigned: u64,
    #[serde(default, rename = "ENIs", alias = "ENIIPPools")]
    interfaces: BTreeMap<String, Option<Eni>>,
}

#[derive(Deserialize)]
struct Eni {
    #[serde(default, rename = "IsPrimary")]
    primary: bool,
    #[serde(default, rename = "DeviceNumber")]
    device: i64,
    #[serde(default, rename = "AvailableIPv4Cidrs")]
    cidrs: Option<BTreeMap<String, Option<CidrInfo>>>,
    /// Before v1.9: addresses without prefixes.
    #[serde(default, rename = "IPv4Addresses")]
    addresses: Option<BTreeMap<String, Option<Address>>>,
}

#[derive(Deserialize)]
struct CidrInfo {
    #[serde(default, rename = "IPAddresses")]
    addresses: Option<BTreeMap<String, Option<Address>>>,
    #[serde(default, rename = "IsPrefix")]
    prefix: bool,
}

#[derive(Deserialize)]
struct Address {
    #[serde(default, rename = "IPAMKey")]
    key: Key,
    #[serde(default, rename = "IPAMMetadata")]
    metadata: Metadata,
    /// Before v1.7 instead of a key.
    #[serde(default, rename = "Assigned")]
    assigned: bool,
    #[serde(default, rename = "AssignedTime")]
    assigned_at: String,
    #[serde(default, rename = "UnassignedTime")]
    unassigned_at: String,
}

#[derive(Default, Deserialize)]
struct Key {
    #[serde(default, rename = "networkName")]
    network: String,
    #[serde(default, rename = "containerID")]
    container: String,
    #[serde(default, rename = "ifName")]
    ifname: String,
}

impl Address {
    fn is_assigned(&self) -> bool {
        self.assigned || !self.key.network.is_empty()
    }

    fn is_cooling(&self, now: WallTime) -> bool {
        !self.is_assigned() && time(&self.unassigned_at).and_then(|at| now.since(at)).is_some_and(|ago| ago < COOLDOWN)
    }

    fn reservation(self, address: IpAddr) -> Reservation {
        Reservation {
            store: "".into(),
            address,
            holder: match self.key.container.as_str() {
                "" => Known::because("ipamd does not tell for which container it is"),
                container => pod_store::holder(container, Some(&self.key.ifname)),
            },
            modified: match time(&self.assigned_at) {
                Some(at) => Known::Present(at),
                None => Known::because("ipamd does not tell since when"),
            },
            pod: self.metadata.pod(),
        }
    }
}

/// The network cards that `/v1/enis` tells of.
///
/// # Errors
/// Bytes of another shape.
pub fn cards(bytes: &[u8], now: WallTime) -> Result<Vec<Card>, BadState> {
    let value: Value = pod_store::json(bytes)?;
    let flat = value.get("TotalIPs").is_some();
    let by_card: BTreeMap<String, Value> = if flat { BTreeMap::from([("0".to_owned(), value)]) } else { shape(value)? };
    if by_card.is_empty() {
        return Err(BadState::Missing("network card"));
    }
    let mut cards = by_card
        .into_iter()
        .map(|(index, value)| {
            let index = index.parse().map_err(|_not_a_number| BadState::Missing("number of a network card"))?;
            shape(value).map(|enis| card(index, enis, now))
        })
        .collect::<Result<Vec<Card>, BadState>>()?;
    cards.sort_by_key(|card| card.index);
    Ok(cards)
}

fn shape<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, BadState> {
    serde_json::from_value(value).map_err(|error| BadState::Json(error.to_string()))
}

fn card(index: u32, enis: Enis, now: WallTime) -> Card {
    let mut interfaces: Vec<(i64, PoolInterface)> = Vec::new();
    let mut reservations = Vec::new();
    let mut prefixes = false;
    for (id, eni) in enis.interfaces.into_iter().filter_map(|(id, eni)| Some((id, eni?))) {
        let mut interface = PoolInterface { id, primary: eni.primary, total: 0, assigned: 0, cooling: 0 };
        let single = eni
            .addresses
            .into_iter()
            .flatten()
            .map(|(text, address)| (format!("{text}/32"), false, vec![(text, address)]));
        let ranges = eni.cidrs.into_iter().flatten().filter_map(|(text, info)| {
            let info = info?;
            Some((text, info.prefix, info.addresses.into_iter().flatten().collect::<Vec<_>>()))
        });
        for (range, is_prefix, addresses) in single.chain(ranges) {
            prefixes |= is_prefix;
            let size = range.parse::<Ipv4Net>().map_or(0, |range| 1_u64 << (32 - range.prefix_len()));
            interface.total = interface.total.saturating_add(size);
            for (text, address) in addresses.into_iter().filter_map(|(text, address)| Some((text, address?))) {
                interface.cooling += u64::from(address.is_cooling(now));
                if address.is_assigned() {
                    interface.assigned += 1;
                    reservations.extend(text.parse().ok().map(|parsed| address.reservation(parsed)));
                }
            }
        }
        interfaces.push((eni.device, interface));
    }
    interfaces.sort_by(|(a, one), (b, other)| (a, &one.id).cmp(&(b, &other.id)));
    let interfaces: Vec<PoolInterface> = interfaces.into_iter().map(|(_, interface)| interface).collect();
    let pool = Pool {
        total: enis.total,
        assigned: enis.assigned,
        cooling: interfaces.iter().map(|interface| interface.cooling).sum(),
        interfaces,
        prefixes,
        targets: Known::because("ipamd's settings were not read"),
    };
    Card { index, pool, reservations }
}

/// What `/v1/ipamd-env-settings` tells. Up to v1.23 it leaves MINIMUM_IP_TARGET out: then what the settings ask for is known
/// only where nothing but WARM_IP_TARGET can matter, which is never certain.
pub fn targets(bytes: &[u8]) -> Known<WarmTargets> {
    let settings: BTreeMap<String, Value> = match pod_store::json(bytes) {
        Ok(settings) => settings,
        Err(bad) => return Known::because(format!("what ipamd says of its settings {bad}")),
    };
    let number = |name: &str| match settings.get(name)? {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        _other => None,
    };
    let target = |name: &str| number(name).and_then(|number| u32::try_from(number).ok());
    let (warm_eni, warm_ip) = (target("WARM_ENI_TARGET"), target("WARM_IP_TARGET"));
    if !settings.contains_key("MINIMUM_IP_TARGET") {
        let known = [("WARM_ENI_TARGET", warm_eni), ("WARM_IP_TARGET", warm_ip)];
        let mut said: Vec<String> =
            known.iter().filter_map(|(name, value)| Some(format!("{name}={}", (*value)?))).collect();
        said.push("MINIMUM_IP_TARGET is not told by ipamd".to_owned());
        return Known::because(said.join(", "));
    }
    Known::Present(WarmTargets {
        warm_eni,
        warm_ip,
        minimum_ip: target("MINIMUM_IP_TARGET"),
        warm_prefix: target("WARM_PREFIX_TARGET"),
        prefix_delegation: settings
            .get("ENABLE_PREFIX_DELEGATION")
            .is_some_and(|value| value.as_bool() == Some(true) || value.as_str() == Some("true")),
    })
}

/// A time as Go writes it in UTC; `0001-01-01T00:00:00Z` is none.
fn time(text: &str) -> Option<WallTime> {
    let at: SystemTime = humantime::parse_rfc3339(text).ok()?;
    let millis = at.duration_since(UNIX_EPOCH).ok()?.as_millis();
    i64::try_from(millis).ok().map(WallTime::from_millis)
}

#[cfg(test)]
mod tests;
