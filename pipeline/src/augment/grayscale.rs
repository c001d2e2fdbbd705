//! Drops the colour.

use serde::{Deserialize, Serialize};

use super::{Mode, View};

/// The weights of red, green and blue in grey (ITU-R 601 to four digits, as TensorFlow and torchvision have them).
pub(super) const GRAY: [f32; 3] = [0.2989, 0.587, 0.114];

/// Drops the colour with this probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grayscale {
    /// In [0, 1]; 0.2 in the paper.
    pub probability: f64,
}

/// The grey of one pixel, cut down to a whole number in torchvision's arithmetic.
pub(super) fn gray(mode: Mode, [r, g, b]: [f32; 3]) -> f32 {
    let value = GRAY[0] * r + GRAY[1] * g + GRAY[2] * b;
    match mode {
        Mode::Paper => value,
        Mode::Torchvision => value.floor(),
    }
}

/// Replaces every pixel by its grey.
pub(super) fn drop_color(mode: Mode, view: &mut View) {
    view.map(|pixel| [gray(mode, pixel); 3]);
}
