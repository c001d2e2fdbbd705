//! AutoAugment's policy for ImageNet.

use serde::{Deserialize, Serialize};
use simclr_ground::rng::Draws;

use super::levels::Levels;
use super::op::check_probability;
use super::pixelwise::ColorOp;
use super::warp::Warp;
use super::{Augmentation, Step, ViewContext};

/// Applies one of the 25 pairs of operations that Cubuk et al. (2019) learned on ImageNet, with a probability. What the
/// operations do follows torchvision, with nearest neighbors and black outside. The SimCLR paper's table 1 has it in
/// place of the color changes and the blur.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoAugment {
    /// In [0, 1]; 1 in the literature.
    pub probability: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Operation {
    AutoContrast,
    Color,
    Contrast,
    Equalize,
    Invert,
    Posterize,
    Rotate,
    Sharpness,
    ShearX,
    Solarize,
}

use Operation::*;

/// An operation, its probability, and its strength, 0 to 9, where it has one.
type Choice = (Operation, f64, u32);

/// The policy (table 9 of the paper, as torchvision has it).
const IMAGENET: [[Choice; 2]; 25] = [
    [(Posterize, 0.4, 8), (Rotate, 0.6, 9)],
    [(Solarize, 0.6, 5), (AutoContrast, 0.6, 0)],
    [(Equalize, 0.8, 0), (Equalize, 0.6, 0)],
    [(Posterize, 0.6, 7), (Posterize, 0.6, 6)],
    [(Equalize, 0.4, 0), (Solarize, 0.2, 4)],
    [(Equalize, 0.4, 0), (Rotate, 0.8, 8)],
    [(Solarize, 0.6, 3), (Equalize, 0.6, 0)],
    [(Posterize, 0.8, 5), (Equalize, 1.0, 0)],
    [(Rotate, 0.2, 3), (Solarize, 0.6, 8)],
    [(Equalize, 0.6, 0), (Posterize, 0.4, 6)],
    [(Rotate, 0.8, 8), (Color, 0.4, 0)],
    [(Rotate, 0.4, 9), (Equalize, 0.6, 0)],
    [(Equalize, 0.0, 0), (Equalize, 0.8, 0)],
    [(Invert, 0.6, 0), (Equalize, 1.0, 0)],
    [(Color, 0.6, 4), (Contrast, 1.0, 8)],
    [(Rotate, 0.8, 8), (Color, 1.0, 2)],
    [(Color, 0.8, 8), (Solarize, 0.8, 7)],
    [(Sharpness, 0.4, 7), (Invert, 0.6, 0)],
    [(ShearX, 0.6, 5), (Equalize, 1.0, 0)],
    [(Color, 0.4, 0), (Equalize, 0.6, 0)],
    [(Equalize, 0.4, 0), (Solarize, 0.2, 4)],
    [(Solarize, 0.6, 5), (AutoContrast, 0.6, 0)],
    [(Invert, 0.6, 0), (Equalize, 1.0, 0)],
    [(Color, 0.6, 4), (Contrast, 1.0, 8)],
    [(Equalize, 0.8, 0), (Equalize, 0.6, 0)],
];

impl Augmentation for AutoAugment {
    fn check(&self) -> Result<(), (String, String)> {
        check_probability(self.probability)
    }

    fn draw(&self, _: &ViewContext, draws: &mut Draws, steps: &mut Vec<Step>) {
        self.drawn(draws, steps);
    }
}

impl AutoAugment {
    fn drawn(&self, draws: &mut Draws, steps: &mut Vec<Step>) {
        if !draws.chance(self.probability) {
            return;
        }
        for (operation, probability, strength) in IMAGENET[draws.below(25) as usize] {
            if draws.chance(probability) {
                steps.push(operation.step(strength, if draws.chance(0.5) { -1.0 } else { 1.0 }));
            }
        }
    }
}

impl Operation {
    /// How much of it a strength of 0 to 9 is, with a sign where it has one: degrees, a shear, a factor's distance from 1,
    /// bits that are kept, or a threshold as a share of 255.
    fn amount(self, strength: u32, sign: f64) -> f64 {
        let share = f64::from(strength) / 9.0;
        match self {
            AutoContrast | Equalize | Invert => 0.0,
            Color | Contrast | Sharpness => sign * 0.9 * share,
            Posterize => 8.0 - (4.0 * share).round(),
            Rotate => sign * 30.0 * share,
            ShearX => sign * 0.3 * share,
            Solarize => 1.0 - share,
        }
    }

    /// The operation at a strength of 0 to 9, with a sign where it has one.
    fn step(self, strength: u32, sign: f64) -> Step {
        let amount = self.amount(strength, sign);
        let factor = (1.0 + amount) as f32;
        match self {
            AutoContrast => Step::filter(Levels::AutoContrast),
            Color => Step::Colors(vec![ColorOp::Saturation(factor)]),
            Contrast => Step::Colors(vec![ColorOp::Contrast(factor)]),
            Equalize => Step::filter(Levels::Equalize),
            Invert => Step::Colors(vec![ColorOp::Invert]),
            Posterize => Step::Colors(vec![ColorOp::Posterize(amount as u32)]),
            Rotate => Step::filter(Warp::RotateNearest(amount)),
            Sharpness => Step::filter(Levels::Sharpness(factor)),
            ShearX => Step::filter(Warp::ShearNearest(amount)),
            Solarize => Step::Colors(vec![ColorOp::Solarize((255.0 * amount) as f32)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `golden/studies.py` says how the policy was read from torchvision.
    #[test]
    fn the_policy_is_torchvisions() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("golden/studies.json")).unwrap();
        let wanted: Vec<[(Operation, f64, Option<u32>); 2]> =
            serde_json::from_value(golden["imagenet_policy"].clone()).unwrap();
        assert_eq!(wanted.len(), IMAGENET.len());
        for (found, wanted) in IMAGENET.iter().zip(wanted) {
            for (found, wanted) in found.iter().zip(wanted) {
                assert_eq!(*found, (wanted.0, wanted.1, wanted.2.unwrap_or(0)));
            }
        }
        // Strength 0 to 9 of each operation that has one, with the sign +.
        for (name, amounts) in golden["magnitudes"].as_object().unwrap() {
            let operation: Operation = serde_json::from_value(name.as_str().into()).unwrap();
            for (strength, amount) in amounts.as_array().unwrap().iter().enumerate() {
                let amount = amount.as_f64().unwrap();
                let found = operation.amount(strength as u32, 1.0);
                assert!((found - amount).abs() < 1e-5, "{name} {strength}: {found} for {amount}");
            }
        }
    }
}
