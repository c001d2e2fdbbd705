//! Color changes in whole numbers of 1/32, sixteen bits each: as many at a time as the machine's vectors hold, and the
//! same on every machine.

use super::{ColorOp, TILE, pass};
use crate::augment::View;
use crate::simd::{Lanes, LanesJob, MAX_LANES, on_widest_lanes};

/// Bits behind the point.
const BITS: u32 = 5;

/// The largest value, 255.
const TOP: i16 = 255 << BITS;

/// Whether a change's amount can be had here.
pub(super) fn makes(change: &ColorOp) -> bool {
    match *change {
        // Factors have 14 bits behind the point.
        ColorOp::Brightness(x) | ColorOp::Contrast(x) | ColorOp::Saturation(x) => (0.0..1.99).contains(&x),
        ColorOp::AddBrightness(x) | ColorOp::Hue(x) => (-1.0..=1.0).contains(&x),
        ColorOp::Solarize(x) => (0.0..=256.0).contains(&x),
        ColorOp::Gray | ColorOp::Posterize(_) | ColorOp::Invert => true,
    }
}

/// Makes the changes, which [`makes`] has let in.
pub(super) fn run(changes: &[ColorOp], view: &mut View, kept: &mut [Vec<i16>; 3]) {
    on_widest_lanes(Run { changes, view, kept });
}

struct Run<'a> {
    changes: &'a [ColorOp],
    view: &'a mut View,
    kept: &'a mut [Vec<i16>; 3],
}

impl LanesJob for Run<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { changes, view, kept } = self;
        let pixels = view.width * view.height;
        let mut buffer = [[0i16; TILE]; 3];
        let mut rest = changes;
        let mut mean = None;
        let mut is_kept = false;
        while !rest.is_empty() {
            let (now, after) = pass(rest, mean.is_some());
            // What a pass before the last one made is kept; what it only looked at is there as bytes.
            let keep = is_kept || !(now.is_empty() || after.is_empty());
            if keep {
                kept.iter_mut().for_each(|plane| plane.resize(pixels.next_multiple_of(TILE), 0));
            }
            let mut sums = [0i64; 3];
            for from in (0..pixels).step_by(TILE) {
                let n = TILE.min(pixels - from);
                // Whole vectors; what lies behind the last pixel means nothing.
                let length = n.next_multiple_of(MAX_LANES);
                let mut tile = if keep {
                    kept.each_mut().map(|plane| &mut plane[from..from + length])
                } else {
                    buffer.each_mut().map(|plane| &mut plane[..length])
                };
                if !is_kept {
                    for (to, plane) in tile.iter_mut().zip(&view.planes) {
                        let bytes = &plane[from..from + n];
                        to.iter_mut().zip(bytes).for_each(|(to, &byte)| *to = i16::from(byte) << BITS);
                    }
                }
                for &change in now {
                    make::<L>(change, &mut tile, mean);
                }
                if after.is_empty() {
                    for (from_tile, plane) in tile.iter().zip(&mut view.planes) {
                        let bytes = plane[from..from + n].iter_mut();
                        let half = 1 << (BITS - 1);
                        bytes.zip(&**from_tile).for_each(|(byte, &value)| *byte = ((value + half) >> BITS) as u8);
                    }
                } else {
                    for (sum, plane) in sums.iter_mut().zip(&tile) {
                        *sum += i64::from(plane[..n].iter().map(|&value| i32::from(value)).sum::<i32>());
                    }
                }
            }
            let n = pixels as i64;
            mean = (!after.is_empty()).then(|| sums.map(|sum| ((2 * sum + n) / (2 * n)) as i16));
            (rest, is_kept) = (after, keep);
        }
    }
}

/// A factor with 14 bits behind the point.
fn factor(x: f32) -> i16 {
    (x * 16_384.0).round() as i16
}

/// Makes one change on a tile.
#[inline(always)]
fn make<L: Lanes>(change: ColorOp, tile: &mut [&mut [i16]; 3], mean: Option<[i16; 3]>) {
    let (zero, top) = (L::splat(0), L::splat(TOP));
    match change {
        ColorOp::Brightness(x) => {
            let factor = L::splat(factor(x));
            each::<L>(
                tile,
                #[inline(always)]
                |x| times(x, factor).min(top),
            );
        }
        ColorOp::AddBrightness(share) => {
            let more = L::splat((share * f32::from(TOP)).round() as i16);
            each::<L>(
                tile,
                #[inline(always)]
                |x| cut(x.add(more)),
            );
        }
        ColorOp::Contrast(x) => {
            let factor = L::splat(factor(x));
            for (plane, mean) in tile.iter_mut().zip(mean.expect("summed up in the pass before")) {
                let mean = L::splat(mean);
                in_place::<L>(
                    plane,
                    #[inline(always)]
                    |x| cut(times(x.sub(mean), factor).add(mean)),
                );
            }
        }
        // Scaling the saturation of HSV, with the hue and the largest channel kept, moves each channel from or towards
        // the largest one. No saturation grows beyond 1.
        ColorOp::Saturation(x) => {
            let grows = x > 1.0;
            let factor = L::splat(factor(x));
            pixels::<L>(
                tile,
                #[inline(always)]
                |pixel| {
                    let (max, min) = extremes(pixel);
                    let scale = if grows { max.over(max.sub(min), factor) } else { factor };
                    let [r, g, b] = pixel;
                    let [r, g, b] = [times(max.sub(r), scale), times(max.sub(g), scale), times(max.sub(b), scale)];
                    [max.sub(r).max(zero), max.sub(g).max(zero), max.sub(b).max(zero)]
                },
            );
        }
        ColorOp::Hue(turn) => {
            let forward = if turn < 0.0 { turn + 1.0 } else { turn };
            // A whole turn is none.
            let forward = L::splat((forward * 65_536.0).round() as u32 as u16 as i16);
            pixels::<L>(
                tile,
                #[inline(always)]
                |pixel| turn_hue(pixel, forward),
            );
        }
        ColorOp::Gray => pixels::<L>(
            tile,
            #[inline(always)]
            |pixel| {
                // ITU-R 601 to four digits.
                let [r, g, b] = pixel;
                let sum = share(r, 9794).add(share(g, 19_235)).add(share(b, 3736));
                [sum.add(L::splat(2)).shift_right::<2>(); 3]
            },
        ),
        ColorOp::Solarize(threshold) => {
            let below = L::splat((threshold * f32::from(1u16 << BITS)).ceil() as i16 - 1);
            each::<L>(
                tile,
                #[inline(always)]
                |x| L::if_greater(x, below, top.sub(x), x),
            );
        }
        ColorOp::Posterize(bits) => {
            let step = 1i32 << (8 - bits.min(8));
            let kept = L::splat(-((step << BITS) as i16));
            each::<L>(
                tile,
                #[inline(always)]
                |x| x.and(kept),
            );
        }
        ColorOp::Invert => each::<L>(
            tile,
            #[inline(always)]
            |x| top.sub(x),
        ),
    }
}

/// A value brought back between black and white.
#[inline(always)]
fn cut<L: Lanes>(x: L) -> L {
    x.max(L::splat(0)).min(L::splat(TOP))
}

/// A product with a factor: both have one bit less than the sixteen whose rounded upper part is taken.
#[inline(always)]
fn times<L: Lanes>(x: L, factor: L) -> L {
    x.add(x).mul_high_rounded(factor)
}

/// Four times a value's share of gray, given with 15 bits behind the point.
#[inline(always)]
fn share<L: Lanes>(x: L, weight: i16) -> L {
    x.add(x).add(x.add(x)).mul_high_rounded(L::splat(weight))
}

#[inline(always)]
fn extremes<L: Lanes>([r, g, b]: [L; 3]) -> (L, L) {
    (r.max(g).max(b), r.min(g).min(b))
}

/// Turns the hue of RGB pixels forward by a share of the circle (16 bits behind the point, without sign), keeping value
/// and saturation.
///
/// The hue is counted in sixths of the circle, 0 at red, times the range of the channels, which saves a division; it
/// takes all sixteen bits. Gray has a range of 0 and stays as it is.
#[inline(always)]
fn turn_hue<L: Lanes>([r, g, b]: [L; 3], forward: L) -> [L; 3] {
    let (max, min) = extremes([r, g, b]);
    let range = max.sub(min);
    let two = range.add(range);
    let four = two.add(two);
    let circle = four.add(two);
    let red = g.sub(b).add(L::if_greater(b, g, circle, L::splat(0)));
    let others = L::if_equal(max, g, two.add(b.sub(r)), four.add(r.sub(g)));
    let hue = L::if_equal(max, r, red, others);
    let turn = circle.mul_high_unsigned(forward);
    // Forward by the turn, or back by what is left of the circle.
    let left = circle.sub(turn);
    let hue = L::if_at_least_unsigned(hue, left, hue.sub(left), hue.add(turn));
    // Each channel is a trapezoid of the hue: two sixths full, two empty, a slope between them on either side.
    [
        slope(distance(hue, two.add(range)).sub_to_zero(range), min, range),
        slope(two.sub_to_zero(distance(hue, two)), min, range),
        slope(two.sub_to_zero(distance(hue, four)), min, range),
    ]
}

/// How far apart two numbers without sign are.
#[inline(always)]
fn distance<L: Lanes>(a: L, b: L) -> L {
    a.sub_to_zero(b).or(b.sub_to_zero(a))
}

/// `min` and, above it, what is on the slope.
#[inline(always)]
fn slope<L: Lanes>(x: L, min: L, range: L) -> L {
    min.add(x.min(range))
}

#[inline(always)]
fn in_place<L: Lanes>(values: &mut [i16], f: impl Fn(L) -> L) {
    for values in values.chunks_exact_mut(L::COUNT) {
        f(L::load(values)).store(values);
    }
}

#[inline(always)]
fn each<L: Lanes>(tile: &mut [&mut [i16]; 3], f: impl Fn(L) -> L) {
    for plane in tile {
        in_place(plane, &f);
    }
}

#[inline(always)]
fn pixels<L: Lanes>([red, green, blue]: &mut [&mut [i16]; 3], f: impl Fn([L; 3]) -> [L; 3]) {
    let chunks = red.chunks_exact_mut(L::COUNT).zip(green.chunks_exact_mut(L::COUNT));
    for ((r, g), b) in chunks.zip(blue.chunks_exact_mut(L::COUNT)) {
        let [red, green, blue] = f([L::load(r), L::load(g), L::load(b)]);
        red.store(r);
        green.store(g);
        blue.store(b);
    }
}
