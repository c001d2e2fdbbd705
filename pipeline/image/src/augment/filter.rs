//! What filters of a pixel's surroundings have in common.

use super::View;

/// Calls `f` for each plane with a copy that has a frame of `radius` values on each side, the copy's row length, the
/// plane to be written and its row length. `index` says which of a line's `n` values stands for value `i` outside.
pub(super) fn each_plane_framed(
    view: &mut View,
    radius: usize,
    index: impl Fn(i64, i64) -> i64,
    mut f: impl FnMut(&[u8], usize, &mut [u8], usize),
) {
    let (width, height) = (view.width, view.height);
    let stride = width + 2 * radius;
    view.spare.resize(stride * (height + 2 * radius), 0);
    for plane in &mut view.planes {
        for (y, framed) in view.spare.chunks_exact_mut(stride).enumerate() {
            let row = &plane[index(y as i64 - radius as i64, height as i64) as usize * width..][..width];
            framed[radius..radius + width].copy_from_slice(row);
            for x in (0..radius).chain(radius + width..stride) {
                framed[x] = row[index(x as i64 - radius as i64, width as i64) as usize];
            }
        }
        f(&view.spare, stride, plane, width);
    }
}
