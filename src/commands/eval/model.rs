//! The model that is evaluated, and what it makes of images.

use std::path::{Path, PathBuf};

use pipeline::loader::{Loader, LoaderOptions, slab_bytes};
use pipeline::plan::{Share, StreamConfig};
use tch::Tensor;
use trainer::checkpoint;
use trainer::device::{self, DeviceSlab};
use trainer::eval::{Features, features};
use trainer::simclr::SimClr;

use super::super::Voice;
use super::super::train::{precision, torch_threads};
use crate::cli::CheckpointArgs;
use crate::config::{Config, MachineConfig};
use crate::progress::Progress;
use crate::run::RunFolder;
use crate::{WrongInput, stream};

/// A run's model, ready to encode.
pub struct Loaded {
    /// The run's folder.
    pub folder: RunFolder,
    /// The checkpoint and its step; none for the initial weights.
    pub chosen: Option<(PathBuf, u64)>,
    /// BLAKE3 of the checkpoint's weights, in hex; none for the initial ones.
    pub digest: Option<String>,
    /// The run's configuration, changed where that is allowed.
    pub config: Config,
    /// The plan that it was trained on.
    pub plan_digest: String,
    /// Steps that it was trained for.
    pub step: u64,
    /// Where it computes.
    pub device: tch::Device,
    /// Layers of the head that belong to the representation.
    pub layers: usize,
    model: SimClr,
}

impl Loaded {
    /// The model that is asked for: its representations, or what so many layers of the head make of them.
    ///
    /// # Errors
    /// If there is none, or `settings` change what it is.
    pub fn open(args: &CheckpointArgs, untrained: bool, layers: usize, settings: &[String]) -> anyhow::Result<Self> {
        let (folder, chosen) = find(args, untrained)?;
        let record = folder.record()?;
        let recorded = record.config;
        let config = recorded.with(settings, &folder.join("run.json").display().to_string())?;
        let stray: Vec<String> =
            recorded.differences(&config, &[]).into_iter().filter(|d| !d.starts_with("eval.")).collect();
        if !stray.is_empty() {
            let stray = stray.join("; ");
            return Err(WrongInput(format!("--set here takes [eval] and [machine] only, not {stray}")).into());
        }
        let device = device::open(&config.machine.device)?;
        device::compute_on_cpu(torch_threads(&config.machine, 1));
        let model = weights(&config, chosen.as_ref().map(|(path, _)| path.as_path()), config.seed, device)?;
        let digest = match &chosen {
            Some((path, _)) => checkpoint::read_state(path)?.files.remove("model.safetensors"),
            None => None,
        };
        let there = model.head.num_layers();
        if layers > there {
            let text = format!("--head-layer {layers}: the run's head has {there} layers; 0 takes h");
            return Err(WrongInput(text).into());
        }
        let step = chosen.as_ref().map_or(0, |(_, step)| *step);
        Ok(Self { folder, chosen, digest, config, plan_digest: record.plan_digest, step, device, layers, model })
    }

    /// The same model once more, to be trained; initial weights are drawn from `seed`.
    ///
    /// # Errors
    /// If the checkpoint is gone.
    pub fn again(&self, seed: u64) -> anyhow::Result<SimClr> {
        weights(&self.config, self.chosen.as_ref().map(|(path, _)| path.as_path()), seed, self.device)
    }

    /// Representations of views, `[n, dim]` f32, on the model's device.
    pub fn represent(&self, views: &Tensor) -> Tensor {
        self.model.represent(views, self.layers)
    }

    /// Representations of all images that a manifest lists, on the CPU.
    ///
    /// # Errors
    /// If the images can't be read.
    pub fn features(
        &self,
        manifest: &Path,
        what: &'static str,
        labels: Labels,
        runtime: &tokio::runtime::Handle,
        voice: Voice,
    ) -> anyhow::Result<Features> {
        let represent = |views: &Tensor| self.represent(views).to_device(tch::Device::Cpu);
        let set = (self.config.evaluation_stream(manifest.to_owned(), [0.0, 1.0], self.config.seed), labels);
        encode(&represent, set, (&self.config.machine, self.device), what, runtime, voice)
    }
}

/// A model with the weights of a checkpoint, or initial ones.
fn weights(config: &Config, checkpoint: Option<&Path>, seed: u64, device: tch::Device) -> anyhow::Result<SimClr> {
    let model = SimClr::new(&config.model, seed, device, precision(&config.machine))?;
    if let Some(path) = checkpoint {
        checkpoint::load(path, &model.parameters, None)?;
    }
    Ok(model)
}

/// The run folder, and the checkpoint with its step; none for the initial weights.
type Found = (RunFolder, Option<(PathBuf, u64)>);

/// Finds the checkpoint that is asked for.
///
/// # Errors
/// If there is none.
pub fn find(args: &CheckpointArgs, untrained: bool) -> anyhow::Result<Found> {
    let (folder, named) = match (&args.run, &args.checkpoint) {
        (Some(run), _) => (RunFolder::open(run)?, None),
        (None, Some(path)) => {
            let path = std::path::absolute(path)?;
            let run = path.parent().and_then(Path::parent).map(Path::to_owned);
            let run = run.ok_or_else(|| WrongInput(format!("{}: is in no run folder", path.display())))?;
            (RunFolder::open(&run)?, Some(path))
        }
        (None, None) => unreachable!("clap asks for one of them"),
    };
    if untrained {
        return Ok((folder, None));
    }
    if let Some(path) = named {
        let state = checkpoint::read_state(&path)?;
        return Ok((folder, Some((path, state.step))));
    }
    let (newest, broken) = folder.checkpoints().newest();
    for error in broken {
        tracing::warn!("not taken: {error}");
    }
    match newest {
        Some((path, state)) => Ok((folder, Some((path, state.step)))),
        None => Err(WrongInput(format!(
            "{}: holds no whole checkpoint; --untrained evaluates the initial weights",
            folder.path().display()
        ))
        .into()),
    }
}

/// Whether images must have labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// Each must have one.
    Wanted,
    /// They need not.
    IfThere,
}

/// What `represent` makes of all images of a sequential stream of one view.
///
/// # Errors
/// If the images can't be read.
pub fn encode(
    represent: &dyn Fn(&Tensor) -> Tensor,
    (set, labels): (StreamConfig, Labels),
    (machine, device): (&MachineConfig, tch::Device),
    what: &'static str,
    runtime: &tokio::runtime::Handle,
    voice: Voice,
) -> anyhow::Result<Features> {
    let (mut loader, total) = open(set, labels, (machine, device), None, runtime)?;
    let mut done = 0;
    let progress = Progress::new(what, 0, total, voice.quiet);
    let found = features(represent, &mut loader, device, &mut |images| {
        done += images as u64;
        progress.set(done, total, || "images encoded".into());
    })?;
    progress.finish();
    Ok(found)
}

/// A stream for the device, and how many images it is made from; it ends after `batches` batches, if that is given.
///
/// # Errors
/// If it can't be opened, or lacks labels that are wanted.
pub fn open(
    set: StreamConfig,
    labels: Labels,
    (machine, device): (&MachineConfig, tch::Device),
    batches: Option<u64>,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<(Loader<DeviceSlab>, u64)> {
    let manifest = set.data.manifest.display().to_string();
    let source = stream::open(set, machine)?;
    if labels == Labels::Wanted && !source.store.manifest().is_labelled() {
        return Err(WrongInput(format!(
            "{manifest}: lists samples without labels; evaluations need a .cls for every sample"
        ))
        .into());
    }
    let threads = if machine.threads == 0 { stream::cores() } else { machine.threads };
    let options = LoaderOptions { threads, from_batch: 0, to_batch: batches, share: Share::ALL };
    let slabs = DeviceSlab::allocate(machine.batches_ahead + 1, slab_bytes(&source.plan, Share::ALL), device)?;
    Ok((stream::start(&source, slabs, options, runtime)?, source.plan.num_samples()))
}
