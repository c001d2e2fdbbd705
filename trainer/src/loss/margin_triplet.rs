//! Margin triplet: partners are to be more similar than others by a margin.

use serde::{Deserialize, Serialize};
use simclr_ground::error::InvalidValue;
use tch::Tensor;

use super::{Loss, LossOutput, Views, between_views, mean_of_others, semi_hard};
use crate::distributed::World;
use crate::error::TrainError;

/// Triplets with a margin (SimCLR, table 2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MarginTriplet {
    /// By how much the partner is to be more similar than others.
    pub margin: f64,
    /// Whether of all others only the most similar one counts that is less similar than the partner (Schroff et al.
    /// 2015; SimCLR, table 4).
    pub semi_hard: bool,
}

impl Default for MarginTriplet {
    fn default() -> Self {
        Self { margin: 0.8, semi_hard: false }
    }
}

impl Loss for MarginTriplet {
    fn check(&self) -> Result<(), InvalidValue> {
        if self.margin >= 0.0 && self.margin.is_finite() {
            return Ok(());
        }
        let wanted = "expected a number >= 0 (the paper tried 0, 0.4, 0.8 and 1.6)";
        Err(InvalidValue::new("loss.margin", self.margin, wanted))
    }

    fn contrast(&self, views: &Views, _: &World) -> Result<LossOutput, TrainError> {
        between_views(views, 1.0, |similarity| one_way(similarity, self.margin, self.semi_hard))
    }
}

/// `max(s⁻ − s⁺ + m, 0)` (SimCLR, table 2) of similarities `[B, B]`, partners on the diagonal: the mean over all others,
/// or of one semi-hard other for each row that has one.
fn one_way(similarity: &Tensor, margin: f64, only_semi_hard: bool) -> Tensor {
    let kind = similarity.kind();
    let partners = similarity.diagonal(0, 0, 1);
    if only_semi_hard {
        let (hardest, found) = semi_hard(similarity);
        return ((hardest - partners + margin).relu() * found.to_kind(kind)).mean(kind);
    }
    mean_of_others(&(similarity - partners.unsqueeze(1) + margin).relu())
}
