//! Which sample comes next: an epoch as a permutation that is computed, not stored.
//!
//! The shards of an epoch are put into a random order and their samples laid end to end. That line is cut into
//! `lanes` pieces of equal length (to one sample); a lane is read from its beginning to its end by one owner. In a
//! lane, each run of `shuffle_block_shards` shards is a block, whose samples are permuted. Every global batch takes
//! the same number of samples from each lane, so the global batches are the same however many ranks share the
//! lanes, and each shard is read by one lane only, but for the shards that a cut goes through.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use simclr_ground::rng::{Draws, Permutation, Purpose};
use simclr_ground::sample::SampleRef;

/// How an epoch is shuffled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderConfig {
    /// Into how many lanes an epoch is dealt. It must divide the batch size; ranks must divide it. 0 in a configuration: fits
    /// the batch.
    pub lanes: u32,
    /// How many shards are open in a lane at a time, their samples shuffled together.
    pub shuffle_block_shards: u32,
}

/// The order of one epoch. Memory is a few numbers a shard; any position is found in the logarithm of the shards.
#[derive(Debug, Clone)]
pub struct EpochOrder {
    seed: u64,
    epoch: u64,
    lanes: u64,
    block_shards: u64,
    /// The shards in this epoch's order.
    shards: Vec<u32>,
    /// `starts[i]` is the position of the first sample of `shards[i]`; the last is the number of samples.
    starts: Vec<u64>,
}

/// A run of shards whose samples are shuffled together.
struct Block {
    number: u64,
    /// Indices into the epoch's shards.
    shards: Range<usize>,
    /// Positions in the epoch's line.
    samples: Range<u64>,
}

impl EpochOrder {
    /// The order of `epoch` over shards of these sizes (in samples).
    pub fn new(seed: u64, epoch: u64, shard_sizes: &[u32], config: &OrderConfig) -> Self {
        assert!(config.lanes > 0 && config.shuffle_block_shards > 0, "{config:?} was not checked");
        let mut draws = Draws::new(seed, Purpose::ShardOrder, &[epoch]);
        let order = Permutation::new(&mut draws, shard_sizes.len() as u64);
        let shards: Vec<u32> = (0..shard_sizes.len()).map(|i| order.apply(i as u64) as u32).collect();
        let mut starts = vec![0];
        for &shard in &shards {
            starts.push(starts[starts.len() - 1] + u64::from(shard_sizes[shard as usize]));
        }
        let (lanes, block_shards) = (config.lanes.into(), config.shuffle_block_shards.into());
        Self { seed, epoch, lanes, block_shards, shards, starts }
    }

    /// Number of samples in the epoch.
    pub fn num_samples(&self) -> u64 {
        self.starts[self.starts.len() - 1]
    }

    /// How many samples lane `lane` holds; lanes differ by at most one.
    pub fn lane_samples(&self, lane: u64) -> u64 {
        self.lane_start(lane + 1) - self.lane_start(lane)
    }

    /// The samples at `positions` of lane `lane`, in order.
    pub fn samples(&self, lane: u64, positions: Range<u64>) -> impl Iterator<Item = SampleRef> + '_ {
        let all = self.lane_samples(lane);
        assert!(positions.end <= all, "positions {positions:?} of lane {lane} with {all}");
        let lane_start = self.lane_start(lane);
        let mut current: Option<(Block, Permutation)> = None;
        positions.map(move |position| {
            let place = lane_start + position;
            let (block, shuffle) = match &current {
                Some((block, shuffle)) if place < block.samples.end => (block, shuffle),
                _ => {
                    let block = self.block(lane, position);
                    let mut draws = Draws::new(self.seed, Purpose::SampleOrder, &[self.epoch, lane, block.number]);
                    let shuffle = Permutation::new(&mut draws, block.samples.end - block.samples.start);
                    let (block, shuffle) = current.insert((block, shuffle));
                    (&*block, &*shuffle)
                }
            };
            let place = block.samples.start + shuffle.apply(place - block.samples.start);
            let at = self.shard_at(place);
            SampleRef { shard: self.shards[at], index: (place - self.starts[at]) as u32 }
        })
    }

    /// The shards that hold the samples at `positions` of lane `lane`, and those of the block after them, if the lane
    /// has one.
    pub fn shards_around(&self, lane: u64, positions: Range<u64>) -> (&[u32], &[u32]) {
        let (first, last) = (self.block(lane, positions.start), self.block(lane, positions.end - 1));
        let now = &self.shards[first.shards.start..last.shards.end];
        if last.samples.end == self.lane_start(lane + 1) {
            return (now, &[]);
        }
        let next = self.block(lane, last.samples.end - self.lane_start(lane));
        (now, &self.shards[next.shards])
    }

    /// The shards that lane `lane` touches, in its order.
    pub fn lane_shards(&self, lane: u64) -> &[u32] {
        let (start, end) = (self.lane_start(lane), self.lane_start(lane + 1));
        if start == end { &[] } else { &self.shards[self.shard_at(start)..=self.shard_at(end - 1)] }
    }

    /// The block that holds `position` of lane `lane`: a run of shards, counted from the first shard that the lane
    /// touches, cut to the lane.
    fn block(&self, lane: u64, position: u64) -> Block {
        let (lane_start, lane_end) = (self.lane_start(lane), self.lane_start(lane + 1));
        let first = self.shard_at(lane_start);
        let number = (self.shard_at(lane_start + position) - first) as u64 / self.block_shards;
        let from = first + (number * self.block_shards) as usize;
        let to = (from + self.block_shards as usize).min(self.shards.len());
        // The lane may end in one of the block's first shards.
        let samples = self.starts[from].max(lane_start)..self.starts[to].min(lane_end);
        let to = to.min(self.shard_at(samples.end - 1) + 1);
        Block { number, shards: from..to, samples }
    }

    fn lane_start(&self, lane: u64) -> u64 {
        (u128::from(self.num_samples()) * u128::from(lane) / u128::from(self.lanes)) as u64
    }

    /// The index in `shards` of the shard that holds `place`.
    fn shard_at(&self, place: u64) -> usize {
        self.starts.partition_point(|&start| start <= place) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(sizes: &[u32], lanes: u32, blocks: u32, seed: u64, epoch: u64) -> EpochOrder {
        EpochOrder::new(seed, epoch, sizes, &OrderConfig { lanes, shuffle_block_shards: blocks })
    }

    fn all(order: &EpochOrder) -> Vec<SampleRef> {
        (0..order.lanes).flat_map(|lane| order.samples(lane, 0..order.lane_samples(lane))).collect()
    }

    #[test]
    fn an_epoch_is_a_permutation() {
        for (sizes, lanes, blocks) in [
            (vec![5, 3, 9, 1, 12, 7], 4, 2),
            (vec![100], 8, 1),
            (vec![1; 50], 7, 16),
            (vec![0, 10, 0, 3], 2, 1),
            (vec![2, 1], 8, 4),
            ((1..200).collect(), 16, 3),
        ] {
            let mut seen = all(&order(&sizes, lanes, blocks, 3, 1));
            seen.sort_unstable();
            let every: Vec<SampleRef> = sizes
                .iter()
                .enumerate()
                .flat_map(|(s, &n)| (0..n).map(move |index| SampleRef { shard: s as u32, index }))
                .collect();
            assert_eq!(seen, every, "sizes {sizes:?}, {lanes} lanes, blocks of {blocks}");
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let sizes = [50; 10];
        let base = all(&order(&sizes, 4, 2, 1, 0));
        assert_ne!(base, all(&order(&sizes, 4, 2, 1, 1)));
        assert_ne!(base, all(&order(&sizes, 4, 2, 2, 0)));
        assert_ne!(all(&order(&sizes, 4, 2, 1, 2)), all(&order(&sizes, 4, 2, 2, 1)), "seeds must not add to epochs");
    }

    #[test]
    fn a_shard_is_read_by_one_lane_but_for_the_cuts() {
        let order = order(&[100; 64], 8, 4, 1, 0);
        let mut readers = std::collections::BTreeSet::new();
        for lane in 0..8 {
            readers.extend(order.samples(lane, 0..order.lane_samples(lane)).map(|sample| (sample.shard, lane)));
        }
        assert!(readers.len() <= 64 + 7, "{} pairs of shard and lane", readers.len());
    }

    #[test]
    fn a_block_holds_no_more_shards_than_asked_for() {
        let order = order(&[10; 30], 1, 3, 1, 0);
        for block in 0..10 {
            let shards: std::collections::BTreeSet<u32> =
                order.samples(0, block * 30..block * 30 + 30).map(|sample| sample.shard).collect();
            assert_eq!(shards.len(), 3, "block {block}");
        }
    }

    #[test]
    fn a_class_sorted_set_comes_out_mixed() {
        // Ten shards of one class each: neighbors of the same class should be about as frequent as by chance.
        let order = order(&[100; 10], 1, 10, 1, 0);
        let classes: Vec<u32> = order.samples(0, 0..1000).map(|sample| sample.shard).collect();
        let same = classes.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!((60..140).contains(&same), "{same} of 999 neighbors share their class; 100 by chance");
    }
}
