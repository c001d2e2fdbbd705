//! `eval linear`.

use clap::{Args, ValueEnum};
use simclr_ground::error::{Error, Result};
use simclr_trainer::eval::{LinearConfig, Outcome, Task};

use super::Protocol;
use crate::commands::trainer::model::OpenModel;

#[derive(Args)]
pub struct LinearArgs {
    /// How it is trained.
    #[arg(long, value_enum, default_value = "sgd")]
    pub solver: Solver,
    /// Passes over the training set; sgd alone.
    #[arg(long, default_value_t = 90)]
    pub epochs: u32,
    /// Train on random crops and flips, as the paper, not on features of centre crops: each epoch is a pass through the
    /// encoder. sgd alone.
    #[arg(long)]
    pub crops: bool,
}

/// How a linear classifier is trained.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Solver {
    /// Nesterov momentum, several learning rates at the same time, no regularisation (SimCLR, section 4.2).
    Sgd,
    /// Logistic regression over 45 strengths of regularisation (SimCLR, appendix B.8).
    Lbfgs,
}

impl Protocol for LinearArgs {
    const NAME: &'static str = "linear";

    fn evaluate(&self, task: &Task<'_>, _: &OpenModel, seed: u64) -> Result<Outcome> {
        let config = LinearConfig { epochs: self.epochs, seed, ..LinearConfig::default() };
        match (self.solver, self.crops) {
            (Solver::Lbfgs, true) => {
                Err(Error::input("--crops: the features of crops change from epoch to epoch; --solver sgd is wanted"))
            }
            (Solver::Lbfgs, false) => task.logistic(seed),
            (Solver::Sgd, true) => task.linear_on_crops(&config),
            (Solver::Sgd, false) => task.linear(&config),
        }
    }
}
