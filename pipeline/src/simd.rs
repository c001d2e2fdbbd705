//! The machine's vector instructions: the only place that names them, and with `batch.rs` and the bindings to libjpeg
//! the only `unsafe` code. Everything here has a plain twin elsewhere that gives the same bytes.
#![allow(unsafe_code)]

/// Runs `f` compiled for the widest vectors that this machine has; what it computes does not change, since nothing
/// here contracts or reorders arithmetic. `f` and what it calls must be inlined to gain by it.
#[inline(always)]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = Avx2::detect() {
        return avx2.run(f);
    }
    f()
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

/// Weighted sums of rows, each product rounded and added in the order of the weights.
#[inline(always)]
pub fn weigh_floats<'a>(weights: &[f32], row: impl Fn(usize) -> &'a [f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    let from = Avx2::detect().map_or(0, |avx2| avx2.weigh_floats(weights, &row, out));
    #[cfg(not(target_arch = "x86_64"))]
    let from = 0;
    for (x, out) in out.iter_mut().enumerate().skip(from) {
        *out = weights.iter().enumerate().fold(0.0, |sum, (i, &weight)| sum + weight * row(i)[x]);
    }
}

/// Rows for columns.
#[inline(always)]
pub fn transpose8(rows: [[i16; 8]; 8]) -> [[i16; 8]; 8] {
    #[cfg(target_arch = "x86_64")]
    return x86::transpose8(rows);
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|x| std::array::from_fn(|y| rows[y][x]))
}

/// Rows for columns.
#[inline(always)]
pub fn transpose8_bytes(rows: [[u8; 8]; 8]) -> [[u8; 8]; 8] {
    #[cfg(target_arch = "x86_64")]
    return x86::transpose8_bytes(rows);
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|x| std::array::from_fn(|y| rows[y][x]))
}

#[cfg(target_arch = "x86_64")]
pub use x86::Avx2;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use crate::decode::jpeg::idct::{DIFFERENCE, EVEN, ODD, ODD_SUMS, SUM};

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
        pub fn idct(self, coefficients: &[i16; 64], quantization: &[i16; 64]) -> [[u8; 8]; 8] {
            // SAFETY: as above.
            unsafe { idct(coefficients, quantization) }
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

        /// Does as many values of [`super::weigh_floats`] as fill whole vectors; how many.
        #[inline(always)]
        pub fn weigh_floats<'a>(self, weights: &[f32], row: impl Fn(usize) -> &'a [f32], out: &mut [f32]) -> usize {
            // SAFETY: as above.
            unsafe { weigh_floats(weights, row, out) }
        }
    }

    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    fn run<R>(f: impl FnOnce() -> R) -> R {
        f()
    }

    /// Every x86-64 has these instructions.
    #[inline(always)]
    pub fn transpose8(rows: [[i16; 8]; 8]) -> [[i16; 8]; 8] {
        // SAFETY: SSE2 is part of x86-64, and the types are plain bytes of the same sizes.
        unsafe {
            let [r0, r1, r2, r3, r4, r5, r6, r7] = rows.map(|row| load8(&row));
            let (a0, a1) = (_mm_unpacklo_epi16(r0, r1), _mm_unpackhi_epi16(r0, r1));
            let (b0, b1) = (_mm_unpacklo_epi16(r2, r3), _mm_unpackhi_epi16(r2, r3));
            let (c0, c1) = (_mm_unpacklo_epi16(r4, r5), _mm_unpackhi_epi16(r4, r5));
            let (d0, d1) = (_mm_unpacklo_epi16(r6, r7), _mm_unpackhi_epi16(r6, r7));
            let (e0, e1) = (_mm_unpacklo_epi32(a0, b0), _mm_unpackhi_epi32(a0, b0));
            let (e2, e3) = (_mm_unpacklo_epi32(a1, b1), _mm_unpackhi_epi32(a1, b1));
            let (f0, f1) = (_mm_unpacklo_epi32(c0, d0), _mm_unpackhi_epi32(c0, d0));
            let (f2, f3) = (_mm_unpacklo_epi32(c1, d1), _mm_unpackhi_epi32(c1, d1));
            std::mem::transmute([
                _mm_unpacklo_epi64(e0, f0),
                _mm_unpackhi_epi64(e0, f0),
                _mm_unpacklo_epi64(e1, f1),
                _mm_unpackhi_epi64(e1, f1),
                _mm_unpacklo_epi64(e2, f2),
                _mm_unpackhi_epi64(e2, f2),
                _mm_unpacklo_epi64(e3, f3),
                _mm_unpackhi_epi64(e3, f3),
            ])
        }
    }

    /// Every x86-64 has these instructions.
    #[inline(always)]
    pub fn transpose8_bytes(rows: [[u8; 8]; 8]) -> [[u8; 8]; 8] {
        // SAFETY: as above.
        unsafe {
            let [r0, r1, r2, r3, r4, r5, r6, r7] = rows.map(|row| _mm_cvtsi64_si128(i64::from_le_bytes(row)));
            let (a, b) = (_mm_unpacklo_epi8(r0, r1), _mm_unpacklo_epi8(r2, r3));
            let (c, d) = (_mm_unpacklo_epi8(r4, r5), _mm_unpacklo_epi8(r6, r7));
            let (e0, e1) = (_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b));
            let (f0, f1) = (_mm_unpacklo_epi16(c, d), _mm_unpackhi_epi16(c, d));
            std::mem::transmute([
                _mm_unpacklo_epi32(e0, f0),
                _mm_unpackhi_epi32(e0, f0),
                _mm_unpacklo_epi32(e1, f1),
                _mm_unpackhi_epi32(e1, f1),
            ])
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
        let even =
            [_mm256_add_epi32(t0, t3), _mm256_add_epi32(t1, t2), _mm256_sub_epi32(t1, t2), _mm256_sub_epi32(t0, t3)];
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

    /// Sums of two rows' products, sixteen values side by side, then two more rows', and so on.
    #[target_feature(enable = "avx2")]
    fn add_pairs(weights: &[i16], load: impl Fn(usize) -> __m256i, shift: u32) -> (__m256i, __m256i) {
        let half = _mm256_set1_epi32(1 << (shift - 1));
        let (mut low, mut high) = (half, half);
        for i in (0..weights.len()).step_by(2) {
            let (a, b, second) = match weights.get(i + 1) {
                Some(&second) => (load(i), load(i + 1), second),
                None => (load(i), _mm256_setzero_si256(), 0),
            };
            let factors = factors([weights[i], second]);
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), factors));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), factors));
        }
        let shift = _mm_cvtsi32_si128(shift as i32);
        (_mm256_sra_epi32(low, shift), _mm256_sra_epi32(high, shift))
    }

    #[target_feature(enable = "avx2")]
    fn weigh_bytes<'a>(weights: &[i16], row: impl Fn(usize) -> &'a [u8], out: &mut [i16], shift: u32) -> usize {
        let (vectors, _) = out.as_chunks_mut::<16>();
        for (v, out) in vectors.iter_mut().enumerate() {
            let load = |i: usize| {
                let bytes: &[u8; 16] = row(i)[16 * v..].first_chunk().expect("rows are as long as the sums");
                // SAFETY: the reference is to the 16 bytes that are read; unaligned reads are allowed.
                _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
            };
            let (low, high) = add_pairs(weights, load, shift);
            // SAFETY: the reference is to the 32 bytes that are written.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_packs_epi32(low, high)) };
        }
        16 * vectors.len()
    }

    #[target_feature(enable = "avx2")]
    fn weigh_wide<'a>(weights: &[i16], row: impl Fn(usize) -> &'a [i16], out: &mut [u8], shift: u32) -> usize {
        let (vectors, _) = out.as_chunks_mut::<16>();
        for (v, out) in vectors.iter_mut().enumerate() {
            let load = |i: usize| {
                let values: &[i16; 16] = row(i)[16 * v..].first_chunk().expect("rows are as long as the sums");
                // SAFETY: the reference is to the 32 bytes that are read; unaligned reads are allowed.
                unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
            };
            let (low, high) = add_pairs(weights, load, shift);
            let sums = _mm256_packs_epi32(low, high);
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            // SAFETY: the reference is to the 16 bytes that are written.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), bytes) };
        }
        16 * vectors.len()
    }

    #[target_feature(enable = "avx2")]
    fn weigh_floats<'a>(weights: &[f32], row: impl Fn(usize) -> &'a [f32], out: &mut [f32]) -> usize {
        let (vectors, _) = out.as_chunks_mut::<32>();
        for (v, out) in vectors.iter_mut().enumerate() {
            let mut sums = [_mm256_setzero_ps(); 4];
            for (i, &weight) in weights.iter().enumerate() {
                let values: &[f32; 32] = row(i)[32 * v..].first_chunk().expect("rows are as long as the sums");
                let weight = _mm256_set1_ps(weight);
                for (sum, values) in sums.iter_mut().zip(values.as_chunks::<8>().0) {
                    // SAFETY: the reference is to the 32 bytes that are read; unaligned reads are allowed.
                    let values = unsafe { _mm256_loadu_ps(values.as_ptr()) };
                    *sum = _mm256_add_ps(*sum, _mm256_mul_ps(weight, values));
                }
            }
            for (out, sum) in out.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
                // SAFETY: the reference is to the 32 bytes that are written.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
            }
        }
        32 * vectors.len()
    }

    #[target_feature(enable = "avx2")]
    fn idct(coefficients: &[i16; 64], quantization: &[i16; 64]) -> [[u8; 8]; 8] {
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
        let rows = transposed(one_dimension::<18>(columns));
        // Rows 0, 4, 1, 5, then 2, 6, 3, 7, eight bytes each.
        let middle = _mm256_set1_epi8(-128);
        let a = _mm256_xor_si256(_mm256_packs_epi16(rows[0], rows[1]), middle);
        let b = _mm256_xor_si256(_mm256_packs_epi16(rows[2], rows[3]), middle);
        [
            _mm256_extract_epi64::<0>(a).to_le_bytes(),
            _mm256_extract_epi64::<1>(a).to_le_bytes(),
            _mm256_extract_epi64::<0>(b).to_le_bytes(),
            _mm256_extract_epi64::<1>(b).to_le_bytes(),
            _mm256_extract_epi64::<2>(a).to_le_bytes(),
            _mm256_extract_epi64::<3>(a).to_le_bytes(),
            _mm256_extract_epi64::<2>(b).to_le_bytes(),
            _mm256_extract_epi64::<3>(b).to_le_bytes(),
        ]
    }
}
