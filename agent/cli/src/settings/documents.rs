//! Files that say something about the NAT: read, recognised, put together. Who comes first wins.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use headroom_core::model::nat::{BadNatSettings, Described, ObservedPorts};
use headroom_core::time::WallTime;
use headroom_core::words::counted;
use headroom_host::nat_documents::{self, Instance, MAX_BYTES, Said};
use headroom_host::{bounded, clock};

/// What all files say together.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    /// The NAT's settings, and what to know about them.
    pub(crate) described: Described,
    /// What was said of single machines, by name.
    pub(crate) instances: BTreeMap<String, Instance>,
    /// Which files named machines, and of which tools.
    pub(crate) machines_from: Vec<String>,
    /// When machines had the ports that are said of them: as the document says, or when it was saved.
    pub(crate) ports_at: BTreeMap<String, WallTime>,
    /// Where settings are that a NAT may refuse.
    pub(crate) places: Places,
}

/// Where files say something, by the name of the setting: `minPortsPerVm` in `nat.json`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places(BTreeMap<&'static str, String>);

impl Places {
    /// A place that wins over those that are known.
    pub(crate) fn put(&mut self, setting: &'static str, place: String) {
        self.0.insert(setting, place);
    }

    /// What the NAT refuses, with the places in files of what no flag set.
    pub(crate) fn blame(&self, bad: BadNatSettings, set: &Described) -> anyhow::Error {
        let fields = bad.fields();
        let there =
            fields.iter().filter(|field| !set.says(field)).filter_map(|field| Some((field, self.0.get(field)?)));
        let told: Vec<String> = there.map(|(field, place)| format!("`{field}` is {place}")).collect();
        let told = if told.is_empty() { String::new() } else { format!(" ({})", told.join(", ")) };
        anyhow::anyhow!("check the NAT settings: {bad}{told}")
    }
}

/// Reads them.
///
/// # Errors
/// A file that cannot be read, or says nothing about a NAT; files of different NATs.
pub(crate) fn read(paths: &[PathBuf], gateway: Option<&str>) -> anyhow::Result<Documents> {
    let mut all = Documents::default();
    for path in paths {
        let name = if path == Path::new("-") { "standard input".to_owned() } else { format!("`{}`", path.display()) };
        let (bytes, saved) = bytes(path).with_context(|| format!("read {name}"))?;
        let said = nat_documents::read(&bytes, gateway).map_err(|bad| anyhow::anyhow!("{name} {bad}"))?;
        all.take(said, &name, saved)?;
    }
    // As many as it has now, of those that it adds as it needs them.
    if all.described.auto_ips == Some(true)
        && let Some(ips) = all.described.nat_ips.take().or(all.described.least_ips.take())
    {
        let verb = if ips == 1 { "NAT IP is" } else { "NAT IPs are" };
        all.described.notes.push(format!("{ips} {verb} in use now; the gateway adds more by itself"));
    }
    Ok(all)
}

/// What is in a file, and when it was saved.
fn bytes(path: &Path) -> anyhow::Result<(Vec<u8>, WallTime)> {
    if path != Path::new("-") {
        // The user named it, so that a link is meant; what it leads to still has to be a file.
        let path = std::fs::canonicalize(path)?;
        let saved = wall(std::fs::metadata(&path)?.modified()?);
        let bytes = bounded::read(&path, MAX_BYTES).map_err(|refusal| anyhow::anyhow!("it {refusal}"))?;
        return Ok((bytes, saved));
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_BYTES {
        bail!("it has more than {MAX_BYTES} bytes");
    }
    Ok((bytes, clock::now().wall))
}

fn wall(time: SystemTime) -> WallTime {
    let millis = |span: std::time::Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    WallTime::from_millis(match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => millis(after),
        Err(before) => millis(before.duration()).saturating_neg(),
    })
}

impl Documents {
    fn take(&mut self, said: Said, name: &str, saved: WallTime) -> anyhow::Result<()> {
        if let (Some(first), Some(profile)) = (self.described.profile, said.described.profile)
            && first != profile
        {
            bail!("{name} ({}) is about {}, the files before it about {}", said.tool, profile.title(), first.title());
        }
        for (setting, place) in said.places {
            if said.described.says(setting) && !self.described.says(setting) {
                self.places.0.insert(setting, format!("`{place}` of {name}"));
            }
        }
        let told = |note: String| format!("{name}: {note}");
        let notes = said.notes.into_iter().map(told).collect();
        let ip_notes = said.described.ip_notes.iter().cloned().map(told).collect();
        let moment = |at: Option<&str>| humantime::parse_rfc3339_weak(at?).ok().map(wall);
        let failed = said.allocation_failed.map(|failed| moment(failed.at.as_deref()).unwrap_or(saved));
        let described =
            Described { notes, ip_notes, missing_ips: said.missing_ips, allocation_failed: failed, ..said.described };
        self.described = std::mem::take(&mut self.described).or(described);
        if !said.instances.is_empty() {
            self.machines_from.push(format!("{name} ({})", said.tool));
        }
        for (machine, instance) in said.instances {
            if instance.ports.is_some() {
                let measured = || moment(instance.at.as_deref()).unwrap_or(saved);
                self.ports_at.entry(machine.clone()).or_insert_with(measured);
            }
            let known = self.instances.entry(machine).or_default();
            known.addresses.extend(instance.addresses);
            known.ports = known.ports.or(instance.ports);
            known.used = known.used.max(instance.used);
            known.at = known.at.take().or(instance.at);
        }
        Ok(())
    }

    /// What they say of the node with that name or one of these addresses.
    pub(crate) fn of_node(mut self, name: Option<&str>, addresses: &BTreeSet<IpAddr>) -> Described {
        if self.instances.is_empty() {
            return self.described;
        }
        let from = self.machines_from.join(", ");
        let by_name = name.and_then(|name| self.instances.get_key_value(name));
        let short = name.and_then(|name| name.split('.').next()).and_then(|name| self.instances.get_key_value(name));
        let by_address = || self.instances.iter().find(|(_, instance)| !instance.addresses.is_disjoint(addresses));
        match by_name.or(short).or_else(by_address) {
            Some((machine, Instance { ports: Some(ports), at, .. })) => {
                let at = at.as_ref().map_or_else(String::new, |at| format!(" at {at}"));
                let why = format!("as {from} has it for {machine}{at}");
                let at = self.ports_at.get(machine).copied();
                self.described.observed = Some(ObservedPorts { ports: *ports, why, at });
            }
            Some(_) => {}
            None => {
                let node = name.unwrap_or("this node");
                self.described
                    .notes
                    .push(format!("{node} is not among the {} of {from}", counted(self.instances.len(), "machine")));
            }
        }
        self.described
    }
}
