//! Checkpoints: everything that a killed run needs to go on as if it had not been killed.
//!
//! `checkpoints/step-NNNNNNNN/{model,optimizer}.safetensors` and `state.json`, written aside, synced and renamed, so
//! that a folder of that name is whole. `state.json` holds the digests of the two files beside it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use simclr_ground::batch_stream::StreamSummary;
use simclr_ground::files::{digest, sync_folder, write_whole};
use tch::Tensor;

use crate::error::TrainError;
use crate::model::parameters::Parameters;
use crate::model::probe::PREFIX;
use crate::optimizer::Optimizer;

/// The version of the checkpoint format that this build reads and writes.
const VERSION: u32 = 1;
const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

/// What a checkpoint says beside its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Always 1 in this build.
    pub version: u32,
    /// Steps taken.
    pub step: u64,
    /// The global batch that comes next.
    pub next_batch: u64,
    /// The digest of the plan that the batches came from; empty for imported weights.
    pub plan_digest: String,
    /// The digest of the manifest that they came from.
    pub manifest_digest: String,
    /// BLAKE3 of each file of tensors, in hex.
    pub files: std::collections::BTreeMap<String, String>,
}

/// A run's checkpoints, in one folder.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
}

impl Checkpoints {
    /// The checkpoints in `folder`, which need not exist yet.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// All checkpoints by name, the oldest first. Whether they are whole is not looked at.
    pub fn list(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_checkpoint = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("step-"));
            name.is_some_and(|step| !step.is_empty() && step.bytes().all(|b| b.is_ascii_digit()))
        };
        let mut paths: Vec<PathBuf> = entries.filter(is_checkpoint).collect();
        paths.sort_by_key(|path| step_of(path));
        paths
    }

    /// Writes a checkpoint, then removes all but the newest `keep`.
    ///
    /// # Errors
    /// If the disk is full or fails; the checkpoints that were there stay.
    pub fn save(
        &self,
        state: &State,
        parameters: &Parameters,
        optimizer: &Optimizer,
        keep: usize,
    ) -> Result<PathBuf, TrainError> {
        let name = format!("step-{:08}", state.step);
        let target = self.folder.join(&name);
        let io = |error: std::io::Error| TrainError::CheckpointWrite { path: target.clone(), why: error.to_string() };
        std::fs::create_dir_all(&self.folder).map_err(io)?;
        let aside = self.folder.join(format!(".writing-{name}"));
        let _ = std::fs::remove_dir_all(&aside);
        std::fs::create_dir(&aside).map_err(io)?;
        let model: Vec<(&str, Tensor)> =
            parameters.entries().iter().map(|p| (p.name.as_str(), plain(&p.tensor))).collect();
        let remembered = optimizer.state();
        let momenta: Vec<(&str, Tensor)> = remembered.iter().map(|(name, x)| (name.as_str(), plain(x))).collect();
        let mut state = state.clone();
        for (file, tensors) in [(MODEL, model), (OPTIMIZER, momenta)] {
            let path = aside.join(file);
            Tensor::write_safetensors(&tensors, &path).map_err(|e| io(std::io::Error::other(e)))?;
            let bytes = std::fs::read(&path).map_err(io)?;
            std::fs::File::open(&path).and_then(|file| file.sync_all()).map_err(io)?;
            state.files.insert(file.into(), digest(&bytes));
        }
        let text = serde_json::to_vec_pretty(&state).expect("a state is plain data");
        write_whole(&aside.join("state.json"), &text).map_err(io)?;
        if is_ours(&target) {
            let _ = std::fs::remove_dir_all(&target);
        }
        // What is no checkpoint keeps its place: a folder that is not empty is not replaced.
        std::fs::rename(&aside, &target).map_err(io)?;
        sync_folder(&self.folder).map_err(io)?;
        // One of a later step can only be broken, else it had been gone on from; it counts for nothing here.
        let mut all = self.list();
        all.retain(|path| step_of(path) <= state.step && is_ours(path));
        for old in &all[..all.len().saturating_sub(keep.max(1))] {
            let _ = std::fs::remove_dir_all(old);
        }
        Ok(target)
    }

    /// The newest checkpoint that is whole, with what is wrong with newer ones; `None` if there is none.
    pub fn newest(&self) -> (Option<(PathBuf, State)>, Vec<TrainError>) {
        let mut broken = Vec::new();
        for path in self.list().into_iter().rev() {
            match read_state(&path) {
                Ok(state) => return (Some((path, state)), broken),
                Err(error) => broken.push(error),
            }
        }
        (None, broken)
    }
}

/// Whether a folder was written as a checkpoint: its name has exactly the form that theirs have, and it says its state. Others
/// are somebody's.
fn is_ours(path: &Path) -> bool {
    let is_folder = std::fs::symlink_metadata(path).is_ok_and(|known| known.is_dir());
    is_folder && path.ends_with(format!("step-{:08}", step_of(path))) && path.join("state.json").is_file()
}

/// The step that a checkpoint's name says.
fn step_of(path: &Path) -> u64 {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("step-"));
    name.and_then(|step| step.parse().ok()).unwrap_or(u64::MAX)
}

/// Reads `state.json` of the checkpoint at `path` and checks its files against it.
///
/// # Errors
/// If a file is missing or is not the one that was written.
pub fn read_state(path: &Path) -> Result<State, TrainError> {
    let error = |what: String| TrainError::Checkpoint { path: path.to_owned(), what };
    let text = std::fs::read(path.join("state.json")).map_err(|e| error(format!("cannot read state.json: {e}")))?;
    let state: State = serde_json::from_slice(&text).map_err(|e| error(format!("state.json is malformed: {e}")))?;
    if state.version != VERSION {
        return Err(error(format!("version is {}, but this build reads version {VERSION}", state.version)));
    }
    for file in [MODEL, OPTIMIZER] {
        let bytes = std::fs::read(path.join(file)).map_err(|e| error(format!("cannot read {file}: {e}")))?;
        let (found, expected) = (digest(&bytes), state.files.get(file));
        if Some(&found) != expected {
            let expected = expected.map_or("none", String::as_str);
            return Err(error(format!("{file} has BLAKE3 {found}, expected {expected}")));
        }
    }
    Ok(state)
}

/// The state of a checkpoint about to be written.
pub fn state(step: u64, next_batch: u64, stream: &StreamSummary) -> State {
    let (plan_digest, manifest_digest) = (stream.plan_digest.clone(), stream.manifest_digest.clone());
    State { version: VERSION, step, next_batch, plan_digest, manifest_digest, files: Default::default() }
}

/// The state of weights that were trained elsewhere: no step was taken, and no plan decided.
pub fn imported() -> State {
    let none = String::new();
    State {
        version: VERSION,
        step: 0,
        next_batch: 0,
        plan_digest: none.clone(),
        manifest_digest: none,
        files: Default::default(),
    }
}

/// Copies a checkpoint's weights, and if `optimizer` is given its momenta, into a model of the same shape.
///
/// # Errors
/// If the checkpoint is of another model: the message names the tensor.
pub fn load(path: &Path, parameters: &Parameters, optimizer: Option<&Optimizer>) -> Result<(), TrainError> {
    let model: Vec<(&str, &Tensor)> = parameters.entries().iter().map(|p| (p.name.as_str(), &p.tensor)).collect();
    copy(&path.join(MODEL), &model)?;
    if let Some(optimizer) = optimizer {
        let remembered = optimizer.state();
        let momenta: Vec<(&str, &Tensor)> = remembered.iter().map(|(name, x)| (name.as_str(), *x)).collect();
        copy(&path.join(OPTIMIZER), &momenta)?;
    }
    Ok(())
}

fn copy(path: &Path, targets: &[(&str, &Tensor)]) -> Result<(), TrainError> {
    let error = |what: String| TrainError::Checkpoint { path: path.to_owned(), what };
    let read = Tensor::read_safetensors(path).map_err(|e| error(format!("cannot read: {e}")))?;
    let found: std::collections::BTreeMap<String, Tensor> = read.into_iter().collect();
    // A probe is beside the model, not of it: one that is not there is not missed, and one that is, is not in the way.
    let is_known = |name: &str| name.starts_with(PREFIX) || targets.iter().any(|(target, _)| *target == name);
    if let Some(name) = found.keys().find(|name| !is_known(name)) {
        return Err(error(format!("unexpected tensor {name}")));
    }
    for (name, target) in targets {
        let Some(source) = found.get(*name) else {
            if name.starts_with(PREFIX) {
                continue;
            }
            return Err(error(format!("tensor {name} is missing")));
        };
        if source.size() != target.size() {
            return Err(error(format!("{name} has shape {:?}, expected {:?}", source.size(), target.size())));
        }
        tch::no_grad(|| (*target).shallow_clone().copy_(source));
    }
    Ok(())
}

/// The tensor as it is written: on the CPU, without gradient, in the usual order.
fn plain(tensor: &Tensor) -> Tensor {
    tensor.detach().to_device(tch::Device::Cpu).contiguous()
}
