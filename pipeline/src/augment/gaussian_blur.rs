//! Blurs with a Gaussian.

use serde::{Deserialize, Serialize};

use super::{Mode, View, check_probability};
use crate::rng::Draws;
use crate::simd::{vectorized, weigh_floats};

/// Blurs with a probability, with a Gaussian whose width is drawn anew for each view.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GaussianBlur {
    /// In [0, 1]; 0.5 in the paper.
    pub probability: f64,
    /// The Gaussian's σ in pixels of the view, from and to; (0.1, 2) in the paper.
    pub sigma: [f64; 2],
    /// The kernel's size as a share of the view's side; 0.1 in the paper.
    pub kernel: f64,
}

/// A blur with its drawn width.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlurStep {
    /// The Gaussian's σ in pixels.
    pub sigma: f64,
    /// Pixels on either side that the kernel reaches; it has `2 × radius + 1` taps.
    pub radius: usize,
}

impl GaussianBlur {
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        check_probability(self.probability)?;
        if !(self.sigma[0] > 0.0 && self.sigma[0] <= self.sigma[1] && self.sigma[1] <= 1000.0) {
            return Err((format!("sigma {:?}", self.sigma), "from and to, above 0, is wanted".into()));
        }
        if !(self.kernel > 0.0 && self.kernel <= 1.0) {
            return Err((
                format!("kernel {}", self.kernel),
                "a share of the view's side, above 0 and at most 1, is wanted".into(),
            ));
        }
        Ok(())
    }

    pub(super) fn draw(&self, draws: &mut Draws, size: u32) -> Option<BlurStep> {
        // As the official code: the kernel is a tenth of the side cut to a whole number, its radius half of that cut
        // likewise, which makes 23 taps at 224 pixels.
        let radius = (f64::from(size) * self.kernel) as usize / 2;
        draws.chance(self.probability).then(|| BlurStep { sigma: draws.uniform(self.sigma[0], self.sigma[1]), radius })
    }
}

/// Buffers that a blur needs.
#[derive(Default)]
pub(super) struct BlurBuffers {
    weights: Vec<f32>,
    padded: Vec<f32>,
    rows: Vec<f32>,
}

/// How many σ the kernel is followed to. What is left out beyond weighs less than a thousandth, which moves no pixel by
/// more than one of 255.
const FOLLOWED: f64 = 3.3;

impl BlurStep {
    /// Blurs all planes: along rows, then along columns.
    pub(super) fn apply(&self, mode: Mode, view: &mut View, buffers: &mut BlurBuffers) {
        let radius = self.radius.min((FOLLOWED * self.sigma).ceil() as usize);
        if radius == 0 {
            return;
        }
        let (width, height) = (view.width, view.height);
        self.fill_weights(radius, &mut buffers.weights);
        let BlurBuffers { weights, padded, rows } = buffers;
        rows.resize(width * (height + 2 * radius), 0.0);
        padded.resize(width + 2 * radius, 0.0);
        vectorized(
            #[inline(always)]
            || {
                for plane in &mut view.planes {
                    let lines = rows[radius * width..].chunks_exact_mut(width);
                    for (row, out) in plane.chunks_exact(width).zip(lines) {
                        padded[radius..radius + width].copy_from_slice(row);
                        for i in (0..radius).chain(radius + width..width + 2 * radius) {
                            padded[i] = outside(mode, i, radius, width).map_or(0.0, |x| row[x]);
                        }
                        weigh_floats(weights, |tap| &padded[tap..tap + width], out);
                    }
                    for i in (0..radius).chain(radius + height..height + 2 * radius) {
                        match outside(mode, i, radius, height) {
                            Some(y) => rows.copy_within((radius + y) * width..(radius + y + 1) * width, i * width),
                            None => rows[i * width..][..width].fill(0.0),
                        }
                    }
                    for (y, out) in plane.chunks_exact_mut(width).enumerate() {
                        weigh_floats(weights, |tap| &rows[(y + tap) * width..][..width], out);
                        if mode == Mode::Torchvision {
                            for value in out {
                                // Half to even, by the rounding that adding a large number brings.
                                const LARGE: f32 = (1 << 23) as f32;
                                *value = (*value + LARGE) - LARGE;
                            }
                        }
                    }
                }
            },
        );
    }

    /// The kernel's taps, which sum to 1.
    fn fill_weights(&self, radius: usize, weights: &mut Vec<f32>) {
        let radius = radius as i64;
        let gauss = |x: i64| libm::exp(-((x * x) as f64) / (2.0 * self.sigma * self.sigma));
        let sum: f64 = (-radius..=radius).map(gauss).sum();
        weights.clear();
        weights.extend((-radius..=radius).map(|x| (gauss(x) / sum) as f32));
    }
}

/// The index in a row of `n` values that padded index `i` stands for; `None` stands for zero.
fn outside(mode: Mode, i: usize, radius: usize, n: usize) -> Option<usize> {
    let at = i as i64 - radius as i64;
    match mode {
        Mode::Paper => (0..n as i64).contains(&at).then_some(at as usize),
        Mode::Torchvision => {
            // Reflection without repeating the edge, as often as it takes for a kernel wider than the row.
            let period = (2 * (n as i64 - 1)).max(1);
            let at = at.rem_euclid(period);
            Some(at.min(period - at).min(n as i64 - 1) as usize)
        }
    }
}
