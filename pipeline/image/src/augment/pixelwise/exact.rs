//! Color changes in f32, in an order that is written down here, so that every machine gives the same bytes.

use super::{ColorOp, TILE, pass};
use crate::augment::View;
use crate::simd::{round_to_bytes, sums8};

/// Makes the changes, with values cut down to whole numbers after each if `WHOLE`. `kept` is room for values between
/// passes.
#[inline(always)]
pub(super) fn run<const WHOLE: bool>(changes: &[ColorOp], view: &mut View, kept: &mut [Vec<f32>; 3]) {
    let pixels = view.width * view.height;
    let mut buffer = [[0.0; TILE]; 3];
    let mut rest = changes;
    let mut mean = None;
    let mut is_kept = false;
    while !rest.is_empty() {
        let (now, after) = pass(rest, mean.is_some());
        // What a pass before the last one made is kept as floats; what it only looked at is there as bytes.
        let keep = is_kept || !(now.is_empty() || after.is_empty());
        if keep {
            kept.iter_mut().for_each(|plane| plane.resize(pixels, 0.0));
        }
        let mut sums = [0.0; 3];
        for from in (0..pixels).step_by(TILE) {
            let range = from..(from + TILE).min(pixels);
            let mut tile = if keep {
                kept.each_mut().map(|plane| &mut plane[range.clone()])
            } else {
                buffer.each_mut().map(|plane| &mut plane[..range.len()])
            };
            if !is_kept {
                for (to, plane) in tile.iter_mut().zip(&view.planes) {
                    to.iter_mut().zip(&plane[range.clone()]).for_each(|(to, &byte)| *to = f32::from(byte));
                }
            }
            for &change in now {
                make::<WHOLE>(change, &mut tile, mean);
            }
            if after.is_empty() {
                for (from, plane) in tile.iter().zip(&mut view.planes) {
                    round_to_bytes(from, &mut plane[range.clone()]);
                }
            } else {
                add_sum::<WHOLE>(&tile, &mut sums);
            }
        }
        mean = (!after.is_empty()).then(|| mean_of(sums, pixels));
        (rest, is_kept) = (after, keep);
    }
}

fn mean_of(sums: [f64; 3], pixels: usize) -> [f32; 3] {
    sums.map(|sum| (sum / pixels as f64) as f32)
}

/// Adds what contrast's mean is made of: each channel, or in torchvision's arithmetic the gray.
#[inline(always)]
fn add_sum<const WHOLE: bool>(tile: &[&mut [f32]; 3], sums: &mut [f64; 3]) {
    let total = |values: &[f32]| sums8(values).iter().map(|&sum| f64::from(sum)).sum::<f64>();
    if WHOLE {
        let [red, green, blue] = tile;
        let mut grays = [0.0; TILE];
        for (((to, &r), &g), &b) in grays.iter_mut().zip(&**red).zip(&**green).zip(&**blue) {
            *to = gray::<WHOLE>([r, g, b]);
        }
        let sum = total(&grays[..red.len()]);
        sums.iter_mut().for_each(|all| *all += sum);
    } else {
        for (all, plane) in sums.iter_mut().zip(tile) {
            *all += total(plane);
        }
    }
}

/// Makes one change on a tile.
#[inline(always)]
fn make<const WHOLE: bool>(change: ColorOp, tile: &mut [&mut [f32]; 3], mean: Option<[f32; 3]>) {
    // torchvision stores u8 after each op, cutting off the fraction.
    let store = |x: f32| cut::<WHOLE>(x);
    match change {
        ColorOp::Brightness(factor) => each(tile, |x| store(x * factor)),
        ColorOp::AddBrightness(share) => each(tile, |x| store(x + share * 255.0)),
        ColorOp::Contrast(factor) => {
            let mean = mean.expect("summed up in the pass before");
            for (plane, mean) in tile.iter_mut().zip(mean) {
                for value in plane.iter_mut() {
                    *value = if WHOLE {
                        store(factor * *value + (1.0 - factor) * mean)
                    } else {
                        store((*value - mean) * factor + mean)
                    };
                }
            }
        }
        ColorOp::Saturation(factor) if WHOLE => pixels(tile, |pixel| {
            let gray = gray::<WHOLE>(pixel);
            pixel.map(|x| store(factor * x + (1.0 - factor) * gray))
        }),
        ColorOp::Saturation(factor) => pixels(tile, |pixel| {
            // Scaling the saturation of HSV, with the hue and the largest channel kept, moves each channel from or
            // towards the largest one.
            let max = larger(larger(pixel[0], pixel[1]), pixel[2]);
            let min = smaller(smaller(pixel[0], pixel[1]), pixel[2]);
            // No saturation grows beyond 1; gray, whose range is 0, stays as it is.
            let scale = smaller(max / (max - min), factor);
            pixel.map(|x| store(max - (max - x) * scale))
        }),
        // torchvision goes through floats in [0, 1] and back by × 255.999 and cutting off.
        ColorOp::Hue(turn) if WHOLE => {
            pixels(tile, |pixel| turn_hue(pixel, turn).map(|x| cut::<WHOLE>(x * (255.999 / 255.0))))
        }
        ColorOp::Hue(turn) => pixels(tile, |pixel| turn_hue(pixel, turn).map(store)),
        ColorOp::Gray => pixels(tile, |pixel| [gray::<WHOLE>(pixel); 3]),
        ColorOp::Solarize(threshold) => each(tile, |x| if x >= threshold { 255.0 - x } else { x }),
        ColorOp::Posterize(bits) => {
            let step = (1u32 << (8 - bits.min(8))) as f32;
            each(tile, |x| whole(x / step) * step);
        }
        ColorOp::Invert => each(tile, |x| 255.0 - x),
    }
}

#[inline(always)]
fn each(tile: &mut [&mut [f32]; 3], f: impl Fn(f32) -> f32) {
    for plane in tile {
        for value in plane.iter_mut() {
            *value = f(*value);
        }
    }
}

#[inline(always)]
fn pixels([red, green, blue]: &mut [&mut [f32]; 3], f: impl Fn([f32; 3]) -> [f32; 3]) {
    for ((r, g), b) in red.iter_mut().zip(green.iter_mut()).zip(blue.iter_mut()) {
        [*r, *g, *b] = f([*r, *g, *b]);
    }
}

/// A value brought back into [0, 255], and cut down to a whole number where that is the arithmetic.
#[inline(always)]
fn cut<const WHOLE: bool>(x: f32) -> f32 {
    let x = larger(smaller(x, 255.0), 0.0);
    if WHOLE { whole(x) } else { x }
}

/// The larger of two numbers; without the standard library's care for what is none, it is one instruction.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The smaller of two numbers.
#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The whole part of a value in [0, 255].
#[inline(always)]
fn whole(x: f32) -> f32 {
    x.trunc()
}

/// The weights of red, green and blue in gray (ITU-R 601 to four digits, as TensorFlow and torchvision have them).
const GRAY: [f32; 3] = [0.2989, 0.587, 0.114];

/// The gray of one pixel, cut down to a whole number in torchvision's arithmetic.
#[inline(always)]
fn gray<const WHOLE: bool>([r, g, b]: [f32; 3]) -> f32 {
    let value = GRAY[0] * r + GRAY[1] * g + GRAY[2] * b;
    if WHOLE { whole(value) } else { value }
}

/// Turns the hue of an RGB pixel by a share of the circle in [−1, 1], keeping value and saturation.
///
/// The hue is counted in sixths of the circle, 0 at red, times the range of the channels, which saves a division; gray
/// has a range of 0 and stays as it is.
#[inline(always)]
fn turn_hue([r, g, b]: [f32; 3], turn: f32) -> [f32; 3] {
    let max = larger(larger(r, g), b);
    let min = smaller(smaller(r, g), b);
    let range = max - min;
    let circle = 6.0 * range;
    let hue = if max == r {
        g - b
    } else if max == g {
        2.0 * range + (b - r)
    } else {
        4.0 * range + (r - g)
    };
    let forward = if turn < 0.0 { turn + 1.0 } else { turn };
    let hue = hue + forward * circle;
    let hue = if hue >= circle { hue - circle } else { hue };
    let hue = if hue < 0.0 { hue + circle } else { hue };
    // Each channel is a trapezoid of the hue: two sixths full, two empty, a slope between them on either side.
    let part = |x: f32| min + larger(smaller(x, range), 0.0);
    [
        part((hue - 3.0 * range).abs() - range),
        part(2.0 * range - (hue - 2.0 * range).abs()),
        part(2.0 * range - (hue - 4.0 * range).abs()),
    ]
}
