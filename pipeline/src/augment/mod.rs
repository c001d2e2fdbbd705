//! Turns one decoded picture into views: parameters are drawn first, as plain values, and applied second.
//!
//! A new augmentation is one file here, one row of [`Op`] and one of [`Step`]. Two arithmetics are offered:
//! `torchvision` (the v2 ops on uint8) and `paper` (the TensorFlow ops of the official code); see [`Mode`].

mod center_crop;
mod color_jitter;
mod gaussian_blur;
mod grayscale;
mod horizontal_flip;
mod pixelwise;
mod random_resized_crop;
pub mod resize;
mod view;

use serde::{Deserialize, Serialize};

pub use center_crop::CenterCrop;
pub use color_jitter::{BrightnessRule, ColorJitter, JitterStep};
pub use gaussian_blur::{BlurStep, GaussianBlur};
pub use grayscale::Grayscale;
pub use horizontal_flip::HorizontalFlip;
pub use pixelwise::Change;
pub use random_resized_crop::{CropStep, Interpolation, RandomResizedCrop};
pub use view::View;

use crate::decode::RgbImage;
use crate::decode::jpeg::{Planes, Region};
use crate::plan::PlanError;
use crate::rng::{Draws, Purpose};

/// Whose sampling rules and arithmetic the augmentations follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The official TensorFlow code: crops uniform in height, bicubic without antialiasing, contrast about each
    /// channel's mean, saturation in HSV, zero padding in the blur, one rounding to u8 at the end.
    Paper,
    /// torchvision's v2 ops on uint8: crops uniform in area, antialiasing, contrast about the grey mean, saturation
    /// as a blend with grey, reflection in the blur, rounding to u8 after every op.
    Torchvision,
}

/// How pictures become the pixels of a crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecodePath {
    /// Only where crops are, each colour plane at its own resolution, colours converted on the view: fast, and within
    /// the noise of a JPEG of what `full` gives.
    Planar,
    /// All pixels, then the reference library's resize: equal to it.
    Full,
}

/// What is done to each picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeConfig {
    /// Sampling rules and arithmetic.
    pub mode: Mode,
    /// How pictures are decoded and resized.
    pub decode: DecodePath,
    /// Side of a view in pixels.
    pub size: u32,
    /// Views per picture; SimCLR has two.
    pub views: u32,
    /// What is done, in this order; a crop comes first.
    pub ops: Vec<Op>,
}

/// An augmentation and its parameters, as the configuration has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// A random part of the picture, resized to the view.
    RandomResizedCrop(RandomResizedCrop),
    /// The middle of the picture, resized to the view. For evaluation.
    CenterCrop(CenterCrop),
    /// Mirrors left and right.
    HorizontalFlip(HorizontalFlip),
    /// Random brightness, contrast, saturation and hue, in random order.
    ColorJitter(ColorJitter),
    /// Drops the colour.
    Grayscale(Grayscale),
    /// Blurs with a Gaussian.
    GaussianBlur(GaussianBlur),
}

/// An augmentation with its drawn parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Cut out this box and resize it to the view.
    Crop(CropStep),
    /// Mirror left and right.
    HorizontalFlip,
    /// Change the colours so.
    ColorJitter(JitterStep),
    /// Drop the colour.
    Grayscale,
    /// Blur so.
    GaussianBlur(BlurStep),
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Crop(crop) => write!(f, "crop {}×{} at {},{}", crop.width, crop.height, crop.left, crop.top),
            Step::HorizontalFlip => write!(f, "flip"),
            Step::ColorJitter(jitter) => write!(f, "{jitter}"),
            Step::Grayscale => write!(f, "grey"),
            Step::GaussianBlur(blur) => write!(f, "blur σ {:.2}", blur.sigma),
        }
    }
}

impl RecipeConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// Names the key, what was found and what would be right.
    pub fn check(&self) -> Result<(), PlanError> {
        let wrong = |key, found: String, wanted: &str| Err(PlanError::Value { key, found, wanted: wanted.into() });
        if !(1..=4096).contains(&self.size) {
            return wrong("recipe.size", self.size.to_string(), "a side between 1 and 4096 pixels is wanted");
        }
        if !(1..=64).contains(&self.views) {
            return wrong("recipe.views", self.views.to_string(), "between 1 and 64 views are wanted");
        }
        let is_crop = |op: &Op| matches!(op, Op::RandomResizedCrop(_) | Op::CenterCrop(_));
        if !self.ops.first().is_some_and(is_crop) || self.ops.iter().skip(1).any(is_crop) {
            let found = format!("{} ops", self.ops.len());
            return wrong("recipe.ops", found, "the first op, and only that, is random_resized_crop or center_crop");
        }
        for op in &self.ops {
            let result = match op {
                Op::RandomResizedCrop(op) => op.check(),
                Op::CenterCrop(op) => op.check(),
                Op::HorizontalFlip(op) => check_probability(op.probability),
                Op::ColorJitter(op) => op.check(),
                Op::Grayscale(op) => check_probability(op.probability),
                Op::GaussianBlur(op) => op.check(),
            };
            if let Err((found, wanted)) = result {
                return Err(PlanError::Value { key: "recipe.ops", found, wanted });
            }
        }
        Ok(())
    }

    /// Bytes of one view: `size × size × 3`.
    pub fn view_bytes(&self) -> usize {
        self.size as usize * self.size as usize * 3
    }

    /// The smallest region that the crops of all views lie in.
    ///
    /// # Panics
    /// If there is no view, or one without a crop.
    pub fn region(steps: &[Vec<Step>]) -> Region {
        let crop = |steps: &Vec<Step>| match steps.first() {
            Some(Step::Crop(crop)) => crop.region(),
            other => panic!("a view begins with a crop, not with {other:?}"),
        };
        steps.iter().map(crop).reduce(Region::union).expect("at least one view")
    }

    /// Draws the steps for one view of a picture of `width` × `height` pixels.
    pub fn draw(&self, seed: u64, epoch: u64, sample: u64, view: u32, width: u32, height: u32) -> Vec<Step> {
        let mut draws = Draws::new(seed, Purpose::Augment, &[epoch, sample, view.into()]);
        let draws = &mut draws;
        self.ops
            .iter()
            .filter_map(|op| match op {
                Op::RandomResizedCrop(op) => Some(Step::Crop(op.draw(self.mode, draws, width, height))),
                Op::CenterCrop(op) => Some(Step::Crop(op.crop(width, height))),
                Op::HorizontalFlip(op) => draws.chance(op.probability).then_some(Step::HorizontalFlip),
                Op::ColorJitter(op) => op.draw(draws).map(Step::ColorJitter),
                Op::Grayscale(op) => draws.chance(op.probability).then_some(Step::Grayscale),
                Op::GaussianBlur(op) => op.draw(draws, self.size).map(Step::GaussianBlur),
            })
            .collect()
    }
}

fn check_probability(p: f64) -> Result<(), (String, String)> {
    if (0.0..=1.0).contains(&p) {
        Ok(())
    } else {
        Err((format!("probability {p}"), "between 0 and 1 is wanted".into()))
    }
}

/// A decoded picture, in the form that the recipe's `decode` wants.
#[derive(Debug, Clone, Copy)]
pub enum Picture<'a> {
    /// All of its pixels.
    Rgb(&'a RgbImage),
    /// Its planes, at least where the crops are.
    Planes(&'a Planes),
}

/// Applies steps to pictures, keeping its buffers.
pub struct Augmenter {
    mode: Mode,
    size: usize,
    cropper: random_resized_crop::Cropper,
    resizer: resize::Resizer,
    /// The crop, as planes of red, green and blue.
    planes: [Vec<u8>; 3],
    view: View,
    blur: gaussian_blur::BlurBuffers,
    changes: Vec<Change>,
}

impl Augmenter {
    /// Buffers for this recipe.
    pub fn new(recipe: &RecipeConfig) -> Self {
        Self {
            mode: recipe.mode,
            size: recipe.size as usize,
            cropper: Default::default(),
            resizer: Default::default(),
            planes: Default::default(),
            view: View::default(),
            blur: Default::default(),
            changes: Vec::new(),
        }
    }

    /// Writes the view that `steps` make of the picture to `out` (`size × size × 3` u8, row-major RGB).
    ///
    /// # Panics
    /// If `out` has another length or the first step is no crop inside the picture.
    pub fn apply(&mut self, picture: Picture<'_>, steps: &[Step], out: &mut [u8]) {
        let (size, mode) = (self.size, self.mode);
        assert_eq!(out.len(), size * size * 3, "a view of side {size}");
        let [Step::Crop(crop), rest @ ..] = steps else { panic!("the first of {steps:?} is no crop") };
        // A mirror image next to the crop costs nothing there.
        let (mirror, rest) = match rest {
            [Step::HorizontalFlip, rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        match picture {
            Picture::Planes(planes) => {
                let (region, interpolation) = (crop.region(), crop.interpolation);
                self.resizer.resize(planes, region, interpolation, mode, size, mirror, &mut self.planes);
                if rest.is_empty() {
                    return crate::simd::interleave(self.planes.each_ref().map(Vec::as_slice), out);
                }
                self.view.read_planes(&self.planes, size, size);
            }
            Picture::Rgb(image) => {
                self.cropper.crop(image, crop, mode, size, out);
                if mirror {
                    horizontal_flip::flip(out, size);
                }
                if rest.is_empty() {
                    return;
                }
                self.view.read(out, size, size);
            }
        }
        self.change(rest);
        self.view.write(out);
    }

    /// Makes the steps after the crop; those of each pixel alone that follow each other are made together.
    fn change(&mut self, steps: &[Step]) {
        let (mode, view) = (self.mode, &mut self.view);
        for step in steps {
            match step {
                Step::ColorJitter(jitter) => self.changes.extend_from_slice(&jitter.changes),
                Step::Grayscale => self.changes.push(Change::Gray),
                _ => {
                    pixelwise::apply(mode, &self.changes, view);
                    self.changes.clear();
                    match step {
                        Step::HorizontalFlip => view.mirror(),
                        Step::GaussianBlur(blur) => blur.apply(mode, view, &mut self.blur),
                        Step::Crop(_) | Step::ColorJitter(_) | Step::Grayscale => unreachable!("handled above"),
                    }
                }
            }
        }
        pixelwise::apply(mode, &self.changes, view);
        self.changes.clear();
    }
}

#[cfg(test)]
mod tests;
