//! Subject `conntrack`: a map of counters that is too small for what happens.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use headroom_core::ports::PortRange;
use headroom_ebpf_common::conntrack::{Key, Losses};
use headroom_host::ebpf::conntrack::{Conntrack, Subject};
use headroom_host::root::HostRoot;

use crate::check::{Cannot, Check};
use crate::conntrack::flush;
use crate::load;
use crate::network::{OUTSIDE, Scene};

pub(crate) const CHECKS: [Check; 1] = [Check { name: "counters: what finds no room in a full map", run: full }];

const ROOM: u32 = 4;
const FIRST: u16 = 7800;
const DESTINATIONS: u16 = 40;
const PATIENCE: Duration = Duration::from_secs(20);

/// Opens that find no room are counted as that, each once; ends are counted apart.
fn full(scene: &Scene) -> Result<String> {
    for protocol in ["udp", "tcp", "icmp"] {
        flush(scene, protocol)?;
    }
    let namespace = u32::try_from(scene.node().inode()?).context("number a namespace")?;
    // Every source port is in the range: what is counted of that is not an open.
    let node_ports = PortRange::new(1, u16::MAX).context("make a range")?;
    let counters = Conntrack::load(&HostRoot::live(), Subject { namespace, node_ports, max_keys: ROOM });
    let mut counters = counters.map_err(|error| Cannot(error.why().to_string()))?;
    if let Some(why) = &counters.entries_unknown {
        return Err(Cannot(why.to_string()).into());
    }
    let to: Vec<_> = (FIRST..FIRST + DESTINATIONS).map(|port| SocketAddr::new(OUTSIDE.into(), port)).collect();
    load::send(scene.pod(), scene.outside(), &to, 21_000..21_001)?;
    let ours = |key: &Key| (FIRST..FIRST + DESTINATIONS).contains(&key.port);
    let mut counted = 0;
    counters.counts.for_each(|key, counts| counted += if ours(key) { counts.inserted } else { 0 })?;
    let opens = counters.losses.get()?;
    let all = u64::from(DESTINATIONS);
    ensure!(counted <= u64::from(ROOM), "{counted} destinations have found room");
    ensure!(opens.map_full == all - counted, "{counted} of {all} were counted, and {opens:?}");
    ensure!(opens.map_full_ends == 0, "nothing has ended, and {opens:?}");
    flush(scene, "udp")?;
    let until = Instant::now() + PATIENCE;
    loop {
        let Losses { map_full, map_full_ends, .. } = counters.losses.get()?;
        ensure!(map_full == opens.map_full, "ends were counted as opens: {map_full}");
        if map_full_ends == all - counted {
            return Ok(format!("{map_full} of {all} opens, and as many ends, found no room"));
        }
        ensure!(Instant::now() < until, "{map_full_ends} of {} ends found no room", all - counted);
        std::thread::sleep(Duration::from_millis(100));
    }
}
