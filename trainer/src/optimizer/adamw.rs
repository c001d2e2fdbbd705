//! Adam with decoupled weight decay, as torch's `AdamW`.

use serde::{Deserialize, Serialize};
use simclr_ground::error::InvalidValue;
use simclr_torch::TorchError;

use super::{OptimizerShared, Together, Update, check_share};

/// Keeps the step finite where a gradient has always been zero; torch's default.
const EPSILON: f64 = 1e-8;

/// `w ← w − lr·wd·w`, then `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²` and
/// `w ← w − lr·(m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)` at step `t`, counted from 1. Excluded tensors have no decay.
/// β₁ is the momentum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamW {
    /// β₂, the share of the last mean square that is kept; 0 to 1.
    pub second_momentum: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { second_momentum: 0.999 }
    }
}

impl Update for AdamW {
    fn check(&self) -> Result<(), InvalidValue> {
        check_share("optimizer.second_momentum", self.second_momentum)
    }

    fn keeps_squares(&self) -> bool {
        true
    }

    fn update(
        &self,
        shared: &OptimizerShared,
        all: &Together<'_>,
        learning_rate: f64,
        step: u64,
    ) -> Result<(), TorchError> {
        let Together { weights, gradients, momenta, squares, .. } = all;
        let (first, second) = (shared.momentum, self.second_momentum);
        if !all.excluded {
            weights.scale(1.0 - learning_rate * shared.weight_decay)?;
        }
        momenta.scale(first)?;
        momenta.add(gradients, 1.0 - first)?;
        squares.scale(second)?;
        squares.add_squares(gradients, 1.0 - second)?;
        let unbiased = |beta: f64| 1.0 - beta.powi(step.min(i32::MAX as u64) as i32);
        weights.add_ratio((momenta, squares), -learning_rate / unbiased(first), unbiased(second).sqrt(), EPSILON)
    }
}
