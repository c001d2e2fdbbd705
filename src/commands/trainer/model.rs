//! A run's model, opened as a command's arguments and the run's record say.

use std::path::PathBuf;

use clap::Args;
use simclr_ground::error::{Error, Result};
use simclr_trainer::device;
use simclr_trainer::run::RunFolder;
use simclr_trainer::run::model::{Chosen, Loaded, find};

use super::runs;
use crate::config::{self, Config};
use crate::open;

/// What the record of a run says of weights that `eval finetune --save` kept: they are a whole model's.
pub const FINE_TUNED: &str = "simclr-pipeline, fine-tuned";

/// Which trained model.
#[derive(Args)]
pub struct ModelArgs {
    /// Run directory; uses its latest checkpoint [default: the latest runs/train-N].
    #[arg(long)]
    pub run: Option<PathBuf>,
    /// Use this checkpoint instead of the latest.
    #[arg(long, conflicts_with = "run")]
    pub checkpoint: Option<PathBuf>,
}

impl ModelArgs {
    /// The run folder, and the checkpoint that is meant; none for the initial weights.
    ///
    /// # Errors
    /// If there is none.
    pub fn find(&self, untrained: bool) -> Result<(RunFolder, Option<Chosen>)> {
        let run = match (&self.run, &self.checkpoint) {
            (None, None) => Some(runs::latest()?),
            (run, _) => run.clone(),
        };
        find(run.as_deref(), self.checkpoint.as_deref(), untrained)
    }
}

/// A model and the run that it is of.
pub struct OpenModel {
    /// The run's folder.
    pub folder: RunFolder,
    /// The run's configuration, changed where that is allowed.
    pub config: Config,
    /// The plan that it was trained on.
    pub plan_digest: String,
    /// The model.
    pub loaded: Loaded,
}

impl OpenModel {
    /// The model that is asked for: its representations, or what so many layers of the head make of them.
    ///
    /// # Errors
    /// If there is none, or `settings` change what it is.
    pub fn open(args: &ModelArgs, untrained: bool, layers: usize, settings: &[String]) -> Result<Self> {
        let (folder, chosen) = args.find(untrained)?;
        let record = Config::recorded(&folder)?;
        if let Some(imported) = &record.imported
            && layers > 0
            && record.plan_digest.is_empty()
            && imported.names != FINE_TUNED
        {
            return Err(Error::input(format!(
                "--head-layer {layers}: only the encoder was imported from {}, and the head of {} has random weights; expected 0, \
                 or a run that was trained here",
                imported.file.display(),
                folder.path().display()
            )));
        }
        let recorded = record.config;
        let config = recorded.with(settings, &folder.join("run.json").display().to_string())?;
        let mut stray = recorded.differences(&config);
        stray.retain(|difference| !difference.is_in("eval"));
        if !stray.is_empty() {
            let stray = config::listed(&stray);
            return Err(Error::input(format!("--set accepts only [eval] and [machine] keys here, not {stray}")));
        }
        let device = device::open(config.machine.device)?;
        device::compute_on_cpu(open::torch_threads(&config.machine, 1));
        let loaded = Loaded::new(&config.model, chosen, layers, config.seed, (device, config.machine.precision))?;
        Ok(Self { folder, config, plan_digest: record.plan_digest, loaded })
    }
}
