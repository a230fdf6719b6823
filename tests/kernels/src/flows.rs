//! Subject `conntrack` over netlink: the table that stands in wherever programs cannot count, against flows made here.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use headroom_core::flow::{Endpoint, Protocol};
use headroom_core::observe::{ConntrackEntry, Fact, Outcome, Snapshot};
use headroom_host::netlink::conntrack::{Content, Only, content, is_filtered};
use headroom_host::netlink::message::Messages;
use headroom_host::netlink::socket::{DATAGRAM_BYTES, Dump, Received};
use headroom_host::root::HostRoot;
use headroom_host::source::Source as _;
use headroom_host::source::conntrack::{ConntrackSource, Options};

use crate::check::Check;
use crate::load;
use crate::network::{OUTSIDE, Scene};
use crate::tcp::{PORTS, destinations};

pub(crate) const CHECKS: [Check; 3] = [
    Check { name: "flows: NATed TCP connections are in the table", run: tcp },
    Check { name: "flows: NATed UDP flows are in the table", run: udp },
    Check { name: "flows: the kernel leaves TCP out of a dump", run: without_tcp },
];

/// The first source port of UDP flows.
const FIRST_PORT: u16 = 20_000;

/// The connections of the large IPv4 check of `tcp`, which the node translated and still remembers.
fn tcp(scene: &Scene) -> Result<String> {
    let made = destinations(OUTSIDE.into()).into_iter().map(|to| (to, scene.made_to(to)));
    compare(scene, &made.collect::<Vec<_>>())
}

fn udp(scene: &Scene) -> Result<String> {
    let to: Vec<SocketAddr> = (0..PORTS).map(|port| SocketAddr::new(OUTSIDE.into(), 7500 + port)).collect();
    let count = u16::try_from(scene.connections / u64::from(PORTS)).context("count source ports")?;
    let ports = FIRST_PORT..FIRST_PORT.saturating_add(count);
    load::send(scene.pod(), scene.outside(), &to, ports.clone())?;
    compare(scene, &to.into_iter().map(|to| (to, ports.clone().collect())).collect::<Vec<_>>())
}

/// A dump of UDP alone, beside one of everything.
fn without_tcp(scene: &Scene) -> Result<String> {
    let all = table(scene)?.into_iter().filter(|entry| entry.key.protocol == Protocol::UDP).count();
    let (udp, filtered) = scene.node().run(|| {
        let (mut buffer, mut entries, mut filtered) = (vec![0; DATAGRAM_BYTES], Vec::new(), true);
        let mut parts = Only::both(Protocol::UDP).into_iter();
        let mut dump = Dump::request(1, parts.next())?;
        loop {
            let Received::Bytes(length) = dump.receive(&mut buffer)? else { bail!("the dump ended half-way") };
            for message in Messages::new(buffer.get(..length).unwrap_or_default()) {
                let message = message?;
                match content(&message)? {
                    Content::Entry(entry) => {
                        filtered &= is_filtered(&message);
                        entries.push(entry);
                    }
                    Content::Done { errno: 0 } => match parts.next() {
                        None => return Ok((entries, filtered)),
                        next => dump = Dump::request(2, next)?,
                    },
                    other => bail!("the dump ended with {other:?}"),
                }
            }
        }
    })?;
    ensure!(filtered, "the kernel does not say that it left something out");
    ensure!(udp.iter().all(|entry| entry.key.protocol == Protocol::UDP), "there is more than UDP");
    ensure!(all > 0 && udp.len() == all, "{} of {all} entries of UDP", udp.len());
    Ok(format!("{} of {all}", udp.len()))
}

/// One entry per flow: from exactly those source ports, and translated.
fn compare(scene: &Scene, made: &[(SocketAddr, BTreeSet<u16>)]) -> Result<String> {
    let entries = table(scene)?;
    let mut total = 0;
    for (to, ports) in made {
        let to_it = |entry: &&ConntrackEntry| entry.destination == Endpoint::new(to.ip(), to.port());
        let of_this: Vec<_> = entries.iter().filter(to_it).collect();
        let seen: BTreeSet<u16> = of_this.iter().map(|entry| entry.key.source.port).collect();
        let (missing, more) = (ports.difference(&seen).count(), seen.difference(ports).count());
        ensure!((missing, more) == (0, 0), "of {} flows to {to} {missing} are missing, {more} too many", ports.len());
        ensure!(of_this.len() == ports.len(), "{} entries for {} flows to {to}", of_this.len(), ports.len());
        ensure!(of_this.iter().all(|entry| entry.translated.address != entry.key.source.address), "not translated");
        total += ports.len();
    }
    ensure!(total > 0, "no flows were made");
    Ok(format!("{total} of {total}"))
}

/// The node's table, read from inside, without the programs.
fn table(scene: &Scene) -> Result<Vec<ConntrackEntry>> {
    scene.node().run(|| {
        let mut source = ConntrackSource::start(&HostRoot::live(), options(0));
        let (mut entries, mut complete) = (Vec::new(), false);
        source.observe(&mut |observation| match observation.fact {
            Fact::Flow(entry) => entries.push(entry),
            Fact::End { snapshot: Snapshot::Conntrack, outcome } => complete = outcome == Outcome::Complete,
            _ => {}
        });
        if !complete {
            bail!("the table could not be read");
        }
        Ok(entries)
    })
}

/// How to look, with that much room for counters in the kernel.
pub(crate) fn options(max_keys: u32) -> Options {
    Options { max_keys, ..Options::events(Duration::ZERO) }
}
