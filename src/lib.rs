//! `simclr-pipeline`: streams SimCLR batches from tar shards, trains on them, evaluates what was learned.
//!
//! [`commands::cli`] is what can be asked; each verb is a module of [`commands`], with its arguments and what it does, and answers by
//! an [`output`]. [`config`] is what decides a run, [`open`] opens what it describes on this machine. [`signals`] asks it to
//! stop. [`telemetry`] tells what goes on, [`web`] and [`report`] show it, with what [`drawing`] draws.
//!
//! What a configuration file says can be had in a few lines, such as which samples any batch of a run holds:
//!
//! ```
//! use simclr_ground::position::Share;
//! use simclr_pipeline::config::Config;
//! use simclr_plan::{Batches, Plan, SampleCounts};
//!
//! // A preset, changed as `--set` changes it.
//! let config = Config::load(Some("cifar10-resnet18"), &["batch.size=512".to_owned(), "seed=3".to_owned()])?;
//!
//! // A data set of 50 shards with 1,000 samples each; a manifest is such a catalog, too.
//! let plan = Plan::new(&SampleCounts(vec![1000; 50]), config.stream())?;
//! assert_eq!(plan.batches_per_epoch(), 97);
//!
//! // Batch 10,000, without those before it: the samples of all ranks, and those of the second of two.
//! let all = Batches::new(&plan, Share::ALL).samples(10_000);
//! let half = Batches::new(&plan, Share { rank: 1, world: 2 }).samples(10_000);
//! assert_eq!(plan.position(10_000).epoch, 103);
//! assert_eq!(all.len(), 512);
//! assert_eq!(all[256..], half);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod terminal;
pub mod output;
pub mod commands;
pub mod config;
pub mod open;
pub mod signals;
pub mod drawing;
pub mod telemetry;
pub mod web;
#[cfg(feature = "trainer")]
pub mod report;

use std::process::ExitCode;

use clap::Parser;
use simclr_ground::error::ErrorClass;

use commands::Run;
use output::ExitStatus;

/// Does what this process's arguments ask for.
pub fn run() -> ExitCode {
    let cli = match commands::cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return commands::cli::refuse(&error),
    };
    let color = cli.color();
    telemetry::logging::start(cli.verbose, cli.quiet, color, cli.log);
    open::raise_open_files();
    // Without a thread for it the system ends the program, as it does by default.
    let _ = signals::Stop::unless_listened();
    let ended = cli.command.run(cli.output());
    while ended.is_err() && signals::is_leaving() {
        // Whoever tidies up ends the program; what failed has lost the ground under it.
        std::thread::park();
    }
    telemetry::logging::finish();
    match ended {
        Ok(ExitStatus::Success) => ExitCode::SUCCESS,
        Ok(ExitStatus::ProblemsFound) => ExitCode::from(1),
        Ok(ExitStatus::Interrupted) => ExitCode::from(output::INTERRUPTED),
        Err(error) => {
            telemetry::logging::say_error(&error, color);
            match error.class() {
                ErrorClass::Input => ExitCode::from(2),
                ErrorClass::Runtime => ExitCode::from(1),
            }
        }
    }
}
