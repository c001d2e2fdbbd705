//! What decides how a model is trained.

use serde::{Deserialize, Serialize};
use simclr_ground::error::InvalidValue;

use crate::error::TrainError;
use crate::loss::LossConfig;
use crate::model::ModelConfig;
use crate::optimizer::OptimizerConfig;
use crate::optimizer::schedule::ScheduleConfig;

/// How long to train and how often to log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Stop after this many steps; 0 goes on to the schedule's end.
    pub steps: u64,
    /// Write a line to metrics.jsonl every so many steps.
    pub log_every: u64,
    /// Images that pass through the encoder at a time, for batches larger than the device's memory; 0 takes all. The
    /// gradient is still that of the whole batch, but batch norm sees one part at a time.
    pub micro_batch: u32,
    /// Train a linear classifier beside the encoder, from the labels, which the encoder does not notice: its accuracy is a
    /// metric.
    #[serde(default)]
    pub probe: bool,
    /// With several ranks, whether batch norm takes the images of all of them together (the paper's global batch norm), or
    /// each rank its own alone (then rank 0's running statistics are the ones kept).
    #[serde(default = "together")]
    pub sync_batch_norm: bool,
}

/// Runs from before there was a choice had one rank.
fn together() -> bool {
    true
}

/// When to write checkpoints and how many to keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Write one every so many steps; one is written at the end in any case.
    pub every: u64,
    /// Keep this many of the newest.
    pub keep: usize,
}

/// Everything that decides what is learned from the batches.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerConfig {
    /// The model.
    pub model: ModelConfig,
    /// The loss.
    pub loss: LossConfig,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The learning rate over time.
    pub schedule: ScheduleConfig,
    /// How long and how chatty.
    pub train: TrainConfig,
    /// Checkpoints.
    pub checkpoint: CheckpointConfig,
}

impl TrainerConfig {
    /// Checks every value that has a range of its own.
    ///
    /// # Errors
    /// Names the key, what was found and what would be right.
    pub fn check(&self) -> Result<(), TrainError> {
        self.loss.check()?;
        self.optimizer.check()?;
        for (key, value) in [
            ("train.log_every", self.train.log_every),
            ("checkpoint.every", self.checkpoint.every),
            ("checkpoint.keep", self.checkpoint.keep as u64),
        ] {
            if value == 0 {
                return Err(InvalidValue::new(key, 0, "expected at least 1").into());
            }
        }
        Ok(())
    }
}
