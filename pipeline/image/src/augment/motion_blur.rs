//! Blurs along a line.

use serde::{Deserialize, Serialize};
use simclr_ground::rng::Draws;

use super::filter::each_plane_framed;
use super::op::check_probability;
use super::{Augmentation, Filter, Mode, Step, View, ViewContext};
use crate::simd::{vectorized, weigh_bytes};

/// Blurs the view along a straight line with a probability, as if the camera had moved; its direction is drawn anew
/// for each view. The SimCLR paper's appendix B.2 adds it without printing a length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MotionBlur {
    /// In [0, 1].
    pub probability: f64,
    /// The line's length in pixels of the view, from and to; 1 changes nothing.
    pub length: [f64; 2],
}

/// A blur along a line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MotionStep {
    /// The line's length in pixels.
    pub length: f64,
    /// Its direction in degrees, 0 along the rows, turning from right to down.
    pub degrees: f64,
}

/// Bits behind the point in a weight.
const WEIGHT_BITS: u32 = 14;

/// The longest line.
const LONGEST: f64 = 255.0;

impl Augmentation for MotionBlur {
    fn check(&self) -> Result<(), (String, String)> {
        check_probability(self.probability)?;
        if !(self.length[0] >= 1.0 && self.length[0] <= self.length[1] && self.length[1] <= LONGEST) {
            let wanted = format!("expected [from, to] in pixels with 1 <= from <= to <= {LONGEST}");
            return Err((format!("length {:?}", self.length), wanted));
        }
        Ok(())
    }

    fn draw(&self, _: &ViewContext, draws: &mut Draws, steps: &mut Vec<Step>) {
        steps.extend(self.drawn(draws).map(Step::filter));
    }
}

impl MotionBlur {
    fn drawn(&self, draws: &mut Draws) -> Option<MotionStep> {
        draws.chance(self.probability).then(|| MotionStep {
            length: draws.uniform(self.length[0], self.length[1]),
            degrees: draws.uniform(0.0, 180.0),
        })
    }
}

impl std::fmt::Display for MotionStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "motion blur {:.1} at {:.0}°", self.length, self.degrees)
    }
}

impl Filter for MotionStep {
    fn apply(&self, _: Mode, view: &mut View) {
        self.change(view);
    }
}

impl MotionStep {
    /// Each pixel becomes the mean of points on the line through its center, half a pixel or less apart, each between
    /// its four neighbors. Beyond the frame its last values go on.
    fn change(&self, view: &mut View) {
        let taps = self.taps();
        let weights = fixed_point(taps.iter().map(|tap| tap.weight));
        let radius = taps.iter().map(|tap| tap.x.abs().max(tap.y.abs())).max().unwrap_or(0);
        let reach = radius as usize;
        let mut sums = vec![0; view.width];
        vectorized(
            #[inline(always)]
            || {
                each_plane_framed(
                    view,
                    reach,
                    |i, n| i.clamp(0, n - 1),
                    |framed, stride, plane, width| {
                        for (y, row) in plane.chunks_exact_mut(width).enumerate() {
                            let source = |tap: usize| {
                                let (x, y) = (taps[tap].x + radius, taps[tap].y + radius + y as i64);
                                &framed[y as usize * stride + x as usize..][..width]
                            };
                            weigh_bytes(&weights, source, &mut sums, WEIGHT_BITS);
                            row.iter_mut().zip(&sums).for_each(|(value, &sum)| *value = sum.clamp(0, 255) as u8);
                        }
                    },
                );
            },
        );
    }

    fn taps(&self) -> Vec<Tap> {
        let radians = self.degrees.to_radians();
        let (cos, sin) = (libm::cos(radians), libm::sin(radians));
        let half = (self.length - 1.0) / 2.0;
        let steps = (2.0 * half).ceil().max(1.0) as i64;
        let mut taps: Vec<Tap> = Vec::new();
        let points = 2 * steps + 1;
        for point in -steps..=steps {
            let at = half * point as f64 / steps as f64;
            let (x, y) = (at * cos, at * sin);
            for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                let (left, top) = (x.floor() as i64 + dx, y.floor() as i64 + dy);
                let weight = (1.0 - (x - left as f64).abs()) * (1.0 - (y - top as f64).abs()) / points as f64;
                if weight > 1e-9 {
                    match taps.iter_mut().find(|tap| (tap.x, tap.y) == (left, top)) {
                        Some(tap) => tap.weight += weight,
                        None => taps.push(Tap { x: left, y: top, weight }),
                    }
                }
            }
        }
        taps
    }
}

/// Weights as whole numbers, whose sum is one; what rounding took or gave goes to the largest.
fn fixed_point(weights: impl Iterator<Item = f64> + Clone) -> Vec<i16> {
    let one = f64::from(1 << WEIGHT_BITS);
    let sum: f64 = weights.clone().sum();
    let mut fixed: Vec<i16> = weights.map(|weight| (weight / sum * one + 0.5).floor() as i16).collect();
    let missing = (1 << WEIGHT_BITS) - fixed.iter().map(|&weight| i32::from(weight)).sum::<i32>();
    *fixed.iter_mut().max().expect("a filter has weights") += missing as i16;
    fixed
}

/// A neighbor and its weight.
struct Tap {
    x: i64,
    y: i64,
    weight: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_becomes_a_line_of_that_length_and_direction() {
        for (length, degrees) in [(9.0, 0.0), (9.0, 90.0), (12.5, 30.0), (5.0, 135.0)] {
            let mut view = View { width: 33, height: 33, ..View::default() };
            view.planes = std::array::from_fn(|_| vec![0; 33 * 33]);
            view.planes[1][16 * 33 + 16] = 255;
            MotionStep { length, degrees }.apply(Mode::Torchvision, &mut view);
            let (mut sum, mut moments) = (0.0, [0.0; 3]);
            for (i, &value) in view.planes[1].iter().enumerate() {
                let (x, y, value) = ((i % 33) as f64 - 16.0, (i / 33) as f64 - 16.0, f64::from(value));
                sum += value;
                for (moment, of) in moments.iter_mut().zip([x * x, y * y, x * y]) {
                    *moment += of * value / 255.0;
                }
            }
            assert!((sum - 255.0).abs() < 8.0, "{sum} of 255");
            // The line's second moment is (length − 1)² / 12 and a little more for its points and their pixels.
            let size = (length - 1.0f64).powi(2) / 12.0;
            assert!((moments[0] + moments[1] - size).abs() < 0.15 * size + 0.5, "{moments:?} for {size}");
            let found = 0.5 * libm::atan2(2.0 * moments[2], moments[0] - moments[1]).to_degrees();
            let off = (found - degrees + 270.0).rem_euclid(180.0) - 90.0;
            assert!(off.abs() < 3.0, "{found}° for {degrees}°");
        }
    }

    #[test]
    fn a_length_of_one_changes_nothing() {
        let plane: Vec<u8> = (0..35).map(|i| (i * 37 % 256) as u8).collect();
        let mut view = View { width: 7, height: 5, ..View::default() };
        view.planes = std::array::from_fn(|_| plane.clone());
        MotionStep { length: 1.0, degrees: 77.0 }.apply(Mode::Torchvision, &mut view);
        assert_eq!(view.planes[2], plane);
    }
}
