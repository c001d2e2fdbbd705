//! Arithmetic on sixteen-bit numbers, as many at a time as a vector holds: one set of operations that code is written
//! with once, for plain numbers, AVX2 and AVX-512, with the same results.

/// Some sixteen-bit numbers that are worked on together. Sums and differences wrap around.
pub trait Lanes: Copy {
    /// How many.
    const COUNT: usize;
    /// The same number in all lanes.
    fn splat(x: i16) -> Self;
    /// The first [`Lanes::COUNT`] values.
    fn load(values: &[i16]) -> Self;
    /// Writes to the first [`Lanes::COUNT`] values.
    fn store(self, values: &mut [i16]);
    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self − other`.
    fn sub(self, other: Self) -> Self;
    /// `self − other` of numbers without sign, but not less than 0.
    fn sub_to_zero(self, other: Self) -> Self;
    /// The smaller one.
    fn min(self, other: Self) -> Self;
    /// The larger one.
    fn max(self, other: Self) -> Self;
    /// Bits that both have.
    fn and(self, other: Self) -> Self;
    /// Bits that either has.
    fn or(self, other: Self) -> Self;
    /// `self / 2^N`, rounded down.
    fn shift_right<const N: i32>(self) -> Self;
    /// `self × other / 2^15`, rounded half up.
    fn mul_high_rounded(self, other: Self) -> Self;
    /// `self × other / 2^16` of numbers without sign, rounded down.
    fn mul_high_unsigned(self, other: Self) -> Self;
    /// `yes` where `a = b`, else `no`.
    fn if_equal(a: Self, b: Self, yes: Self, no: Self) -> Self;
    /// `yes` where `a > b`, else `no`.
    fn if_greater(a: Self, b: Self, yes: Self, no: Self) -> Self;
    /// `yes` where `a ≥ b` as numbers without sign, else `no`.
    fn if_at_least_unsigned(a: Self, b: Self, yes: Self, no: Self) -> Self;
    /// `self / divisor` with 14 bits behind the point, rounded to the nearest in f32, but at most `limit`; `limit` where
    /// the divisor is 0.
    fn over(self, divisor: Self, limit: Self) -> Self;
}

/// The most lanes that there are.
pub const MAX_LANES: usize = 32;

/// Something to be done with lanes of any kind.
pub trait LanesJob {
    /// Does it. Must be `#[inline(always)]`, and so what it calls, to be compiled for the vectors.
    fn run<L: Lanes>(self);
}

/// Does a job with the widest lanes that this machine has.
#[inline(always)]
pub fn on_widest_lanes(job: impl LanesJob) {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx512) = super::x86::Avx512::detect() {
        return avx512.run(
            #[inline(always)]
            || job.run::<x86::Lanes32>(),
        );
    } else if let Some(avx2) = super::Avx2::detect() {
        return avx2.run(
            #[inline(always)]
            || job.run::<x86::Lanes16>(),
        );
    }
    job.run::<i16>();
}

impl Lanes for i16 {
    const COUNT: usize = 1;

    #[inline(always)]
    fn splat(x: i16) -> Self {
        x
    }

    #[inline(always)]
    fn load(values: &[i16]) -> Self {
        values[0]
    }

    #[inline(always)]
    fn store(self, values: &mut [i16]) {
        values[0] = self;
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.wrapping_add(other)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.wrapping_sub(other)
    }

    #[inline(always)]
    fn sub_to_zero(self, other: Self) -> Self {
        (self as u16).saturating_sub(other as u16) as i16
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Ord::min(self, other)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Ord::max(self, other)
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        self & other
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        self | other
    }

    #[inline(always)]
    fn shift_right<const N: i32>(self) -> Self {
        self >> N
    }

    #[inline(always)]
    fn mul_high_rounded(self, other: Self) -> Self {
        ((i32::from(self) * i32::from(other) + (1 << 14)) >> 15) as i16
    }

    #[inline(always)]
    fn mul_high_unsigned(self, other: Self) -> Self {
        ((u32::from(self as u16) * u32::from(other as u16)) >> 16) as i16
    }

    #[inline(always)]
    fn if_equal(a: Self, b: Self, yes: Self, no: Self) -> Self {
        if a == b { yes } else { no }
    }

    #[inline(always)]
    fn if_greater(a: Self, b: Self, yes: Self, no: Self) -> Self {
        if a > b { yes } else { no }
    }

    #[inline(always)]
    fn if_at_least_unsigned(a: Self, b: Self, yes: Self, no: Self) -> Self {
        if a as u16 >= b as u16 { yes } else { no }
    }

    #[inline(always)]
    fn over(self, divisor: Self, limit: Self) -> Self {
        let share = f32::from(self) * 16_384.0 / f32::from(divisor);
        let limit = f32::from(limit);
        // What is no number, 0 / 0, is the limit too.
        let share = if share < limit { share } else { limit };
        share.round_ties_even() as i16
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Lanes in vectors. SAFETY, of all of this file's `unsafe` blocks: these types are made by [`on_widest_lanes`]
    //! only, where their instructions were detected, and by operations on them; loads and stores are of arrays as long
    //! as the vector, unaligned.
    //!
    //! [`on_widest_lanes`]: super::on_widest_lanes

    use std::arch::x86_64::*;

    use super::Lanes;

    /// Sixteen, by AVX2.
    #[derive(Clone, Copy)]
    pub struct Lanes16(__m256i);

    /// Thirty-two, by AVX-512.
    #[derive(Clone, Copy)]
    pub struct Lanes32(__m512i);

    /// Operations that are one instruction each.
    macro_rules! instructions {
        ($wrapper:ident, $($name:ident $instruction:ident),*) => {
            $(#[inline(always)]
            fn $name(self, other: Self) -> Self {
                // SAFETY: see the head of this module.
                $wrapper(unsafe { $instruction(self.0, other.0) })
            })*
        };
    }

    impl Lanes for Lanes16 {
        const COUNT: usize = 16;

        instructions!(
            Lanes16, add _mm256_add_epi16, sub _mm256_sub_epi16, sub_to_zero _mm256_subs_epu16, min _mm256_min_epi16,
            max _mm256_max_epi16, and _mm256_and_si256, or _mm256_or_si256, mul_high_rounded _mm256_mulhrs_epi16,
            mul_high_unsigned _mm256_mulhi_epu16
        );

        #[inline(always)]
        fn splat(x: i16) -> Self {
            // SAFETY: see the head of this module.
            Self(unsafe { _mm256_set1_epi16(x) })
        }

        #[inline(always)]
        fn load(values: &[i16]) -> Self {
            let values: &[i16; 16] = values.first_chunk().expect("sixteen values");
            // SAFETY: see the head of this module.
            Self(unsafe { _mm256_loadu_si256(values.as_ptr().cast()) })
        }

        #[inline(always)]
        fn store(self, values: &mut [i16]) {
            let values: &mut [i16; 16] = values.first_chunk_mut().expect("sixteen values");
            // SAFETY: see the head of this module.
            unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), self.0) }
        }

        #[inline(always)]
        fn shift_right<const N: i32>(self) -> Self {
            // SAFETY: see the head of this module.
            Self(unsafe { _mm256_srai_epi16::<N>(self.0) })
        }

        #[inline(always)]
        fn if_equal(a: Self, b: Self, yes: Self, no: Self) -> Self {
            // SAFETY: see the head of this module.
            Self(unsafe { _mm256_blendv_epi8(no.0, yes.0, _mm256_cmpeq_epi16(a.0, b.0)) })
        }

        #[inline(always)]
        fn if_greater(a: Self, b: Self, yes: Self, no: Self) -> Self {
            // SAFETY: see the head of this module.
            Self(unsafe { _mm256_blendv_epi8(no.0, yes.0, _mm256_cmpgt_epi16(a.0, b.0)) })
        }

        #[inline(always)]
        fn if_at_least_unsigned(a: Self, b: Self, yes: Self, no: Self) -> Self {
            // SAFETY: see the head of this module.
            let at_least = unsafe { _mm256_cmpeq_epi16(_mm256_max_epu16(a.0, b.0), a.0) };
            // SAFETY: see the head of this module.
            Self(unsafe { _mm256_blendv_epi8(no.0, yes.0, at_least) })
        }

        #[inline(always)]
        fn over(self, divisor: Self, limit: Self) -> Self {
            // SAFETY: see the head of this module.
            unsafe {
                let [x, divisor, limit] = [self.0, divisor.0, limit.0];
                let first =
                    over8(_mm256_castsi256_si128(x), _mm256_castsi256_si128(divisor), _mm256_castsi256_si128(limit));
                let second = over8(
                    _mm256_extracti128_si256::<1>(x),
                    _mm256_extracti128_si256::<1>(divisor),
                    _mm256_extracti128_si256::<1>(limit),
                );
                Self(_mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(first, second)))
            }
        }
    }

    /// Half of [`Lanes::over`].
    ///
    /// # Safety
    /// AVX2 must be there.
    #[inline(always)]
    unsafe fn over8(x: __m128i, divisor: __m128i, limit: __m128i) -> __m256i {
        // SAFETY: see the head of this module.
        unsafe {
            let x = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(x)), _mm256_set1_ps(16_384.0));
            let share = _mm256_div_ps(x, _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(divisor)));
            // What is no number gives the second operand, the limit.
            let share = _mm256_min_ps(share, _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(limit)));
            _mm256_cvtps_epi32(share)
        }
    }

    impl Lanes for Lanes32 {
        const COUNT: usize = 32;

        instructions!(
            Lanes32, add _mm512_add_epi16, sub _mm512_sub_epi16, sub_to_zero _mm512_subs_epu16, min _mm512_min_epi16,
            max _mm512_max_epi16, and _mm512_and_si512, or _mm512_or_si512, mul_high_rounded _mm512_mulhrs_epi16,
            mul_high_unsigned _mm512_mulhi_epu16
        );

        #[inline(always)]
        fn splat(x: i16) -> Self {
            // SAFETY: see the head of this module.
            Self(unsafe { _mm512_set1_epi16(x) })
        }

        #[inline(always)]
        fn load(values: &[i16]) -> Self {
            let values: &[i16; 32] = values.first_chunk().expect("thirty-two values");
            // SAFETY: see the head of this module.
            Self(unsafe { _mm512_loadu_si512(values.as_ptr().cast()) })
        }

        #[inline(always)]
        fn store(self, values: &mut [i16]) {
            let values: &mut [i16; 32] = values.first_chunk_mut().expect("thirty-two values");
            // SAFETY: see the head of this module.
            unsafe { _mm512_storeu_si512(values.as_mut_ptr().cast(), self.0) }
        }

        #[inline(always)]
        fn shift_right<const N: i32>(self) -> Self {
            // SAFETY: see the head of this module.
            Self(unsafe { _mm512_sra_epi16(self.0, _mm_cvtsi32_si128(N)) })
        }

        #[inline(always)]
        fn if_equal(a: Self, b: Self, yes: Self, no: Self) -> Self {
            // SAFETY: see the head of this module.
            Self(unsafe { _mm512_mask_blend_epi16(_mm512_cmpeq_epi16_mask(a.0, b.0), no.0, yes.0) })
        }

        #[inline(always)]
        fn if_greater(a: Self, b: Self, yes: Self, no: Self) -> Self {
            // SAFETY: see the head of this module.
            Self(unsafe { _mm512_mask_blend_epi16(_mm512_cmpgt_epi16_mask(a.0, b.0), no.0, yes.0) })
        }

        #[inline(always)]
        fn if_at_least_unsigned(a: Self, b: Self, yes: Self, no: Self) -> Self {
            // SAFETY: see the head of this module.
            Self(unsafe { _mm512_mask_blend_epi16(_mm512_cmpge_epu16_mask(a.0, b.0), no.0, yes.0) })
        }

        #[inline(always)]
        fn over(self, divisor: Self, limit: Self) -> Self {
            // SAFETY: see the head of this module.
            unsafe {
                let [x, divisor, limit] = [self.0, divisor.0, limit.0];
                let first =
                    over16(_mm512_castsi512_si256(x), _mm512_castsi512_si256(divisor), _mm512_castsi512_si256(limit));
                let second = over16(
                    _mm512_extracti64x4_epi64::<1>(x),
                    _mm512_extracti64x4_epi64::<1>(divisor),
                    _mm512_extracti64x4_epi64::<1>(limit),
                );
                Self(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second))
            }
        }
    }

    /// Half of [`Lanes::over`].
    ///
    /// # Safety
    /// AVX-512 must be there.
    #[inline(always)]
    unsafe fn over16(x: __m256i, divisor: __m256i, limit: __m256i) -> __m256i {
        // SAFETY: see the head of this module.
        unsafe {
            let x = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(x)), _mm512_set1_ps(16_384.0));
            let share = _mm512_div_ps(x, _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(divisor)));
            // What is no number gives the second operand, the limit.
            let share = _mm512_min_ps(share, _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(limit)));
            _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(share))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simclr_ground::rng::{Draws, Purpose};

    /// Every operation of random numbers, written to `out` one after the other.
    struct All<'a> {
        a: &'a [i16],
        b: &'a [i16],
        c: &'a [i16],
        out: &'a mut Vec<Vec<i16>>,
    }

    impl LanesJob for All<'_> {
        #[inline(always)]
        fn run<L: Lanes>(self) {
            let Self { a, b, c, out } = self;
            let mut record = |f: &dyn Fn(L, L, L) -> L| {
                let mut all = vec![0; a.len()];
                for from in (0..a.len()).step_by(L::COUNT) {
                    let value = f(L::load(&a[from..]), L::load(&b[from..]), L::load(&c[from..]));
                    value.store(&mut all[from..]);
                }
                out.push(all);
            };
            record(&|a, b, _| a.add(b));
            record(&|a, b, _| a.sub(b));
            record(&|a, b, _| a.sub_to_zero(b));
            record(&|a, b, _| a.min(b));
            record(&|a, b, _| a.max(b));
            record(&|a, b, _| a.and(b));
            record(&|a, b, _| a.or(b));
            record(&|a, _, _| a.shift_right::<2>());
            record(&|a, b, _| a.mul_high_rounded(b));
            record(&|a, b, _| a.mul_high_unsigned(b));
            record(&|a, b, c| L::if_equal(a, b, c, L::splat(7)));
            record(&|a, b, c| L::if_greater(a, b, c, a));
            record(&|a, b, c| L::if_at_least_unsigned(a, b, c, b));
            record(&|a, b, c| {
                let positive = |x: L| x.and(L::splat(i16::MAX));
                positive(a).over(positive(b), positive(c))
            });
        }
    }

    #[test]
    fn vectors_compute_as_plain_numbers_do() {
        let mut draws = Draws::new(1, Purpose::Image, &[41]);
        let mut numbers = || -> Vec<i16> {
            let special = [0, 1, -1, i16::MAX, i16::MIN + 1, 16_384, 8160];
            let mut one =
                |_| if draws.below(4) == 0 { special[draws.below(7) as usize] } else { draws.below(65_536) as i16 };
            (0..32 * 500).map(&mut one).collect()
        };
        let (a, b, c) = (numbers(), numbers(), numbers());
        let (mut plain, mut widest) = (Vec::new(), Vec::new());
        All { a: &a, b: &b, c: &c, out: &mut plain }.run::<i16>();
        on_widest_lanes(All { a: &a, b: &b, c: &c, out: &mut widest });
        assert_eq!(plain, widest);
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = super::super::Avx2::detect() {
            let mut narrower = Vec::new();
            avx2.run(|| All { a: &a, b: &b, c: &c, out: &mut narrower }.run::<x86::Lanes16>());
            assert_eq!(plain, narrower);
        }
    }
}
