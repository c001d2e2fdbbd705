//! How well a plan shuffles: measured on one epoch, beside what a full shuffle would give.

use std::collections::BTreeMap;

use super::{Plan, Share};
use crate::manifest::Manifest;

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
    /// How often two samples of a batch have the same class; of labelled sets.
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
    pub fn measure(plan: &Plan, manifest: &Manifest) -> Self {
        let n = plan.num_samples();
        let mut batches = plan.batches(Share::ALL);
        let (mut moved, mut position, mut shards, mut same, mut pairs) = (0.0, 0u64, 0u64, 0.0, 0.0);
        // Places are counted among the samples that the plan takes.
        let mut starts = vec![0u64];
        starts.extend(plan.shard_sizes.iter().scan(0, |sum, &n| {
            *sum += u64::from(n);
            Some(*sum)
        }));
        let label = |shard: u32, index: u32| manifest.shards[shard as usize].label(index as usize);
        let mut batch_shards = std::collections::BTreeSet::new();
        for g in 0..plan.batches_per_epoch() {
            let mut classes: BTreeMap<u32, u64> = BTreeMap::new();
            batch_shards.clear();
            for sample in batches.samples(g) {
                let place = starts[sample.shard as usize] + u64::from(plan.nth(sample));
                moved += place.abs_diff(position) as f64;
                position += 1;
                batch_shards.insert(sample.shard);
                if let Some(class) = label(sample.shard, sample.index) {
                    *classes.entry(class).or_default() += 1;
                }
            }
            shards += batch_shards.len() as u64;
            same += classes.values().map(|&k| (k * (k - 1)) as f64).sum::<f64>();
            let size = classes.values().sum::<u64>() as f64;
            pairs += size * (size - 1.0);
        }
        let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
        let (mut neighbours, mut before) = (0u64, None);
        for (shard, &taken) in plan.shard_sizes.iter().enumerate() {
            for nth in 0..taken {
                let sample = plan.taken(shard as u32, nth);
                let class = label(sample.shard, sample.index);
                neighbours += u64::from(class.is_some() && class == before);
                before = class;
                *counts.entry(class.unwrap_or(u32::MAX)).or_default() += 1;
            }
        }
        let labelled = manifest.is_labelled();
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
            same_class_in_batch: labelled.then(|| same / f64::max(pairs, 1.0)),
            same_class_in_batch_of_a_full_shuffle: labelled.then_some(by_chance),
            same_class_neighbours_in_manifest: labelled.then(|| neighbours as f64 / f64::max(total - 1.0, 1.0)),
            read_amplification: read_amplification(plan, manifest),
        }
    }
}

/// Bytes of the shards that each rank opens in an epoch, summed over ranks, over the bytes of all shards.
fn read_amplification(plan: &Plan, manifest: &Manifest) -> BTreeMap<u32, f64> {
    let bytes = |shard: u32| manifest.shards[shard as usize].bytes as f64;
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
    use crate::manifest::Shard;
    use crate::sample::Check;
    use crate::store::Location;
    use crate::test_pictures::stream;

    /// A set sorted by class: as many shards as classes, each of one class.
    fn sorted_set(classes: u32, per_class: u32) -> Manifest {
        let n = per_class as usize;
        let shard = |class: u32| Shard {
            location: format!("{class}.tar"),
            bytes: 1000,
            blake3: String::new(),
            tar_bytes: 1000,
            tar_blake3: class.to_string(),
            entries: (0..n).map(|i| format!("{class}-{i}.jpg")).collect(),
            labels: Some(vec![class; n]),
            offsets: vec![0; n],
            sizes: vec![1; n],
            checks: vec![Check(0); n],
            frames: None,
            rows: None,
            excluded: vec![],
        };
        Manifest::new("a test".into(), vec![], (0..classes).map(shard).collect(), Location::default())
    }

    #[test]
    fn a_class_sorted_set_is_mixed_and_read_about_once() {
        let manifest = sorted_set(100, 50);
        let mut config = stream(1, 64, 8);
        let crate::plan::Traversal::Shuffled(order) = &mut config.traversal else { panic!("a shuffled stream") };
        order.shuffle_block_shards = 4;
        let quality = ShuffleQuality::measure(&Plan::new(&manifest, config).unwrap(), &manifest);
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
