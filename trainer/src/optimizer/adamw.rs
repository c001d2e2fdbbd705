//! Adam with decoupled weight decay, as torch's `AdamW`.

use simclr_torch::Said;

use super::{OptimizerConfig, Together};

/// Keeps the step finite where a gradient has always been zero; torch's default.
const EPSILON: f64 = 1e-8;

/// `w ← w − lr·wd·w`, then `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²` and
/// `w ← w − lr·(m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)` at step `t`, counted from 1. Excluded tensors have no decay.
pub(super) fn update(config: &OptimizerConfig, all: &Together<'_>, learning_rate: f64, t: u64) -> Result<(), Said> {
    let Together { weights, gradients, momenta, squares, .. } = all;
    let (first, second) = (config.momentum, config.second_momentum);
    if !all.excluded {
        weights.scale(1.0 - learning_rate * config.weight_decay)?;
    }
    momenta.scale(first)?;
    momenta.add(gradients, 1.0 - first)?;
    squares.scale(second)?;
    squares.add_squares(gradients, 1.0 - second)?;
    let unbiased = |beta: f64| 1.0 - beta.powi(t.min(i32::MAX as u64) as i32);
    weights.add_ratio((momenta, squares), -learning_rate / unbiased(first), unbiased(second).sqrt(), EPSILON)
}
