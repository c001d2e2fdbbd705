//! Turns one decoded picture into views: parameters are drawn first, as plain values, and applied second.
//!
//! A new augmentation is one file here, one row of [`Op`] and one of [`Step`]. Two arithmetics are offered:
//! `torchvision` (the v2 ops on uint8) and `paper` (the TensorFlow ops of the official code); see [`Mode`].

mod auto_augment;
mod center_crop;
mod color_jitter;
mod cutout;
mod filter;
mod gaussian_blur;
mod gaussian_noise;
mod grayscale;
mod horizontal_flip;
mod levels;
mod motion_blur;
mod pixelwise;
mod random_resized_crop;
pub mod resize;
mod sobel;
mod solarize;
mod view;
mod warp;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

pub use auto_augment::AutoAugment;
pub use center_crop::CenterCrop;
pub use color_jitter::{BrightnessRule, ColorJitter};
pub use cutout::{Cutout, CutoutStep};
pub use gaussian_blur::{BlurStep, GaussianBlur};
pub use gaussian_noise::{GaussianNoise, NoiseStep};
pub use grayscale::Grayscale;
pub use horizontal_flip::HorizontalFlip;
pub use levels::{Equalize, Levels};
pub use motion_blur::{MotionBlur, MotionStep};
pub use pixelwise::Change;
pub use random_resized_crop::{CropStep, Interpolation, RandomResizedCrop};
pub use sobel::Sobel;
pub use solarize::Solarize;
pub use view::View;
pub use warp::{Rotation, Warp};

use simclr_ground::error::InvalidValue;
use simclr_ground::rng::{Draws, Purpose};

use crate::decode::RgbImage;
use crate::decode::jpeg::{Planes, Region};

/// Whose sampling rules and arithmetic the augmentations follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The official TensorFlow code: crops uniform in height, bicubic without antialiasing, contrast about each
    /// channel's mean, saturation in HSV, zero padding in the blur, rounding to u8
    /// only behind a crop, a run of colour changes, and a blur.
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
    /// Views per picture that are made by `ops`; SimCLR has two.
    pub views: u32,
    /// What is done, in this order; a crop comes first.
    pub ops: Vec<Op>,
    /// Further views of the same picture, made in other ways; they come after those of `ops`, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<Branch>,
}

/// Views that are made in a way of their own: another side's recipe, or the small crops of multi-crop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Branch {
    /// Side of a view in pixels.
    pub size: u32,
    /// Views per picture.
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
    /// Covers a square.
    Cutout(Cutout),
    /// Keeps the edges.
    Sobel(Sobel),
    /// Adds noise.
    GaussianNoise(GaussianNoise),
    /// Turns the view.
    Rotation(Rotation),
    /// Inverts what is bright.
    Solarize(Solarize),
    /// Makes all levels about as frequent.
    Equalize(Equalize),
    /// Blurs along a line.
    MotionBlur(MotionBlur),
    /// AutoAugment's policy for ImageNet.
    AutoAugment(AutoAugment),
}

/// An augmentation with its drawn parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Cut out this box and resize it to the view.
    Crop(CropStep),
    /// Mirror left and right.
    HorizontalFlip,
    /// Change the colours so, in this order.
    Colors(Vec<Change>),
    /// Blur so.
    GaussianBlur(BlurStep),
    /// Cover this.
    Cutout(CutoutStep),
    /// Keep the edges.
    Sobel,
    /// Add this noise.
    Noise(NoiseStep),
    /// Turn or shear so.
    Warp(Warp),
    /// Change by the view's own histogram or surroundings.
    Levels(Levels),
    /// Blur along this line.
    MotionBlur(MotionStep),
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Crop(crop) => write!(f, "crop {}×{} at {},{}", crop.width, crop.height, crop.left, crop.top),
            Step::HorizontalFlip => write!(f, "flip"),
            Step::Colors(changes) => {
                for (i, change) in changes.iter().enumerate() {
                    write!(f, "{}{change}", if i > 0 { " " } else { "" })?;
                }
                Ok(())
            }
            Step::GaussianBlur(blur) => write!(f, "blur σ {:.2}", blur.sigma),
            Step::Cutout(CutoutStep { left, top, width, height, .. }) => {
                write!(f, "cutout {width}×{height} at {left},{top}")
            }
            Step::Sobel => write!(f, "Sobel"),
            Step::Noise(noise) => write!(f, "noise σ {:.1}", noise.sigma),
            Step::Warp(Warp::Rotate(degrees) | Warp::RotateNearest(degrees)) => write!(f, "turn {degrees:+.0}°"),
            Step::Warp(Warp::ShearNearest(shear)) => write!(f, "shear {shear:+.2}"),
            Step::Levels(Levels::Equalize) => write!(f, "equalise"),
            Step::Levels(Levels::AutoContrast) => write!(f, "autocontrast"),
            Step::Levels(Levels::Sharpness(factor)) => write!(f, "sharpness {factor:.2}"),
            Step::MotionBlur(blur) => write!(f, "motion blur {:.1} at {:.0}°", blur.length, blur.degrees),
        }
    }
}

impl RecipeConfig {
    /// The paper's ImageNet recipe at this side: two views, torchvision's arithmetic.
    pub fn simclr(size: u32) -> Self {
        let ops = vec![
            Op::RandomResizedCrop(RandomResizedCrop {
                scale: [0.08, 1.0],
                ratio: [0.75, 4.0 / 3.0],
                interpolation: Interpolation::Bicubic,
            }),
            Op::HorizontalFlip(HorizontalFlip { probability: 0.5 }),
            Op::ColorJitter(ColorJitter {
                probability: 0.8,
                strength: 1.0,
                brightness: 0.8,
                contrast: 0.8,
                saturation: 0.8,
                hue: 0.2,
                brightness_rule: BrightnessRule::Multiply,
            }),
            Op::Grayscale(Grayscale { probability: 0.2 }),
            Op::GaussianBlur(GaussianBlur { probability: 0.5, sigma: [0.1, 2.0], kernel: 0.1 }),
        ];
        Self { mode: Mode::Torchvision, decode: DecodePath::Planar, size, views: 2, ops, branches: vec![] }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// Names the key, what was found and what would be right.
    pub fn check(&self) -> Result<(), InvalidValue> {
        check_way("recipe", self.size, self.views, &self.ops)?;
        for (i, branch) in self.branches.iter().enumerate() {
            check_way(&format!("recipe.branches.{i}"), branch.size, branch.views, &branch.ops)?;
        }
        if self.count() > MOST_VIEWS as usize {
            let found = format!("{} views in all", self.count());
            let wanted = format!("at most {MOST_VIEWS} are wanted");
            return Err(InvalidValue { key: "recipe.branches".into(), found, wanted });
        }
        Ok(())
    }

    /// Side and ops of each view.
    fn ways(&self) -> impl Iterator<Item = (u32, &[Op])> {
        let own = std::iter::repeat_n((self.size, &self.ops[..]), self.views as usize);
        own.chain(
            self.branches
                .iter()
                .flat_map(|branch| std::iter::repeat_n((branch.size, &branch.ops[..]), branch.views as usize)),
        )
    }

    /// Side in pixels of each view of a picture.
    pub fn sizes(&self) -> impl Iterator<Item = u32> {
        self.ways().map(|(size, _)| size)
    }

    /// Views per picture, all branches together.
    pub fn count(&self) -> usize {
        self.ways().count()
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

    /// Draws the steps for each view of a picture of `width` × `height` pixels.
    pub fn draw(&self, seed: u64, epoch: u64, sample: u64, width: u32, height: u32) -> Vec<Vec<Step>> {
        let view = |(view, (size, ops)): (usize, (u32, &[Op]))| {
            let mut draws = Draws::new(seed, Purpose::Augment, &[epoch, sample, view as u64]);
            let mut steps = Vec::with_capacity(ops.len());
            ops.iter().for_each(|op| op.draw(self.mode, &mut draws, [width, height], size, &mut steps));
            steps
        };
        self.ways().enumerate().map(view).collect()
    }
}

/// Bytes of a view of this side: `size × size × 3`.
pub fn view_bytes(size: u32) -> usize {
    size as usize * size as usize * 3
}

/// More views than anybody has wanted of a picture.
const MOST_VIEWS: u32 = 64;

/// Checks how some of a picture's views are made; `at` is the configuration's key.
fn check_way(at: &str, size: u32, views: u32, ops: &[Op]) -> Result<(), InvalidValue> {
    let wrong = |key: &str, found, wanted| Err(InvalidValue { key: Cow::Owned(format!("{at}.{key}")), found, wanted });
    if !(1..=4096).contains(&size) {
        return wrong("size", size.to_string(), "a side between 1 and 4096 pixels is wanted".into());
    }
    if !(1..=MOST_VIEWS).contains(&views) {
        return wrong("views", views.to_string(), format!("between 1 and {MOST_VIEWS} views are wanted"));
    }
    let is_crop = |op: &Op| matches!(op, Op::RandomResizedCrop(_) | Op::CenterCrop(_));
    if !ops.first().is_some_and(is_crop) || ops.iter().skip(1).any(is_crop) {
        let wanted = "the first op, and only that, is random_resized_crop or center_crop".into();
        return wrong("ops", format!("{} ops", ops.len()), wanted);
    }
    ops.iter().try_for_each(|op| op.check().or_else(|(found, wanted)| wrong("ops", found, wanted)))
}

impl Op {
    fn check(&self) -> Result<(), (String, String)> {
        match self {
            Op::RandomResizedCrop(op) => op.check(),
            Op::CenterCrop(op) => op.check(),
            Op::HorizontalFlip(HorizontalFlip { probability })
            | Op::Grayscale(Grayscale { probability })
            | Op::Sobel(Sobel { probability })
            | Op::Equalize(Equalize { probability }) => check_probability(*probability),
            Op::ColorJitter(op) => op.check(),
            Op::GaussianBlur(op) => op.check(),
            Op::Cutout(op) => op.check(),
            Op::GaussianNoise(op) => op.check(),
            Op::Rotation(op) => op.check(),
            Op::Solarize(op) => op.check(),
            Op::MotionBlur(op) => op.check(),
            Op::AutoAugment(op) => op.check(),
        }
    }

    /// Draws the op's steps, often none, for a view of side `size` of a picture of this width and height.
    fn draw(&self, mode: Mode, draws: &mut Draws, [width, height]: [u32; 2], size: u32, steps: &mut Vec<Step>) {
        let step = match self {
            Op::RandomResizedCrop(op) => Some(Step::Crop(op.draw(mode, draws, width, height))),
            Op::CenterCrop(op) => Some(Step::Crop(op.crop(width, height))),
            Op::HorizontalFlip(op) => draws.chance(op.probability).then_some(Step::HorizontalFlip),
            Op::ColorJitter(op) => op.draw(draws).map(Step::Colors),
            Op::Grayscale(op) => draws.chance(op.probability).then(|| Step::Colors(vec![Change::Gray])),
            Op::GaussianBlur(op) => op.draw(draws, size).map(Step::GaussianBlur),
            Op::Cutout(op) => op.draw(draws, size).map(Step::Cutout),
            Op::Sobel(op) => draws.chance(op.probability).then_some(Step::Sobel),
            Op::GaussianNoise(op) => op.draw(draws).map(Step::Noise),
            Op::Rotation(op) => op.draw(draws).map(Step::Warp),
            Op::Solarize(op) => op.draw(draws).map(|change| Step::Colors(vec![change])),
            Op::Equalize(op) => draws.chance(op.probability).then_some(Step::Levels(Levels::Equalize)),
            Op::MotionBlur(op) => op.draw(draws).map(Step::MotionBlur),
            Op::AutoAugment(op) => return op.draw(draws, steps),
        };
        steps.extend(step);
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
    cropper: random_resized_crop::Cropper,
    resizer: resize::Resizer,
    view: View,
    /// Colour changes that are made together.
    changes: Vec<Change>,
    /// Values between their passes.
    kept: pixelwise::Kept,
}

impl Augmenter {
    /// Buffers for views in this arithmetic.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            cropper: Default::default(),
            resizer: Default::default(),
            view: View::default(),
            changes: Vec::new(),
            kept: Default::default(),
        }
    }

    /// Writes the view of side `size` that `steps` make of the picture to `out` (`size × size × 3` u8, row-major RGB).
    ///
    /// # Panics
    /// If `out` has another length or the first step is no crop inside the picture.
    pub fn apply(&mut self, picture: Picture<'_>, steps: &[Step], size: usize, out: &mut [u8]) {
        assert_eq!(out.len(), size * size * 3, "a view of side {size}");
        let [Step::Crop(crop), rest @ ..] = steps else { panic!("the first of {steps:?} is no crop") };
        // A mirror image next to the crop costs nothing there.
        let (mirror, rest) = match rest {
            [Step::HorizontalFlip, rest @ ..] => (true, rest),
            rest => (false, rest),
        };
        match picture {
            Picture::Planes(planes) => {
                let antialias = self.mode == Mode::Torchvision;
                let (region, interpolation) = (crop.region(), crop.interpolation);
                let cut = resize::Cut { region, interpolation, antialias, size, mirror };
                (self.view.width, self.view.height) = (size, size);
                self.resizer.resize(planes, &cut, &mut self.view.planes);
            }
            Picture::Rgb(image) => {
                self.cropper.crop(image, crop, self.mode, size, out);
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

    /// Makes the steps after the crop on the view; colour changes that follow each other are made together.
    fn change(&mut self, steps: &[Step]) {
        let Self { mode, view, changes, kept, .. } = self;
        for step in steps {
            if let Step::Colors(colors) = step {
                changes.extend_from_slice(colors);
                continue;
            }
            pixelwise::apply(*mode, changes, view, kept);
            changes.clear();
            match step {
                Step::Crop(_) => unreachable!("a crop comes first only"),
                Step::Colors(_) => unreachable!("handled above"),
                Step::HorizontalFlip => view.mirror(),
                Step::GaussianBlur(blur) => blur.apply(*mode, view),
                Step::Cutout(cutout) => cutout.apply(view),
                Step::Sobel => sobel::apply(view),
                Step::Noise(noise) => noise.apply(view),
                Step::Warp(warp) => warp.apply(view),
                Step::Levels(levels) => levels.apply(view),
                Step::MotionBlur(blur) => blur.apply(view),
            }
        }
        pixelwise::apply(*mode, changes, view, kept);
        changes.clear();
    }
}

#[cfg(test)]
mod tests;
