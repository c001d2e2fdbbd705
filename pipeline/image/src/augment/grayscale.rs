//! Drops the color.

use serde::{Deserialize, Serialize};
use simclr_ground::rng::Draws;

use super::op::check_probability;
use super::{Augmentation, ColorOp, Step, ViewContext};

/// Drops the color with this probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grayscale {
    /// In [0, 1]; 0.2 in the paper.
    pub probability: f64,
}

impl Augmentation for Grayscale {
    fn check(&self) -> Result<(), (String, String)> {
        check_probability(self.probability)
    }

    fn draw(&self, _: &ViewContext, draws: &mut Draws, steps: &mut Vec<Step>) {
        steps.extend(draws.chance(self.probability).then(|| Step::Colors(vec![ColorOp::Gray])));
    }
}
