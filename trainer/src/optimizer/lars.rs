//! LARS as the official `lars_optimizer.py`: the decay is added to the gradient, the layer's trust ratio scales the
//! learning rate, and momentum is classic.

use serde::{Deserialize, Serialize};
use simclr_ground::error::InvalidValue;
use simclr_torch::TorchError;
use simclr_torch::foreach::List;
use tch::Tensor;

use super::{OptimizerShared, Together, Update, check_positive};

/// `v ← m·v + lr·trust·(g + wd·w)`, `w ← w − v`; trust is `η·‖w‖ / ‖g + wd·w‖`, and 1 if either norm is zero.
/// Excluded tensors have neither decay nor trust ratio.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lars {
    /// η, the share of a layer's norm that one step moves it; 0.001 in the official code.
    pub trust_coefficient: f64,
}

impl Default for Lars {
    fn default() -> Self {
        Self { trust_coefficient: 0.001 }
    }
}

impl Update for Lars {
    fn check(&self) -> Result<(), InvalidValue> {
        check_positive("optimizer.trust_coefficient", self.trust_coefficient)
    }

    fn update(
        &self,
        shared: &OptimizerShared,
        all: &Together<'_>,
        learning_rate: f64,
        _: u64,
    ) -> Result<(), TorchError> {
        let Together { weights, gradients, momenta, .. } = all;
        momenta.scale(shared.momentum)?;
        if all.excluded {
            momenta.add(gradients, learning_rate)?;
        } else {
            let decayed = gradients.sum(weights, shared.weight_decay)?;
            let decayed: List<'_> = decayed.iter().collect();
            let (weight_norms, gradient_norms) = (weights.norms()?, decayed.norms()?);
            let ratios: Tensor = (&weight_norms / &gradient_norms) * self.trust_coefficient;
            // Both norms must be strictly positive: a tensor that begins at zero still has to move.
            let usable = weight_norms.gt(0.0).logical_and(&gradient_norms.gt(0.0));
            decayed.scale_each(&(ratios.where_self(&usable, &ratios.ones_like()) * learning_rate))?;
            momenta.add(&decayed, 1.0)?;
        }
        weights.add(momenta, -1.0)
    }
}
