//! Blurs with a Gaussian.

use serde::{Deserialize, Serialize};
use simclr_ground::rng::Draws;

use super::op::check_probability;
use super::{Augmentation, Filter, Mode, Step, View, ViewContext};
use crate::simd::{vectorized, weigh_symmetric};

/// Blurs with a probability, with a Gaussian whose width is drawn anew for each view, as the paper says (appendix A); the
/// official code draws one width for a whole batch of views.
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

impl Augmentation for GaussianBlur {
    fn check(&self) -> Result<(), (String, String)> {
        check_probability(self.probability)?;
        if !(self.sigma[0] > 0.0 && self.sigma[0] <= self.sigma[1] && self.sigma[1] <= 1000.0) {
            return Err((format!("sigma {:?}", self.sigma), "expected [from, to] with 0 < from <= to <= 1000".into()));
        }
        if !(self.kernel > 0.0 && self.kernel <= 1.0) {
            return Err((
                format!("kernel {}", self.kernel),
                "expected a fraction of the view's side, above 0 and at most 1".into(),
            ));
        }
        Ok(())
    }

    fn draw(&self, context: &ViewContext, draws: &mut Draws, steps: &mut Vec<Step>) {
        steps.extend(self.drawn(draws, context.size).map(Step::filter));
    }
}

impl GaussianBlur {
    fn drawn(&self, draws: &mut Draws, size: u32) -> Option<BlurStep> {
        // As the official code: the kernel is a tenth of the side cut to a whole number, its radius half of that cut
        // likewise, which makes 23 taps at 224 pixels.
        let radius = (f64::from(size) * self.kernel) as usize / 2;
        draws.chance(self.probability).then(|| BlurStep { sigma: draws.uniform(self.sigma[0], self.sigma[1]), radius })
    }
}

/// How many σ the kernel is followed to. What is left out beyond weighs less than a thousandth, which moves no pixel by
/// more than one of 255.
const FOLLOWED: f64 = 3.3;

/// Bits behind the point of values between the two passes.
const VALUE_BITS: u32 = 6;

impl std::fmt::Display for BlurStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "blur σ {:.2}", self.sigma)
    }
}

impl Filter for BlurStep {
    fn apply(&self, mode: Mode, view: &mut View) {
        self.blur(mode, view);
    }
}

impl BlurStep {
    /// Blurs all planes: along rows, then along columns, in whole numbers.
    fn blur(&self, mode: Mode, view: &mut View) {
        let radius = self.radius.min((FOLLOWED * self.sigma).ceil() as usize);
        let Some(weights) = self.weights(radius) else { return };
        let (width, height) = (view.width, view.height);
        let mut line = vec![0i16; width + 2 * radius];
        let mut sums = vec![0i16; width];
        let rows = &mut view.wide;
        rows.resize(width * (height + 2 * radius), 0);
        vectorized(
            #[inline(always)]
            || {
                for plane in &mut view.planes {
                    let blurred = rows[radius * width..].chunks_exact_mut(width);
                    for (row, out) in plane.chunks_exact(width).zip(blurred) {
                        let inner = line[radius..].iter_mut().zip(row);
                        inner.for_each(|(value, &byte)| *value = i16::from(byte) << VALUE_BITS);
                        for i in (0..radius).chain(radius + width..width + 2 * radius) {
                            line[i] = outside(mode, i, radius, width).map_or(0, |x| line[radius + x]);
                        }
                        weigh_symmetric(&weights, |tap| &line[tap..tap + width], out);
                    }
                    for i in (0..radius).chain(radius + height..height + 2 * radius) {
                        match outside(mode, i, radius, height) {
                            Some(y) => rows.copy_within((radius + y) * width..(radius + y + 1) * width, i * width),
                            None => rows[i * width..][..width].fill(0),
                        }
                    }
                    for (y, row) in plane.chunks_exact_mut(width).enumerate() {
                        weigh_symmetric(&weights, |tap| &rows[(y + tap) * width..][..width], &mut sums);
                        let rounded = |sum: i16| (sum + (1 << (VALUE_BITS - 1))) >> VALUE_BITS;
                        row.iter_mut().zip(&sums).for_each(|(byte, &sum)| *byte = rounded(sum) as u8);
                    }
                }
            },
        );
    }

    /// The kernel's taps from the middle on, with 15 bits behind the point; together, all but the first counted twice,
    /// they are 1. None if the first is.
    fn weights(&self, radius: usize) -> Option<Vec<i16>> {
        let gauss = |x: usize| libm::exp(-((x * x) as f64) / (2.0 * self.sigma * self.sigma));
        let sum = 2.0 * (0..=radius).map(gauss).sum::<f64>() - 1.0;
        let one = 1 << 15;
        let mut weights: Vec<i32> = (0..=radius).map(|x| (gauss(x) / sum * f64::from(one) + 0.5) as i32).collect();
        weights[0] = one - 2 * weights[1..].iter().sum::<i32>();
        weights.into_iter().map(|weight| i16::try_from(weight).ok()).collect()
    }
}

/// The index in a row of `n` values that padded index `i` stands for; `None` stands for zero.
fn outside(mode: Mode, i: usize, radius: usize, n: usize) -> Option<usize> {
    let at = i as i64 - radius as i64;
    if (0..n as i64).contains(&at) {
        return Some(at as usize);
    }
    match mode {
        Mode::Paper => None,
        Mode::Torchvision => {
            // Reflection without repeating the edge, as often as it takes for a kernel wider than the row.
            let period = (2 * (n as i64 - 1)).max(1);
            let at = at.rem_euclid(period);
            Some(at.min(period - at).min(n as i64 - 1) as usize)
        }
    }
}
