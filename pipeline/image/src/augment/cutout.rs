//! Covers a square.

use serde::{Deserialize, Serialize};
use simclr_ground::rng::Draws;

use super::op::check_probability;
use super::{Augmentation, Filter, Mode, Step, View, ViewContext};

/// Covers a square of the view with a probability; its center may lie anywhere in the view, so that some of it may
/// lie outside (DeVries and Taylor 2017). The SimCLR paper studies it without printing a side; they took half of
/// CIFAR-10's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cutout {
    /// In [0, 1].
    pub probability: f64,
    /// The square's side as a share of the view's, above 0 and at most 1.
    pub side: f64,
    /// What all channels are set to.
    pub value: u8,
}

/// The part of the square that lies in the view, in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CutoutStep {
    /// The first column.
    pub left: usize,
    /// The first row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// What all channels are set to.
    pub value: u8,
}

impl Augmentation for Cutout {
    fn check(&self) -> Result<(), (String, String)> {
        check_probability(self.probability)?;
        if !(self.side > 0.0 && self.side <= 1.0) {
            return Err((
                format!("side {}", self.side),
                "expected a fraction of the view's side, above 0 and at most 1".into(),
            ));
        }
        Ok(())
    }

    fn draw(&self, context: &ViewContext, draws: &mut Draws, steps: &mut Vec<Step>) {
        steps.extend(self.drawn(draws, context.size).map(Step::filter));
    }
}

impl Cutout {
    fn drawn(&self, draws: &mut Draws, size: u32) -> Option<CutoutStep> {
        if !draws.chance(self.probability) {
            return None;
        }
        let side = ((f64::from(size) * self.side) as u64).max(1);
        let mut span = || {
            let from = draws.below(size.into()) as i64 - (side / 2) as i64;
            let end = (from + side as i64).min(size.into());
            (from.max(0) as usize, (end - from.max(0)) as usize)
        };
        let ((left, width), (top, height)) = (span(), span());
        Some(CutoutStep { left, top, width, height, value: self.value })
    }
}

impl std::fmt::Display for CutoutStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cutout {}×{} at {},{}", self.width, self.height, self.left, self.top)
    }
}

impl Filter for CutoutStep {
    fn apply(&self, _: Mode, view: &mut View) {
        self.change(view);
    }
}

impl CutoutStep {
    fn change(&self, view: &mut View) {
        let width = view.width;
        for plane in &mut view.planes {
            for row in plane.chunks_exact_mut(width).skip(self.top).take(self.height) {
                row[self.left..][..self.width].fill(self.value);
            }
        }
    }
}
