//! The middle of the image, for evaluation.

use serde::{Deserialize, Serialize};
use simclr_ground::rng::Draws;

use super::{Augmentation, CropStep, Interpolation, Step, ViewContext};

/// Cuts out the central square and resizes it to the view.
///
/// With `fraction = 0.875` this is the field's "resize the short side to 256, cut out the central 224".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CenterCrop {
    /// The square's side as a share of the image's short side, in (0, 1].
    pub fraction: f64,
    /// How the crop is resized.
    pub interpolation: Interpolation,
}

impl Augmentation for CenterCrop {
    fn check(&self) -> Result<(), (String, String)> {
        if self.fraction > 0.0 && self.fraction <= 1.0 {
            return Ok(());
        }
        Err((format!("fraction {}", self.fraction), "expected a number above 0 and at most 1".into()))
    }

    fn draw(&self, context: &ViewContext, _: &mut Draws, steps: &mut Vec<Step>) {
        steps.push(Step::Crop(self.crop(context.width, context.height)));
    }

    fn is_crop(&self) -> bool {
        true
    }
}

impl CenterCrop {
    /// The square in an image of `width` × `height` pixels.
    pub(super) fn crop(&self, width: u32, height: u32) -> CropStep {
        let short = width.min(height);
        let side = ((f64::from(short) * self.fraction).round() as u32).clamp(1, short);
        // Where it can't be in the middle, half a pixel left of and above it. The official code rounds the other way; to follow it
        // here would change the batches of recipes that are in use.
        let (left, top) = ((width - side) / 2, (height - side) / 2);
        CropStep { left, top, width: side, height: side, interpolation: self.interpolation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A recipe's batches are values, so where the square lies may not change, odd margins included.
    #[test]
    fn the_square_lies_where_it_always_lay() {
        let crop = |width, height| {
            let step = CenterCrop { fraction: 0.875, interpolation: Interpolation::Bicubic }.crop(width, height);
            (step.left, step.top, step.width, step.height)
        };
        // Margins of 2, and of 3 rows and 3 or 8 columns.
        assert_eq!(crop(16, 16), (1, 1, 14, 14));
        assert_eq!(crop(21, 21), (1, 1, 18, 18));
        assert_eq!(crop(26, 21), (4, 1, 18, 18));
        assert_eq!(crop(500, 375), (86, 23, 328, 328));
    }
}
