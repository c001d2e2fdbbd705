//! Counter-based randomness: every draw is a pure function of what it is for.
//!
//! A generator is keyed by hashing (seed, purpose, epoch, sample, view), so a result depends on neither worker
//! count nor arrival order. Seeds are hashed, never added: seed 1 in epoch 2 has nothing to do with seed 2 in
//! epoch 1. Nothing here reads a clock or the operating system.

/// What randomness is drawn for. Each purpose is a stream of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The order of shards in an epoch.
    ShardOrder,
    /// The order in which parts of a class are taken.
    Subset,
    /// The order of samples in a shuffle block.
    SampleOrder,
    /// The parameters of a sample's augmentations.
    Augment,
    /// The order in which `pack` writes samples.
    PackOrder,
    /// A drawn image.
    Image,
    /// The initial weights of a network.
    Weights,
    /// A training procedure of an evaluation (its batch order, its validation split).
    Evaluation,
}

impl Purpose {
    /// The purpose's name in the hashed key; part of the stream format.
    fn name(self) -> &'static [u8] {
        match self {
            Purpose::ShardOrder => b"shard order",
            Purpose::Subset => b"subset",
            Purpose::SampleOrder => b"sample order",
            Purpose::Augment => b"augment",
            Purpose::PackOrder => b"pack order",
            Purpose::Image => b"picture",
            Purpose::Weights => b"weights",
            Purpose::Evaluation => b"evaluation",
        }
    }
}

/// A stream of random numbers: the extendable output of BLAKE3 over its key.
pub struct Draws {
    output: blake3::OutputReader,
    block: [u8; 64],
    used: usize,
}

impl Draws {
    /// The stream for `purpose` and what it is drawn for, such as `[epoch, sample, view]`.
    pub fn new(seed: u64, purpose: Purpose, key: &[u64]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(&(purpose.name().len() as u64).to_le_bytes());
        hasher.update(purpose.name());
        for part in key {
            hasher.update(&part.to_le_bytes());
        }
        Self { output: hasher.finalize_xof(), block: [0; 64], used: 64 }
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        if self.used == self.block.len() {
            self.output.fill(&mut self.block);
            self.used = 0;
        }
        let bytes = self.block[self.used..self.used + 8].try_into().expect("eight bytes");
        self.used += 8;
        u64::from_le_bytes(bytes)
    }

    /// Uniform in [0, 1), 53 bits fine.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high).
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in 0..n, by multiply and shift (bias below n / 2^64).
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "a number below zero was asked for");
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Standard normal (Box–Muller; the second value is not kept).
    pub fn normal(&mut self) -> f64 {
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.unit()));
        radius * libm::cos(std::f64::consts::TAU * self.unit())
    }

    /// Reorders `items` uniformly (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// A random permutation of 0..n that is computed, not stored: any position in constant time and memory.
///
/// A six-round Feistel network over the smallest even number of bits that holds n; values that fall outside are
/// sent through again (cycle walking, fewer than four times on average).
#[derive(Debug, Clone)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    keys: [u64; 6],
}

impl Permutation {
    /// The permutation of 0..n keyed by `draws`.
    pub fn new(draws: &mut Draws, n: u64) -> Self {
        let bits = 64 - n.saturating_sub(1).leading_zeros();
        Self { n, half_bits: bits.div_ceil(2).max(1), keys: std::array::from_fn(|_| draws.bits()) }
    }

    /// Where position `i` goes; `i` must be below n.
    pub fn apply(&self, i: u64) -> u64 {
        assert!(i < self.n, "position {i} of a permutation of {}", self.n);
        let mut value = i;
        loop {
            value = self.round_trip(value);
            if value < self.n {
                return value;
            }
        }
    }

    fn round_trip(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        (left << self.half_bits) | right
    }
}

/// A bijection of 64 bits whose output bits each depend on all input bits (the finaliser of MurmurHash3).
fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_every_part_of_their_key() {
        let first = |seed, purpose, key: &[u64]| Draws::new(seed, purpose, key).bits();
        let base = first(1, Purpose::Augment, &[2, 3, 0]);
        assert_eq!(base, first(1, Purpose::Augment, &[2, 3, 0]));
        assert_ne!(base, first(2, Purpose::Augment, &[1, 3, 0]), "seeds must not add to epochs");
        assert_ne!(base, first(1, Purpose::SampleOrder, &[2, 3, 0]));
        assert_ne!(base, first(1, Purpose::Augment, &[2, 3, 1]));
        assert_ne!(base, first(1, Purpose::Augment, &[2, 3]));
    }

    #[test]
    fn unit_is_uniform() {
        let mut draws = Draws::new(7, Purpose::Image, &[]);
        let values: Vec<f64> = (0..20_000).map(|_| draws.unit()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        assert!((mean - 0.5).abs() < 0.01, "mean {mean}");
        assert!(values.iter().all(|v| (0.0..1.0).contains(v)));
    }

    #[test]
    fn permutation_hits_every_value_once() {
        for n in [1, 2, 3, 7, 64, 65, 1000, 4097] {
            let permutation = Permutation::new(&mut Draws::new(n, Purpose::SampleOrder, &[]), n);
            let mut seen: Vec<u64> = (0..n).map(|i| permutation.apply(i)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..n).collect::<Vec<_>>(), "n = {n}");
        }
    }

    #[test]
    fn permutation_moves_like_a_full_shuffle() {
        // The expected distance between i and its place under a uniform permutation is n/3.
        let n = 10_000u64;
        let permutation = Permutation::new(&mut Draws::new(5, Purpose::SampleOrder, &[]), n);
        let mean = (0..n).map(|i| permutation.apply(i).abs_diff(i)).sum::<u64>() as f64 / n as f64;
        assert!((mean / (n as f64 / 3.0) - 1.0).abs() < 0.03, "mean distance {mean}");
    }
}
