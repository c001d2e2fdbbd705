//! Turns one decoded image into views: parameters are drawn first, as plain values, and applied second.
//!
//! A [`RecipeConfig`] says which augmentations make a view. A new one is a file and a row of the table
//! below; what it does to a view is a [`Step`], which the [`Augmenter`] applies. Two arithmetics are offered: `torchvision` (the v2 ops
//! on uint8) and `paper` (the TensorFlow ops of the official code); see [`Mode`].

mod augmenter;
mod op;
mod recipe;

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

use serde::{Deserialize, Serialize};

use simclr_ground::rng::Draws;

pub use augmenter::{Augmenter, Image};
pub use color_jitter::BrightnessRule;
pub use cutout::CutoutStep;
pub use gaussian_blur::BlurStep;
pub use gaussian_noise::NoiseStep;
pub use levels::Levels;
pub use motion_blur::MotionStep;
pub use op::{Augmentation, Filter, Step, ViewContext};
pub use pixelwise::ColorOp;
pub use random_resized_crop::{CropStep, Interpolation};
pub use recipe::{Branch, DecodePath, RecipeConfig, view_bytes};
pub use view::View;
pub use warp::Warp;

op::ops! {
    random_resized_crop::RandomResizedCrop,
    center_crop::CenterCrop,
    horizontal_flip::HorizontalFlip,
    color_jitter::ColorJitter,
    grayscale::Grayscale,
    gaussian_blur::GaussianBlur,
    cutout::Cutout,
    sobel::Sobel,
    gaussian_noise::GaussianNoise,
    warp::Rotation,
    solarize::Solarize,
    levels::Equalize,
    motion_blur::MotionBlur,
    auto_augment::AutoAugment,
}

/// Whose sampling rules and arithmetic the augmentations follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The official TensorFlow code: crops uniform in height, bicubic without antialiasing, contrast about each
    /// channel's mean, saturation in HSV, zero padding in the blur, rounding to u8
    /// only behind a crop, a run of color changes, and a blur.
    Paper,
    /// torchvision's v2 ops on uint8: crops uniform in area, antialiasing, contrast about the gray mean, saturation
    /// as a blend with gray, reflection in the blur, rounding to u8 after every op.
    Torchvision,
}

#[cfg(test)]
mod tests;
