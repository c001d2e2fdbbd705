//! NT-Logistic: partners are to be similar, others are not, each on its own.

use tch::Tensor;

use super::{mean_of_others, semi_hard};

/// `−log σ(s⁺) − log σ(−s⁻)` (SimCLR, table 2) of similarities `[B, B]` over τ, partners on the diagonal: the mean over
/// all others, or of one semi-hard other for each row that has one.
pub(super) fn one_way(similarity: &Tensor, only_semi_hard: bool) -> Tensor {
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
