//! `eval transfer`.

use clap::{Args, ValueEnum};
use simclr_ground::error::Result;
use simclr_trainer::eval::{Outcome, Task, TransferSettings};

use super::Protocol;
use crate::commands::trainer::model::OpenModel;

#[derive(Args)]
pub struct TransferArgs {
    /// Transfer protocol.
    #[arg(long, value_enum, default_value = "linear")]
    pub method: TransferMethod,
    /// Fine-tuning steps [default: 20000, or 40000 with --untrained].
    #[arg(long)]
    pub steps: Option<u64>,
    /// Batch size for fine-tuning.
    #[arg(long, default_value_t = 256)]
    pub batch: u32,
    /// Learning rates to search when fine-tuning [default: the paper's 7].
    #[arg(long, value_delimiter = ',', value_name = "RATE,…")]
    pub learning_rates: Vec<f64>,
    /// Weight decays to search when fine-tuning, divided by the learning rate [default: the paper's 8].
    #[arg(long, value_delimiter = ',', value_name = "DECAY,…")]
    pub weight_decays: Vec<f64>,
}

/// What is transferred to another dataset.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TransferMethod {
    /// Logistic regression on frozen features.
    Linear,
    /// Fine-tuning of the whole encoder.
    Finetune,
}

impl Protocol for TransferArgs {
    const NAME: &'static str = "transfer";

    // B.8: the short side becomes 224 pixels for the linear classifier.
    fn takes_whole_center(&self) -> bool {
        self.method == TransferMethod::Linear
    }

    fn evaluate(&self, task: &Task<'_>, _: &OpenModel, seed: u64) -> Result<Outcome> {
        match self.method {
            TransferMethod::Linear => task.logistic(seed),
            TransferMethod::Finetune => {
                let settings = TransferSettings {
                    steps: self.steps,
                    batch: self.batch,
                    learning_rates: self.learning_rates.clone(),
                    weight_decays: self.weight_decays.clone(),
                };
                task.transfer(&settings, seed)
            }
        }
    }
}
