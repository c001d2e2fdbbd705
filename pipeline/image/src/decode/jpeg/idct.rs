//! The inverse transform of a block: libjpeg's `islow`, to the bit.

use crate::simd::idct::{DIFFERENCE, EVEN, ODD, ODD_SUMS, SUM};

/// A block's coefficients, row-major, not multiplied by their quantization yet.
pub struct Block {
    /// The coefficients; the last place takes what has none.
    pub coefficients: [i16; 65],
    /// The last place in the file's order that may hold something.
    pub last: usize,
}

impl Block {
    /// Nothing but zeros.
    pub fn new() -> Self {
        Self { coefficients: [0; 65], last: 0 }
    }

    /// Sets all to zero.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.coefficients = [0; 65];
    }
}

/// Coefficients up to this one, in the file's order, lie in the first four rows and columns.
const LAST_OF_CORNER: usize = 9;

/// Which code does the work; all give the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// Plain code.
    Scalar,
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2(crate::simd::Avx2),
}

impl Transform {
    /// The fastest on this machine.
    pub fn choose() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = crate::simd::Avx2::detect() {
            return Self::Avx2(avx2);
        }
        Self::Scalar
    }

    /// Writes the 8 × 8 samples of a block to `out`, whose rows are `stride` apart.
    ///
    /// Says whether it could: not if samples come out farther from the middle than twice what a byte holds. libjpeg's
    /// several codes give several samples then; no encoder writes such a block.
    #[inline(always)]
    pub fn apply(self, block: &Block, quantization: &Quantization, out: &mut [u8], stride: usize) -> bool {
        if block.last == 0 {
            return flat(block.coefficients[0], quantization.factors[0], out, stride);
        }
        let coefficients = block.coefficients.first_chunk().expect("65 are more than 64");
        if quantization.coarse && !quantization.fits(coefficients) {
            return false;
        }
        let (rows, in_range) = match self {
            Self::Scalar => scalar(coefficients, &quantization.factors),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) if block.last <= LAST_OF_CORNER => avx2.idct_corner(coefficients, &quantization.factors),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.idct(coefficients, &quantization.factors),
        };
        for (line, samples) in out.chunks_mut(stride).zip(rows) {
            *line.first_chunk_mut().expect("rows hold whole blocks") = samples;
        }
        in_range
    }
}

/// What the coefficients of a component are multiplied by.
#[derive(Debug, Clone)]
pub struct Quantization {
    factors: [i16; 64],
    /// Whether products with coefficients that a file can hold may not fit into 16 bits.
    coarse: bool,
}

impl Quantization {
    /// Factors, row-major.
    pub fn new(factors: [i16; 64]) -> Self {
        const LARGEST_COEFFICIENT: i32 = 2047;
        let coarse = factors.iter().any(|&factor| i32::from(factor) * LARGEST_COEFFICIENT > i32::from(i16::MAX));
        Self { factors, coarse }
    }

    #[inline(always)]
    fn fits(&self, coefficients: &[i16; 64]) -> bool {
        let product = |(&a, &b): (&i16, &i16)| i32::from(a) * i32::from(b);
        coefficients.iter().zip(&self.factors).map(product).fold(true, |all, x| all & (x == i32::from(x as i16)))
    }
}

/// A block of which only the mean is not zero.
#[inline(always)]
fn flat(coefficient: i16, factor: i16, out: &mut [u8], stride: usize) -> bool {
    let value = (i32::from(coefficient) * i32::from(factor) + 4) >> 3;
    let sample = (value.clamp(-128, 127) + 128) as u8;
    for row in 0..8 {
        out[row * stride..][..8].fill(sample);
    }
    in_range(value)
}

/// Whether a sample, counted from the middle, is no farther off than twice what a byte holds.
fn in_range(value: i32) -> bool {
    (-512..512).contains(&value)
}

const CONST_BITS: u32 = 13;
const PASS1_BITS: u32 = 2;

/// The transform in plain code: columns, then rows. It overflows where the 16 bits of the fast code do. Whether all
/// samples are in range comes with them.
fn scalar(coefficients: &[i16; 64], quantization: &[i16; 64]) -> ([[u8; 8]; 8], bool) {
    let mut work = [[0i16; 8]; 8];
    for x in 0..8 {
        let column = std::array::from_fn(|y| coefficients[8 * y + x].wrapping_mul(quantization[8 * y + x]));
        for (y, value) in one_dimension(column).into_iter().enumerate() {
            work[y][x] = descale(value, CONST_BITS - PASS1_BITS).clamp(-32_768, 32_767) as i16;
        }
    }
    let mut all_in_range = true;
    let samples = work.map(|row| {
        one_dimension(row).map(|value| {
            let value = descale(value, CONST_BITS + PASS1_BITS + 3);
            all_in_range &= in_range(value);
            (value.clamp(-128, 127) + 128) as u8
        })
    });
    (samples, all_in_range)
}

fn descale(value: i32, bits: u32) -> i32 {
    value.wrapping_add(1 << (bits - 1)) >> bits
}

/// Eight values' transform, with 13 bits more behind the point (Loeffler, Ligtenberg and Moschytz; the products of
/// each rotation gathered, which changes no result).
fn one_dimension(v: [i16; 8]) -> [i32; 8] {
    let rotate =
        |a: i16, b: i16, [x, y]: [i16; 2]| (i32::from(a) * i32::from(x)).wrapping_add(i32::from(b) * i32::from(y));
    let (t0, t1) = (rotate(v[0], v[4], SUM), rotate(v[0], v[4], DIFFERENCE));
    let (t2, t3) = (rotate(v[2], v[6], EVEN[0]), rotate(v[2], v[6], EVEN[1]));
    let even = [t0.wrapping_add(t3), t1.wrapping_add(t2), t1.wrapping_sub(t2), t0.wrapping_sub(t3)];
    let (z3, z4) = (v[7].wrapping_add(v[3]), v[5].wrapping_add(v[1]));
    let (z3, z4) = (rotate(z3, z4, ODD_SUMS[0]), rotate(z3, z4, ODD_SUMS[1]));
    let odd = [
        rotate(v[7], v[1], ODD[3]).wrapping_add(z4),
        rotate(v[5], v[3], ODD[2]).wrapping_add(z3),
        rotate(v[5], v[3], ODD[1]).wrapping_add(z4),
        rotate(v[7], v[1], ODD[0]).wrapping_add(z3),
    ];
    std::array::from_fn(|i| match i {
        0..4 => even[i].wrapping_add(odd[i]),
        _ => even[7 - i].wrapping_sub(odd[7 - i]),
    })
}
