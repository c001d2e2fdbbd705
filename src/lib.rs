//! `simclr-pipeline`: streams SimCLR batches from tar shards, trains on them, evaluates what was learned.
//!
//! [`cli`] is what can be asked; each verb is a module of [`commands`], with its arguments and what it does, and answers by an [`output`]. [`config`] is
//! what decides a run, [`open`] opens what it describes on this machine. [`telemetry`] tells what goes on, [`web`] and
//! [`report`] show it, with what [`drawing`] draws.

pub mod output;
pub mod cli;
pub mod commands;
pub mod config;
pub mod open;
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
    let cli = cli::Cli::parse();
    let color = cli.color();
    telemetry::logging::start(cli.verbose, cli.quiet, color, cli.log);
    let ended = cli.command.run(cli.output());
    telemetry::logging::finish();
    match ended {
        Ok(ExitStatus::Success) => ExitCode::SUCCESS,
        Ok(ExitStatus::ProblemsFound) => ExitCode::from(1),
        Ok(ExitStatus::Interrupted) => ExitCode::from(130),
        Err(error) => {
            let (red, plain) = if color { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
            eprintln!("{red}error:{plain} {error}");
            match error.class() {
                ErrorClass::Input => ExitCode::from(2),
                ErrorClass::Runtime => ExitCode::from(1),
            }
        }
    }
}
