//! How well a plan shuffles: measured on one epoch, beside what a full shuffle would give.

use std::collections::BTreeMap;

use simclr_ground::position::Share;
use simclr_ground::sample::SampleRef;

use crate::batches::Batches;
use crate::catalog::Catalog;
use crate::plan::Plan;

/// The quality of one epoch's order.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ShuffleQuality {
    /// Samples in the epoch's batches.
    pub samples: u64,
    /// Mean distance that a sample moved from its place in the manifest, as a share of the set.
    pub mean_distance: f64,
    /// The same for a full shuffle.
    pub mean_distance_of_a_full_shuffle: f64,
    /// Mean number of shards that a batch's samples come from.
    pub shards_per_batch: f64,
    /// The same for a full shuffle.
    pub shards_per_batch_of_a_full_shuffle: f64,
    /// How often two samples of a batch have the same class; of labeled sets.
    pub same_class_in_batch: Option<f64>,
    /// The same for a full shuffle.
    pub same_class_in_batch_of_a_full_shuffle: Option<f64>,
    /// How often one sample has the same class as the one before it in the manifest: 1 for a set sorted by class.
    pub same_class_neighbours_in_manifest: Option<f64>,
    /// For each number of ranks that can share the lanes: bytes of all shards that the ranks open over bytes of the
    /// set's shards.
    pub read_amplification: BTreeMap<u32, f64>,
}

impl ShuffleQuality {
    /// Looks at every batch of epoch 0.
    pub fn measure(plan: &Plan, catalog: &dyn Catalog) -> Self {
        let n = plan.num_samples();
        let mut batches = Batches::new(plan, Share::ALL);
        let (mut moved, mut position, mut shards, mut same, mut pairs) = (0.0, 0u64, 0u64, 0.0, 0.0);
        // Places are counted among the samples that the plan takes.
        let mut starts = vec![0u64];
        starts.extend(plan.shard_sizes.iter().scan(0, |sum, &n| {
            *sum += u64::from(n);
            Some(*sum)
        }));
        let label = |sample: SampleRef| catalog.label(sample);
        let mut batch_shards = std::collections::BTreeSet::new();
        for g in 0..plan.batches_per_epoch() {
            let mut classes: BTreeMap<u32, u64> = BTreeMap::new();
            batch_shards.clear();
            for sample in batches.samples(g) {
                let place = starts[sample.shard as usize] + u64::from(plan.nth(sample));
                moved += place.abs_diff(position) as f64;
                position += 1;
                batch_shards.insert(sample.shard);
                if let Some(class) = label(sample) {
                    *classes.entry(class).or_default() += 1;
                }
            }
            shards += batch_shards.len() as u64;
            same += classes.values().map(|&k| (k * (k - 1)) as f64).sum::<f64>();
            let size = classes.values().sum::<u64>() as f64;
            pairs += size * (size - 1.0);
        }
        let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
        let (mut neighbors, mut before) = (0u64, None);
        for (shard, &taken) in plan.shard_sizes.iter().enumerate() {
            for nth in 0..taken {
                let sample = plan.taken(shard as u32, nth);
                let class = label(sample);
                neighbors += u64::from(class.is_some() && class == before);
                before = class;
                *counts.entry(class.unwrap_or(u32::MAX)).or_default() += 1;
            }
        }
        let labeled = catalog.num_labeled() > 0;
        let total = n as f64;
        let by_chance =
            counts.values().map(|&k| k as f64 * (k as f64 - 1.0)).sum::<f64>() / (total * (total - 1.0)).max(1.0);
        let size = f64::from(plan.config.batch.size);
        let expected_shards =
            plan.shard_sizes.iter().map(|&k| 1.0 - (1.0 - f64::from(k) / total).powf(size)).sum::<f64>();
        Self {
            samples: position,
            mean_distance: moved / (position as f64 * total),
            mean_distance_of_a_full_shuffle: 1.0 / 3.0,
            shards_per_batch: shards as f64 / plan.batches_per_epoch() as f64,
            shards_per_batch_of_a_full_shuffle: expected_shards,
            same_class_in_batch: labeled.then(|| same / f64::max(pairs, 1.0)),
            same_class_in_batch_of_a_full_shuffle: labeled.then_some(by_chance),
            same_class_neighbours_in_manifest: labeled.then(|| neighbors as f64 / f64::max(total - 1.0, 1.0)),
            read_amplification: read_amplification(plan, catalog),
        }
    }
}

/// Bytes of the shards that each rank opens in an epoch, summed over ranks, over the bytes of all shards.
fn read_amplification(plan: &Plan, catalog: &dyn Catalog) -> BTreeMap<u32, f64> {
    let bytes = |shard: u32| catalog.shard_bytes(shard) as f64;
    let all: f64 = (0..plan.shard_sizes.len() as u32).filter(|&i| plan.shard_sizes[i as usize] > 0).map(bytes).sum();
    let worlds = (0..8).map(|power| 1 << power).filter(|&world| plan.check_share(Share { rank: 0, world }).is_ok());
    worlds
        .map(|world| {
            let read: f64 = (0..world).flat_map(|rank| plan.shards_of(Share { rank, world }, 0)).map(bytes).sum();
            (world, read / all)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{StreamConfig, Traversal};
    use crate::order::OrderConfig;
    use simclr_image::augment::RecipeConfig;

    /// A set sorted by class: as many shards as classes, each of one class.
    struct Sorted {
        classes: u32,
        per_class: u32,
    }

    impl Catalog for Sorted {
        fn digest(&self) -> &str {
            "sorted"
        }

        fn num_shards(&self) -> usize {
            self.classes as usize
        }

        fn shard_samples(&self, _: u32) -> u32 {
            self.per_class
        }

        fn shard_bytes(&self, _: u32) -> u64 {
            1000
        }

        fn classes(&self) -> &[String] {
            &[]
        }

        fn num_classes(&self) -> usize {
            self.classes as usize
        }

        fn num_labeled(&self) -> u64 {
            self.num_samples()
        }

        fn label(&self, sample: SampleRef) -> Option<u32> {
            Some(sample.shard)
        }

        fn entry(&self, _: SampleRef) -> &str {
            "a.jpg"
        }
    }

    #[test]
    fn a_class_sorted_set_is_mixed_and_read_about_once() {
        let set = Sorted { classes: 100, per_class: 50 };
        let traversal = Traversal::Shuffled(OrderConfig { lanes: 8, shuffle_block_shards: 4 });
        let config = StreamConfig { traversal, ..StreamConfig::shuffled(1, 64, 8, RecipeConfig::simclr(24)) };
        let quality = ShuffleQuality::measure(&Plan::new(&set, config).unwrap(), &set);
        assert!(quality.same_class_neighbours_in_manifest.unwrap() > 0.97);
        assert!((quality.mean_distance - 1.0 / 3.0).abs() < 0.04, "{quality:?}");
        // Eight lanes with four shards open in each: 32 classes at a time out of 100.
        let (found, chance) =
            (quality.same_class_in_batch.unwrap(), quality.same_class_in_batch_of_a_full_shuffle.unwrap());
        assert!(found > chance && found < 4.0 * chance, "{quality:?}");
        assert_eq!(quality.read_amplification.keys().copied().collect::<Vec<_>>(), [1, 2, 4, 8]);
        assert!(quality.read_amplification.values().all(|&times| (1.0..=1.1).contains(&times)), "{quality:?}");
    }
}
