//! Inverts what is bright.

use serde::{Deserialize, Serialize};
use simclr_ground::rng::Draws;

use super::op::check_probability;
use super::pixelwise::ColorOp;
use super::{Augmentation, Step, ViewContext};

/// Inverts values that are at least as large as a threshold, with a probability, as Pillow and torchvision do. Part of
/// the SimCLR paper's appendix B.2, which prints no threshold; 128 is BYOL's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Solarize {
    /// In [0, 1].
    pub probability: f64,
    /// The smallest value that is inverted, in [0, 255].
    pub threshold: f64,
}

impl Augmentation for Solarize {
    fn check(&self) -> Result<(), (String, String)> {
        check_probability(self.probability)?;
        if !(0.0..=255.0).contains(&self.threshold) {
            return Err((format!("threshold {}", self.threshold), "expected a number between 0 and 255".into()));
        }
        Ok(())
    }

    fn draw(&self, _: &ViewContext, draws: &mut Draws, steps: &mut Vec<Step>) {
        steps.extend(self.drawn(draws).map(|change| Step::Colors(vec![change])));
    }
}

impl Solarize {
    fn drawn(&self, draws: &mut Draws) -> Option<ColorOp> {
        draws.chance(self.probability).then_some(ColorOp::Solarize(self.threshold as f32))
    }
}
