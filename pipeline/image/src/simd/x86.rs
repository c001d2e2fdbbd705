//! The instructions of x86-64: AVX2, and AVX-512 where it is there.

use std::arch::x86_64::*;

use super::idct::{DIFFERENCE, EVEN, ODD, ODD_SUMS, SUM};

/// Proof that this machine has AVX2 and the bit instructions of its age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    /// The proof, if it is so.
    #[inline(always)]
    pub fn detect() -> Option<Self> {
        let there = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt");
        there.then_some(Self(()))
    }

    /// Runs `f`, compiled with these instructions as far as it is inlined.
    #[inline(always)]
    pub fn run<R>(self, f: impl FnOnce() -> R) -> R {
        // SAFETY: an `Avx2` exists only where the instructions were detected.
        unsafe { run(f) }
    }

    /// The inverse transform of a block.
    #[inline(always)]
    pub fn idct(self, coefficients: &[i16; 64], quantization: &[i16; 64]) -> ([[u8; 8]; 8], bool) {
        // SAFETY: as above.
        unsafe { idct(coefficients, quantization) }
    }

    /// The inverse transform of a block of which only the first four rows and columns may be other than zero.
    #[inline(always)]
    pub fn idct_corner(self, coefficients: &[i16; 64], quantization: &[i16; 64]) -> ([[u8; 8]; 8], bool) {
        // SAFETY: as above.
        unsafe { idct_corner(coefficients, quantization) }
    }

    /// Does as many values of [`super::ycc_to_rgb`] as fill whole vectors; how many.
    pub fn ycc_to_rgb(self, mut planes: [&mut [u8]; 3]) -> ([&mut [u8]; 3], usize) {
        // SAFETY: as above.
        let done = unsafe { ycc_to_rgb(&mut planes) };
        (planes, done)
    }

    /// Does as many values of [`super::interleave`] as fill whole vectors; how many.
    pub fn interleave(self, planes: [&[u8]; 3], pixels: &mut [u8]) -> usize {
        // SAFETY: as above.
        unsafe { interleave(planes, pixels) }
    }

    /// Does as many values of [`super::sums8`] as fill whole vectors; how many.
    #[inline(always)]
    pub fn sums8(self, values: &[f32]) -> ([f32; 8], usize) {
        // SAFETY: as above.
        unsafe { sums8(values) }
    }

    /// Does as many values of [`super::weigh_bytes`] as fill whole vectors; how many.
    #[inline(always)]
    pub fn weigh_bytes<'a>(
        self,
        weights: &[i16],
        row: impl Fn(usize) -> &'a [u8],
        out: &mut [i16],
        shift: u32,
    ) -> usize {
        // SAFETY: as above.
        unsafe { weigh_bytes(weights, row, out, shift) }
    }

    /// Does as many values of [`super::weigh_wide`] as fill whole vectors; how many.
    #[inline(always)]
    pub fn weigh_wide<'a>(
        self,
        weights: &[i16],
        row: impl Fn(usize) -> &'a [i16],
        out: &mut [u8],
        shift: u32,
    ) -> usize {
        // SAFETY: as above.
        unsafe { weigh_wide(weights, row, out, shift) }
    }

    /// Does as many values of [`super::weigh_symmetric`] as fill whole vectors; how many.
    #[inline(always)]
    pub fn weigh_symmetric<'a>(self, weights: &[i16], row: impl Fn(usize) -> &'a [i16], out: &mut [i16]) -> usize {
        if Avx512::detect().is_some() {
            // SAFETY: an `Avx512` exists only where the instructions were detected.
            return unsafe { weigh_symmetric512(weights, row, out) };
        }
        // SAFETY: as above.
        unsafe { weigh_symmetric(weights, row, out) }
    }

    /// Does as many values of [`super::round_to_bytes`] as fill whole vectors; how many.
    #[inline(always)]
    pub fn round_to_bytes(self, values: &[f32], bytes: &mut [u8]) -> usize {
        if Avx512::detect().is_some() {
            // SAFETY: an `Avx512` exists only where the instructions were detected.
            return unsafe { round_to_bytes512(values, bytes) };
        }
        // SAFETY: as above.
        unsafe { round_to_bytes(values, bytes) }
    }
}

/// Proof that this machine has AVX-512 as servers have had it since 2017, and all of [`Avx2`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Avx512(());

impl Avx512 {
    /// The proof, if it is so.
    #[inline(always)]
    pub fn detect() -> Option<Self> {
        let there = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        (there && Avx2::detect().is_some()).then_some(Self(()))
    }

    /// Runs `f`, compiled with these instructions as far as it is inlined.
    #[inline(always)]
    pub fn run<R>(self, f: impl FnOnce() -> R) -> R {
        // SAFETY: an `Avx512` exists only where the instructions were detected.
        unsafe { run512(f) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2,lzcnt")]
fn run512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
fn run<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// Every x86-64 has these instructions.
#[inline(always)]
pub fn transpose8(from: &[i16], stride: usize, to: &mut [i16], to_stride: usize) {
    let row = |i: usize| load8(from[i * stride..].first_chunk().expect("eight values in a row"));
    let mut store = |i: usize, value: __m128i| {
        let row: &mut [i16; 8] = to[i * to_stride..].first_chunk_mut().expect("eight values in a row");
        // SAFETY: SSE2 is part of x86-64; the reference is to the 16 bytes that are written.
        unsafe { _mm_storeu_si128(row.as_mut_ptr().cast(), value) };
    };
    // SAFETY: SSE2 is part of x86-64.
    unsafe {
        let (r0, r1, r2, r3) = (row(0), row(1), row(2), row(3));
        let (r4, r5, r6, r7) = (row(4), row(5), row(6), row(7));
        let (a0, a1) = (_mm_unpacklo_epi16(r0, r1), _mm_unpackhi_epi16(r0, r1));
        let (b0, b1) = (_mm_unpacklo_epi16(r2, r3), _mm_unpackhi_epi16(r2, r3));
        let (c0, c1) = (_mm_unpacklo_epi16(r4, r5), _mm_unpackhi_epi16(r4, r5));
        let (d0, d1) = (_mm_unpacklo_epi16(r6, r7), _mm_unpackhi_epi16(r6, r7));
        let (e0, e1) = (_mm_unpacklo_epi32(a0, b0), _mm_unpackhi_epi32(a0, b0));
        let (e2, e3) = (_mm_unpacklo_epi32(a1, b1), _mm_unpackhi_epi32(a1, b1));
        let (f0, f1) = (_mm_unpacklo_epi32(c0, d0), _mm_unpackhi_epi32(c0, d0));
        let (f2, f3) = (_mm_unpacklo_epi32(c1, d1), _mm_unpackhi_epi32(c1, d1));
        store(0, _mm_unpacklo_epi64(e0, f0));
        store(1, _mm_unpackhi_epi64(e0, f0));
        store(2, _mm_unpacklo_epi64(e1, f1));
        store(3, _mm_unpackhi_epi64(e1, f1));
        store(4, _mm_unpacklo_epi64(e2, f2));
        store(5, _mm_unpackhi_epi64(e2, f2));
        store(6, _mm_unpacklo_epi64(e3, f3));
        store(7, _mm_unpackhi_epi64(e3, f3));
    }
}

/// Every x86-64 has these instructions.
#[inline(always)]
pub fn transpose8_bytes(from: &[u8], stride: usize, to: &mut [u8], to_stride: usize) {
    let row = |i: usize| {
        let row: &[u8; 8] = from[i * stride..].first_chunk().expect("eight values in a row");
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_cvtsi64_si128(i64::from_le_bytes(*row)) }
    };
    let mut store = |i: usize, value: i64| {
        to[i * to_stride..][..8].copy_from_slice(&value.to_le_bytes());
    };
    // SAFETY: SSE2 is part of x86-64.
    unsafe {
        let (a, b) = (_mm_unpacklo_epi8(row(0), row(1)), _mm_unpacklo_epi8(row(2), row(3)));
        let (c, d) = (_mm_unpacklo_epi8(row(4), row(5)), _mm_unpacklo_epi8(row(6), row(7)));
        let (e0, e1) = (_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b));
        let (f0, f1) = (_mm_unpacklo_epi16(c, d), _mm_unpackhi_epi16(c, d));
        let columns = [
            _mm_unpacklo_epi32(e0, f0),
            _mm_unpackhi_epi32(e0, f0),
            _mm_unpacklo_epi32(e1, f1),
            _mm_unpackhi_epi32(e1, f1),
        ];
        for (i, columns) in columns.into_iter().enumerate() {
            store(2 * i, _mm_cvtsi128_si64(columns));
            store(2 * i + 1, _mm_cvtsi128_si64(_mm_unpackhi_epi64(columns, columns)));
        }
    }
}

#[inline(always)]
fn load8(values: &[i16; 8]) -> __m128i {
    // SAFETY: the reference is to the 16 bytes that are read; unaligned reads are allowed.
    unsafe { _mm_loadu_si128(values.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn factors([a, b]: [i16; 2]) -> __m256i {
    _mm256_set1_epi32((a as u16 as i32) | (b as i32) << 16)
}

/// Both rows' values side by side, as pairs.
#[target_feature(enable = "avx2")]
fn pairs(a: __m128i, b: __m128i) -> __m256i {
    _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b))
}

/// The transform along one dimension of eight vectors, descaled by `BITS`.
#[target_feature(enable = "avx2")]
fn one_dimension<const BITS: i32>(v: [__m128i; 8]) -> [__m256i; 8] {
    let (v04, v26) = (pairs(v[0], v[4]), pairs(v[2], v[6]));
    let half = _mm256_set1_epi32(1 << (BITS - 1));
    let t0 = _mm256_add_epi32(_mm256_madd_epi16(v04, factors(SUM)), half);
    let t1 = _mm256_add_epi32(_mm256_madd_epi16(v04, factors(DIFFERENCE)), half);
    let t2 = _mm256_madd_epi16(v26, factors(EVEN[0]));
    let t3 = _mm256_madd_epi16(v26, factors(EVEN[1]));
    let even = [_mm256_add_epi32(t0, t3), _mm256_add_epi32(t1, t2), _mm256_sub_epi32(t1, t2), _mm256_sub_epi32(t0, t3)];
    let z = pairs(_mm_add_epi16(v[7], v[3]), _mm_add_epi16(v[5], v[1]));
    let (z3, z4) = (_mm256_madd_epi16(z, factors(ODD_SUMS[0])), _mm256_madd_epi16(z, factors(ODD_SUMS[1])));
    let (v71, v53) = (pairs(v[7], v[1]), pairs(v[5], v[3]));
    let odd = [
        _mm256_add_epi32(_mm256_madd_epi16(v71, factors(ODD[3])), z4),
        _mm256_add_epi32(_mm256_madd_epi16(v53, factors(ODD[2])), z3),
        _mm256_add_epi32(_mm256_madd_epi16(v53, factors(ODD[1])), z4),
        _mm256_add_epi32(_mm256_madd_epi16(v71, factors(ODD[0])), z3),
    ];
    [
        _mm256_srai_epi32::<BITS>(_mm256_add_epi32(even[0], odd[0])),
        _mm256_srai_epi32::<BITS>(_mm256_add_epi32(even[1], odd[1])),
        _mm256_srai_epi32::<BITS>(_mm256_add_epi32(even[2], odd[2])),
        _mm256_srai_epi32::<BITS>(_mm256_add_epi32(even[3], odd[3])),
        _mm256_srai_epi32::<BITS>(_mm256_sub_epi32(even[3], odd[3])),
        _mm256_srai_epi32::<BITS>(_mm256_sub_epi32(even[2], odd[2])),
        _mm256_srai_epi32::<BITS>(_mm256_sub_epi32(even[1], odd[1])),
        _mm256_srai_epi32::<BITS>(_mm256_sub_epi32(even[0], odd[0])),
    ]
}

/// Eight vectors of eight, packed to 16 bits and transposed: the first holds columns 0 and 4, and so on.
#[target_feature(enable = "avx2")]
fn transposed(v: [__m256i; 8]) -> [__m256i; 4] {
    // In each half: four values of one row, then four of the next; made pairs of the two rows.
    let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
    let row_pair = |a, b| _mm256_shuffle_epi8(_mm256_packs_epi32(a, b), order);
    let (r01, r23) = (row_pair(v[0], v[1]), row_pair(v[2], v[3]));
    let (r45, r67) = (row_pair(v[4], v[5]), row_pair(v[6], v[7]));
    let (low0, high0) = (_mm256_unpacklo_epi32(r01, r23), _mm256_unpackhi_epi32(r01, r23));
    let (low4, high4) = (_mm256_unpacklo_epi32(r45, r67), _mm256_unpackhi_epi32(r45, r67));
    [
        _mm256_unpacklo_epi64(low0, low4),
        _mm256_unpackhi_epi64(low0, low4),
        _mm256_unpacklo_epi64(high0, high4),
        _mm256_unpackhi_epi64(high0, high4),
    ]
}

/// A run of `16 × N` values of the weighted sums: two rows' products are summed, then two more rows' are added, and
/// so on. `load` gives a row's values, sixteen at a time.
#[target_feature(enable = "avx2")]
fn add_pairs<const N: usize>(
    weights: &[i16],
    load: impl Fn(usize) -> [__m256i; N],
    shift: u32,
) -> [(__m256i, __m256i); N] {
    let half = _mm256_set1_epi32(1 << (shift - 1));
    let mut sums = [(half, half); N];
    let (pairs, last) = weights.as_chunks::<2>();
    let mut add = |a: [__m256i; N], b: [__m256i; N], weights: [i16; 2]| {
        let factors = factors(weights);
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            sum.0 = _mm256_add_epi32(sum.0, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), factors));
            sum.1 = _mm256_add_epi32(sum.1, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), factors));
        }
    };
    for (i, &weights) in pairs.iter().enumerate() {
        add(load(2 * i), load(2 * i + 1), weights);
    }
    if let [last] = *last {
        add(load(2 * pairs.len()), [_mm256_setzero_si256(); N], [last, 0]);
    }
    let shift = _mm_cvtsi32_si128(shift as i32);
    sums.map(|(low, high)| (_mm256_sra_epi32(low, shift), _mm256_sra_epi32(high, shift)))
}

/// As [`add_pairs`], thirty-two values side by side.
#[target_feature(enable = "avx512f,avx512bw,avx2")]
fn add_pairs512<const N: usize>(
    weights: &[i16],
    load: impl Fn(usize) -> [__m512i; N],
    shift: u32,
) -> [(__m512i, __m512i); N] {
    let half = _mm512_set1_epi32(1 << (shift - 1));
    let mut sums = [(half, half); N];
    let (pairs, last) = weights.as_chunks::<2>();
    let mut add = |a: [__m512i; N], b: [__m512i; N], [first, second]: [i16; 2]| {
        let factors = _mm512_set1_epi32((first as u16 as i32) | (second as i32) << 16);
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            sum.0 = _mm512_add_epi32(sum.0, _mm512_madd_epi16(_mm512_unpacklo_epi16(a, b), factors));
            sum.1 = _mm512_add_epi32(sum.1, _mm512_madd_epi16(_mm512_unpackhi_epi16(a, b), factors));
        }
    };
    for (i, &weights) in pairs.iter().enumerate() {
        add(load(2 * i), load(2 * i + 1), weights);
    }
    if let [last] = *last {
        add(load(2 * pairs.len()), [_mm512_setzero_si512(); N], [last, 0]);
    }
    let shift = _mm_cvtsi32_si128(shift as i32);
    sums.map(|(low, high)| (_mm512_sra_epi32(low, shift), _mm512_sra_epi32(high, shift)))
}

#[target_feature(enable = "avx512f,avx512bw,avx2")]
fn weigh_bytes512<'a>(weights: &[i16], row: impl Fn(usize) -> &'a [u8], out: &mut [i16], shift: u32) -> usize {
    let (wide, _) = out.as_chunks_mut::<64>();
    for (v, out) in wide.iter_mut().enumerate() {
        let load = |i: usize| {
            let row: &[u8; 64] = row(i)[64 * v..].first_chunk().expect(LONG);
            // SAFETY: the reference is to the 64 bytes that are read; unaligned reads are allowed.
            [0, 32].map(|at| _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_si256(row[at..].as_ptr().cast()) }))
        };
        let sums = add_pairs512::<2>(weights, load, shift);
        for (out, (low, high)) in out.as_chunks_mut::<32>().0.iter_mut().zip(sums) {
            // SAFETY: the reference is to the 64 bytes that are written.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_packs_epi32(low, high)) };
        }
    }
    64 * wide.len()
}

#[target_feature(enable = "avx512f,avx512bw,avx2")]
fn weigh_wide512<'a>(weights: &[i16], row: impl Fn(usize) -> &'a [i16], out: &mut [u8], shift: u32) -> usize {
    let (wide, _) = out.as_chunks_mut::<64>();
    for (v, out) in wide.iter_mut().enumerate() {
        let load = |i: usize| {
            let row: &[i16; 64] = row(i)[64 * v..].first_chunk().expect(LONG);
            // SAFETY: the reference is to the 128 bytes that are read; unaligned reads are allowed.
            [0, 32].map(|at| unsafe { _mm512_loadu_si512(row[at..].as_ptr().cast()) })
        };
        let sums = add_pairs512::<2>(weights, load, shift);
        for (out, (low, high)) in out.as_chunks_mut::<32>().0.iter_mut().zip(sums) {
            // Cut to bytes: negative values to 0 first, then what is too large.
            let values = _mm512_max_epi16(_mm512_packs_epi32(low, high), _mm512_setzero_si512());
            let bytes = _mm512_cvtusepi16_epi8(values);
            // SAFETY: the reference is to the 32 bytes that are written.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) };
        }
    }
    64 * wide.len()
}

#[target_feature(enable = "avx2")]
fn weigh_bytes<'a>(weights: &[i16], row: impl Fn(usize) -> &'a [u8], out: &mut [i16], shift: u32) -> usize {
    let (wide, rest) = out.as_chunks_mut::<64>();
    let narrow_from = 64 * wide.len();
    if Avx512::detect().is_some() {
        // SAFETY: an `Avx512` exists only where the instructions were detected.
        unsafe { weigh_bytes512(weights, &row, wide.as_flattened_mut(), shift) };
    } else {
        for (v, out) in wide.iter_mut().enumerate() {
            weigh_some_bytes::<4, 64>(weights, |i| row(i)[64 * v..].first_chunk().expect(LONG), out, shift);
        }
    }
    let (narrow, _) = rest.as_chunks_mut::<16>();
    for (v, out) in narrow.iter_mut().enumerate() {
        let row = |i: usize| row(i)[narrow_from + 16 * v..].first_chunk().expect(LONG);
        weigh_some_bytes::<1, 16>(weights, row, out, shift);
    }
    narrow_from + 16 * narrow.len()
}

const LONG: &str = "rows are as long as the sums";

#[target_feature(enable = "avx2")]
fn weigh_some_bytes<'a, const N: usize, const M: usize>(
    weights: &[i16],
    row: impl Fn(usize) -> &'a [u8; M],
    out: &mut [i16; M],
    shift: u32,
) {
    let load = |i: usize| {
        let row = row(i).as_chunks::<16>().0;
        std::array::from_fn(|n| {
            // SAFETY: the reference is to the 16 bytes that are read; unaligned reads are allowed.
            _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(row[n].as_ptr().cast()) })
        })
    };
    let sums = add_pairs::<N>(weights, load, shift);
    for (out, (low, high)) in out.as_chunks_mut::<16>().0.iter_mut().zip(sums) {
        // SAFETY: the reference is to the 32 bytes that are written.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_packs_epi32(low, high)) };
    }
}

#[target_feature(enable = "avx2")]
fn weigh_wide<'a>(weights: &[i16], row: impl Fn(usize) -> &'a [i16], out: &mut [u8], shift: u32) -> usize {
    let (wide, rest) = out.as_chunks_mut::<64>();
    let narrow_from = 64 * wide.len();
    if Avx512::detect().is_some() {
        // SAFETY: an `Avx512` exists only where the instructions were detected.
        unsafe { weigh_wide512(weights, &row, wide.as_flattened_mut(), shift) };
    } else {
        for (v, out) in wide.iter_mut().enumerate() {
            weigh_some_wide::<4, 64>(weights, |i| row(i)[64 * v..].first_chunk().expect(LONG), out, shift);
        }
    }
    let (narrow, _) = rest.as_chunks_mut::<16>();
    for (v, out) in narrow.iter_mut().enumerate() {
        let row = |i: usize| row(i)[narrow_from + 16 * v..].first_chunk().expect(LONG);
        weigh_some_wide::<1, 16>(weights, row, out, shift);
    }
    narrow_from + 16 * narrow.len()
}

#[target_feature(enable = "avx2")]
fn weigh_some_wide<'a, const N: usize, const M: usize>(
    weights: &[i16],
    row: impl Fn(usize) -> &'a [i16; M],
    out: &mut [u8; M],
    shift: u32,
) {
    let load = |i: usize| {
        let row = row(i).as_chunks::<16>().0;
        // SAFETY: the reference is to the 32 bytes that are read; unaligned reads are allowed.
        std::array::from_fn(|n| unsafe { _mm256_loadu_si256(row[n].as_ptr().cast()) })
    };
    let sums = add_pairs::<N>(weights, load, shift);
    for (out, (low, high)) in out.as_chunks_mut::<16>().0.iter_mut().zip(sums) {
        let sums = _mm256_packs_epi32(low, high);
        let bytes = _mm_packus_epi16(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        store16(out, bytes);
    }
}

#[target_feature(enable = "avx2")]
fn ycc_to_rgb(planes: &mut [&mut [u8]; 3]) -> usize {
    let [first, second, third] = planes.each_mut().map(|plane| plane.as_chunks_mut::<16>().0);
    // SAFETY: the reference is to the 16 bytes that are read; unaligned reads are allowed.
    let wide = |bytes: &[u8; 16]| _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) });
    let narrow =
        |values: __m256i| _mm_packus_epi16(_mm256_castsi256_si128(values), _mm256_extracti128_si256::<1>(values));
    let middle = _mm256_set1_epi16(128);
    let half = _mm256_set1_epi32(1 << 15);
    // A product's upper 16 bits of 17, then rounded to 16, is the product rounded at bit 16. Factors above a half
    // are taken apart into a whole number and the rest.
    let share = |doubled: __m256i, factor: i16| {
        let product = _mm256_mulhi_epi16(doubled, _mm256_set1_epi16(factor));
        _mm256_srai_epi16::<1>(_mm256_add_epi16(product, _mm256_set1_epi16(1)))
    };
    for ((y, cb), cr) in first.iter_mut().zip(&mut *second).zip(&mut *third) {
        let (luma, b, r) = (wide(y), _mm256_sub_epi16(wide(cb), middle), _mm256_sub_epi16(wide(cr), middle));
        let (b2, r2) = (_mm256_add_epi16(b, b), _mm256_add_epi16(r, r));
        let red = _mm256_add_epi16(r, share(r2, (91_881i32 - 65_536) as i16));
        let blue = _mm256_add_epi16(b2, share(b2, (116_130i32 - 131_072) as i16));
        let green = |pairs: __m256i| {
            let sum = _mm256_madd_epi16(pairs, factors([-22_554, (65_536i32 - 46_802) as i16]));
            _mm256_srai_epi32::<16>(_mm256_add_epi32(sum, half))
        };
        let green = _mm256_packs_epi32(green(_mm256_unpacklo_epi16(b, r)), green(_mm256_unpackhi_epi16(b, r)));
        store16(y, narrow(_mm256_add_epi16(luma, red)));
        store16(cb, narrow(_mm256_add_epi16(luma, _mm256_sub_epi16(green, r))));
        store16(cr, narrow(_mm256_add_epi16(luma, blue)));
    }
    16 * first.len()
}

/// Sixteen pixels' bytes, color by color, as pixels.
#[target_feature(enable = "avx2")]
fn pixels([r, g, b]: [__m128i; 3]) -> [__m128i; 3] {
    // Pairs of red and green, and blue with nothing, six pixels a shuffle: where each output byte comes from.
    const NONE: i8 = -128;
    const ORDER: [[[i8; 16]; 3]; 3] = {
        let mut order = [[[NONE; 16]; 3]; 3];
        let mut i = 0;
        while i < 48 {
            order[i / 16][i % 3][i % 16] = (i / 3) as i8;
            i += 1;
        }
        order
    };
    let part = |order: &[[i8; 16]; 3]| {
        let [r, g, b] = [
            _mm_shuffle_epi8(r, load_order(&order[0])),
            _mm_shuffle_epi8(g, load_order(&order[1])),
            _mm_shuffle_epi8(b, load_order(&order[2])),
        ];
        _mm_or_si128(_mm_or_si128(r, g), b)
    };
    [part(&ORDER[0]), part(&ORDER[1]), part(&ORDER[2])]
}

#[inline(always)]
fn load_order(order: &[i8; 16]) -> __m128i {
    // SAFETY: the reference is to the 16 bytes that are read; unaligned reads are allowed.
    unsafe { _mm_loadu_si128(order.as_ptr().cast()) }
}

#[inline(always)]
fn store16(bytes: &mut [u8; 16], value: __m128i) {
    // SAFETY: the reference is to the 16 bytes that are written.
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), value) }
}

#[target_feature(enable = "avx2")]
fn interleave(planes: [&[u8]; 3], out: &mut [u8]) -> usize {
    let [red, green, blue] = planes.map(|plane| plane.as_chunks::<16>().0);
    let out = out.as_chunks_mut::<16>().0.as_chunks_mut::<3>().0;
    // SAFETY: the reference is to the 16 bytes that are read; unaligned reads are allowed.
    let load = |bytes: &[u8; 16]| unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    for (((out, r), g), b) in out.iter_mut().zip(red).zip(green).zip(blue) {
        for (out, pixels) in out.iter_mut().zip(pixels([load(r), load(g), load(b)])) {
            store16(out, pixels);
        }
    }
    16 * red.len()
}

#[target_feature(enable = "avx2")]
fn weigh_symmetric<'a>(weights: &[i16], row: impl Fn(usize) -> &'a [i16], out: &mut [i16]) -> usize {
    let (middle, first) = (weights.len() - 1, _mm256_set1_epi16(weights[0]));
    let (wide, _) = out.as_chunks_mut::<32>();
    for (v, out) in wide.iter_mut().enumerate() {
        let load = |i: usize| {
            let row: &[i16; 32] = row(i)[32 * v..].first_chunk().expect(LONG);
            // SAFETY: the reference is to the 64 bytes that are read; unaligned reads are allowed.
            [0, 16].map(|at| unsafe { _mm256_loadu_si256(row[at..].as_ptr().cast()) })
        };
        let mut sums = load(middle).map(|value| _mm256_mulhrs_epi16(value, first));
        for (i, &weight) in weights.iter().enumerate().skip(1) {
            let weight = _mm256_set1_epi16(weight);
            for ((sum, a), b) in sums.iter_mut().zip(load(middle - i)).zip(load(middle + i)) {
                *sum = _mm256_add_epi16(*sum, _mm256_mulhrs_epi16(_mm256_add_epi16(a, b), weight));
            }
        }
        for (out, sum) in out.as_chunks_mut::<16>().0.iter_mut().zip(sums) {
            // SAFETY: the reference is to the 32 bytes that are written.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sum) };
        }
    }
    32 * wide.len()
}

#[target_feature(enable = "avx512f,avx512bw,avx2")]
fn weigh_symmetric512<'a>(weights: &[i16], row: impl Fn(usize) -> &'a [i16], out: &mut [i16]) -> usize {
    let (middle, first) = (weights.len() - 1, _mm512_set1_epi16(weights[0]));
    let (wide, _) = out.as_chunks_mut::<32>();
    for (v, out) in wide.iter_mut().enumerate() {
        let load = |i: usize| {
            let row: &[i16; 32] = row(i)[32 * v..].first_chunk().expect(LONG);
            // SAFETY: the reference is to the 64 bytes that are read; unaligned reads are allowed.
            unsafe { _mm512_loadu_si512(row.as_ptr().cast()) }
        };
        let mut sum = _mm512_mulhrs_epi16(load(middle), first);
        for (i, &weight) in weights.iter().enumerate().skip(1) {
            let pair = _mm512_add_epi16(load(middle - i), load(middle + i));
            sum = _mm512_add_epi16(sum, _mm512_mulhrs_epi16(pair, _mm512_set1_epi16(weight)));
        }
        // SAFETY: the reference is to the 64 bytes that are written.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sum) };
    }
    32 * wide.len()
}

#[target_feature(enable = "avx512f,avx2")]
fn round_to_bytes512(values: &[f32], out: &mut [u8]) -> usize {
    let values = values.as_chunks::<16>().0;
    let half = _mm512_set1_ps(0.5);
    for (out, values) in out.as_chunks_mut::<16>().0.iter_mut().zip(values) {
        // SAFETY: the reference is to the 64 bytes that are read; unaligned reads are allowed.
        let values = unsafe { _mm512_loadu_ps(values.as_ptr()) };
        store16(out, _mm512_cvtusepi32_epi8(_mm512_cvttps_epi32(_mm512_add_ps(values, half))));
    }
    16 * values.len()
}

#[target_feature(enable = "avx2")]
fn round_to_bytes(values: &[f32], out: &mut [u8]) -> usize {
    let values = values.as_chunks::<16>().0;
    let half = _mm256_set1_ps(0.5);
    for (out, values) in out.as_chunks_mut::<16>().0.iter_mut().zip(values) {
        // SAFETY: the reference is to the 64 bytes that are read; unaligned reads are allowed.
        let load = |i: usize| unsafe { _mm256_loadu_ps(values[8 * i..].as_ptr()) };
        let [low, high] = [load(0), load(1)].map(|values| _mm256_cvttps_epi32(_mm256_add_ps(values, half)));
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
        store16(out, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words)));
    }
    16 * values.len()
}

#[target_feature(enable = "avx2")]
fn sums8(values: &[f32]) -> ([f32; 8], usize) {
    let chunks = values.as_chunks::<8>().0;
    let mut sums = _mm256_setzero_ps();
    for chunk in chunks {
        // SAFETY: the reference is to the 32 bytes that are read; unaligned reads are allowed.
        sums = _mm256_add_ps(sums, unsafe { _mm256_loadu_ps(chunk.as_ptr()) });
    }
    let mut out = [0.0; 8];
    // SAFETY: `out` has the 32 bytes that are written.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sums) };
    (out, 8 * chunks.len())
}

#[target_feature(enable = "avx2")]
fn idct(coefficients: &[i16; 64], quantization: &[i16; 64]) -> ([[u8; 8]; 8], bool) {
    let (coefficients, quantization) = (coefficients.as_chunks::<8>().0, quantization.as_chunks::<8>().0);
    let row = |i: usize| _mm_mullo_epi16(load8(&coefficients[i]), load8(&quantization[i]));
    let rows = [row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)];
    let columns = transposed(one_dimension::<11>(rows));
    let low = |v: __m256i| _mm256_castsi256_si128(v);
    let high = |v: __m256i| _mm256_extracti128_si256::<1>(v);
    let columns = [
        low(columns[0]),
        low(columns[1]),
        low(columns[2]),
        low(columns[3]),
        high(columns[0]),
        high(columns[1]),
        high(columns[2]),
        high(columns[3]),
    ];
    samples(transposed(one_dimension::<18>(columns)))
}

/// What the first four of eight values weigh in the transform's even half and odd half, as pairs of the first and third
/// and of the second and fourth; the later ones differ in sign alone.
const CORNER_EVEN: [[i16; 2]; 4] =
    [[SUM[0], EVEN[1][0]], [SUM[0], EVEN[0][0]], [SUM[0], -EVEN[0][0]], [SUM[0], -EVEN[1][0]]];
const CORNER_ODD: [[i16; 2]; 4] = [
    [ODD_SUMS[1][1] + ODD[3][1], ODD_SUMS[1][0]],
    [ODD_SUMS[0][1], ODD_SUMS[0][0] + ODD[2][1]],
    [ODD_SUMS[1][1], ODD_SUMS[1][0] + ODD[1][1]],
    [ODD_SUMS[0][1] + ODD[0][1], ODD_SUMS[0][0]],
];

/// As [`idct`], where only the first four rows and columns may be other than zero.
#[target_feature(enable = "avx2")]
fn idct_corner(coefficients: &[i16; 64], quantization: &[i16; 64]) -> ([[u8; 8]; 8], bool) {
    let (coefficients, quantization) = (coefficients.as_chunks::<8>().0, quantization.as_chunks::<8>().0);
    let row = |i: usize| _mm_mullo_epi16(load8(&coefficients[i]), load8(&quantization[i]));
    // Columns: four side by side.
    let (even, odd) = (_mm_unpacklo_epi16(row(0), row(2)), _mm_unpacklo_epi16(row(1), row(3)));
    let factors4 = |factors: [i16; 2]| _mm_set1_epi32((factors[0] as u16 as i32) | (factors[1] as i32) << 16);
    let half = _mm_set1_epi32(1 << 10);
    let both = |i: usize| {
        let even = _mm_add_epi32(_mm_madd_epi16(even, factors4(CORNER_EVEN[i])), half);
        let odd = _mm_madd_epi16(odd, factors4(CORNER_ODD[i]));
        (_mm_srai_epi32::<11>(_mm_add_epi32(even, odd)), _mm_srai_epi32::<11>(_mm_sub_epi32(even, odd)))
    };
    let ((r0, r7), (r1, r6), (r2, r5), (r3, r4)) = (both(0), both(1), both(2), both(3));
    let order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    let row_pair = |a, b| _mm_shuffle_epi8(_mm_packs_epi32(a, b), order);
    let (r01, r23, r45, r67) = (row_pair(r0, r1), row_pair(r2, r3), row_pair(r4, r5), row_pair(r6, r7));
    let (low0, high0) = (_mm_unpacklo_epi32(r01, r23), _mm_unpackhi_epi32(r01, r23));
    let (low4, high4) = (_mm_unpacklo_epi32(r45, r67), _mm_unpackhi_epi32(r45, r67));
    let (c0, c1) = (_mm_unpacklo_epi64(low0, low4), _mm_unpackhi_epi64(low0, low4));
    let (c2, c3) = (_mm_unpacklo_epi64(high0, high4), _mm_unpackhi_epi64(high0, high4));
    // Rows.
    let (even, odd) = (pairs(c0, c2), pairs(c1, c3));
    let half = _mm256_set1_epi32(1 << 17);
    let both = |i: usize| {
        let even = _mm256_add_epi32(_mm256_madd_epi16(even, factors(CORNER_EVEN[i])), half);
        let odd = _mm256_madd_epi16(odd, factors(CORNER_ODD[i]));
        (_mm256_srai_epi32::<18>(_mm256_add_epi32(even, odd)), _mm256_srai_epi32::<18>(_mm256_sub_epi32(even, odd)))
    };
    let ((x0, x7), (x1, x6), (x2, x5), (x3, x4)) = (both(0), both(1), both(2), both(3));
    samples(transposed([x0, x1, x2, x3, x4, x5, x6, x7]))
}

/// Rows as [`transposed`] gives them, as bytes, and whether all are in range.
#[target_feature(enable = "avx2")]
fn samples(rows: [__m256i; 4]) -> ([[u8; 8]; 8], bool) {
    // Bits 9 and above repeat the sign of what lies in [-512, 512).
    let far = |v: __m256i| _mm256_xor_si256(v, _mm256_srai_epi16::<15>(v));
    let far01 = _mm256_or_si256(far(rows[0]), far(rows[1]));
    let far23 = _mm256_or_si256(far(rows[2]), far(rows[3]));
    let in_range = _mm256_testz_si256(_mm256_or_si256(far01, far23), _mm256_set1_epi16(!511)) == 1;
    // Rows 0, 4, 1, 5, then 2, 6, 3, 7, eight bytes each.
    let middle = _mm256_set1_epi8(-128);
    let a = _mm256_xor_si256(_mm256_packs_epi16(rows[0], rows[1]), middle);
    let b = _mm256_xor_si256(_mm256_packs_epi16(rows[2], rows[3]), middle);
    let samples = [
        _mm256_extract_epi64::<0>(a).to_le_bytes(),
        _mm256_extract_epi64::<1>(a).to_le_bytes(),
        _mm256_extract_epi64::<0>(b).to_le_bytes(),
        _mm256_extract_epi64::<1>(b).to_le_bytes(),
        _mm256_extract_epi64::<2>(a).to_le_bytes(),
        _mm256_extract_epi64::<3>(a).to_le_bytes(),
        _mm256_extract_epi64::<2>(b).to_le_bytes(),
        _mm256_extract_epi64::<3>(b).to_le_bytes(),
    ];
    (samples, in_range)
}
