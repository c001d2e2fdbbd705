//! The plan of a stream: everything that decides which bytes global batch `g` has, and nothing else.
//!
//! A batch is a value: a pure function of the plan and `g`. The plan's digest names the stream; machine settings
//! (threads, memory, devices) are not in it.

use serde::{Deserialize, Serialize};

use crate::augment::RecipeConfig;
use crate::manifest::Manifest;
use crate::order::{EpochOrder, OrderConfig, SampleRef};

/// The version of everything that turns a plan into bytes: raised whenever the same plan gives other bytes.
pub const STREAM_VERSION: u32 = 1;

/// Which samples the stream takes from the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Path of the manifest.
    pub manifest: std::path::PathBuf,
    /// Only the first n samples of the manifest, before shuffling; 0 takes all.
    pub limit: u64,
    /// The run stops when more than this share of the samples is damaged, in [0, 1].
    pub max_damaged: f64,
    /// Pictures of more pixels than this count as damaged, before they are decoded.
    pub max_pixels: u64,
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
    /// Samples taken from each shard (its first ones).
    pub shard_sizes: Vec<u32>,
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
        key: &'static str,
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
        let value = |key, found: String, wanted: String| PlanError::Value { key, found, wanted };
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
        let mut left = if config.data.limit == 0 { manifest.samples } else { config.data.limit };
        let num_samples = left;
        let mut shard_sizes = Vec::with_capacity(manifest.shards.len());
        let mut first_ids = Vec::with_capacity(manifest.shards.len());
        let mut id = 0;
        for shard in &manifest.shards {
            let taken = left.min(shard.num_samples() as u64);
            left -= taken;
            shard_sizes.push(taken as u32);
            first_ids.push(id);
            id += shard.num_samples() as u64;
        }
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
        let mut plan = Self { config, shard_sizes, digest: String::new(), manifest_digest, first_ids };
        plan.digest = plan.content_digest();
        Ok(plan)
    }

    fn content_digest(&self) -> String {
        let config = &self.config;
        let content = serde_json::json!({
            "stream_version": STREAM_VERSION,
            "manifest": self.manifest_digest,
            "seed": config.seed,
            "limit": config.data.limit,
            "max_pixels": config.data.max_pixels,
            "traversal": config.traversal,
            "batch": config.batch,
            "recipe": config.recipe,
        });
        blake3::hash(content.to_string().as_bytes()).to_hex().to_string()
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
        if sample.index + 1 < self.shard_sizes[sample.shard as usize] {
            return SampleRef { index: sample.index + 1, ..sample };
        }
        let n = self.shard_sizes.len();
        let next = (1..=n).map(|step| (sample.shard as usize + step) % n).find(|&shard| self.shard_sizes[shard] > 0);
        SampleRef { shard: next.expect("a plan has samples") as u32, index: 0 }
    }

    /// Lays out the batches of this plan, keeping the order of the epoch it is in.
    pub fn batches(&self) -> Batches<'_> {
        Batches { plan: self, epoch: None }
    }
}

/// Lists the samples of any batch; going on in the same epoch costs nothing but the samples themselves.
pub struct Batches<'a> {
    plan: &'a Plan,
    epoch: Option<(u64, EpochOrder)>,
}

impl Batches<'_> {
    /// The samples of global batch `g`, in their places.
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
                    SampleRef { shard: shard as u32, index: (i - starts[shard]) as u32 }
                };
                (from..to).map(place).collect()
            }
            Traversal::Shuffled(order) => {
                if self.epoch.as_ref().is_none_or(|(epoch, _)| *epoch != position.epoch) {
                    let order = EpochOrder::new(plan.config.seed, position.epoch, &plan.shard_sizes, order);
                    self.epoch = Some((position.epoch, order));
                }
                let (_, epoch) = self.epoch.as_ref().expect("set above");
                let per_lane = size / u64::from(order.lanes);
                let from = position.batch_in_epoch * per_lane;
                let lanes = 0..u64::from(order.lanes);
                lanes.flat_map(|lane| (from..from + per_lane).map(move |p| epoch.sample(lane, p))).collect()
            }
        }
    }
}
