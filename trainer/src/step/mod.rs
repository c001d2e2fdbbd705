//! From batch to batch: the [`Training`] that takes steps, one step in parts, and the gradient of a batch that does not fit.

mod config;
mod gradient_cache;
mod one_step;
mod training;

pub use config::{CheckpointConfig, TrainConfig, TrainerConfig};
pub use training::{End, Evaluate, Hooks, StepReport, Training};
