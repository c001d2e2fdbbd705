//! Stochastic gradient descent with momentum, as torch's `SGD`.

use simclr_torch::Said;
use simclr_torch::foreach::List;

use super::{OptimizerConfig, Together};

/// `v ← m·v + g + wd·w`, `w ← w − lr·v`, or with Nesterov `w ← w − lr·(g + wd·w + m·v)`. Excluded tensors have no
/// decay.
pub(super) fn update(config: &OptimizerConfig, all: &Together<'_>, learning_rate: f64) -> Result<(), Said> {
    let Together { weights, gradients, momenta, .. } = all;
    momenta.scale(config.momentum)?;
    let decay = if all.excluded { 0.0 } else { config.weight_decay };
    if decay > 0.0 || config.nesterov {
        let decayed = gradients.sum(weights, decay)?;
        let decayed: List<'_> = decayed.iter().collect();
        momenta.add(&decayed, 1.0)?;
        if config.nesterov {
            decayed.add(momenta, config.momentum)?;
            return weights.add(&decayed, -learning_rate);
        }
    } else {
        momenta.add(gradients, 1.0)?;
    }
    weights.add(momenta, -learning_rate)
}
