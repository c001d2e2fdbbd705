//! What can go wrong while training or evaluating.

use std::path::PathBuf;

use pipeline::loader::LoadError;
use pipeline::plan::Position;

use crate::ranks::RanksError;

/// What libtorch said through the shim.
pub(crate) fn of_torch(said: crate::shim::Said) -> TrainError {
    TrainError::Torch(tch::TchError::Torch(said))
}

/// Why training or evaluation can't go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The device asked for can't be used; the message says what is missing.
    #[error("machine.device = {asked:?}: {why}")]
    Device {
        /// What was asked for.
        asked: String,
        /// What is missing.
        why: String,
    },
    /// A value of the configuration is out of its range.
    #[error("{key} = {found}: {wanted}")]
    Value {
        /// The key in the configuration.
        key: &'static str,
        /// The value found.
        found: String,
        /// What would be right.
        wanted: String,
    },
    /// The stream of batches stopped.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The loss is no number; nothing of this step is ever saved.
    #[error("the loss of step {step} is {loss}: the last checkpoint is kept; `preview --batch {}` shows the batch", position.batch)]
    NotFinite {
        /// The step.
        step: u64,
        /// The loss.
        loss: f64,
        /// The batch that gave it.
        position: Position,
    },
    /// Another rank can't go on, or can't be reached.
    #[error(transparent)]
    Ranks(#[from] RanksError),
    /// libtorch failed.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// A checkpoint can't be written; those that were there stay.
    #[error("checkpoint {}: cannot be written: {why}", path.display())]
    CheckpointWrite {
        /// Where it was to be.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A checkpoint can't be read or is not what is wanted.
    #[error("checkpoint {}: {what}", path.display())]
    Checkpoint {
        /// Where it is.
        path: PathBuf,
        /// What was found and what would be right.
        what: String,
    },
    /// A data set that can't be evaluated on.
    #[error("{0}")]
    Evaluation(String),
}
