//! `eval finetune`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use simclr_ground::error::Result;
use simclr_trainer::eval::{EvalView, FinetuneSettings, Outcome, Task};

use super::Protocol;
use crate::commands::trainer::model::OpenModel;

#[derive(Args)]
pub struct FinetuneArgs {
    /// The share of each class's labels to learn from, chosen by the seed: 0.01 and 0.1 in the paper.
    #[arg(long, default_value_t = 1.0, value_name = "SHARE")]
    pub share: f64,
    /// Learn from the samples that this file names, such as the official 1percent.txt.
    #[arg(long, value_name = "FILE")]
    pub subset: Option<PathBuf>,
    /// Passes over them; 60 if they are less than 5 % of the set, else 30.
    #[arg(long)]
    pub epochs: Option<f64>,
    /// Images per step.
    #[arg(long, default_value_t = 256)]
    pub batch: u32,
    /// The learning rate for a batch of 256, which it follows linearly.
    #[arg(long, default_value_t = 0.05)]
    pub learning_rate: f64,
    /// Share of each weight added to its gradient.
    #[arg(long, default_value_t = 0.0)]
    pub weight_decay: f64,
    /// What is done to the images.
    #[arg(long, value_enum, default_value = "crop")]
    pub augment: Augment,
    /// Keep the trained encoder as a run in this new folder.
    #[arg(long, value_name = "RUN", conflicts_with = "compare")]
    pub save: Option<PathBuf>,
}

/// What is done to the images that a classifier learns from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Augment {
    /// A random resized crop and a flip, as the run's recipe draws them.
    Crop,
    /// All of the run's recipe.
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
