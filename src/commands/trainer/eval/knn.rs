//! `eval knn`.

use clap::Args;
use simclr_ground::error::Result;
use simclr_trainer::eval::{KnnConfig, Outcome, Task};

use super::Protocol;
use crate::commands::trainer::model::OpenModel;

#[derive(Args)]
pub struct KnnArgs {
    /// Number of neighbors [default: eval.knn.k].
    #[arg(long)]
    pub k: Option<u32>,
    /// Temperature of the vote weights [default: eval.knn.temperature].
    #[arg(long)]
    pub temperature: Option<f64>,
}

impl Protocol for KnnArgs {
    const NAME: &'static str = "knn";

    fn evaluate(&self, task: &Task<'_>, model: &OpenModel, _: u64) -> Result<Outcome> {
        let base = &model.config.eval.knn;
        let (k, temperature) = (self.k.unwrap_or(base.k), self.temperature.unwrap_or(base.temperature));
        task.knn(&KnnConfig { k, temperature })
    }
}
