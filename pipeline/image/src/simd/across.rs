//! Weighted sums along a row, each of a few neighbors: what makes a row longer or shorter without turning it.
//!
//! Sixteen sums are made together, of values that a permutation picks out of the sixty-four behind the first one that
//! any of them needs. Machines without such permutations turn rows into columns instead, with the same result.

/// Values of a row that a group of sums may reach over.
const WINDOW: usize = 64;

/// Sums that are made together.
const GROUP: usize = 16;

/// Which values of a row are summed, and their weights.
#[derive(Default)]
pub struct Across {
    /// The first value that each group reaches.
    windows: Vec<usize>,
    /// Pairs of neighbors in each sum.
    pairs: usize,
    /// For each group and pair: the places in the window of the pair's values, for one sum after the other.
    places: Vec<[i16; 2 * GROUP]>,
    /// And their weights.
    weights: Vec<[i16; 2 * GROUP]>,
}

/// Values that must be there behind the last one that is summed.
pub const ACROSS_MARGIN: usize = WINDOW;

impl Across {
    /// Takes in sums of `(first value, weights of it and those behind it)`. Says whether this machine makes them so: not
    /// if its vectors do not, or a group of sums reaches too far.
    pub fn set<'a>(&mut self, sums: impl ExactSizeIterator<Item = (usize, &'a [i16])> + Clone) -> bool {
        self.windows.clear();
        self.places.clear();
        self.weights.clear();
        if !available() {
            return false;
        }
        self.pairs = sums.clone().map(|(_, weights)| weights.len().div_ceil(2)).max().unwrap_or(0);
        let mut group = [(0, &[][..]); GROUP];
        let mut rest = sums;
        while rest.len() > 0 {
            let n = rest.len().min(GROUP);
            group[..n].iter_mut().zip(&mut rest).for_each(|(place, sum)| *place = sum);
            let window = group[..n].iter().map(|(first, _)| *first).min().expect("a group is not empty");
            if group[..n].iter().any(|(first, _)| first - window + 2 * self.pairs > WINDOW) {
                return false;
            }
            self.windows.push(window);
            for pair in 0..self.pairs {
                let (mut places, mut factors) = ([0; 2 * GROUP], [0; 2 * GROUP]);
                for (i, (first, weights)) in group[..n].iter().enumerate() {
                    for k in 0..2 {
                        places[2 * i + k] = (first - window + 2 * pair + k) as i16;
                        factors[2 * i + k] = weights.get(2 * pair + k).copied().unwrap_or(0);
                    }
                }
                self.places.push(places);
                self.weights.push(factors);
            }
        }
        true
    }

    /// Makes the sums of `row`, descaled by `shift` bits, rounded half up and cut to bytes.
    ///
    /// # Panics
    /// If there are not [`ACROSS_MARGIN`] values behind the last one that is summed.
    #[inline(always)]
    pub fn sum(&self, row: &[i16], out: &mut [u8], shift: u32) {
        #[cfg(target_arch = "x86_64")]
        if super::x86::Avx512::detect().is_some() {
            // SAFETY: an `Avx512` exists only where the instructions were detected.
            return unsafe {
                match self.pairs {
                    1 => x86::sum::<1>(self, row, out, shift),
                    2 => x86::sum::<2>(self, row, out, shift),
                    3 => x86::sum::<3>(self, row, out, shift),
                    _ => x86::sum::<0>(self, row, out, shift),
                }
            };
        }
        unreachable!("`set` has said that this machine does not");
    }
}

fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return super::x86::Avx512::detect().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Across, GROUP, WINDOW};

    /// With `PAIRS` pairs, or as many as there are if it is 0.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    pub fn sum<const PAIRS: usize>(across: &Across, row: &[i16], out: &mut [u8], shift: u32) {
        let pairs = if PAIRS > 0 { PAIRS } else { across.pairs };
        let load = |values: &[i16; 32]| {
            // SAFETY: the reference is to the 64 bytes that are read; unaligned reads are allowed.
            unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
        };
        let half = _mm512_set1_epi32(1 << (shift - 1));
        let shift = _mm_cvtsi32_si128(shift as i32);
        let groups = across.places.chunks_exact(pairs).zip(across.weights.chunks_exact(pairs));
        let mut tail = [0; GROUP];
        let whole = out.len() / GROUP;
        let (chunks, rest) = out.as_chunks_mut::<GROUP>();
        for (i, (&window, (places, weights))) in across.windows.iter().zip(groups).enumerate() {
            let window: &[i16; WINDOW] = row[window..].first_chunk().expect("a margin behind the row");
            let (low, high) = (load(window.first_chunk().expect("half")), load(window.last_chunk().expect("half")));
            let mut sum = half;
            for (places, weights) in places.iter().zip(weights) {
                let values = _mm512_permutex2var_epi16(low, load(places), high);
                sum = _mm512_add_epi32(sum, _mm512_madd_epi16(values, load(weights)));
            }
            let sum = _mm512_max_epi32(_mm512_sra_epi32(sum, shift), _mm512_setzero_si512());
            let bytes = if i < whole { &mut chunks[i] } else { &mut tail };
            // SAFETY: the reference is to the 16 bytes that are written.
            unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtusepi32_epi8(sum)) };
        }
        rest.copy_from_slice(&tail[..rest.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simclr_ground::rng::{Draws, Purpose};

    #[test]
    fn sums_are_those_of_plain_code() {
        let mut draws = Draws::new(1, Purpose::Image, &[21]);
        for taps in 1..12usize {
            for (n, step) in [(224, 1.7), (7, 0.3), (33, 1.0), (16, 2.5)] {
                let length = (n as f64 * step) as usize + taps + 1;
                let row: Vec<i16> = (0..length + ACROSS_MARGIN).map(|_| draws.below(16_384) as i16 - 100).collect();
                let spans: Vec<(usize, Vec<i16>)> = (0..n)
                    .map(|x| {
                        let weights = (0..taps).map(|_| draws.below(6000) as i16 - 1500).collect();
                        ((x as f64 * step) as usize, weights)
                    })
                    .collect();
                let mut across = Across::default();
                if !across.set(spans.iter().map(|(first, weights)| (*first, weights.as_slice()))) {
                    let far = (step * 15.0) as usize + 2 * taps.div_ceil(2) + 1 > WINDOW;
                    assert!(far || !available(), "{taps} taps, {n} sums {step} apart");
                    continue;
                }
                let mut out = vec![0; n];
                across.sum(&row, &mut out, 20);
                for (x, (first, weights)) in spans.iter().enumerate() {
                    let products = weights.iter().zip(&row[*first..]).map(|(&w, &v)| i32::from(w) * i32::from(v));
                    let wanted = ((products.sum::<i32>() + (1 << 19)) >> 20).clamp(0, 255) as u8;
                    assert_eq!(out[x], wanted, "{taps} taps, sum {x} of {n}");
                }
            }
        }
    }
}
