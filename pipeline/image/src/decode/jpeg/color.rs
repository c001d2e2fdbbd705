//! Planes to pixels, as libjpeg does it: "fancy" upsampling of the color differences, then RGB.

use super::{Colors, Plane, Planes};
use crate::decode::RgbImage;
use crate::simd::rgb;

/// The pixels of an image whose planes are all there.
pub(super) fn to_rgb(planes: &Planes) -> RgbImage {
    let (width, height) = (planes.width as usize, planes.height as usize);
    let [y, cb, cr] = &planes.planes;
    let mut pixels = vec![0; width * height * 3];
    let rows = pixels.chunks_exact_mut(width * 3).enumerate();
    match planes.colors {
        Colors::Gray => rows.for_each(|(row, out)| {
            for (pixel, &value) in out.chunks_exact_mut(3).zip(y.row(row, 0, width)) {
                pixel.fill(value);
            }
        }),
        Colors::Rgb => rows.for_each(|(row, out)| {
            let [r, g, b] = [y, cb, cr].map(|plane| plane.row(row, 0, width));
            for (((pixel, r), g), b) in out.chunks_exact_mut(3).zip(r).zip(g).zip(b) {
                pixel.copy_from_slice(&[*r, *g, *b]);
            }
        }),
        Colors::YCbCr => {
            let (mut blue, mut red) = (vec![0; width + 2], vec![0; width + 2]);
            rows.for_each(|(row, out)| {
                upsample(cb, width, height, row, &mut blue);
                upsample(cr, width, height, row, &mut red);
                let luma = y.row(row, 0, width);
                for (((pixel, &y), &cb), &cr) in out.chunks_exact_mut(3).zip(luma).zip(&blue).zip(&red) {
                    pixel.copy_from_slice(&rgb(y, cb, cr));
                }
            });
        }
    }
    RgbImage { width: planes.width, height: planes.height, pixels }
}

/// A row of a color difference at full width.
fn upsample(plane: &Plane, width: usize, height: usize, row: usize, out: &mut [u8]) {
    let (across, down) = (plane.width < width, plane.height < height);
    // libjpeg repeats samples where there are too few to weigh; so do we.
    let fancy = plane.width > 2;
    let at = if down { row / 2 } else { row };
    let near = plane.row(at, 0, plane.width);
    let n = plane.width;
    match (across, down) {
        (false, false) => out[..n].copy_from_slice(near),
        (false, true) => {
            let (far, bias) = far_row(plane, row, at);
            for ((out, &near), &far) in out.iter_mut().zip(near).zip(far) {
                *out = ((3 * u32::from(near) + u32::from(far) + bias) >> 2) as u8;
            }
        }
        (true, _) if !fancy => {
            for (i, out) in out.iter_mut().enumerate() {
                *out = near[(i / 2).min(n - 1)];
            }
        }
        (true, false) => {
            let sample = |i: usize| u32::from(near[i]);
            for i in 0..n {
                let this = 3 * sample(i);
                out[2 * i] = if i == 0 { near[0] } else { ((this + sample(i - 1) + 1) >> 2) as u8 };
                if 2 * i + 1 < out.len() {
                    out[2 * i + 1] = if i + 1 == n { near[i] } else { ((this + sample(i + 1) + 2) >> 2) as u8 };
                }
            }
        }
        (true, true) => {
            let (far, _) = far_row(plane, row, at);
            let sum = |i: usize| 3 * u32::from(near[i]) + u32::from(far[i]);
            for i in 0..n {
                let this = sum(i);
                let left = if i == 0 { 4 * this + 8 } else { 3 * this + sum(i - 1) + 8 };
                let right = if i + 1 == n { 4 * this + 7 } else { 3 * this + sum(i + 1) + 7 };
                out[2 * i] = (left >> 4) as u8;
                if 2 * i + 1 < out.len() {
                    out[2 * i + 1] = (right >> 4) as u8;
                }
            }
        }
    }
}

/// The row of samples that weighs less in this row of pixels, and how its sum is rounded.
fn far_row(plane: &Plane, row: usize, at: usize) -> (&[u8], u32) {
    let (far, bias) =
        if row.is_multiple_of(2) { (at.saturating_sub(1), 1) } else { ((at + 1).min(plane.height - 1), 2) };
    (plane.row(far, 0, plane.width), bias)
}
