//! A run: the folder with what was asked for and what happened, its checkpoints, and where its time went.

pub mod model;
pub mod stall;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use simclr_ground::batch_stream::StreamSummary;
use simclr_ground::error::{Context, Error, Result};
use simclr_ground::files::write_whole;

use crate::checkpoint::Checkpoints;
use crate::step::StepReport;

/// libtorch's version: tch builds against this one only.
pub const LIBTORCH: &str = "2.11.0";

/// `run.json`: enough to run it again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRecord<C> {
    /// The resolved configuration.
    pub config: C,
    /// The digest of the manifest.
    pub manifest_digest: String,
    /// The digest of the plan: equal for runs that see the same batches.
    pub plan_digest: String,
    /// Versions of what computed it.
    pub versions: Versions,
    /// Where its first weights come from, if not from the seed. Before it is trained such a run has no plan: the digests
    /// are empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Imported>,
}

/// A file of weights that a run began with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Imported {
    /// The file.
    pub file: PathBuf,
    /// Its BLAKE3, in hex.
    pub digest: String,
    /// Whose names its tensors had.
    pub names: String,
}

/// Versions of what computed a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// This program's.
    pub simclr_pipeline: String,
    /// libtorch's: tch builds against this one only.
    pub libtorch: String,
    /// The stream format's.
    pub stream: u32,
}

impl Versions {
    /// Those of this build, whose streams are of this version.
    pub fn current(stream: u32) -> Self {
        Self { simclr_pipeline: env!("CARGO_PKG_VERSION").into(), libtorch: LIBTORCH.into(), stream }
    }
}

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MetricsLine {
    /// Steps taken, this one included.
    pub step: u64,
    /// Epochs seen.
    pub epoch: f64,
    /// The global batch.
    pub batch: u64,
    /// The loss before the step.
    pub loss: f64,
    /// Share of images whose second view was found.
    pub contrastive_accuracy: f64,
    /// Entropy of that search, in nats.
    pub contrastive_entropy: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Norm of all gradients together.
    pub gradient_norm: f64,
    /// Spread of the normalised projections.
    pub embedding_std: f64,
    /// Share of views that the probe recognises, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_accuracy: Option<f64>,
    /// Images of all ranks a second, waits included.
    pub images_per_second: f64,
    /// Time of the step without the wait for its batch.
    pub step_seconds: f64,
    /// Time waited for the batch.
    pub data_wait_seconds: f64,
    /// What the wait for data was for, in seconds by cause; only what is not zero.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub waited_for: BTreeMap<String, f64>,
}

impl MetricsLine {
    /// The line for a step.
    pub fn new(report: &StepReport, batches_per_epoch: u64) -> Self {
        let seconds = report.step_time.as_secs_f64() + report.data_wait.as_secs_f64();
        let seen = (report.position.batch + 1) as f64;
        Self {
            step: report.step,
            epoch: seen / batches_per_epoch as f64,
            batch: report.position.batch,
            loss: report.loss,
            contrastive_accuracy: report.contrastive_accuracy,
            contrastive_entropy: report.contrastive_entropy,
            learning_rate: report.learning_rate,
            gradient_norm: report.gradient_norm,
            embedding_std: report.embedding_std,
            probe_accuracy: report.probe_accuracy,
            images_per_second: report.images as f64 / seconds,
            step_seconds: report.step_time.as_secs_f64(),
            data_wait_seconds: report.data_wait.as_secs_f64(),
            waited_for: (report.waited.causes().into_iter())
                .filter(|(_, seconds)| *seconds > 0.0)
                .map(|(cause, seconds)| (cause.to_owned(), seconds))
                .collect(),
        }
    }
}

impl MetricsLine {
    /// The line's values, by their names among TensorBoard's scalars.
    pub fn scalars(&self) -> Vec<(&'static str, f64)> {
        let seconds = self.step_seconds + self.data_wait_seconds;
        let always = [
            ("train/loss", self.loss),
            ("train/contrastive_accuracy", self.contrastive_accuracy),
            ("train/contrastive_entropy", self.contrastive_entropy),
            ("train/learning_rate", self.learning_rate),
            ("train/gradient_norm", self.gradient_norm),
            ("train/embedding_std", self.embedding_std),
            ("train/epoch", self.epoch),
            ("speed/images_per_second", self.images_per_second),
            ("speed/data_wait_share", self.data_wait_seconds / seconds),
        ];
        always.into_iter().chain(self.probe_accuracy.map(|accuracy| ("train/probe_accuracy", accuracy))).collect()
    }
}

/// A run's folder.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// The folder at `path`, whether or not a run is in it.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The folder at `path`, which must hold a run.
    ///
    /// # Errors
    /// If it holds none.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = Self::at(path);
        if folder.holds_run() {
            return Ok(folder);
        }
        Err(Error::input(format!("{}: holds no run (no run.json); `train --run` makes one", path.display())))
    }

    /// Whether there is a `run.json`.
    pub fn holds_run(&self) -> bool {
        self.join("run.json").is_file()
    }

    /// A file in the folder.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run's checkpoints.
    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::new(self.join("checkpoints"))
    }

    /// The list of damaged samples that a rank meets, in the folder.
    pub fn ledger(&self, rank: u32) -> PathBuf {
        match rank {
            0 => self.join("quarantine.jsonl"),
            _ => self.join(&format!("quarantine.rank-{rank}.jsonl")),
        }
    }

    /// Creates the folder and holds it for this process until the lock is dropped.
    ///
    /// # Errors
    /// If the folder can't be created or another process trains in it.
    pub fn lock(&self) -> Result<File> {
        std::fs::create_dir_all(&self.path)
            .map_err(|error| Error::input(format!("{}: cannot create the run folder: {error}", self.path.display())))?;
        let path = self.join(".lock");
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => {
                Err(Error::input(format!("{}: another process is training in it", self.path.display())))
            }
            Err(std::fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }

    /// Writes `run.json` for a run on this stream.
    ///
    /// # Errors
    /// If the folder can't be written.
    pub fn start<C: Serialize>(&self, config: &C, stream: &StreamSummary, versions: Versions) -> Result<()> {
        // What an imported run began with is kept, whatever configuration it has now.
        let imported = if self.holds_run() { self.record::<serde_json::Value>()?.imported } else { None };
        // There from the start, so that nobody wonders; empty for sound data.
        let ledger = File::options().create(true).append(true).open(self.ledger(0));
        ledger.with_context(|| format!("cannot write {}", self.ledger(0).display()))?;
        let (manifest_digest, plan_digest) = (stream.manifest_digest.clone(), stream.plan_digest.clone());
        self.write_record(&RunRecord { config, manifest_digest, plan_digest, versions, imported })
    }

    /// Writes the `run.json` of a run whose weights were imported and that has no plan yet.
    ///
    /// # Errors
    /// If the folder can't be written.
    pub fn start_imported<C: Serialize>(&self, config: &C, versions: Versions, imported: Imported) -> Result<()> {
        let (manifest_digest, plan_digest) = (String::new(), String::new());
        self.write_record(&RunRecord { config, manifest_digest, plan_digest, versions, imported: Some(imported) })
    }

    fn write_record<C: Serialize>(&self, record: &RunRecord<C>) -> Result<()> {
        let text = serde_json::to_vec_pretty(record).expect("a record is plain data");
        write_whole(&self.join("run.json"), &text)
            .with_context(|| format!("cannot write {}", self.join("run.json").display()))
    }

    /// Reads `run.json`.
    ///
    /// # Errors
    /// If it can't be read or is not what this build writes.
    pub fn record<C: DeserializeOwned>(&self) -> Result<RunRecord<C>> {
        let path = self.join("run.json");
        let text = std::fs::read(&path)
            .map_err(|error| Error::input(format!("{}: cannot read it: {error}", path.display())))?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::input(format!("{}: not a run's record: {error}", path.display())))
    }

    /// `metrics.jsonl`, open for the lines after `step`; what was written beyond it is taken back.
    ///
    /// # Errors
    /// If the file can't be read or written.
    pub fn metrics_after(&self, step: u64) -> Result<File> {
        let path = self.join("metrics.jsonl");
        let lines = self.metrics_text()?;
        let kept =
            lines.iter().filter(|(line, _)| line.step <= step).fold(String::new(), |all, (_, text)| all + text + "\n");
        write_whole(&path, kept.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
        File::options().append(true).open(&path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The lines of `metrics.jsonl`; a last one that a kill cut short is left out.
    ///
    /// # Errors
    /// If the file is there and can't be read.
    pub fn metrics(&self) -> Result<Vec<MetricsLine>> {
        Ok(self.metrics_text()?.into_iter().map(|(line, _)| line).collect())
    }

    fn metrics_text(&self) -> Result<Vec<(MetricsLine, String)>> {
        let path = self.join("metrics.jsonl");
        if !path.is_file() {
            return Ok(Vec::new());
        }
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut lines = Vec::new();
        for text in BufReader::new(file).lines() {
            let text = text.with_context(|| format!("cannot read {}", path.display()))?;
            if let Ok(line) = serde_json::from_str(&text) {
                lines.push((line, text));
            }
        }
        Ok(lines)
    }

    /// Adds a result to `evaluations.jsonl`.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn add_evaluation(&self, result: &serde_json::Value) -> Result<()> {
        let path = self.join("evaluations.jsonl");
        let file = File::options().create(true).append(true).open(&path);
        file.and_then(|mut file| writeln!(file, "{result}")).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The results in `evaluations.jsonl`.
    pub fn evaluations(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.join("evaluations.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}
