//! Contrastive losses: a new one is one file here and one row of [`LossKind`].

mod nt_xent;

use serde::{Deserialize, Serialize};
use tch::Tensor;

pub use nt_xent::nt_xent;

use crate::error::TrainError;

/// Which loss, and its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossConfig {
    /// Which loss.
    pub kind: LossKind,
    /// τ: similarities are divided by it; 0.1 for ImageNet, 0.5 for CIFAR-10 in the paper.
    pub temperature: f64,
}

/// The losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// Normalised temperature-scaled cross entropy: the paper's.
    NtXent,
}

/// A loss and what the paper reports beside it; scalars on the device.
pub struct Contrast {
    /// The loss.
    pub loss: Tensor,
    /// Share of images whose second view is the most similar one among all second views.
    pub accuracy: Tensor,
    /// Entropy of the first views' distributions over second views, in nats.
    pub entropy: Tensor,
}

impl LossConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// If the temperature is not positive.
    pub fn check(&self) -> Result<(), TrainError> {
        if self.temperature > 0.0 && self.temperature.is_finite() {
            return Ok(());
        }
        let wanted = "above 0 is wanted; the paper has 0.1 for ImageNet and 0.5 for CIFAR-10".into();
        Err(TrainError::Value { key: "loss.temperature", found: self.temperature.to_string(), wanted })
    }

    /// The loss of projections `z`: `[2B, dim]`, first views first.
    pub fn contrast(&self, z: &Tensor) -> Contrast {
        match self.kind {
            LossKind::NtXent => nt_xent(z, self.temperature),
        }
    }
}
