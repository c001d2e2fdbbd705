//! Changes that need to know the whole view: equalizing its histogram, stretching its contrast, sharpening it.

use serde::{Deserialize, Serialize};
use simclr_ground::rng::Draws;

use super::filter::each_plane_framed;
use super::op::check_probability;
use super::{Augmentation, Filter, Mode, Step, View, ViewContext};

/// Equalizes each channel's histogram with a probability, as Pillow and torchvision do. Part of the SimCLR paper's
/// appendix B.2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Equalize {
    /// In [0, 1].
    pub probability: f64,
}

impl Augmentation for Equalize {
    fn check(&self) -> Result<(), (String, String)> {
        check_probability(self.probability)
    }

    fn draw(&self, _: &ViewContext, draws: &mut Draws, steps: &mut Vec<Step>) {
        steps.extend(draws.chance(self.probability).then(|| Step::filter(Levels::Equalize)));
    }
}

/// A change of each channel by its own histogram or surroundings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Levels {
    /// Makes all values about as frequent.
    Equalize,
    /// Stretches the smallest and largest value to 0 and 255.
    AutoContrast,
    /// Moves values away from (factor above 1), or towards, the mean of their surroundings, in which they themselves
    /// count five times. The outermost pixels stay.
    Sharpness(f32),
}

impl std::fmt::Display for Levels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Levels::Equalize => write!(f, "equalize"),
            Levels::AutoContrast => write!(f, "autocontrast"),
            Levels::Sharpness(factor) => write!(f, "sharpness {factor:.2}"),
        }
    }
}

impl Filter for Levels {
    fn apply(&self, _: Mode, view: &mut View) {
        self.change(view);
    }
}

impl Levels {
    fn change(self, view: &mut View) {
        match self {
            Levels::Equalize => view.planes.iter_mut().for_each(|plane| equalize(plane)),
            Levels::AutoContrast => view.planes.iter_mut().for_each(|plane| stretch(plane)),
            Levels::Sharpness(factor) => sharpen(factor, view),
        }
    }
}

fn equalize(plane: &mut [u8]) {
    let mut histogram = [0u32; 256];
    plane.iter().for_each(|&value| histogram[usize::from(value)] += 1);
    let last = histogram.iter().rev().find(|&&count| count > 0).copied().unwrap_or(0);
    let step = (plane.len() as u32 - last) / 255;
    if step == 0 {
        return;
    }
    let mut below = step / 2;
    let table = histogram.map(|count| {
        let to = (below / step).min(255);
        below += count;
        to as u8
    });
    plane.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
}

fn stretch(plane: &mut [u8]) {
    let min = plane.iter().copied().min().unwrap_or(0);
    let max = plane.iter().copied().max().unwrap_or(0);
    if max > min {
        let scale = f32::from(max - min) * (1.0 / 255.0);
        plane.iter_mut().for_each(|value| *value = (f32::from(*value - min) / scale) as u8);
    }
}

fn sharpen(factor: f32, view: &mut View) {
    let height = view.height;
    each_plane_framed(
        view,
        1,
        |i, n| i.clamp(0, n - 1),
        |framed, stride, plane, width| {
            for (y, row) in plane.chunks_exact_mut(width).enumerate().take(height.saturating_sub(1)).skip(1) {
                let lines: [&[u8]; 3] = std::array::from_fn(|i| &framed[(y + i) * stride..][..stride]);
                for (x, out) in row.iter_mut().enumerate().take(width.saturating_sub(1)).skip(1) {
                    let around: u32 =
                        lines.iter().flat_map(|line| &line[x..x + 3]).map(|&value| u32::from(value)).sum();
                    let smooth = ((around + 4 * u32::from(*out)) as f32 / 13.0).round_ties_even();
                    let value = f32::from(*out);
                    *out = (value + (1.0 - factor) * (smooth - value)) as u8;
                }
            }
        },
    );
}
