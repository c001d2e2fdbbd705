//! Turns and shears.

use serde::{Deserialize, Serialize};
use simclr_ground::rng::Draws;

use super::op::check_probability;
use super::{Augmentation, Filter, Mode, Step, View, ViewContext};

/// Turns the view about its middle with a probability, by one of these angles, each as likely as the others. The
/// SimCLR paper studies 90, 180 and 270 degrees. Outside of the view is black.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// In [0, 1].
    pub probability: f64,
    /// Angles in degrees, counterclockwise.
    pub degrees: Vec<f64>,
}

/// Where the pixels of a view are taken from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Warp {
    /// Turned about the middle by degrees counterclockwise, with values between four neighbors.
    Rotate(f64),
    /// Likewise, with the value of the nearest neighbor.
    RotateNearest(f64),
    /// Rows moved to the left by this many pixels a row, counted from the view's top, with the nearest value.
    ShearNearest(f64),
}

impl Augmentation for Rotation {
    fn check(&self) -> Result<(), (String, String)> {
        check_probability(self.probability)?;
        if self.degrees.is_empty() || self.degrees.iter().any(|angle| !(-360.0..=360.0).contains(angle)) {
            let wanted = "expected at least one angle, each between -360 and 360".into();
            return Err((format!("degrees {:?}", self.degrees), wanted));
        }
        Ok(())
    }

    fn draw(&self, _: &ViewContext, draws: &mut Draws, steps: &mut Vec<Step>) {
        steps.extend(self.drawn(draws).map(Step::filter));
    }
}

impl Rotation {
    fn drawn(&self, draws: &mut Draws) -> Option<Warp> {
        draws
            .chance(self.probability)
            .then(|| Warp::Rotate(self.degrees[draws.below(self.degrees.len() as u64) as usize]))
    }
}

impl std::fmt::Display for Warp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Warp::Rotate(degrees) | Warp::RotateNearest(degrees) => write!(f, "turn {degrees:+.0}°"),
            Warp::ShearNearest(shear) => write!(f, "shear {shear:+.2}"),
        }
    }
}

impl Filter for Warp {
    fn apply(&self, _: Mode, view: &mut View) {
        self.change(view);
    }
}

impl Warp {
    fn change(&self, view: &mut View) {
        let (width, height) = (view.width, view.height);
        let middle = [width as f64 / 2.0, height as f64 / 2.0];
        // The place in the view that a pixel's center is taken from, counted in pixels from the first one's center.
        let (matrix, fixed) = match *self {
            Warp::Rotate(degrees) | Warp::RotateNearest(degrees) => {
                // A right angle has no rounding.
                let (cos, sin) = match degrees.rem_euclid(360.0) {
                    0.0 => (1.0, 0.0),
                    90.0 => (0.0, 1.0),
                    180.0 => (-1.0, 0.0),
                    270.0 => (0.0, -1.0),
                    degrees => (libm::cos(degrees.to_radians()), libm::sin(degrees.to_radians())),
                };
                ([[cos, -sin], [sin, cos]], middle)
            }
            Warp::ShearNearest(shear) => ([[1.0, shear], [0.0, 1.0]], [0.0, 0.0]),
        };
        let between = matches!(self, Warp::Rotate(_));
        view.spare.resize(width * height, 0);
        for plane in &mut view.planes {
            for (y, row) in view.spare.chunks_exact_mut(width).enumerate() {
                for (x, out) in row.iter_mut().enumerate() {
                    let (dx, dy) = (x as f64 + 0.5 - fixed[0], y as f64 + 0.5 - fixed[1]);
                    let from = [0, 1].map(|i| matrix[i][0] * dx + matrix[i][1] * dy + fixed[i] - 0.5);
                    *out = if between {
                        bilinear(plane, width, height, from)
                    } else {
                        nearest(plane, width, height, from)
                    };
                }
            }
            std::mem::swap(plane, &mut view.spare);
        }
    }
}

/// The value at a whole place; 0 outside.
fn at(plane: &[u8], width: usize, height: usize, x: f64, y: f64) -> u8 {
    let inside = x >= 0.0 && y >= 0.0 && x < width as f64 && y < height as f64;
    if inside { plane[y as usize * width + x as usize] } else { 0 }
}

fn nearest(plane: &[u8], width: usize, height: usize, [x, y]: [f64; 2]) -> u8 {
    at(plane, width, height, x.round_ties_even(), y.round_ties_even())
}

fn bilinear(plane: &[u8], width: usize, height: usize, [x, y]: [f64; 2]) -> u8 {
    let (left, top) = (x.floor(), y.floor());
    let (right, down) = ((x - left) as f32, (y - top) as f32);
    let value = |dx: f64, dy: f64| f32::from(at(plane, width, height, left + dx, top + dy));
    let above = value(0.0, 0.0) * (1.0 - right) + value(1.0, 0.0) * right;
    let below = value(0.0, 1.0) * (1.0 - right) + value(1.0, 1.0) * right;
    (above * (1.0 - down) + below * down + 0.5) as u8
}
