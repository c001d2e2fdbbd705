//! The machine's vector instructions: the only place that names them, and with `batch.rs` and the bindings to libjpeg
//! the only `unsafe` code. Everything here has a plain twin elsewhere that gives the same bytes.
#![allow(unsafe_code)]

mod across;
pub mod idct;
mod lanes;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use across::{ACROSS_MARGIN, Across};
pub use lanes::{Lanes, LanesJob, MAX_LANES, on_widest_lanes};
#[cfg(target_arch = "x86_64")]
pub use x86::Avx2;

/// Runs `f` compiled for the widest vectors that this machine has; what it computes does not change, since nothing
/// here contracts or reorders arithmetic. `f` and what it calls must be inlined to gain by it.
#[inline(always)]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx512) = x86::Avx512::detect() {
        return avx512.run(f);
    } else if let Some(avx2) = Avx2::detect() {
        return avx2.run(f);
    }
    f()
}

/// The vector instructions that are used on this machine.
pub fn vector_instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if x86::Avx512::detect().is_some() {
        return "AVX-512";
    } else if Avx2::detect().is_some() {
        return "AVX2";
    }
    "none"
}

/// Weighted sums of rows of bytes, descaled by `shift` bits and rounded half up.
#[inline(always)]
pub fn weigh_bytes<'a>(weights: &[i16], row: impl Fn(usize) -> &'a [u8], out: &mut [i16], shift: u32) {
    #[cfg(target_arch = "x86_64")]
    let from = Avx2::detect().map_or(0, |avx2| avx2.weigh_bytes(weights, &row, out, shift));
    #[cfg(not(target_arch = "x86_64"))]
    let from = 0;
    for (x, out) in out.iter_mut().enumerate().skip(from) {
        let products = weights.iter().enumerate().map(|(i, &weight)| i32::from(weight) * i32::from(row(i)[x]));
        let sum = products.sum::<i32>() + (1 << (shift - 1));
        *out = (sum >> shift).clamp(-32_768, 32_767) as i16;
    }
}

/// Weighted sums of rows of whole numbers, descaled by `shift` bits, rounded half up and cut to bytes.
#[inline(always)]
pub fn weigh_wide<'a>(weights: &[i16], row: impl Fn(usize) -> &'a [i16], out: &mut [u8], shift: u32) {
    #[cfg(target_arch = "x86_64")]
    let from = Avx2::detect().map_or(0, |avx2| avx2.weigh_wide(weights, &row, out, shift));
    #[cfg(not(target_arch = "x86_64"))]
    let from = 0;
    for (x, out) in out.iter_mut().enumerate().skip(from) {
        let products = weights.iter().enumerate().map(|(i, &weight)| i32::from(weight) * i32::from(row(i)[x]));
        let sum = products.sum::<i32>() + (1 << (shift - 1));
        *out = (sum >> shift).clamp(0, 255) as u8;
    }
}

/// Symmetric weighted sums of rows: the middle one, number `weights.len() - 1`, by `weights[0]`, and those `i` rows
/// before and behind it by `weights[i]`, each product in 15 bits behind the point and rounded half up.
///
/// Values are at most 16,383, weights sum to 1.
#[inline(always)]
pub fn weigh_symmetric<'a>(weights: &[i16], row: impl Fn(usize) -> &'a [i16], out: &mut [i16]) {
    #[cfg(target_arch = "x86_64")]
    let from = Avx2::detect().map_or(0, |avx2| avx2.weigh_symmetric(weights, &row, out));
    #[cfg(not(target_arch = "x86_64"))]
    let from = 0;
    let middle = weights.len() - 1;
    for (x, out) in out.iter_mut().enumerate().skip(from) {
        let product = |value: i16, weight: i16| ((i32::from(value) * i32::from(weight) + (1 << 14)) >> 15) as i16;
        let others = weights.iter().enumerate().skip(1);
        *out = others.fold(product(row(middle)[x], weights[0]), |sum, (i, &weight)| {
            sum + product(row(middle - i)[x] + row(middle + i)[x], weight)
        });
    }
}

/// One pixel: ITU-R 601 with 16 bits behind the point, rounded as libjpeg rounds.
#[inline(always)]
pub fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let r = y + ((91_881 * cr + HALF) >> 16);
    let g = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
    let b = y + ((116_130 * cb + HALF) >> 16);
    [r, g, b].map(|value| value.clamp(0, 255) as u8)
}

/// Makes red, green and blue, in place, of luma and the two color differences.
pub fn ycc_to_rgb(planes: [&mut [u8]; 3]) {
    #[cfg(target_arch = "x86_64")]
    let (planes, from) = match Avx2::detect() {
        Some(avx2) => avx2.ycc_to_rgb(planes),
        None => (planes, 0),
    };
    #[cfg(not(target_arch = "x86_64"))]
    let from = 0;
    let [first, second, third] = planes.map(|plane| &mut plane[from..]);
    for ((y, cb), cr) in first.iter_mut().zip(second).zip(third) {
        [*y, *cb, *cr] = rgb(*y, *cb, *cr);
    }
}

/// Writes planes of red, green and blue as pixels.
pub fn interleave(planes: [&[u8]; 3], pixels: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    let from = Avx2::detect().map_or(0, |avx2| avx2.interleave(planes, pixels));
    #[cfg(not(target_arch = "x86_64"))]
    let from = 0;
    let [red, green, blue] = planes.map(|plane| &plane[from..]);
    for (((pixel, &r), &g), &b) in pixels[3 * from..].chunks_exact_mut(3).zip(red).zip(green).zip(blue) {
        pixel.copy_from_slice(&[r, g, b]);
    }
}

/// Values in [0, 255] as bytes, rounded half up.
#[inline(always)]
pub fn round_to_bytes(values: &[f32], bytes: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    let from = Avx2::detect().map_or(0, |avx2| avx2.round_to_bytes(values, bytes));
    #[cfg(not(target_arch = "x86_64"))]
    let from = 0;
    for (byte, value) in bytes.iter_mut().zip(values).skip(from) {
        // `as` cuts to the range of u8.
        *byte = (value + 0.5) as u8;
    }
}

/// Sums of every eighth value.
#[inline(always)]
pub fn sums8(values: &[f32]) -> [f32; 8] {
    #[cfg(target_arch = "x86_64")]
    let (mut sums, from) = Avx2::detect().map_or(([0.0; 8], 0), |avx2| avx2.sums8(values));
    #[cfg(not(target_arch = "x86_64"))]
    let (mut sums, from) = ([0.0; 8], 0);
    for (i, value) in values.iter().enumerate().skip(from) {
        sums[i % 8] += value;
    }
    sums
}

/// Rows for columns, of eight rows from `from`, `stride` apart, to `to`, `to_stride` apart.
#[inline(always)]
pub fn transpose8(from: &[i16], stride: usize, to: &mut [i16], to_stride: usize) {
    #[cfg(target_arch = "x86_64")]
    x86::transpose8(from, stride, to, to_stride);
    #[cfg(not(target_arch = "x86_64"))]
    for y in 0..8 {
        for x in 0..8 {
            to[x * to_stride + y] = from[y * stride + x];
        }
    }
}

/// Rows for columns, of eight rows from `from`, `stride` apart, to `to`, `to_stride` apart.
#[inline(always)]
pub fn transpose8_bytes(from: &[u8], stride: usize, to: &mut [u8], to_stride: usize) {
    #[cfg(target_arch = "x86_64")]
    x86::transpose8_bytes(from, stride, to, to_stride);
    #[cfg(not(target_arch = "x86_64"))]
    for y in 0..8 {
        for x in 0..8 {
            to[x * to_stride + y] = from[y * stride + x];
        }
    }
}
