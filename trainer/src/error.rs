//! What can go wrong while training or evaluating.

use std::path::PathBuf;
use std::time::Duration;

use simclr_ground::batch_stream::StreamError;
use simclr_ground::error::{Classify, ErrorClass, InvalidValue};
use simclr_ground::position::Position;

/// What libtorch said through the shim.
pub(crate) fn of_torch(said: simclr_torch::TorchError) -> TrainError {
    TrainError::Torch(tch::TchError::Torch(said))
}

/// Why training or evaluation can't go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The device asked for can't be used; the message says what is missing.
    #[error("cannot use machine.device = {asked:?}: {why}")]
    Device {
        /// What was asked for.
        asked: String,
        /// What is missing.
        why: String,
    },
    /// A value of the configuration is out of its range.
    #[error(transparent)]
    Value(#[from] InvalidValue),
    /// The stream of batches stopped.
    #[error(transparent)]
    Load(#[from] StreamError),
    /// The stream is over, and the training is not.
    #[error("the stream of batches ended before batch {batch}, which is still to be trained on")]
    StreamEnded {
        /// The batch that did not come.
        batch: u64,
    },
    /// The loss is no number; nothing of this step is ever saved.
    #[error("loss is {loss} at step {step}; last checkpoint kept; inspect the batch with `preview --batch {}`", position.batch)]
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
    /// A GPU's memory is too small for what was asked of it.
    #[error(
        "GPU out of memory: {said}; decrease train.micro_batch (images per encoder pass; the batch stays the same) \
         or batch.size"
    )]
    Memory {
        /// What libtorch said.
        said: String,
        /// Whether it was in the first step, so that it is the configuration that does not fit.
        first: bool,
    },
    /// libtorch failed.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// A checkpoint can't be written; those that were there stay.
    #[error("cannot write checkpoint {}: {why}", path.display())]
    CheckpointWrite {
        /// Where it was to be.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A checkpoint can't be read or does not fit.
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

impl Classify for TrainError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Device { .. } | Self::Checkpoint { .. } | Self::Evaluation(_) => ErrorClass::Input,
            Self::Value(error) => error.class(),
            Self::Load(error) => error.class(),
            Self::Ranks(error) => error.class(),
            // What does not fit from the first does not fit when it is tried again.
            Self::Memory { first: true, .. } => ErrorClass::Input,
            Self::Memory { first: false, .. }
            | Self::NotFinite { .. }
            | Self::StreamEnded { .. }
            | Self::Torch(_)
            | Self::CheckpointWrite { .. } => ErrorClass::Runtime,
        }
    }
}

/// Why ranks can't go on together.
#[derive(Debug, thiserror::Error)]
pub enum RanksError {
    /// The store can't be opened or reached.
    #[error("rank {rank} cannot {what} the store at {host}:{port} (MASTER_ADDR, MASTER_PORT): {why}")]
    Store {
        /// Who says so.
        rank: u32,
        /// `open` or `reach`.
        what: &'static str,
        /// Where.
        host: String,
        /// Where there.
        port: u16,
        /// What c10d said.
        why: String,
    },
    /// Some ranks have not come.
    #[error("{} not joined within {} s (world size {world}); every rank must be running and able to reach {host}:{port}", named(ranks, "has", "have"), waited.as_secs())]
    Missing {
        /// Which.
        ranks: Vec<u32>,
        /// Of how many.
        world: u32,
        /// How long they were waited for.
        waited: Duration,
        /// Where the store is.
        host: String,
        /// Where there.
        port: u16,
    },
    /// Another rank failed and said why.
    #[error("rank {rank} failed: {what}")]
    Failed {
        /// Which.
        rank: u32,
        /// What it said.
        what: String,
    },
    /// Other ranks are gone and said nothing.
    #[error("{who} not responding; training stopped, last checkpoint kept ({said})")]
    Lost {
        /// Which.
        who: String,
        /// What c10d said.
        said: String,
    },
    /// NCCL's backend can't be loaded.
    #[error("multi-GPU training requires {library}: {why}; build it with `bash trainer/torch/cpp/nccl/build.sh`")]
    Nccl {
        /// The library.
        library: String,
        /// What the loader said.
        why: String,
    },
}

impl Classify for RanksError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Store { .. } | Self::Nccl { .. } => ErrorClass::Input,
            Self::Missing { .. } | Self::Failed { .. } | Self::Lost { .. } => ErrorClass::Runtime,
        }
    }
}

/// `rank 1 has`, `ranks 1, 2 have`.
pub(crate) fn named(ranks: &[u32], one: &str, several: &str) -> String {
    match ranks {
        [rank] => format!("rank {rank} {one}"),
        _ => format!("ranks {} {several}", ranks.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_named() {
        assert_eq!(named(&[3], "is", "are"), "rank 3 is");
        assert_eq!(named(&[1, 2], "is", "are"), "ranks 1, 2 are");
    }
}
