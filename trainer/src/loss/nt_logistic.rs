//! NT-Logistic: partners are to be similar, others are not, each on its own.

use serde::{Deserialize, Serialize};
use simclr_ground::error::InvalidValue;
use tch::Tensor;

use super::{Loss, LossOutput, Views, between_views, check_temperature, mean_of_others, semi_hard};
use crate::distributed::World;
use crate::error::TrainError;

/// Normalized temperature-scaled logistic loss (SimCLR, table 2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NtLogistic {
    /// τ: similarities are divided by it.
    pub temperature: f64,
    /// Whether of all others only the most similar one counts that is less similar than the partner (Schroff et al.
    /// 2015; SimCLR, table 4).
    pub semi_hard: bool,
}

impl Default for NtLogistic {
    fn default() -> Self {
        Self { temperature: 0.1, semi_hard: false }
    }
}

impl Loss for NtLogistic {
    fn check(&self) -> Result<(), InvalidValue> {
        check_temperature(self.temperature)
    }

    fn contrast(&self, views: &Views, _: &World) -> Result<LossOutput, TrainError> {
        between_views(views, self.temperature, |similarity| one_way(similarity, self.semi_hard))
    }
}

/// `−log σ(s⁺) − log σ(−s⁻)` (SimCLR, table 2) of similarities `[B, B]` over τ, partners on the diagonal: the mean over
/// all others, or of one semi-hard other for each row that has one.
fn one_way(similarity: &Tensor, only_semi_hard: bool) -> Tensor {
    let kind = similarity.kind();
    let partners = -similarity.diagonal(0, 0, 1).log_sigmoid().mean(kind);
    let others = if only_semi_hard {
        let (hardest, found) = semi_hard(similarity);
        -((-hardest).log_sigmoid() * found.to_kind(kind)).mean(kind)
    } else {
        -mean_of_others(&(-similarity).log_sigmoid())
    };
    partners + others
}
