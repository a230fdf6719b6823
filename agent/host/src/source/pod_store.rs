//! What the state files of several IPAMs have in common: JSON, container ids, pods' names.

use headroom_core::ids::{ContainerId, PodName};
use headroom_core::known::Known;
use headroom_core::observe::Holder;
use serde::de::DeserializeOwned;

use crate::bounded::shown;
use crate::source::host_local::holder::{is_container_id, is_interface};

/// What is wrong with a state file. The text continues a sentence that has named the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadState {
    /// Not JSON of the expected shape.
    #[error("is not JSON of the shape that is known ({0})")]
    Json(String),
    /// Another version.
    #[error("has the version `{0}`, which is not known")]
    Version(String),
    /// Something that belongs there is not there.
    #[error("has no {0}")]
    Missing(&'static str),
}

/// JSON of a known shape.
pub(crate) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BadState> {
    serde_json::from_slice(bytes).map_err(|error| BadState::Json(error.to_string()))
}

/// A holder, if a runtime could have given it.
pub(crate) fn holder(container: &str, ifname: Option<&str>) -> Known<Holder> {
    let ifname = ifname.filter(|name| !name.is_empty());
    match (container, ifname) {
        ("", _) => Known::because("its store does not say for which container it is"),
        (id, _) if !is_container_id(id) => {
            Known::because(format!("its store names the container `{}`, which no runtime gives", shown(id.as_bytes())))
        }
        (_, Some(name)) if !is_interface(name) => {
            Known::because(format!("its store names the interface `{}`, which cannot exist", shown(name.as_bytes())))
        }
        (id, ifname) => {
            Known::Present(Holder { container: ContainerId(id.to_owned()), ifname: ifname.map(str::to_owned) })
        }
    }
}

/// A pod, if Kubernetes would allow its name.
pub(crate) fn pod(namespace: &str, name: &str) -> Option<PodName> {
    let plain = |text: &str| {
        (1..=253).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
    };
    (plain(namespace) && plain(name)).then(|| PodName { namespace: namespace.to_owned(), name: name.to_owned() })
}
