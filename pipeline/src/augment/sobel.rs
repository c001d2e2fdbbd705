//! Keeps the edges.

use serde::{Deserialize, Serialize};

use super::View;
use super::filter::each_plane_framed;

/// Replaces the view by the size of its gradient with a probability: in each channel √(x² + y²) of Sobel's two
/// 3 × 3 differences, cut to 255; the frame is reflected as in `tf.image.sobel_edges`. The SimCLR paper studies Sobel
/// filtering without saying how the differences become a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sobel {
    /// In [0, 1].
    pub probability: f64,
}

pub(super) fn apply(whole: bool, view: &mut View) {
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
                let across = (above[x + 2] - above[x]) + 2.0 * (here[x + 2] - here[x]) + (below[x + 2] - below[x]);
                let down = (below[x] - above[x]) + 2.0 * (below[x + 1] - above[x + 1]) + (below[x + 2] - above[x + 2]);
                let size = (across * across + down * down).sqrt().min(255.0);
                *out = if whole { (size + 0.5).trunc() } else { size };
            }
        }
    });
}
