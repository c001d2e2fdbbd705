//! Adam with decoupled weight decay, as torch's `AdamW`.

use tch::Tensor;

use super::{OptimizerConfig, Slot};

/// Keeps the step finite where a gradient has always been zero; torch's default.
const EPSILON: f64 = 1e-8;

/// `w ← w − lr·wd·w`, then `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²` and
/// `w ← w − lr·(m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)` at step `t`, counted from 1. Excluded tensors have no decay.
pub(super) fn update(config: &OptimizerConfig, slot: &mut Slot, gradient: &Tensor, learning_rate: f64, t: u64) {
    let (first, second) = (config.momentum, config.second_momentum);
    if !slot.excluded {
        let _ = slot.tensor.g_mul_scalar_(1.0 - learning_rate * config.weight_decay);
    }
    let squares = slot.second.as_mut().expect("AdamW's slots have a second moment");
    let _ = slot.momentum.g_mul_scalar_(first).g_add_(&(gradient * (1.0 - first)));
    let _ = squares.g_mul_scalar_(second).g_add_(&(gradient.square() * (1.0 - second)));
    let unbiased = |beta: f64| 1.0 - beta.powi(t.min(i32::MAX as u64) as i32);
    let scale = squares.sqrt() / unbiased(second).sqrt() + EPSILON;
    let _ = slot.tensor.g_sub_(&(&slot.momentum / scale * (learning_rate / unbiased(first))));
}
