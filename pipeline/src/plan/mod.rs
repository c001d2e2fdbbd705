//! The plan of a stream: everything that decides which bytes global batch `g` has, and nothing else.
//!
//! A batch is a value: a pure function of the plan and `g`. The plan's digest names the stream; machine settings
//! (threads, memory, devices) are not in it.

mod selection;
mod shuffle;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use shuffle::ShuffleQuality;

use crate::augment::RecipeConfig;
use crate::manifest::Manifest;
use crate::order::{EpochOrder, OrderConfig, SampleRef};

/// The version of everything that turns a plan into bytes: raised whenever the same plan gives other bytes.
pub const STREAM_VERSION: u32 = 3;

/// Which samples the stream takes from the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Path of the manifest.
    pub manifest: std::path::PathBuf,
    /// Only the first n samples of those wanted, before shuffling; 0 takes all.
    pub limit: u64,
    /// Only samples of these classes, by name or index; empty takes all. Labels stay as they are.
    pub classes: Vec<String>,
    /// Only the samples that this file names, one on a line, by file name as the official `imagenet_subsets` do
    /// (`n01440764_10026.JPEG`), or by key; empty takes all.
    pub subset: std::path::PathBuf,
    /// Only this part of each class's samples, which the seed puts in order: where it begins and where it ends, as
    /// shares. [0, 0.01] takes one of a hundred, [0, 1] all; two parts that do not overlap have no sample in common.
    #[serde(default = "whole")]
    pub part: [f64; 2],
    /// The run stops when more than this share of the samples is damaged, in [0, 1].
    pub max_damaged: f64,
    /// Pictures of more pixels than this count as damaged, before they are decoded.
    pub max_pixels: u64,
    /// Turn pictures upright as their EXIF orientation says; the field's loaders do not.
    pub exif_orientation: bool,
}

/// [`DataConfig::part`] of records that know no parts.
fn whole() -> [f64; 2] {
    [0.0, 1.0]
}

/// How many images a batch has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// Images per global batch, `B`; a SimCLR batch holds `2B` views.
    pub size: u32,
}

/// In which order a stream visits the samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Traversal {
    /// Epoch after epoch, each a permutation; what does not fill the last batch of an epoch is dropped.
    Shuffled(OrderConfig),
    /// Once, in the manifest's order; the last batch may be short. For evaluation.
    Sequential,
}

/// What a stream is made from, apart from the manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamConfig {
    /// The run's seed.
    pub seed: u64,
    /// Which samples.
    pub data: DataConfig,
    /// In which order.
    pub traversal: Traversal,
    /// How many at a time.
    pub batch: BatchConfig,
    /// What is done to each.
    pub recipe: RecipeConfig,
}

/// A checked plan.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the plan was made from.
    pub config: StreamConfig,
    /// How many samples are taken from each shard.
    pub shard_sizes: Vec<u32>,
    /// Which samples are taken from each shard, if not its first ones.
    selected: Option<Vec<Vec<u32>>>,
    /// The stream's name: equal plans, and only those, have equal digests (BLAKE3, hex).
    pub digest: String,
    /// The manifest's digest.
    pub manifest_digest: String,
    /// `first_ids[i]` is the id of the first sample of shard `i`: its place in the manifest.
    first_ids: Vec<u64>,
}

/// Where in the stream a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The global batch, counted from 0 over all epochs.
    pub batch: u64,
    /// The epoch it belongs to, counted from 0.
    pub epoch: u64,
    /// Its place in that epoch, counted from 0.
    pub batch_in_epoch: u64,
}

/// Why no plan can be made. All of it is wrong input.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum PlanError {
    /// A value out of its range.
    #[error("{key} = {found}: {wanted}")]
    Value {
        /// The key in the configuration.
        key: Cow<'static, str>,
        /// The value found.
        found: String,
        /// What would be right.
        wanted: String,
    },
}

impl Plan {
    /// Checks `config` against the manifest and makes the plan.
    ///
    /// # Errors
    /// If a value is out of its range: a batch larger than the data set, lanes that do not divide it, a recipe that
    /// makes no sense.
    pub fn new(manifest: &Manifest, config: StreamConfig) -> Result<Self, PlanError> {
        let value =
            |key: &'static str, found: String, wanted: String| PlanError::Value { key: key.into(), found, wanted };
        let size = u64::from(config.batch.size);
        if size == 0 {
            return Err(value("batch.size", "0".into(), "at least one image per batch is wanted".into()));
        }
        if config.data.limit > manifest.samples {
            let wanted = format!("the manifest has {} samples; 0 takes all", manifest.samples);
            return Err(value("data.limit", config.data.limit.to_string(), wanted));
        }
        if !(0.0..=1.0).contains(&config.data.max_damaged) {
            return Err(value(
                "data.max_damaged",
                config.data.max_damaged.to_string(),
                "a share between 0 and 1 is wanted".into(),
            ));
        }
        config.recipe.check()?;
        let mut selected = selection::select(manifest, &config.data, config.seed)?;
        let mut left = if config.data.limit == 0 { u64::MAX } else { config.data.limit };
        let mut shard_sizes = Vec::with_capacity(manifest.shards.len());
        let mut first_ids = Vec::with_capacity(manifest.shards.len());
        let mut id = 0;
        for (i, shard) in manifest.shards.iter().enumerate() {
            let there = selected.as_ref().map_or(shard.num_samples(), |selected| selected[i].len());
            let taken = left.min(there as u64);
            left -= taken;
            shard_sizes.push(taken as u32);
            if let Some(selected) = &mut selected {
                selected[i].truncate(taken as usize);
            }
            first_ids.push(id);
            id += shard.num_samples() as u64;
        }
        let num_samples = shard_sizes.iter().map(|&n| u64::from(n)).sum();
        if let Traversal::Shuffled(order) = &config.traversal {
            if order.shuffle_block_shards == 0 {
                return Err(value(
                    "order.shuffle_block_shards",
                    "0".into(),
                    "at least one shard per block is wanted".into(),
                ));
            }
            if order.lanes == 0 || !size.is_multiple_of(order.lanes.into()) {
                let wanted =
                    format!("it must divide batch.size = {size}, so that each lane gives the same share of a batch");
                return Err(value("order.lanes", order.lanes.to_string(), wanted));
            }
            if size > num_samples {
                let wanted = format!("the data set has {num_samples} samples; a batch can have at most that many");
                return Err(value("batch.size", size.to_string(), wanted));
            }
        }
        let manifest_digest = manifest.digest.clone();
        let mut plan = Self { config, shard_sizes, selected, digest: String::new(), manifest_digest, first_ids };
        plan.digest = blake3::hash(plan.content().to_string().as_bytes()).to_hex().to_string();
        Ok(plan)
    }

    /// Everything that the plan's digest is taken of.
    pub fn content(&self) -> serde_json::Value {
        let config = &self.config;
        serde_json::json!({
            "stream_version": STREAM_VERSION,
            "manifest": self.manifest_digest,
            "seed": config.seed,
            "limit": config.data.limit,
            "selected": self.selected.as_ref().map(|selected| selection::digest(selected)),
            "max_pixels": config.data.max_pixels,
            "exif_orientation": config.data.exif_orientation,
            "traversal": config.traversal,
            "batch": config.batch,
            "recipe": config.recipe,
        })
    }

    /// Into how many lanes an epoch is dealt.
    pub fn lanes(&self) -> u32 {
        match &self.config.traversal {
            Traversal::Shuffled(order) => order.lanes,
            Traversal::Sequential => 1,
        }
    }

    /// Number of samples in an epoch, the dropped ones included.
    pub fn num_samples(&self) -> u64 {
        self.shard_sizes.iter().map(|&n| u64::from(n)).sum()
    }

    /// Number of batches in an epoch; a sequential stream has one epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        let size = u64::from(self.config.batch.size);
        match self.config.traversal {
            Traversal::Shuffled(_) => self.num_samples() / size,
            Traversal::Sequential => self.num_samples().div_ceil(size),
        }
    }

    /// How many samples at the end of each epoch fill no batch and are dropped.
    pub fn dropped_per_epoch(&self) -> u64 {
        match self.config.traversal {
            Traversal::Shuffled(_) => self.num_samples() % u64::from(self.config.batch.size),
            Traversal::Sequential => 0,
        }
    }

    /// Where global batch `g` is.
    pub fn position(&self, g: u64) -> Position {
        let per_epoch = self.batches_per_epoch();
        Position { batch: g, epoch: g / per_epoch, batch_in_epoch: g % per_epoch }
    }

    /// The id of a sample: its place in the manifest.
    pub fn sample_id(&self, sample: SampleRef) -> u64 {
        self.first_ids[sample.shard as usize] + u64::from(sample.index)
    }

    /// The sample that takes the place of `sample` if that one is damaged: the next in its shard, after the last
    /// the first of the next shard, after the last shard the first one.
    pub fn next_in_manifest(&self, sample: SampleRef) -> SampleRef {
        let shard = sample.shard as usize;
        let nth = self.nth(sample);
        if nth + 1 < self.shard_sizes[shard] {
            return self.taken(sample.shard, nth + 1);
        }
        let n = self.shard_sizes.len();
        let next = (1..=n).map(|step| (shard + step) % n).find(|&shard| self.shard_sizes[shard] > 0);
        self.taken(next.expect("a plan has samples") as u32, 0)
    }

    /// The `nth` of the samples that are taken from `shard`.
    pub fn taken(&self, shard: u32, nth: u32) -> SampleRef {
        let index = self.selected.as_ref().map_or(nth, |selected| selected[shard as usize][nth as usize]);
        SampleRef { shard, index }
    }

    /// The how-many-th of the samples that are taken from its shard this one is.
    pub fn nth(&self, sample: SampleRef) -> u32 {
        match &self.selected {
            None => sample.index,
            Some(selected) => selected[sample.shard as usize].partition_point(|&index| index < sample.index) as u32,
        }
    }

    /// The shards that this share's lanes touch in an epoch.
    pub fn shards_of(&self, share: Share, epoch: u64) -> BTreeSet<u32> {
        let Traversal::Shuffled(order) = &self.config.traversal else {
            return (0..self.shard_sizes.len() as u32).filter(|&i| self.shard_sizes[i as usize] > 0).collect();
        };
        let lanes = u64::from(order.lanes / share.world);
        let first = u64::from(share.rank) * lanes;
        let order = self.epoch_order(epoch);
        (first..first + lanes).flat_map(|lane| order.lane_shards(lane).to_vec()).collect()
    }

    /// How many shards a share of the lanes has open at a time.
    pub fn open_shards(&self, share: Share) -> usize {
        match &self.config.traversal {
            Traversal::Shuffled(order) => {
                let lanes = (order.lanes / share.world).max(1) as usize;
                lanes.saturating_mul(order.shuffle_block_shards as usize).saturating_add(1)
            }
            Traversal::Sequential => 1,
        }
    }

    fn epoch_order(&self, epoch: u64) -> EpochOrder {
        let Traversal::Shuffled(order) = &self.config.traversal else { panic!("a sequential stream has no order") };
        EpochOrder::new(self.config.seed, epoch, &self.shard_sizes, order)
    }

    /// Lays out this share of the plan's batches, keeping the order of the epoch it is in.
    ///
    /// # Panics
    /// If the share is none: see [`Plan::check_share`].
    pub fn batches(&self, share: Share) -> Batches<'_> {
        self.check_share(share).expect("a share that was checked");
        Batches { plan: self, share, epoch: None, next_epoch: None }
    }

    /// Checks that `share.world` owners can share the lanes.
    ///
    /// # Errors
    /// If they do not divide the lanes, or the rank is none of theirs.
    pub fn check_share(&self, share: Share) -> Result<(), PlanError> {
        let lanes = self.lanes();
        if share.world > 0 && share.rank < share.world && lanes.is_multiple_of(share.world) {
            return Ok(());
        }
        let found = format!("{lanes}, for rank {} of {}", share.rank, share.world);
        let wanted = "each of the ranks owns the same number of lanes, so their number must divide order.lanes".into();
        Err(PlanError::Value { key: "order.lanes".into(), found, wanted })
    }
}

/// Which lanes are meant: those of one rank out of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Which one, from 0.
    pub rank: u32,
    /// Of how many; it divides the lanes.
    pub world: u32,
}

impl Share {
    /// All lanes.
    pub const ALL: Share = Share { rank: 0, world: 1 };
}

/// Lists the samples of any batch; going on in the same epoch costs nothing but the samples themselves.
pub struct Batches<'a> {
    plan: &'a Plan,
    share: Share,
    epoch: Option<(u64, EpochOrder)>,
    next_epoch: Option<(u64, EpochOrder)>,
}

impl Batches<'_> {
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
