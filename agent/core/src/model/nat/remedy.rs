//! What to change at the NAT: how much, and the lines to type for it. Nothing is run; names that nobody has told are in
//! capitals.

use serde::{Deserialize, Serialize};

use super::{Mode, NatSettings};
use crate::ports::PortRange;
use crate::words::counted;

mod bigger;
mod caution;
mod idle;
mod ips;
mod lines;
mod mapping;
mod more;
mod need;

pub use bigger::{after_failed_allocation, bigger_gateway, missing_ips};
pub use caution::caution;
pub use idle::longer_idle;
pub use ips::more_ips;
pub use lines::changes;
pub use mapping::mapping_off;
pub(crate) use more::wider_ranges;
pub use more::{larger_minimum, more_ports, more_ports_for_all};
pub use need::Need;

/// A change in the words of one tool, ready to be pasted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// `terraform`, `gcloud`, `aws`, `az`, `iptables`.
    pub tool: String,
    /// What to write or run; may be several lines.
    pub text: String,
}

/// Where the NAT is, as far as somebody has said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// The gateway, or an outbound rule.
    pub gateway: Option<String>,
    /// The AKS cluster that manages it.
    pub cluster: Option<String>,
    /// Its Cloud Router.
    pub router: Option<String>,
    /// Its region.
    pub region: Option<String>,
    /// Its project (Google) or resource group (Azure).
    pub group: Option<String>,
}

impl Names {
    /// These where they are said, else the others.
    pub fn or(self, other: Self) -> Self {
        Self {
            gateway: self.gateway.or(other.gateway),
            cluster: self.cluster.or(other.cluster),
            router: self.router.or(other.router),
            region: self.region.or(other.region),
            group: self.group.or(other.group),
        }
    }
}

/// What the NAT is to be set to; what is absent stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Target {
    /// Static or dynamic ports.
    pub mode: Option<Mode>,
    /// Minimum ports per node; for an Azure load balancer those allocated by hand.
    pub min_ports: Option<u32>,
    /// Maximum ports per node.
    pub max_ports: Option<u32>,
    /// NAT IPs.
    pub nat_ips: Option<u32>,
    /// Endpoint-independent mapping.
    pub endpoint_independent: Option<bool>,
    /// The source ports that masquerading may use.
    pub port_range: Option<PortRange>,
}

impl Target {
    /// The NAT once it is set so.
    pub fn applied_to(self, nat: &NatSettings) -> NatSettings {
        let mode = self.mode.unwrap_or(nat.mode);
        let ports_change = self.mode.is_some() || self.min_ports.is_some() || self.max_ports.is_some();
        NatSettings {
            mode,
            min_ports: self.min_ports.or(nat.min_ports),
            max_ports: self.max_ports.or(nat.max_ports).filter(|_| mode == Mode::Dynamic),
            nat_ips: self.nat_ips.or(nat.nat_ips),
            endpoint_independent: self.endpoint_independent.or(nat.endpoint_independent),
            port_range: self.port_range.or(nat.port_range),
            // What was observed was so with the settings of before.
            observed: nat.observed.clone().filter(|_| !ports_change),
            ..nat.clone()
        }
    }
}

/// What to do, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remedy {
    /// In words.
    pub says: String,
    /// What it does besides.
    pub mind: Vec<String>,
    /// In the words of tools.
    pub changes: Vec<Change>,
    /// The same as data: each is enough by itself. What needs something else to be done first is none of them.
    pub settings: Vec<Target>,
}

impl Remedy {
    /// In words alone: somebody has to look, or to choose.
    pub fn words(says: impl Into<String>) -> Self {
        Self { says: says.into(), ..Self::default() }
    }

    /// One or the other, each enough by itself; the lines of those after the first say that they are instead of it.
    pub fn either(ways: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self::default();
        for way in ways.into_iter().filter(|way| !way.says.is_empty()) {
            let or = if all.says.is_empty() { "" } else { ", or " };
            all.says = format!("{}{or}{}", all.says, way.says);
            all.settings.extend(way.settings);
            let more: Vec<String> = way.mind.into_iter().filter(|mind| !all.mind.contains(mind)).collect();
            all.mind.extend(more);
            let instead = if all.changes.is_empty() { "" } else { "# instead:\n" };
            let text = |change: &Change| format!("{instead}{}", change.text);
            all.changes.extend(way.changes.into_iter().map(|change| Change { text: text(&change), ..change }));
        }
        all
    }

    /// Words, what to mind, and changes, one below the other.
    pub fn text(&self) -> String {
        let mind = if self.mind.is_empty() { String::new() } else { format!("\nmind: {}", self.mind.join("; ")) };
        let changes = self.changes.iter().map(|change| format!("\n{}: {}", change.tool, change.text));
        format!("{}{mind}{}", self.says, changes.collect::<String>())
    }
}

/// `1 NAT IP`, `2 NAT IPs`.
pub(crate) fn nat_ips(ips: u32) -> String {
    counted(ips, "NAT IP")
}
