//! Random brightness, contrast, saturation and hue, in random order.

use serde::{Deserialize, Serialize};
use simclr_ground::rng::Draws;

use super::op::check_probability;
use super::pixelwise::ColorOp;
use super::{Augmentation, Step, ViewContext};

/// Changes the colors with a probability, by factors drawn anew for each view, in an order drawn anew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColorJitter {
    /// In [0, 1]; 0.8 in the paper.
    pub probability: f64,
    /// Multiplies the four below; the paper's s: 1 for ImageNet, 0.5 for CIFAR-10.
    pub strength: f64,
    /// Brightness changes by a factor in [1 − b, 1 + b], not below 0; 0.8 in the paper.
    pub brightness: f64,
    /// Contrast likewise; 0.8 in the paper.
    pub contrast: f64,
    /// Saturation likewise; 0.8 in the paper.
    pub saturation: f64,
    /// The hue turns by a share of the circle in [−h, h]; 0.2 in the paper, at most 0.5.
    pub hue: f64,
    /// How brightness changes; the official code multiplies, the paper's listing adds.
    pub brightness_rule: BrightnessRule,
}

/// How brightness changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BrightnessRule {
    /// Pixels are multiplied by a factor in [1 − b, 1 + b] (the official code's "simclrv2", and torchvision).
    Multiply,
    /// A share of full brightness in [−b, b] is added (the official code's "simclrv1").
    Add,
}

impl Augmentation for ColorJitter {
    fn check(&self) -> Result<(), (String, String)> {
        check_probability(self.probability)?;
        for (name, value) in [
            ("strength", self.strength),
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("saturation", self.saturation),
            ("hue", self.hue),
        ] {
            if !(0.0..=100.0).contains(&value) {
                return Err((format!("{name} {value}"), "expected a number between 0 and 100".into()));
            }
        }
        if self.hue * self.strength > 0.5 {
            return Err((
                format!("hue × strength {}", self.hue * self.strength),
                "expected at most 0.5 (half the color wheel)".into(),
            ));
        }
        Ok(())
    }

    fn draw(&self, _: &ViewContext, draws: &mut Draws, steps: &mut Vec<Step>) {
        steps.extend(self.drawn(draws).map(Step::Colors));
    }
}

impl ColorJitter {
    /// The changes in the order in which they are made; those whose strength is 0 are left out.
    fn drawn(&self, draws: &mut Draws) -> Option<Vec<ColorOp>> {
        if !draws.chance(self.probability) {
            return None;
        }
        let mut order = [0, 1, 2, 3];
        draws.shuffle(&mut order);
        let factor = |draws: &mut Draws, amount: f64| {
            let amount = amount * self.strength;
            (amount > 0.0).then(|| draws.uniform((1.0 - amount).max(0.0), 1.0 + amount) as f32)
        };
        let shift = |draws: &mut Draws, amount: f64| {
            let amount = amount * self.strength;
            (amount > 0.0).then(|| draws.uniform(-amount, amount) as f32)
        };
        let changes = order.iter().filter_map(|change| match change {
            0 => match self.brightness_rule {
                BrightnessRule::Multiply => factor(draws, self.brightness).map(ColorOp::Brightness),
                BrightnessRule::Add => shift(draws, self.brightness).map(ColorOp::AddBrightness),
            },
            1 => factor(draws, self.contrast).map(ColorOp::Contrast),
            2 => factor(draws, self.saturation).map(ColorOp::Saturation),
            _ => shift(draws, self.hue).map(ColorOp::Hue),
        });
        Some(changes.collect())
    }
}
