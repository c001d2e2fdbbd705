//! Changes of each pixel's color alone, several in one pass.
//!
//! A pass goes over the view in tiles that stay in the first-level cache, and makes all changes on each. Contrast needs
//! the mean of what the changes before it made, so a pass ends there, having summed it up. [`exact`] works in f32, as
//! the reference libraries do; [`fixed`], twice as fast and more, in whole numbers of 1/32, where results may differ
//! from theirs by one of 255.

mod exact;
mod fixed;

use super::{Mode, View};
use crate::simd::vectorized;

/// Pixels in a tile.
const TILE: usize = 1024;

/// One color change with its drawn amount.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ColorOp {
    /// Multiply all pixels.
    Brightness(f32),
    /// Add this share of full brightness to all pixels.
    AddBrightness(f32),
    /// Move pixels from, or towards, their mean.
    Contrast(f32),
    /// Move pixels from, or towards, their gray.
    Saturation(f32),
    /// Turn the hue by this share of the circle.
    Hue(f32),
    /// Drop the color.
    Gray,
    /// Invert values that are at least this large.
    Solarize(f32),
    /// Keep this many of a value's eight bits.
    Posterize(u32),
    /// Exchange dark and bright.
    Invert,
}

impl std::fmt::Display for ColorOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ColorOp::Brightness(x) => write!(f, "b×{x:.2}"),
            ColorOp::AddBrightness(x) => write!(f, "b{x:+.2}"),
            ColorOp::Contrast(x) => write!(f, "c×{x:.2}"),
            ColorOp::Saturation(x) => write!(f, "s×{x:.2}"),
            ColorOp::Hue(x) => write!(f, "h{x:+.2}"),
            ColorOp::Gray => write!(f, "gray"),
            ColorOp::Solarize(x) => write!(f, "solarize ≥ {x:.0}"),
            ColorOp::Posterize(bits) => write!(f, "posterise {bits}"),
            ColorOp::Invert => write!(f, "invert"),
        }
    }
}

/// Room for the values of a view between passes.
#[derive(Default)]
pub(super) struct Scratch {
    exact: [Vec<f32>; 3],
    fixed: [Vec<i16>; 3],
}

/// Makes the changes; after each all values are in [0, 255], and whole numbers in torchvision's arithmetic. In the
/// other they are rounded, half up, at the end.
pub(super) fn apply(mode: Mode, changes: &[ColorOp], view: &mut View, kept: &mut Scratch) {
    if changes.is_empty() {
        return;
    }
    // As constants, so that the loops are compiled for each.
    match mode {
        Mode::Paper if changes.iter().all(fixed::makes) => fixed::run(changes, view, &mut kept.fixed),
        Mode::Paper => vectorized(
            #[inline(always)]
            || exact::run::<false>(changes, view, &mut kept.exact),
        ),
        Mode::Torchvision => vectorized(
            #[inline(always)]
            || exact::run::<true>(changes, view, &mut kept.exact),
        ),
    }
}

/// The changes up to the next contrast, which needs a sum of what they make, and those from it on. If a sum has just
/// been made, the first is the contrast that it was made for.
fn pass(changes: &[ColorOp], summed: bool) -> (&[ColorOp], &[ColorOp]) {
    let begin = usize::from(summed);
    let is_contrast = |change: &ColorOp| matches!(change, ColorOp::Contrast(_));
    changes.split_at(changes.iter().skip(begin).position(is_contrast).map_or(changes.len(), |i| i + begin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use simclr_ground::rng::{Draws, Purpose};

    /// What is rounded to 1/32 after each change is, after all of them, off by one of 255 where the exact value lies
    /// near a half, and nowhere by more.
    #[test]
    fn fixed_point_is_within_one_of_255_of_floats() {
        let mut draws = Draws::new(1, Purpose::Image, &[31]);
        let (mut off, mut all) = (0, 0);
        for round in 0..60 {
            let (width, height) = (33 + round, 47);
            let noise = |draws: &mut Draws| (0..width * height).map(|_| draws.below(256) as u8).collect();
            let view = View { width, height, planes: std::array::from_fn(|_| noise(&mut draws)), ..View::default() };
            let mut factor = || draws.uniform(0.2, 1.8) as f32;
            let mut changes = vec![
                ColorOp::Brightness(factor()),
                ColorOp::Contrast(factor()),
                ColorOp::Saturation(factor()),
                ColorOp::Hue((factor() - 1.0) / 4.0),
            ];
            changes.rotate_left(round % 4);
            if round % 5 == 0 {
                changes.push(ColorOp::Gray);
            }
            let (mut a, mut b) = (view.clone(), view);
            fixed::run(&changes, &mut a, &mut Default::default());
            exact::run::<false>(&changes, &mut b, &mut Default::default());
            for (x, y) in a.planes.iter().flatten().zip(b.planes.iter().flatten()) {
                assert!(x.abs_diff(*y) <= 1, "{changes:?}: {x} for {y}");
                off += usize::from(x != y);
                all += 1;
            }
        }
        let share = off as f64 / all as f64;
        println!("{:.2} % of values differ", 100.0 * share);
        assert!(share < 0.05, "{share}");
    }
}
