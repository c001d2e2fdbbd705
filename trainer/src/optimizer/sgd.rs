//! Stochastic gradient descent with momentum, as torch's `SGD`.

use serde::{Deserialize, Serialize};
use simclr_torch::TorchError;
use simclr_torch::foreach::List;

use super::{OptimizerShared, Together, Update};

/// `v ← m·v + g + wd·w`, `w ← w − lr·v`, or with Nesterov `w ← w − lr·(g + wd·w + m·v)`. Excluded tensors have no
/// decay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sgd {
    /// Look ahead, as Nesterov.
    pub nesterov: bool,
}

impl Update for Sgd {
    fn update(
        &self,
        shared: &OptimizerShared,
        all: &Together<'_>,
        learning_rate: f64,
        _: u64,
    ) -> Result<(), TorchError> {
        let Together { weights, gradients, momenta, .. } = all;
        momenta.scale(shared.momentum)?;
        let decay = if all.excluded { 0.0 } else { shared.weight_decay };
        if decay > 0.0 || self.nesterov {
            let decayed = gradients.sum(weights, decay)?;
            let decayed: List<'_> = decayed.iter().collect();
            momenta.add(&decayed, 1.0)?;
            if self.nesterov {
                decayed.add(momenta, shared.momentum)?;
                return weights.add(&decayed, -learning_rate);
            }
        } else {
            momenta.add(gradients, 1.0)?;
        }
        weights.add(momenta, -learning_rate)
    }
}
