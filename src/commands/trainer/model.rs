//! A run's model, opened as a command's arguments and the run's record say.

use std::path::PathBuf;

use clap::Args;
use simclr_ground::error::{Error, Result};
use simclr_trainer::device;
use simclr_trainer::run::model::{Chosen, Loaded, find};
use simclr_trainer::run::{RunFolder, RunRecord};

use super::runs;
use crate::config::{self, Config, Difference};
use crate::open;

/// The keys of a configuration that say how data sets are read.
const READING: [&str; 3] = ["data.labels", "data.label_field", "data.image"];

/// Which trained model.
#[derive(Args)]
pub struct ModelArgs {
    /// Run directory; uses its latest checkpoint [default: the latest runs/train-N].
    #[arg(long = "run-dir", visible_alias = "run", value_name = "DIR")]
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
    /// How many layers of its head are not random.
    pub head_layers: usize,
}

impl OpenModel {
    /// The model that is asked for: its representations, or what so many layers of the head make of them.
    ///
    /// # Errors
    /// If there is none, or `settings` change what it is.
    pub fn open(args: &ModelArgs, untrained: bool, layers: usize, settings: &[String]) -> Result<Self> {
        let (folder, chosen) = args.find(untrained)?;
        let record = Config::recorded(&folder)?;
        let head_layers = learned_head_layers(&record, chosen.as_ref());
        if layers > head_layers && layers <= record.config.model.head.layers as usize && !untrained {
            let from = record.imported.as_ref().map_or_else(String::new, |i| format!(" from {}", i.file.display()));
            let came = match head_layers {
                0 => format!("only the encoder was imported{from}"),
                some => format!("{some} layers of the head were imported{from}"),
            };
            return Err(Error::input(format!(
                "--head-layer {layers}: {came}, and what follows in the head of {} has random weights; expected at most \
                 {head_layers}, or a checkpoint that was trained here",
                folder.path().display()
            )));
        }
        let recorded = record.config;
        let config = recorded.with(settings, &folder.join("run.json").display().to_string())?;
        let mut stray = recorded.differences(&config);
        // How labels are found changes nothing that was trained.
        let read = |difference: &Difference| READING.contains(&difference.key.as_str());
        stray.retain(|difference| !difference.is_in("eval") && !read(difference));
        if !stray.is_empty() {
            let stray = config::listed(&stray);
            return Err(Error::input(format!(
                "--set accepts only [eval] and [machine] keys, data.labels, data.label_field and data.image here, not {stray}"
            )));
        }
        simclr_data::objects::set_patience(config.machine.storage_patience_seconds);
        let device = device::open(config.machine.device)?;
        device::compute_on_cpu(open::torch_threads(&config.machine, 1));
        let loaded = Loaded::new(&config.model, chosen, layers, config.seed, (device, config.machine.precision))?;
        Ok(Self { folder, config, plan_digest: record.plan_digest, loaded, head_layers })
    }
}

/// How many layers of a model's head have learned something: all of them after a step of training here, as many as came
/// with imported weights, none of an untrained one.
fn learned_head_layers(record: &RunRecord<Config>, chosen: Option<&Chosen>) -> usize {
    let all = record.config.model.head.layers as usize;
    match (chosen, &record.imported) {
        (Some(chosen), _) if chosen.step > 0 => all,
        (_, Some(imported)) => imported.learned_head_layers(all),
        // Initial weights that were asked for, or a run's first checkpoint.
        (_, None) => 0,
    }
}
