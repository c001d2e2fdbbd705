//! Resizes a box of an image's planes, each at its own resolution, in whole numbers.
//!
//! Columns are summed up first, as weighted sums of whole rows, then each row is summed along; where vectors can't do
//! that, as whole rows once more, with a transposition before and behind. Weights have 14 bits behind the point, what is between the two 6; every
//! machine gives the same bytes. Colors are converted afterwards, on the view's pixels alone.

use std::ops::Range;

use super::Interpolation;
use crate::decode::jpeg::{Colors, Plane, Planes, Region};
use crate::simd::{
    ACROSS_MARGIN, Across, transpose8, transpose8_bytes, vectorized, weigh_bytes, weigh_wide, ycc_to_rgb,
};

/// Bits behind the point in a weight.
const WEIGHT_BITS: u32 = 14;

/// Bits behind the point between the two passes.
const MIDDLE_BITS: u32 = 6;

/// Values that are summed side by side; a plane's margin is at least as large.
const LANES: usize = 16;

/// Rows that are turned into columns together.
const STRIP: usize = 8;

/// Resizes, keeping its buffers.
#[derive(Default)]
pub struct Resizer {
    rows: Weights,
    columns: Weights,
    across: Across,
    /// Some rows done, padded to whole lanes.
    middle: Vec<i16>,
    /// All rows done, columns and rows exchanged.
    turned: Vec<i16>,
    /// Some columns done as well, as rows.
    view: Vec<u8>,
    /// Whether rows are summed along directly, and whether from right to left.
    direct: bool,
    mirrored: bool,
}

/// What a view shows of an image, and how.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// The part of the image, in its pixels.
    pub region: Region,
    /// How values between pixels are found.
    pub interpolation: Interpolation,
    /// Whether the kernel widens where the part is made smaller.
    pub antialias: bool,
    /// Side of the view in pixels.
    pub size: usize,
    /// Whether left and right are exchanged.
    pub mirror: bool,
}

impl Resizer {
    /// Writes the cut of the image to three planes of red, green and blue, `size` × `size` each.
    pub fn resize(&mut self, planes: &Planes, cut: &Cut, out: &mut [Vec<u8>; 3]) {
        let Cut { region, interpolation, antialias, size, mirror } = *cut;
        let kernel = Kernel { interpolation, antialias };
        let used = if planes.colors == Colors::Gray { 1 } else { 3 };
        for (plane, out) in planes.planes[..used].iter().zip(out.iter_mut()) {
            out.resize(size * size, 0);
            // A plane of half the samples has half the box.
            let across = ratio(planes.width, plane.width);
            let down = ratio(planes.height, plane.height);
            let new = self.columns.set(region.left, region.width, across, plane.width, size, kernel);
            if new || self.mirrored != mirror {
                self.mirrored = mirror;
                self.direct = self.columns.direct(mirror, &mut self.across);
            }
            self.rows.set(region.top, region.height, down, plane.height, size, kernel);
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
        let Self { rows, columns, across, middle, turned, view, direct, .. } = self;
        let columns_used = columns.first()..columns.end();
        let width = columns_used.len();
        let padded = width.next_multiple_of(LANES);
        if *direct {
            middle.resize(padded + ACROSS_MARGIN, 0);
            return vectorized(
                #[inline(always)]
                || {
                    for (span, out) in rows.spans.iter().zip(out.chunks_exact_mut(size)) {
                        let source = |i: usize| plane.row_from(span.first + i, columns_used.start, padded);
                        weigh_bytes(rows.of(span), source, &mut middle[..padded], WEIGHT_BITS - MIDDLE_BITS);
                        across.sum(middle, out, WEIGHT_BITS + MIDDLE_BITS);
                    }
                },
            );
        }
        let side = size.next_multiple_of(LANES);
        middle.resize(STRIP * padded, 0);
        turned.resize(padded * side, 0);
        view.resize(STRIP * side, 0);
        vectorized(
            #[inline(always)]
            || {
                for (strip, spans) in rows.spans.chunks(STRIP).enumerate() {
                    for (span, out) in spans.iter().zip(middle.chunks_exact_mut(padded)) {
                        let source = |i: usize| plane.row_from(span.first + i, columns_used.start, padded);
                        weigh_bytes(rows.of(span), source, out, WEIGHT_BITS - MIDDLE_BITS);
                    }
                    for x in (0..padded).step_by(STRIP) {
                        transpose8(&middle[x..], padded, &mut turned[x * side + strip * STRIP..], side);
                    }
                }
                for from in (0..size).step_by(STRIP) {
                    let strip = from..(from + STRIP).min(size);
                    for (x, out) in strip.clone().zip(view.chunks_exact_mut(side)) {
                        let span = &columns.spans[if mirror { size - 1 - x } else { x }];
                        let first = span.first - columns_used.start;
                        let source = |i: usize| &turned[(first + i) * side..][..side];
                        weigh_wide(columns.of(span), source, out, WEIGHT_BITS + MIDDLE_BITS);
                    }
                    turn_strip(view, side, strip, size, out);
                }
            },
        );
    }
}

/// By how much a plane has fewer samples than the image has pixels.
fn ratio(pixels: u32, samples: usize) -> u32 {
    if samples < pixels as usize { 2 } else { 1 }
}

/// Writes rows, `stride` apart, as the columns `strip` of a square of side `size`.
#[inline(always)]
fn turn_strip(rows: &[u8], stride: usize, strip: Range<usize>, size: usize, out: &mut [u8]) {
    let whole = if strip.len() == STRIP { size / STRIP * STRIP } else { 0 };
    for y in (0..whole).step_by(STRIP) {
        transpose8_bytes(&rows[y..], stride, &mut out[y * size + strip.start..], size);
    }
    for y in whole..size {
        for (i, x) in strip.clone().enumerate() {
            out[y * size + x] = rows[i * stride + y];
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

    /// Hands the sums to `across`, the last one first if rows are mirrored; whether it takes them.
    fn direct(&self, mirror: bool, across: &mut Across) -> bool {
        let first = self.first();
        let n = self.spans.len();
        across.set((0..n).map(|x| {
            let span = &self.spans[if mirror { n - 1 - x } else { x }];
            (span.first - first, self.of(span))
        }))
    }

    /// The weights that resize `length` pixels from pixel `start` to `size`, in a plane with a sample for each
    /// `ratio` pixels and `samples` in all; whether they are others than before. Samples outside of the box have no
    /// influence.
    fn set(&mut self, start: u32, length: u32, ratio: u32, samples: usize, size: usize, kernel: Kernel) -> bool {
        let wanted = (start, length, ratio, samples, size, kernel);
        if self.made_for == Some(wanted) {
            return false;
        }
        self.made_for = Some(wanted);
        self.spans.clear();
        self.weights.clear();
        let (from, length) = (f64::from(start) / f64::from(ratio), f64::from(length) / f64::from(ratio));
        let scale = length / size as f64;
        let stretch = if kernel.antialias { scale.max(1.0) } else { 1.0 };
        let shrink = 1.0 / stretch;
        let reach = stretch * if kernel.interpolation == Interpolation::Bicubic { 2.0 } else { 1.0 };
        let inside = from as i64..(((from + length).ceil() as i64).min(samples as i64));
        self.spans.reserve(size);
        for i in 0..size {
            let centre = from + (i as f64 + 0.5) * scale;
            // Numbers are cut, not rounded, to whole ones: that needs no call, and what is below 0 lies outside anyway.
            let first = ((centre - reach + 0.5) as i64).clamp(inside.start, inside.end - 1);
            let end = ((centre + reach + 0.5) as i64).clamp(first + 1, inside.end);
            let span = Span { first: first as usize, count: (end - first) as usize, weights: self.weights.len() };
            self.exact.clear();
            let mut distance = (first as f64 + 0.5 - centre) * shrink;
            let mut sum = 0.0;
            for _ in first..end {
                let weight = kernel.at(distance);
                self.exact.push(weight);
                sum += weight;
                distance += shrink;
            }
            let one = f64::from(1 << WEIGHT_BITS);
            let scale = one / sum;
            let (mut missing, mut largest) = (1 << WEIGHT_BITS, (i16::MIN, 0));
            for (i, &weight) in self.exact.iter().enumerate() {
                let nearest = (weight * scale + if weight < 0.0 { -0.5 } else { 0.5 }) as i16;
                missing -= i32::from(nearest);
                largest = largest.max((nearest, i));
                self.weights.push(nearest);
            }
            // What rounding took or gave goes to the largest, so that a flat image stays flat.
            self.weights[span.weights + largest.1] += missing as i16;
            self.spans.push(span);
        }
        true
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
