//! The trained model of a run: which checkpoint is meant, and its weights, ready to encode.

use std::path::{Path, PathBuf};

use simclr_ground::error::{Error, Result};
use tch::{Device, Tensor};

use super::RunFolder;
use crate::checkpoint;
use crate::device::Precision;
use crate::model::{ModelConfig, SimClr};

/// A checkpoint that was asked for.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// Its folder.
    pub path: PathBuf,
    /// Steps taken.
    pub step: u64,
}

/// Finds the run folder and the checkpoint that are meant: `checkpoint`, or the newest one of `run`; none for the initial
/// weights.
///
/// # Errors
/// If there is none.
///
/// # Panics
/// If neither is named.
pub fn find(run: Option<&Path>, checkpoint: Option<&Path>, untrained: bool) -> Result<(RunFolder, Option<Chosen>)> {
    let (folder, named) = match (run, checkpoint) {
        (Some(run), _) => (RunFolder::open(run)?, None),
        (None, Some(path)) => {
            let path = std::path::absolute(path)?;
            let run = path.parent().and_then(Path::parent).map(Path::to_owned);
            let run = run.ok_or_else(|| Error::input(format!("{}: not inside a run directory", path.display())))?;
            (RunFolder::open(&run)?, Some(path))
        }
        (None, None) => panic!("expected a run or a checkpoint"),
    };
    if untrained {
        return Ok((folder, None));
    }
    if let Some(path) = named {
        let state = checkpoint::read_state(&path)?;
        return Ok((folder, Some(Chosen { path, step: state.step })));
    }
    let (newest, broken) = folder.checkpoints().newest();
    for error in broken {
        tracing::warn!("skipping corrupt checkpoint: {error}");
    }
    match newest {
        Some((path, state)) => Ok((folder, Some(Chosen { path, step: state.step }))),
        None => Err(Error::input(format!(
            "{}: no valid checkpoint; pass --untrained to evaluate the initial weights",
            folder.path().display()
        ))),
    }
}

/// A run's model, ready to encode.
pub struct Loaded {
    /// The checkpoint; none for the initial weights.
    pub chosen: Option<Chosen>,
    /// BLAKE3 of the checkpoint's weights, in hex; none for the initial ones.
    pub digest: Option<String>,
    /// The run's seed.
    pub seed: u64,
    /// Where it computes.
    pub device: Device,
    /// Layers of the head that belong to the representation.
    pub layers: usize,
    config: ModelConfig,
    precision: Precision,
    model: SimClr,
}

impl Loaded {
    /// The model of this shape with the weights of `chosen`, or initial ones; its representations are what the first
    /// `layers` layers of the head make.
    ///
    /// # Errors
    /// If the checkpoint can't be read, or the head has not so many layers.
    pub fn new(
        config: &ModelConfig,
        chosen: Option<Chosen>,
        layers: usize,
        seed: u64,
        (device, precision): (Device, Precision),
    ) -> Result<Self> {
        let model = weights(config, chosen.as_ref(), seed, (device, precision))?;
        let digest = match &chosen {
            Some(chosen) => checkpoint::read_state(&chosen.path)?.files.remove("model.safetensors"),
            None => None,
        };
        let there = model.head.num_layers();
        if layers > there {
            return Err(Error::input(format!(
                "--head-layer {layers}: the run's projection head has {there} layers (0 = encoder output h)"
            )));
        }
        Ok(Self { chosen, digest, seed, device, layers, config: config.clone(), precision, model })
    }

    /// Steps that it was trained for.
    pub fn step(&self) -> u64 {
        self.chosen.as_ref().map_or(0, |chosen| chosen.step)
    }

    /// The same model once more, to be trained; initial weights are drawn from `seed`.
    ///
    /// # Errors
    /// If the checkpoint is gone.
    pub fn again(&self, seed: u64) -> Result<SimClr> {
        weights(&self.config, self.chosen.as_ref(), seed, (self.device, self.precision))
    }

    /// Representations of views, `[n, dim]` f32, on the model's device.
    pub fn represent(&self, views: &Tensor) -> Tensor {
        self.model.represent(views, self.layers)
    }
}

/// A model with the weights of a checkpoint, or initial ones.
fn weights(
    config: &ModelConfig,
    chosen: Option<&Chosen>,
    seed: u64,
    (device, precision): (Device, Precision),
) -> Result<SimClr> {
    let model = SimClr::new(config, seed, device, precision)?;
    if let Some(chosen) = chosen {
        checkpoint::load(&chosen.path, &model.parameters, None)?;
    }
    Ok(model)
}
