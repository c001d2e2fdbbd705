//! The plan of a stream: everything that decides which bytes global batch `g` has, and nothing else.
//!
//! A batch is a value: a pure function of the plan and `g`. The plan's digest names the stream; machine settings
//! (threads, memory, devices) are not in it.

use std::collections::BTreeSet;

use simclr_ground::batch::{Layout, PixelOrder};
use simclr_ground::batch_stream::StreamSummary;
use simclr_ground::error::InvalidValue;
use simclr_ground::position::{Position, Share};
use simclr_ground::sample::SampleRef;
use simclr_image::augment::view_bytes;

use crate::catalog::Catalog;
use crate::config::{StreamConfig, Traversal};
use crate::order::EpochOrder;
use crate::selection;

/// The version of everything that turns a plan into bytes: raised whenever the same plan gives other bytes.
pub const STREAM_VERSION: u32 = 3;

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

/// The batch sizes next to `size` that so many lanes divide, as the end of a message.
fn nearest_sizes(size: u64, lanes: u64) -> String {
    let below = size.checked_div(lanes).map(|batches| batches * lanes);
    match below {
        None => String::new(),
        Some(0) => format!("; nearest valid size: {lanes}"),
        Some(below) => format!("; nearest valid sizes: {below}, {}", below + lanes),
    }
}

impl Plan {
    /// Checks `config` against the manifest and makes the plan.
    ///
    /// # Errors
    /// If a value is out of its range: a batch larger than the data set, lanes that do not divide it, a recipe that
    /// makes no sense.
    pub fn new(catalog: &dyn Catalog, config: StreamConfig) -> Result<Self, InvalidValue> {
        let value = |key: &'static str, found: String, wanted: String| InvalidValue::new(key, found, wanted);
        let size = u64::from(config.batch.size);
        if size == 0 {
            return Err(value("batch.size", "0".into(), "expected at least 1".into()));
        }
        if config.data.limit > catalog.num_samples() {
            let wanted = format!("expected at most the manifest's {} samples (0 = all)", catalog.num_samples());
            return Err(value("data.limit", config.data.limit.to_string(), wanted));
        }
        if !(0.0..=1.0).contains(&config.data.max_damaged) {
            return Err(value(
                "data.max_damaged",
                config.data.max_damaged.to_string(),
                "expected a fraction between 0 and 1".into(),
            ));
        }
        config.recipe.check()?;
        let mut selected = selection::select(catalog, &config.data, config.seed)?;
        let mut left = if config.data.limit == 0 { u64::MAX } else { config.data.limit };
        let mut shard_sizes = Vec::with_capacity(catalog.num_shards());
        let mut first_ids = Vec::with_capacity(catalog.num_shards());
        let mut id = 0;
        for i in 0..catalog.num_shards() {
            let samples = catalog.shard_samples(i as u32);
            let there = selected.as_ref().map_or(samples as usize, |selected| selected[i].len());
            let taken = left.min(there as u64);
            left -= taken;
            shard_sizes.push(taken as u32);
            if let Some(selected) = &mut selected {
                selected[i].truncate(taken as usize);
            }
            first_ids.push(id);
            id += u64::from(samples);
        }
        let num_samples = shard_sizes.iter().map(|&n| u64::from(n)).sum();
        if let Traversal::Shuffled(order) = &config.traversal {
            if order.shuffle_block_shards == 0 {
                return Err(value("order.shuffle_block_shards", "0".into(), "expected at least 1".into()));
            }
            if order.lanes == 0 || !size.is_multiple_of(order.lanes.into()) {
                let wanted =
                    format!("expected a divisor of batch.size ({size}){}", nearest_sizes(size, order.lanes.into()));
                return Err(value("order.lanes", order.lanes.to_string(), wanted));
            }
            if size > num_samples {
                let wanted = format!("expected at most {num_samples} (the dataset has {num_samples} samples)");
                return Err(value("batch.size", size.to_string(), wanted));
            }
        }
        let manifest_digest = catalog.digest().to_owned();
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

    pub(crate) fn epoch_order(&self, epoch: u64) -> EpochOrder {
        let Traversal::Shuffled(order) = &self.config.traversal else { panic!("a sequential stream has no order") };
        EpochOrder::new(self.config.seed, epoch, &self.shard_sizes, order)
    }

    /// Checks that `share.world` owners can share the lanes.
    ///
    /// # Errors
    /// If they do not divide the lanes, or the rank is none of theirs.
    pub fn check_share(&self, share: Share) -> Result<(), InvalidValue> {
        let lanes = self.lanes();
        if share.world > 0 && share.rank < share.world && lanes.is_multiple_of(share.world) {
            return Ok(());
        }
        let found = format!("{lanes} (rank {} of {})", share.rank, share.world);
        let wanted =
            "expected a multiple of the number of ranks, so that every rank owns the same number of lanes".into();
        Err(InvalidValue { key: "order.lanes".into(), found, wanted })
    }

    /// What a consumer of the stream needs to know; `num_classes` is the data set's, if it is labeled.
    pub fn summary(&self, num_classes: Option<usize>) -> StreamSummary {
        StreamSummary {
            plan_digest: self.digest.clone(),
            manifest_digest: self.manifest_digest.clone(),
            derived_digest: None,
            seed: self.config.seed,
            batch_size: self.config.batch.size,
            num_samples: self.num_samples(),
            batches_per_epoch: self.batches_per_epoch(),
            view_sizes: self.config.recipe.sizes().collect(),
            num_classes,
        }
    }

    /// Bytes that a slab needs for this share: `views × B / world × size × size × 3`, where views have one size.
    pub fn slab_bytes(&self, share: Share) -> usize {
        self.layout((self.config.batch.size / share.world) as usize).bytes()
    }

    /// How [`Plan::slab_bytes`] comes about, for people: `batch.size 4096 × (2 views × 3 × 224 × 224 bytes) = 1.2 GB`.
    pub fn slab_arithmetic(&self, share: Share) -> String {
        let sizes: Vec<u32> = self.config.recipe.sizes().collect();
        let views: Vec<String> = sizes
            .chunk_by(|a, b| a == b)
            .map(|views| format!("{} views × 3 × {size} × {size} bytes", views.len(), size = views[0]))
            .collect();
        let size = self.config.batch.size;
        let ranks = if share.world > 1 { format!(" / {} ranks", share.world) } else { String::new() };
        let bytes = self.slab_bytes(share) as f64 / 1e9;
        format!("batch.size {size}{ranks} × ({}) = {bytes:.1} GB", views.join(" + "))
    }

    /// How the views of so many images lie in a slab.
    pub fn layout(&self, images: usize) -> Layout {
        let view_bytes = self.config.recipe.sizes().map(view_bytes).collect();
        Layout { images, view_bytes, order: PixelOrder::Views }
    }
}
