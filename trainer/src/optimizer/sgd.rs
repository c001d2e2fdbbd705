//! Stochastic gradient descent with momentum, as torch's `SGD`.

use tch::Tensor;

use super::{OptimizerConfig, Slot};

/// `v ← m·v + g + wd·w`, `w ← w − lr·v`, or with Nesterov `w ← w − lr·(g + wd·w + m·v)`. Excluded tensors have no
/// decay.
pub(super) fn update(config: &OptimizerConfig, slot: &mut Slot, gradient: &Tensor, learning_rate: f64) {
    let gradient = if slot.excluded { gradient.shallow_clone() } else { gradient + &slot.tensor * config.weight_decay };
    let _ = slot.momentum.g_mul_scalar_(config.momentum).g_add_(&gradient);
    let step =
        if config.nesterov { gradient + &slot.momentum * config.momentum } else { slot.momentum.shallow_clone() };
    let _ = slot.tensor.g_sub_(&(step * learning_rate));
}
