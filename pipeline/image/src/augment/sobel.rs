//! Keeps the edges.

use serde::{Deserialize, Serialize};
use simclr_ground::rng::Draws;

use super::filter::each_plane_framed;
use super::op::check_probability;
use super::{Augmentation, Filter, Mode, Step, View, ViewContext};

/// Replaces the view by the size of its gradient with a probability: in each channel √(x² + y²) of Sobel's two
/// 3 × 3 differences, cut to 255; the frame is reflected as in `tf.image.sobel_edges`. The SimCLR paper studies Sobel
/// filtering without saying how the differences become an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sobel {
    /// In [0, 1].
    pub probability: f64,
}

impl Augmentation for Sobel {
    fn check(&self) -> Result<(), (String, String)> {
        check_probability(self.probability)
    }

    fn draw(&self, _: &ViewContext, draws: &mut Draws, steps: &mut Vec<Step>) {
        steps.extend(draws.chance(self.probability).then(|| Step::filter(Edges)));
    }
}

/// The step that does it.
#[derive(Debug, Clone, Copy)]
pub struct Edges;

impl std::fmt::Display for Edges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sobel")
    }
}

impl Filter for Edges {
    fn apply(&self, _: Mode, view: &mut View) {
        keep_edges(view);
    }
}

fn keep_edges(view: &mut View) {
    let reflect = |i: i64, n: i64| {
        if i < 0 {
            (-i).min(n - 1)
        } else if i >= n {
            (2 * (n - 1) - i).max(0)
        } else {
            i
        }
    };
    each_plane_framed(view, 1, reflect, |framed, stride, plane, width| {
        for (y, row) in plane.chunks_exact_mut(width).enumerate() {
            let [above, here, below] = [0, 1, 2].map(|i| &framed[(y + i) * stride..][..stride]);
            for (x, out) in row.iter_mut().enumerate() {
                let at = |row: &[u8], x: usize| i32::from(row[x]);
                let line = |row: &[u8]| at(row, x) + 2 * at(row, x + 1) + at(row, x + 2);
                let step = |row: &[u8]| at(row, x + 2) - at(row, x);
                let (across, down) = (step(above) + 2 * step(here) + step(below), line(below) - line(above));
                // `as` cuts to the range of u8.
                *out = (((across * across + down * down) as f32).sqrt() + 0.5) as u8;
            }
        }
    });
}
