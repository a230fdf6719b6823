//! NATs in front of a node: which there are and what they can do, how long they hold a port, the settings somebody gives,
//! and the ports these mean for this node. Nothing is read here; numbers carry the page they come from.

mod described;
mod hold;
mod observed;
mod pools;
mod ports;
mod profile;
pub mod remedy;
mod settings;

pub use described::Described;
pub use hold::{HoldTimes, MAX_HOLD, SetTimes};
pub use observed::ObservedPorts;
pub use pools::{NodePool, Surge};
pub use ports::{
    ALIAS_FLOOR, AZURE_LB_TIERS, BEYOND_AZURES_TABLE, DYNAMIC_MAX_DEFAULT, DYNAMIC_MIN_DEFAULT, NodePorts,
    STATIC_DEFAULT, azure_lb_tier, granted, static_ports,
};
pub use profile::{Capacity, PORTS_PER_NAT_IP, Profile, Serves, Sharing};
pub use settings::{BadNatSettings, Basis, Mode, NatSettings};
