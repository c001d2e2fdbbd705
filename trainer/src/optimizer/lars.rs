//! LARS as the official `lars_optimizer.py`: the decay is added to the gradient, the layer's trust ratio scales the
//! learning rate, and momentum is classic.

use tch::Tensor;

use super::{OptimizerConfig, Slot};

/// `v ← m·v + lr·trust·(g + wd·w)`, `w ← w − v`; trust is `η·‖w‖ / ‖g + wd·w‖`, and 1 if either norm is zero.
/// Excluded tensors have neither decay nor trust ratio.
pub(super) fn update(config: &OptimizerConfig, slot: &mut Slot, gradient: &Tensor, learning_rate: f64) {
    let _ = slot.momentum.g_mul_scalar_(config.momentum);
    if slot.excluded {
        let _ = slot.momentum.g_add_(&(gradient * learning_rate));
    } else {
        let gradient = gradient + &slot.tensor * config.weight_decay;
        let (weight_norm, gradient_norm) = (slot.tensor.norm(), gradient.norm());
        // Both norms must be strictly positive: a tensor that begins at zero still has to move.
        let ratio = (&weight_norm / &gradient_norm) * config.trust_coefficient;
        let usable = weight_norm.gt(0.0).logical_and(&gradient_norm.gt(0.0));
        let trust = ratio.where_self(&usable, &ratio.ones_like());
        let _ = slot.momentum.addcmul_(&gradient, &(trust * learning_rate));
    }
    let _ = slot.tensor.g_sub_(&slot.momentum);
}
