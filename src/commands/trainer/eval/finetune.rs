//! `eval finetune`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use simclr_ground::error::Result;
use simclr_trainer::eval::{EvalView, FinetuneSettings, Outcome, Task};

use super::Protocol;
use crate::commands::trainer::model::OpenModel;

#[derive(Args)]
pub struct FinetuneArgs {
    /// Fraction of labels per class to train on, sampled by the seed (0.01 and 0.1 in the paper).
    #[arg(long, default_value_t = 1.0, value_name = "SHARE")]
    pub share: f64,
    /// Train only on the samples listed in this file, e.g. the official 1percent.txt.
    #[arg(long, value_name = "FILE")]
    pub subset: Option<PathBuf>,
    /// Epochs [default: 60 below 5% of the data, else 30].
    #[arg(long)]
    pub epochs: Option<f64>,
    /// Batch size.
    #[arg(long, default_value_t = 256)]
    pub batch: u32,
    /// Base learning rate at batch size 256 (scaled linearly).
    #[arg(long, default_value_t = 0.05)]
    pub learning_rate: f64,
    /// Weight decay.
    #[arg(long, default_value_t = 0.0)]
    pub weight_decay: f64,
    /// Training augmentation.
    #[arg(long, value_enum, default_value = "crop")]
    pub augment: Augment,
    /// Save the fine-tuned encoder as a new run in this directory.
    #[arg(long, value_name = "RUN", conflicts_with = "compare")]
    pub save: Option<PathBuf>,
}

/// Augmentation of the training images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Augment {
    /// Random resized crop and horizontal flip, with the parameters of the run's recipe.
    Crop,
    /// The run's full recipe.
    Recipe,
}

impl Protocol for FinetuneArgs {
    const NAME: &'static str = "finetune";

    fn evaluate(&self, task: &Task<'_>, _: &OpenModel, seed: u64) -> Result<Outcome> {
        let settings = FinetuneSettings {
            share: self.share,
            subset: self.subset.clone().unwrap_or_default(),
            epochs: self.epochs,
            batch: self.batch,
            learning_rate: self.learning_rate,
            weight_decay: self.weight_decay,
            view: match self.augment {
                Augment::Crop => EvalView::Crop,
                Augment::Recipe => EvalView::Recipe,
            },
        };
        task.finetune(&settings, seed)
    }

    fn save(&self) -> Option<&Path> {
        self.save.as_deref()
    }
}
