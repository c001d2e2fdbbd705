//! The samples of any batch, and the shards around it.

use std::collections::BTreeSet;
use std::ops::Range;

use simclr_ground::position::Share;
use simclr_ground::sample::SampleRef;

use crate::config::Traversal;
use crate::order::{EpochOrder, OrderConfig};
use crate::plan::Plan;

/// Lists the samples of any batch; going on in the same epoch costs nothing but the samples themselves.
pub struct Batches<'a> {
    plan: &'a Plan,
    share: Share,
    epoch: Option<(u64, EpochOrder)>,
    next_epoch: Option<(u64, EpochOrder)>,
}

impl<'a> Batches<'a> {
    /// This share of the plan's batches, keeping the order of the epoch it is in.
    ///
    /// # Panics
    /// If the share is none: see [`Plan::check_share`].
    pub fn new(plan: &'a Plan, share: Share) -> Self {
        plan.check_share(share).expect("a share that was checked");
        Self { plan, share, epoch: None, next_epoch: None }
    }

    /// The samples of global batch `g` that are this share's, in their places. The shares of all ranks, one after the
    /// other, are the global batch.
    pub fn samples(&mut self, g: u64) -> Vec<SampleRef> {
        let plan = self.plan;
        let size = u64::from(plan.config.batch.size);
        let position = plan.position(g);
        match &plan.config.traversal {
            Traversal::Sequential => {
                let from = position.batch_in_epoch * size;
                let to = (from + size).min(plan.num_samples());
                let mut starts = vec![0u64];
                starts.extend(plan.shard_sizes.iter().scan(0, |sum, &n| {
                    *sum += u64::from(n);
                    Some(*sum)
                }));
                let place = |i: u64| {
                    let shard = starts.partition_point(|&start| start <= i) - 1;
                    plan.taken(shard as u32, (i - starts[shard]) as u32)
                };
                (from..to).map(place).collect()
            }
            Traversal::Shuffled(order) => {
                let (lanes, positions) = self.lanes_and_positions(g, order);
                let epoch = self.epoch(position.epoch);
                lanes
                    .flat_map(|lane| epoch.samples(lane, positions.clone()))
                    .map(|nth| plan.taken(nth.shard, nth.index))
                    .collect()
            }
        }
    }

    /// The shards that batch `g` is read from, and those of the blocks after them, in the order of need.
    pub fn shards_around(&mut self, g: u64) -> (Vec<u32>, Vec<u32>) {
        let plan = self.plan;
        let Traversal::Shuffled(order) = &plan.config.traversal else {
            let shards: BTreeSet<u32> = self.samples(g).iter().map(|sample| sample.shard).collect();
            let last = shards.last().copied().unwrap_or(0);
            let next = (last + 1..plan.shard_sizes.len() as u32).find(|&i| plan.shard_sizes[i as usize] > 0);
            return (shards.into_iter().collect(), next.into_iter().collect());
        };
        let number = plan.position(g).epoch;
        let (lanes, positions) = self.lanes_and_positions(g, order);
        let (mut now, mut next, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        let epoch = self.epoch(number);
        for lane in lanes {
            let (lane_now, lane_next) = epoch.shards_around(lane, positions.clone());
            now.extend_from_slice(lane_now);
            next.extend_from_slice(lane_next);
            if lane_next.is_empty() {
                ends.push(lane);
            }
        }
        if !ends.is_empty()
            && let Some(number) = number.checked_add(1)
        {
            let following = self.following_epoch(number);
            for lane in ends {
                next.extend_from_slice(following.shards_around(lane, 0..1).0);
            }
        }
        (now, next)
    }

    /// This share's lanes, and the positions in each that batch `g` takes.
    fn lanes_and_positions(&self, g: u64, order: &OrderConfig) -> (Range<u64>, Range<u64>) {
        let per_lane = u64::from(self.plan.config.batch.size / order.lanes);
        let from = self.plan.position(g).batch_in_epoch * per_lane;
        let lanes = u64::from(order.lanes / self.share.world);
        let first = u64::from(self.share.rank) * lanes;
        (first..first + lanes, from..from + per_lane)
    }

    fn epoch(&mut self, number: u64) -> &EpochOrder {
        if self.epoch.as_ref().is_none_or(|(known, _)| *known != number) {
            let following = self.next_epoch.take().filter(|(known, _)| *known == number);
            self.epoch = Some(following.unwrap_or_else(|| (number, self.plan.epoch_order(number))));
        }
        &self.epoch.as_ref().expect("set above").1
    }

    fn following_epoch(&mut self, number: u64) -> &EpochOrder {
        if self.next_epoch.as_ref().is_none_or(|(known, _)| *known != number) {
            self.next_epoch = Some((number, self.plan.epoch_order(number)));
        }
        &self.next_epoch.as_ref().expect("set above").1
    }
}
