//! Mirrors left and right.

use serde::{Deserialize, Serialize};
use simclr_ground::rng::Draws;

use super::op::check_probability;
use super::{Augmentation, Step, ViewContext};

/// Mirrors left and right with this probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HorizontalFlip {
    /// In [0, 1]; 0.5 in the paper.
    pub probability: f64,
}

impl Default for HorizontalFlip {
    fn default() -> Self {
        Self { probability: 0.5 }
    }
}

impl Augmentation for HorizontalFlip {
    fn check(&self) -> Result<(), (String, String)> {
        check_probability(self.probability)
    }

    fn draw(&self, _: &ViewContext, draws: &mut Draws, steps: &mut Vec<Step>) {
        steps.extend(draws.chance(self.probability).then_some(Step::HorizontalFlip));
    }
}

/// Mirrors a view of side `size` (`size × size × 3` u8) in place.
pub(super) fn flip(pixels: &mut [u8], size: usize) {
    for row in pixels.chunks_exact_mut(size * 3) {
        let (mut left, mut right) = (0, size - 1);
        while left < right {
            for channel in 0..3 {
                row.swap(left * 3 + channel, right * 3 + channel);
            }
            left += 1;
            right -= 1;
        }
    }
}
