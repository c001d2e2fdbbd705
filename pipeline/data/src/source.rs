//! What a stream is read from: one plan, the storage under it, and where damage is recorded.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use simclr_ground::batch_stream::StreamError;
use simclr_ground::error::{Classify, Context, ErrorClass, InvalidValue, Result};
use simclr_plan::Plan;
use simclr_plan::StreamConfig;

use crate::manifest::{Manifest, shard_name};
use crate::metrics::PipelineMetrics;
use crate::quarantine::{BudgetSpent, Quarantine, QuarantineError};
use crate::store::{Store, StoreError, StoreOptions};

/// What the loader reads and where it reports to; shared by its threads.
pub struct Source {
    /// Which batches.
    pub plan: Plan,
    /// Where the bytes come from.
    pub store: Store,
    /// Where damage is recorded.
    pub quarantine: Quarantine,
    /// What is counted.
    pub metrics: PipelineMetrics,
    derived_digest: OnceLock<String>,
}

/// How many damaged samples a stream bears, and where it writes them down.
#[derive(Debug, Clone, Copy)]
pub enum DamagePolicy<'a> {
    /// As many as `data.max_damaged` allows; nothing is written down.
    Budget,
    /// As many as `data.max_damaged` allows; each is a line of the ledger at this path, whose lines so far count.
    Ledger(&'a Path),
    /// Any number.
    Any,
}

impl Source {
    /// Opens the stream that `config` describes over `manifest`, which its `data.manifest` named. Nothing is read yet.
    ///
    /// # Errors
    /// If the ledger can't be read, the plan can't be made, or more samples are damaged already than
    /// the budget allows.
    pub fn open(
        manifest: impl Into<Arc<Manifest>>,
        config: StreamConfig,
        storage: &StoreOptions,
        damage: DamagePolicy<'_>,
        metrics: PipelineMetrics,
    ) -> Result<Arc<Self>> {
        let manifest: Arc<Manifest> = manifest.into();
        let plan = Plan::new(&*manifest, config)?;
        let store = Store::new(manifest, storage, metrics.clone())?;
        // Of a small set a share that is not zero is one sample at least.
        let allowed = (plan.config.data.max_damaged * plan.num_samples() as f64).ceil() as u64;
        let quarantine = match damage {
            DamagePolicy::Budget => Quarantine::new(allowed, metrics.clone()),
            DamagePolicy::Any => Quarantine::new(plan.num_samples(), metrics.clone()),
            DamagePolicy::Ledger(path) => Quarantine::with_ledger(allowed, path, &plan.digest, metrics.clone())
                .with_context(|| format!("cannot read {}", path.display()))?,
        };
        quarantine.keep(|entry| {
            let mut index = entry.sample;
            for shard in &store.manifest().shards {
                let count = shard.num_samples() as u64;
                if index < count {
                    let is_same = shard_name(&shard.location) == shard_name(&entry.shard);
                    return is_same && shard.entries[index as usize] == entry.entry;
                }
                index -= count;
            }
            false
        });
        quarantine.check_budget()?;
        Ok(Arc::new(Self::of(plan, store, quarantine, metrics)))
    }

    pub(crate) fn of(plan: Plan, store: Store, quarantine: Quarantine, metrics: PipelineMetrics) -> Self {
        Self { plan, store, quarantine, metrics, derived_digest: OnceLock::new() }
    }

    /// The digest of how the data set is stored: see [`Manifest::derived_digest`].
    pub fn derived_digest(&self) -> &str {
        self.derived_digest.get_or_init(|| self.store.manifest().derived_digest())
    }
}

/// Why the stream stopped.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A value of the configuration is out of its range.
    #[error(transparent)]
    Value(#[from] InvalidValue),
    /// Samples can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Too many samples are damaged.
    #[error(transparent)]
    Budget(#[from] BudgetSpent),
    /// A damaged sample is one too many, or can't be recorded.
    #[error(transparent)]
    Quarantine(#[from] QuarantineError),
    /// There is no memory to decode an image. Another machine would have decoded it, so it is not replaced.
    #[error("{shard}: {entry}: {why}; give the process more memory, or decode fewer images at once (machine.threads)")]
    NoMemory {
        /// The shard's location.
        shard: String,
        /// The entry in the shard.
        entry: String,
        /// How much is missing.
        why: String,
    },
    /// No sample of the data set can be decoded.
    #[error("none of the {0} samples could be decoded")]
    NothingSound(u64),
    /// Whoever else should make the batches does not.
    #[error(transparent)]
    Elsewhere(#[from] StreamError),
    /// Nobody makes batches any more, and nobody said that the stream ends; the message is on stderr.
    #[error("whatever reads ahead died before the stream had ended")]
    NothingPromised,
    /// A worker thread died; its message is on stderr.
    #[error("a worker thread panicked while making batch {0}")]
    Worker(u64),
}

impl Classify for LoadError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Value(error) => error.class(),
            Self::Store(error) => error.class(),
            Self::Elsewhere(error) => error.class(),
            Self::Budget(_)
            | Self::Quarantine(_)
            | Self::NoMemory { .. }
            | Self::NothingSound(_)
            | Self::NothingPromised
            | Self::Worker(_) => ErrorClass::Runtime,
        }
    }
}
