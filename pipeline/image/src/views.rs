//! From a sample's bytes to its views: parameters are drawn, what they need is decoded, views are written.

use std::sync::Arc;

use crate::augment::{Augmenter, DecodePath, Image, RecipeConfig, Step};
use crate::damage::Damage;
use crate::decode::jpeg::Region;
use crate::decode::{PlanarDecoder, RgbImage, Rows, decode, decode_upright};

/// What a sample's parameters are drawn for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The run's seed.
    pub seed: u64,
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// The sample's id; of a damaged sample's replacement, the damaged one's.
    pub sample: u64,
}

/// What decoding may cost, and how images are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Images of more pixels than this count as damaged, before they are decoded.
    pub max_pixels: u64,
    /// Turn images upright as their EXIF orientation says.
    pub exif_orientation: bool,
}

/// Makes views of one sample after the other, keeping its buffers.
pub struct ViewMaker {
    recipe: Arc<RecipeConfig>,
    limits: DecodeLimits,
    planar: PlanarDecoder,
    whole: RgbImage,
    augmenter: Augmenter,
    sizes: Vec<u32>,
    steps: Vec<Vec<Step>>,
}

impl ViewMaker {
    /// A maker of the views of this recipe.
    pub fn new(recipe: &RecipeConfig, limits: DecodeLimits) -> Self {
        let recipe = Arc::new(recipe.clone());
        let planar = PlanarDecoder::new(limits.max_pixels, limits.exif_orientation);
        let augmenter = Augmenter::new(recipe.mode);
        let sizes = recipe.sizes().collect();
        Self { recipe, limits, planar, whole: RgbImage::default(), augmenter, sizes, steps: Vec::new() }
    }

    /// Decodes what the sample's views need. `rows`, the bytes' entry in a manifest's row index, spares work and
    /// changes nothing; if it was not held against the bytes yet, it may be.
    ///
    /// # Errors
    /// The damage, which depends on the bytes alone.
    pub fn decode(&mut self, bytes: &[u8], rows: Option<&mut Rows<'_>>, key: Key) -> Result<(), Damage> {
        let (recipe, steps) = (&self.recipe, &mut self.steps);
        steps.clear();
        let mut draw = |width: u32, height: u32| {
            *steps = recipe.draw(key.seed, key.epoch, key.sample, width, height);
            RecipeConfig::region(steps)
        };
        match recipe.decode {
            DecodePath::Planar => {
                self.planar.decode(bytes, rows, draw)?;
            }
            DecodePath::Full => {
                let decode = if self.limits.exif_orientation { decode_upright } else { decode };
                self.whole = decode(bytes, self.limits.max_pixels)?;
                let _: Region = draw(self.whole.width, self.whole.height);
            }
        }
        Ok(())
    }

    /// Writes view `view` of the sample decoded last to `out` (`size × size × 3` u8).
    pub fn write(&mut self, view: usize, out: &mut [u8]) {
        let image = match self.recipe.decode {
            DecodePath::Planar => Image::Planes(self.planar.planes()),
            DecodePath::Full => Image::Rgb(&self.whole),
        };
        self.augmenter.apply(image, &self.steps[view], self.sizes[view] as usize, out);
    }

    /// The steps of each view of the sample decoded last.
    pub fn steps(&self) -> &[Vec<Step>] {
        &self.steps
    }
}
