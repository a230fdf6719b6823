//! What machine this is.

use serde::{Deserialize, Serialize};

use crate::known::Known;

/// What machine this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// The node's name.
    pub node: String,
    /// Kernel release.
    pub kernel: String,
    /// The cloud it runs in, recognised from DMI.
    pub cloud: Known<Cloud>,
}

/// Clouds that are recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cloud {
    /// Google Compute Engine.
    Gcp,
    /// Amazon EC2.
    Aws,
    /// Microsoft Azure.
    Azure,
}
