//! `version`: what this build is, for reports of faults.

use clap::Args;
use serde_json::json;
use simclr_ground::error::Result;

use super::Run;
use crate::output::{ExitStatus, Output};

/// Print the version, the commit, libtorch's version and the features of this build.
#[derive(Args)]
pub struct VersionArgs {}

impl Run for VersionArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let (version, commit, stream) = (env!("CARGO_PKG_VERSION"), env!("SIMCLR_COMMIT"), simclr_plan::STREAM_VERSION);
        let features: Vec<&str> =
            [("trainer", cfg!(feature = "trainer")), ("opentelemetry", cfg!(feature = "opentelemetry"))]
                .into_iter()
                .filter_map(|(name, is_on)| is_on.then_some(name))
                .collect();
        let object = json!({
            "version": version, "commit": commit, "libtorch": LIBTORCH, "features": features, "stream": stream,
        });
        output.result(&object, || {
            let libtorch = LIBTORCH.map_or("without a trainer".to_owned(), |version| format!("libtorch {version}"));
            format!(
                "simclr-pipeline {version} (commit {commit}), {libtorch}, features: {}, stream version {stream}",
                features.join(" ")
            )
        })?;
        Ok(ExitStatus::Success)
    }
}

/// libtorch's version, if the trainer is built in.
#[cfg(feature = "trainer")]
const LIBTORCH: Option<&str> = Some(simclr_trainer::run::LIBTORCH);
#[cfg(not(feature = "trainer"))]
const LIBTORCH: Option<&str> = None;
