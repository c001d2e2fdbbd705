//! `simclr-pipeline`: streams SimCLR batches from tar shards, trains on them, evaluates what was learnt.
//!
//! [`cli`] says what can be asked; each verb is a module of [`commands`]. [`config`] reads what decides a run,
//! [`stream`] opens the batches it describes, [`run`] keeps a run's folder. [`logging`] and [`telemetry`] tell what goes
//! on, [`pages`] show it.

mod cli;
mod commands;
mod config;
mod inspect;
#[cfg(feature = "trainer")]
mod live;
mod logging;
mod pages;
mod picture;
mod progress;
#[cfg(feature = "trainer")]
mod ranks;
#[cfg(feature = "trainer")]
mod report;
#[cfg(feature = "trainer")]
mod run;
#[cfg(feature = "trainer")]
mod stall;
mod stream;
mod telemetry;
#[cfg(feature = "trainer")]
mod tensorboard;

use std::process::ExitCode;

use clap::Parser;

/// Wrong input that no library type stands for; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongInput(pub String);

/// How a command ended when nothing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Done; exit code 0.
    Done,
    /// Done, and what was looked at is not as it should be; exit code 1.
    #[cfg_attr(not(feature = "trainer"), allow(dead_code))]
    Unsound,
    /// Stopped by a signal, cleanly; exit code 130.
    #[cfg_attr(not(feature = "trainer"), allow(dead_code))]
    Interrupted,
}

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let color = cli.color();
    logging::start(cli.verbose, cli.quiet, color, cli.log);
    let ended = commands::run(cli);
    logging::finish();
    match ended {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Unsound) => ExitCode::from(1),
        Ok(Ending::Interrupted) => ExitCode::from(130),
        Err(error) => {
            let (red, plain) = if color { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
            eprintln!("{red}error:{plain} {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// 2 for what the user can put right by other input, 1 for the rest.
fn exit_code(error: &anyhow::Error) -> u8 {
    use pipeline::loader::LoadError;
    use pipeline::manifest::ManifestError;
    use pipeline::pack::PackError;
    use pipeline::plan::PlanError;
    use pipeline::service::client::FeedError;
    use pipeline::service::{ServiceError, StartError};
    use pipeline::store::StoreError;
    let missing = |error: &std::io::Error| {
        use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
        matches!(error.kind(), NotFound | PermissionDenied | IsADirectory | NotADirectory)
    };
    if error.chain().any(|cause| matches!(cause.downcast_ref(), Some(PackError::ReadBack(_)))) {
        return 1;
    }
    let wrong_input = error.chain().any(|cause| {
        #[cfg(feature = "trainer")]
        if let Some(error) = cause.downcast_ref::<trainer::error::TrainError>() {
            use trainer::error::TrainError;
            use trainer::ranks::RanksError;
            return matches!(
                error,
                TrainError::Device { .. }
                    | TrainError::Value { .. }
                    | TrainError::Evaluation(_)
                    | TrainError::Checkpoint { .. }
                    | TrainError::Ranks(RanksError::Store { .. } | RanksError::Nccl { .. })
                    | TrainError::Load(
                        LoadError::Store(_)
                            | LoadError::Feed(FeedError::Config(_) | FeedError::Share(_) | FeedError::Refused(_))
                    )
            );
        }
        #[cfg(feature = "trainer")]
        if let Some(error) = cause.downcast_ref::<trainer::ranks::RanksError>() {
            use trainer::ranks::RanksError;
            return matches!(error, RanksError::Store { .. } | RanksError::Nccl { .. });
        }
        if let Some(ManifestError::Io { source, .. }) = cause.downcast_ref() {
            return missing(source);
        }
        cause.is::<WrongInput>()
            || cause.is::<config::ConfigError>()
            || cause.is::<ManifestError>()
            || cause.is::<PlanError>()
            || matches!(cause.downcast_ref(), Some(PackError::Input { .. }))
            || matches!(
                cause.downcast_ref(),
                Some(
                    LoadError::Store(_)
                        | LoadError::Feed(FeedError::Config(_) | FeedError::Share(_) | FeedError::Refused(_))
                )
            )
            || cause.is::<FeedError>()
            || cause.is::<ServiceError>()
            || cause.is::<StartError>()
            || cause.is::<StoreError>()
    });
    if wrong_input { 2 } else { 1 }
}
