//! Adds noise.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use simclr_ground::rng::Draws;

use super::op::check_probability;
use super::{Augmentation, Filter, Mode, Step, View, ViewContext};

/// Adds independent Gaussian noise to each value of the view with a probability. The SimCLR paper studies it without
/// printing its σ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GaussianNoise {
    /// In [0, 1].
    pub probability: f64,
    /// The noise's σ in steps of 255, from and to; drawn anew for each view.
    pub sigma: [f64; 2],
}

/// Noise with its drawn width.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseStep {
    /// σ in steps of 255.
    pub sigma: f64,
    /// What the values are made from.
    pub key: u64,
}

impl Augmentation for GaussianNoise {
    fn check(&self) -> Result<(), (String, String)> {
        check_probability(self.probability)?;
        if !(self.sigma[0] >= 0.0 && self.sigma[0] <= self.sigma[1] && self.sigma[1] <= 255.0) {
            return Err((format!("sigma {:?}", self.sigma), "expected [from, to] with 0 <= from <= to <= 255".into()));
        }
        Ok(())
    }

    fn draw(&self, _: &ViewContext, draws: &mut Draws, steps: &mut Vec<Step>) {
        steps.extend(self.drawn(draws).map(Step::filter));
    }
}

impl GaussianNoise {
    fn drawn(&self, draws: &mut Draws) -> Option<NoiseStep> {
        draws
            .chance(self.probability)
            .then(|| NoiseStep { sigma: draws.uniform(self.sigma[0], self.sigma[1]), key: draws.bits() })
    }
}

/// As many values as noise can have.
const QUANTILES: usize = 1 << 12;

impl std::fmt::Display for NoiseStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "noise σ {:.1}", self.sigma)
    }
}

impl Filter for NoiseStep {
    fn apply(&self, _: Mode, view: &mut View) {
        self.change(view);
    }
}

impl NoiseStep {
    /// Adds to each value one of the normal distribution's 4096 mid-quantiles, up to 3.67 σ.
    fn change(&self, view: &mut View) {
        let quantiles = quantiles();
        let sigma = self.sigma as f32;
        for (channel, plane) in view.planes.iter_mut().enumerate() {
            let mut counter = mix(self.key ^ channel as u64);
            for values in plane.chunks_mut(4) {
                counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let bits = mix(counter);
                for (i, value) in values.iter_mut().enumerate() {
                    let quantile = (bits >> (16 * i)) as usize % QUANTILES;
                    // `as` cuts to the range of u8.
                    *value = (f32::from(*value) + sigma * quantiles[quantile] + 0.5) as u8;
                }
            }
        }
    }
}

/// Mixes the bits of a counter (the finalizer of SplitMix64).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn quantiles() -> &'static [f32; QUANTILES] {
    static TABLE: OnceLock<Box<[f32; QUANTILES]>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = Box::new([0.0; QUANTILES]);
        for (i, value) in table.iter_mut().enumerate() {
            let wanted = (i as f64 + 0.5) / QUANTILES as f64;
            let (mut low, mut high) = (-8.0, 8.0);
            for _ in 0..50 {
                let middle: f64 = (low + high) / 2.0;
                let below = 0.5 * (1.0 + libm::erf(middle * std::f64::consts::FRAC_1_SQRT_2));
                *if below < wanted { &mut low } else { &mut high } = middle;
            }
            *value = low as f32;
        }
        table
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_normal_independent_and_the_same_for_the_same_key() {
        let noisy = |sigma, key| {
            let mut view = View { width: 128, height: 128, ..View::default() };
            view.planes = std::array::from_fn(|_| vec![128; 128 * 128]);
            NoiseStep { sigma, key }.apply(Mode::Torchvision, &mut view);
            view.planes.map(|plane| plane.into_iter().map(|x| f64::from(x) - 128.0).collect::<Vec<_>>())
        };
        let planes = noisy(20.0, 1);
        assert_eq!(planes, noisy(20.0, 1));
        assert_ne!(planes, noisy(20.0, 2));
        for (i, plane) in planes.iter().enumerate() {
            let n = plane.len() as f64;
            let moment = |power: i32| plane.iter().map(|x| (x / 20.0).powi(power)).sum::<f64>() / n;
            // Four standard errors of each moment of 16384 values.
            for (power, wanted, error) in [(1, 0.0, 1.0), (2, 1.0, 2f64.sqrt()), (3, 0.0, 15f64.sqrt()), (4, 3.0, 9.8)]
            {
                let off = (moment(power) - wanted).abs();
                assert!(off < 4.0 * error / n.sqrt(), "channel {i}, moment {power}: {off} off");
            }
            let next = &planes[(i + 1) % 3];
            for shift in [1, 2, 3, 4, 128] {
                let own = plane.iter().zip(&plane[shift..]).map(|(a, b)| a * b).sum::<f64>() / n / 400.0;
                let other = plane.iter().zip(&next[shift - 1..]).map(|(a, b)| a * b).sum::<f64>() / n / 400.0;
                assert!(own.abs().max(other.abs()) < 4.5 / n.sqrt(), "shift {shift}: correlated by {own}, {other}");
            }
        }
    }
}
