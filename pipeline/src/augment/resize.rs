//! Resizes a box of a picture's planes, each at its own resolution, in whole numbers.
//!
//! Rows first, then columns: both are weighted sums of whole rows, with a transposition between and behind them, so
//! that vector instructions do all of it. Weights have 14 bits behind the point, what is between the two 6; every
//! machine gives the same bytes. Colours are converted afterwards, on the view's pixels alone.

use super::Interpolation;
use crate::augment::Mode;
use crate::decode::jpeg::{Colors, Plane, Planes, Region};
use crate::simd::{transpose8, transpose8_bytes, vectorized, weigh_bytes, weigh_wide, ycc_to_rgb};

/// Bits behind the point in a weight.
const WEIGHT_BITS: u32 = 14;

/// Bits behind the point between the two passes.
const MIDDLE_BITS: u32 = 6;

/// Values that are summed side by side; a plane's margin is at least as large.
const LANES: usize = 16;

/// Resizes, keeping its buffers.
#[derive(Default)]
pub struct Resizer {
    rows: Weights,
    columns: Weights,
    /// Rows done: `size × width`, padded to whole lanes.
    middle: Vec<i16>,
    /// The same, columns and rows exchanged.
    turned: Vec<i16>,
    /// Both done, columns and rows still exchanged.
    view: Vec<u8>,
}

impl Resizer {
    /// Writes the box of the picture, resized to `size` × `size`, to three planes of red, green and blue, mirrored if
    /// that is wanted.
    pub fn resize(
        &mut self,
        planes: &Planes,
        crop: Region,
        interpolation: Interpolation,
        mode: Mode,
        size: usize,
        mirror: bool,
        out: &mut [Vec<u8>; 3],
    ) {
        let used = if planes.colors == Colors::Gray { 1 } else { 3 };
        for (plane, out) in planes.planes[..used].iter().zip(out.iter_mut()) {
            out.resize(size * size, 0);
            // A plane of half the samples has half the box.
            let across = ratio(planes.width, plane.width);
            let down = ratio(planes.height, plane.height);
            let kernel = Kernel { interpolation, antialias: mode == Mode::Torchvision };
            self.columns.set(crop.left, crop.width, across, plane.width, size, kernel);
            self.rows.set(crop.top, crop.height, down, plane.height, size, kernel);
            self.plane(plane, size, mirror, out);
        }
        match planes.colors {
            Colors::YCbCr => ycc_to_rgb(out.each_mut().map(Vec::as_mut_slice)),
            Colors::Rgb => {}
            Colors::Gray => {
                let [gray, others @ ..] = out;
                others.iter_mut().for_each(|other| other.clone_from(gray));
            }
        }
    }

    fn plane(&mut self, plane: &Plane, size: usize, mirror: bool, out: &mut [u8]) {
        let Self { rows, columns, middle, turned, view } = self;
        let columns_used = columns.first()..columns.end();
        let width = columns_used.len();
        let padded = width.next_multiple_of(LANES);
        let side = size.next_multiple_of(LANES);
        middle.resize(size.next_multiple_of(8) * padded, 0);
        turned.resize(padded * side, 0);
        view.resize(side * side, 0);
        vectorized(
            #[inline(always)]
            || {
                for (span, out) in rows.spans.iter().zip(middle.chunks_exact_mut(padded)) {
                    let source = |i: usize| plane.row_from(span.first + i, columns_used.start, padded);
                    weigh_bytes(rows.of(span), source, out, WEIGHT_BITS - MIDDLE_BITS);
                }
                transpose(middle, padded, size.next_multiple_of(8), turned, side);
                for (x, span) in columns.spans.iter().enumerate() {
                    let at = if mirror { size - 1 - x } else { x };
                    let first = span.first - columns_used.start;
                    let source = |i: usize| &turned[(first + i) * side..][..side];
                    let out = &mut view[at * side..][..side];
                    weigh_wide(columns.of(span), source, out, WEIGHT_BITS + MIDDLE_BITS);
                }
                transpose_bytes(view, side, size, out);
            },
        );
    }
}

/// By how much a plane has fewer samples than the picture has pixels.
fn ratio(pixels: u32, samples: usize) -> u32 {
    if samples < pixels as usize { 2 } else { 1 }
}

/// Exchanges the rows and columns of `rows` × `stride` values; both are multiples of eight.
#[inline(always)]
fn transpose(from: &[i16], stride: usize, rows: usize, to: &mut [i16], to_stride: usize) {
    for y in (0..rows).step_by(8) {
        for x in (0..stride).step_by(8) {
            transpose8(&from[y * stride + x..], stride, &mut to[x * to_stride + y..], to_stride);
        }
    }
}

/// Exchanges the rows and columns of a square of `size` × `size` bytes whose rows are `stride` apart.
#[inline(always)]
fn transpose_bytes(from: &[u8], stride: usize, size: usize, to: &mut [u8]) {
    for y in (0..size).step_by(8) {
        for x in (0..size).step_by(8) {
            if y + 8 <= size && x + 8 <= size {
                transpose8_bytes(&from[y * stride + x..], stride, &mut to[x * size + y..], size);
            } else {
                for i in y..(y + 8).min(size) {
                    for k in x..(x + 8).min(size) {
                        to[k * size + i] = from[i * stride + k];
                    }
                }
            }
        }
    }
}

/// How values between samples are found.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Kernel {
    interpolation: Interpolation,
    /// Whether the kernel widens with the reduction.
    antialias: bool,
}

/// For each output value the samples it is made of, and their weights.
#[derive(Default)]
struct Weights {
    spans: Vec<Span>,
    weights: Vec<i16>,
    made_for: Option<(u32, u32, u32, usize, usize, Kernel)>,
    exact: Vec<f64>,
}

/// The samples of one output value: how many from which, and where their weights begin.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: usize,
    count: usize,
    weights: usize,
}

impl Weights {
    fn of(&self, span: &Span) -> &[i16] {
        &self.weights[span.weights..][..span.count]
    }

    /// The first sample that any output value needs.
    fn first(&self) -> usize {
        self.spans.iter().map(|span| span.first).min().expect("a view is at least a pixel large")
    }

    /// The sample after the last one that any output value needs.
    fn end(&self) -> usize {
        self.spans.iter().map(|span| span.first + span.count).max().expect("a view is at least a pixel large")
    }

    /// The weights that resize `length` pixels from pixel `start` to `size`, in a plane with a sample for each
    /// `ratio` pixels and `samples` in all. Samples outside of the box have no influence.
    fn set(&mut self, start: u32, length: u32, ratio: u32, samples: usize, size: usize, kernel: Kernel) {
        let wanted = (start, length, ratio, samples, size, kernel);
        if self.made_for == Some(wanted) {
            return;
        }
        self.made_for = Some(wanted);
        self.spans.clear();
        self.weights.clear();
        let (from, length) = (f64::from(start) / f64::from(ratio), f64::from(length) / f64::from(ratio));
        let scale = length / size as f64;
        let stretch = if kernel.antialias { scale.max(1.0) } else { 1.0 };
        let reach = stretch * if kernel.interpolation == Interpolation::Bicubic { 2.0 } else { 1.0 };
        let inside = (from.floor() as i64)..(((from + length).ceil() as i64).min(samples as i64));
        for i in 0..size {
            let centre = from + (i as f64 + 0.5) * scale;
            let first = ((centre - reach - 0.5).ceil() as i64).clamp(inside.start, inside.end - 1);
            let end = ((centre + reach - 0.5).floor() as i64 + 1).clamp(first + 1, inside.end);
            self.exact.clear();
            self.exact.extend((first..end).map(|x| kernel.at((x as f64 + 0.5 - centre) / stretch)));
            let sum: f64 = self.exact.iter().sum();
            let span = Span { first: first as usize, count: (end - first) as usize, weights: self.weights.len() };
            let one = f64::from(1 << WEIGHT_BITS);
            self.weights.extend(self.exact.iter().map(|weight| (weight / sum * one).round() as i16));
            // What rounding took or gave goes to the largest, so that a flat picture stays flat.
            let weights = &mut self.weights[span.weights..];
            let missing = (1 << WEIGHT_BITS) - weights.iter().map(|&weight| i32::from(weight)).sum::<i32>();
            *weights.iter_mut().max().expect("at least one sample") += missing as i16;
            self.spans.push(span);
        }
    }
}

impl Kernel {
    fn at(self, x: f64) -> f64 {
        let x = x.abs();
        match self.interpolation {
            Interpolation::Bilinear => (1.0 - x).max(0.0),
            Interpolation::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Interpolation::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Interpolation::Bicubic => 0.0,
        }
    }
}
