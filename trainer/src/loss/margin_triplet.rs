//! Margin triplet: partners are to be more similar than others by a margin.

use tch::Tensor;

use super::{mean_of_others, semi_hard};

/// `max(s⁻ − s⁺ + m, 0)` (SimCLR, table 2) of similarities `[B, B]`, partners on the diagonal: the mean over all others,
/// or of one semi-hard other for each row that has one.
pub(super) fn one_way(similarity: &Tensor, margin: f64, only_semi_hard: bool) -> Tensor {
    let kind = similarity.kind();
    let partners = similarity.diagonal(0, 0, 1);
    if only_semi_hard {
        let (hardest, found) = semi_hard(similarity);
        return ((hardest - partners + margin).relu() * found.to_kind(kind)).mean(kind);
    }
    mean_of_others(&(similarity - partners.unsqueeze(1) + margin).relu())
}
