//! What the node's own namespace tells of the others, without entering them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use headroom_core::known::Known;
use headroom_core::observe::PodRoute;
use headroom_core::time::NodeTime;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};

use crate::netlink::route::{NotTold, Peered, Rtnetlink};
use crate::netns::Door;

/// The node's links, and a socket to ask for more.
#[derive(Debug)]
pub(super) struct Outside(Result<(Rtnetlink, BTreeMap<u32, Peered>), NotTold>);

impl Outside {
    /// Lists the links.
    pub(super) fn look(deadline: NodeTime) -> Self {
        let listed = |mut rtnetlink: Rtnetlink| rtnetlink.peered().map(|peered| (rtnetlink, peered));
        Self(Rtnetlink::open(deadline).and_then(listed))
    }

    /// The routes to single addresses in other namespaces; none where they cannot be read: they only ever speak for a pod.
    pub(super) fn routes(&mut self) -> Vec<PodRoute> {
        let Ok((rtnetlink, peered)) = &mut self.0 else { return Vec::new() };
        let routes = rtnetlink.on_link().unwrap_or_default();
        let into = |index| peered.get(&index).map(|link: &Peered| link.name.clone());
        routes
            .iter()
            .filter_map(|route| Some(PodRoute { address: route.address, interface: into(route.index)? }))
            .collect()
    }

    /// The addresses of a namespace that could not be entered.
    pub(super) fn addresses(&mut self, door: &Door) -> Known<Vec<IpAddr>> {
        let because = |why: &dyn std::fmt::Display| {
            Known::because(format!(
                "no process of this network namespace could be asked; without entering it: {why}; entering it needs CAP_SYS_ADMIN"
            ))
        };
        let (rtnetlink, _peered) = match &mut self.0 {
            Ok(outside) => outside,
            Err(why) => return because(why),
        };
        let opened = open(door.path.as_path(), OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty());
        let file = match opened {
            Ok(file) if fstat(&file).is_ok_and(|stat| stat.st_ino == door.inode.0) => file,
            Ok(_another) => return because(&"it ended while it was read"),
            Err(errno) => return because(&errno.desc()),
        };
        match rtnetlink.addresses_in(&file) {
            Ok(addresses) => Known::Present(addresses),
            Err(why) => because(&why),
        }
    }
}
