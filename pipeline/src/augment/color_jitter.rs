//! Random brightness, contrast, saturation and hue, in random order.

use serde::{Deserialize, Serialize};

use super::grayscale::gray;
use super::{Mode, View, check_probability};
use crate::rng::Draws;

/// Changes the colours with a probability, by factors drawn anew for each view, in an order drawn anew.
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

/// One colour change with its drawn amount.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// Multiply all pixels.
    Brightness(f32),
    /// Add this share of full brightness to all pixels.
    AddBrightness(f32),
    /// Move pixels from, or towards, their mean.
    Contrast(f32),
    /// Move pixels from, or towards, their grey.
    Saturation(f32),
    /// Turn the hue by this share of the circle.
    Hue(f32),
}

/// Colour changes in the order in which they are made.
#[derive(Debug, Clone, PartialEq)]
pub struct JitterStep {
    /// The changes; those whose strength is 0 are left out.
    pub changes: Vec<Change>,
}

impl std::fmt::Display for JitterStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, change) in self.changes.iter().enumerate() {
            let gap = if i > 0 { " " } else { "" };
            match change {
                Change::Brightness(x) => write!(f, "{gap}b×{x:.2}")?,
                Change::AddBrightness(x) => write!(f, "{gap}b{x:+.2}")?,
                Change::Contrast(x) => write!(f, "{gap}c×{x:.2}")?,
                Change::Saturation(x) => write!(f, "{gap}s×{x:.2}")?,
                Change::Hue(x) => write!(f, "{gap}h{x:+.2}")?,
            }
        }
        Ok(())
    }
}

impl ColorJitter {
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        check_probability(self.probability)?;
        for (name, value) in [
            ("strength", self.strength),
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("saturation", self.saturation),
            ("hue", self.hue),
        ] {
            if !(0.0..=100.0).contains(&value) {
                return Err((format!("{name} {value}"), "0 or more is wanted".into()));
            }
        }
        if self.hue * self.strength > 0.5 {
            return Err((
                format!("hue × strength {}", self.hue * self.strength),
                "at most half the circle, 0.5, is wanted".into(),
            ));
        }
        Ok(())
    }

    pub(super) fn draw(&self, draws: &mut Draws) -> Option<JitterStep> {
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
                BrightnessRule::Multiply => factor(draws, self.brightness).map(Change::Brightness),
                BrightnessRule::Add => shift(draws, self.brightness).map(Change::AddBrightness),
            },
            1 => factor(draws, self.contrast).map(Change::Contrast),
            2 => factor(draws, self.saturation).map(Change::Saturation),
            _ => shift(draws, self.hue).map(Change::Hue),
        });
        Some(JitterStep { changes: changes.collect() })
    }
}

impl JitterStep {
    pub(super) fn apply(&self, mode: Mode, view: &mut View) {
        for change in &self.changes {
            change.apply(mode, view);
        }
    }
}

impl Change {
    /// Makes the change; afterwards all values are in [0, 255], and whole numbers in torchvision's arithmetic.
    pub(super) fn apply(self, mode: Mode, view: &mut View) {
        // torchvision stores u8 after each op, cutting off the fraction.
        let store = move |x: f32| match mode {
            Mode::Paper => x.clamp(0.0, 255.0),
            Mode::Torchvision => x.clamp(0.0, 255.0).floor(),
        };
        match self {
            Change::Brightness(factor) => view.map_channels(|x| store(x * factor)),
            Change::AddBrightness(share) => view.map_channels(|x| store(x + share * 255.0)),
            Change::Contrast(factor) => match mode {
                Mode::Paper => {
                    for plane in &mut view.planes {
                        let mean = plane.iter().map(|&x| f64::from(x)).sum::<f64>() / plane.len() as f64;
                        let mean = mean as f32;
                        for value in plane {
                            *value = store((*value - mean) * factor + mean);
                        }
                    }
                }
                Mode::Torchvision => {
                    let [red, green, blue] = &view.planes;
                    let grays = red.iter().zip(green).zip(blue).map(|((&r, &g), &b)| f64::from(gray(mode, [r, g, b])));
                    let mean = (grays.sum::<f64>() / red.len() as f64) as f32;
                    view.map_channels(|x| store(factor * x + (1.0 - factor) * mean));
                }
            },
            Change::Saturation(factor) => match mode {
                Mode::Paper => view.map(|pixel| {
                    // Scaling the saturation of HSV, with the hue and the largest channel kept, moves each channel
                    // from or towards the largest one.
                    let max = pixel[0].max(pixel[1]).max(pixel[2]);
                    let min = pixel[0].min(pixel[1]).min(pixel[2]);
                    let saturation = if max > 0.0 { (max - min) / max } else { 0.0 };
                    let scale = if saturation * factor > 1.0 { 1.0 / saturation } else { factor };
                    pixel.map(|x| store(max - (max - x) * scale))
                }),
                Mode::Torchvision => view.map(|pixel| {
                    let gray = gray(mode, pixel);
                    pixel.map(|x| store(factor * x + (1.0 - factor) * gray))
                }),
            },
            Change::Hue(turn) => view.map(|pixel| {
                turn_hue(pixel, turn).map(|x| match mode {
                    Mode::Paper => x.clamp(0.0, 255.0),
                    // torchvision goes through floats in [0, 1] and back by × 255.999 and cutting off.
                    Mode::Torchvision => (x * (255.999 / 255.0)).clamp(0.0, 255.0).floor(),
                })
            }),
        }
    }
}

/// Turns the hue of an RGB pixel by a share of the circle in [−0.5, 0.5], or once, keeping value and saturation.
fn turn_hue([r, g, b]: [f32; 3], turn: f32) -> [f32; 3] {
    let max = r.max(g).max(b);
    let min = r.min(g).min(b);
    let range = max - min;
    // The hue in sixths of the circle, 0 at red; grey has none, and a range of 0 makes any hue grey.
    let per_range = if range > 0.0 { 1.0 / range } else { 0.0 };
    let hue = if max == r {
        (g - b) * per_range
    } else if max == g {
        2.0 + (b - r) * per_range
    } else {
        4.0 + (r - g) * per_range
    };
    let hue = hue + turn * 6.0;
    // Each channel is a trapezoid of the hue: full for two sixths, sloping for one on either side. The hue is brought
    // into one turn by selects, since rounding is a function call on processors without SSE4.1.
    let channel = |offset: f32| {
        let at = hue + offset;
        let at = if at < 0.0 { at + 6.0 } else { at };
        let at = if at >= 6.0 { at - 6.0 } else { at };
        let at = if at >= 6.0 { at - 6.0 } else { at };
        max - range * at.min(4.0 - at).clamp(0.0, 1.0)
    };
    [channel(5.0), channel(3.0), channel(1.0)]
}
