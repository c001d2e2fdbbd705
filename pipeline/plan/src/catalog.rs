//! What a plan sees of a data set: counts, labels, names and digests. A manifest is one; a test may bring its own.

use simclr_ground::sample::SampleRef;

/// A data set as a plan sees it: samples in shards, in a fixed order.
pub trait Catalog {
    /// The name of its content: equal data sets, and only those, have equal digests.
    fn digest(&self) -> &str;
    /// Number of shards.
    fn num_shards(&self) -> usize;
    /// Number of samples in a shard.
    fn shard_samples(&self, shard: u32) -> u32;
    /// Size of a shard's file in bytes.
    fn shard_bytes(&self, shard: u32) -> u64;
    /// The name of class `i`; empty if the classes have no names.
    fn classes(&self) -> &[String];
    /// One more than the largest label, or the number of class names if that is larger; 0 without labels.
    fn num_classes(&self) -> usize;
    /// How many samples have a label.
    fn num_labeled(&self) -> u64;
    /// The class of a sample, if it has one.
    fn label(&self, sample: SampleRef) -> Option<u32>;
    /// The name of a sample's image entry.
    fn entry(&self, sample: SampleRef) -> &str;

    /// Number of samples over all shards.
    fn num_samples(&self) -> u64 {
        (0..self.num_shards() as u32).map(|shard| u64::from(self.shard_samples(shard))).sum()
    }
}

/// A data set of which only counts are known: samples per shard, no labels, no names.
#[derive(Debug, Clone, Default)]
pub struct SampleCounts(pub Vec<u32>);

impl Catalog for SampleCounts {
    fn digest(&self) -> &str {
        ""
    }

    fn num_shards(&self) -> usize {
        self.0.len()
    }

    fn shard_samples(&self, shard: u32) -> u32 {
        self.0[shard as usize]
    }

    fn shard_bytes(&self, _: u32) -> u64 {
        0
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn num_classes(&self) -> usize {
        0
    }

    fn num_labeled(&self) -> u64 {
        0
    }

    fn label(&self, _: SampleRef) -> Option<u32> {
        None
    }

    fn entry(&self, _: SampleRef) -> &str {
        ""
    }
}
