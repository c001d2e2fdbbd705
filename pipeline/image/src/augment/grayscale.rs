//! Drops the colour.

use serde::{Deserialize, Serialize};

/// Drops the colour with this probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grayscale {
    /// In [0, 1]; 0.2 in the paper.
    pub probability: f64,
}
