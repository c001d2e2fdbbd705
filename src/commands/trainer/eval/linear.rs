//! `eval linear`.

use clap::{Args, ValueEnum};
use simclr_ground::error::{Error, Result};
use simclr_trainer::eval::{LinearConfig, Outcome, Task};

use super::Protocol;
use crate::commands::trainer::model::OpenModel;

#[derive(Args)]
pub struct LinearArgs {
    /// Solver.
    #[arg(long, value_enum, default_value = "sgd")]
    pub solver: Solver,
    /// Training epochs (sgd only).
    #[arg(long, default_value_t = 90)]
    pub epochs: u32,
    /// Train on random crops and flips instead of cached center-crop features, as in the paper (slower; sgd only).
    #[arg(long)]
    pub crops: bool,
}

/// How a linear classifier is trained.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Solver {
    /// SGD with Nesterov momentum, several learning rates at once, no regularization (SimCLR, section 4.2).
    Sgd,
    /// L-BFGS logistic regression, 45 regularization strengths (SimCLR, appendix B.8).
    Lbfgs,
}

impl Protocol for LinearArgs {
    const NAME: &'static str = "linear";

    fn takes_whole_center(&self) -> bool {
        self.solver == Solver::Lbfgs
    }

    fn evaluate(&self, task: &Task<'_>, _: &OpenModel, seed: u64) -> Result<Outcome> {
        let config = LinearConfig { epochs: self.epochs, seed, ..LinearConfig::default() };
        match (self.solver, self.crops) {
            (Solver::Lbfgs, true) => Err(Error::input(
                "--crops requires --solver sgd, because the features of random crops change every epoch",
            )),
            (Solver::Lbfgs, false) => task.logistic(seed),
            (Solver::Sgd, true) => task.linear_on_crops(&config),
            (Solver::Sgd, false) => task.linear(&config),
        }
    }
}
