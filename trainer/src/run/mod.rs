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
use simclr_ground::files::{end_line, write_whole};

use crate::checkpoint::Checkpoints;
use crate::step::StepReport;
use crate::step_metrics::StepValues;

/// libtorch's version: tch builds against this one only.
pub const LIBTORCH: &str = "2.11.0";

/// The form of the configuration that this build writes. In form 1 the tables of losses and optimizers had the keys of all
/// kinds; since 2 they have those of their own kind alone.
pub const CONFIG_SCHEMA: u32 = 2;

/// `run.json`: enough to run it again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRecord<C> {
    /// The form that the configuration is written in; 1 in the records of version 0.1.0, which do not say.
    #[serde(default = "first_schema")]
    pub schema_version: u32,
    /// The resolved configuration.
    pub config: C,
    /// The digest of the manifest.
    pub manifest_digest: String,
    /// The digest of how the data set was stored when the run began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derived_digest: Option<String>,
    /// The digest of the plan: equal for runs that see the same batches.
    pub plan_digest: String,
    /// Versions of what computed it.
    pub versions: Versions,
    /// Where its first weights come from, if not from the seed. Before it is trained such a run has no plan: the digests
    /// are empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Imported>,
}

fn first_schema() -> u32 {
    1
}

impl<C> RunRecord<C> {
    /// The same record with another form of its configuration.
    pub fn with_config<D>(self, config: D) -> RunRecord<D> {
        let Self { schema_version, manifest_digest, derived_digest, plan_digest, versions, imported, .. } = self;
        RunRecord { schema_version, config, manifest_digest, derived_digest, plan_digest, versions, imported }
    }
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
    /// How many layers of the projection head came with them, or were trained since; the others are random. None in the
    /// records of version 0.1.0, which did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_layers: Option<usize>,
}

/// Whose names the weights have that `eval finetune --save` kept.
pub const FINE_TUNED: &str = "simclr-pipeline, fine-tuned";

impl Imported {
    /// How many layers of a head of `all` layers are known not to be random.
    pub fn learned_head_layers(&self, all: usize) -> usize {
        self.head_layers.unwrap_or(if self.names == FINE_TUNED { all } else { 0 })
    }
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
    /// The global batch.
    pub batch: u64,
    /// What the step logged.
    #[serde(flatten)]
    pub values: StepValues,
    /// What the wait for data was for, in seconds by cause; only what is not zero.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub waited_for: BTreeMap<String, f64>,
}

impl MetricsLine {
    /// The line for a step.
    pub fn new(report: &StepReport) -> Self {
        let waited = report.waited.causes().into_iter().filter(|(_, seconds)| *seconds > 0.0);
        Self {
            step: report.step,
            batch: report.position.batch,
            values: report.values,
            waited_for: waited.map(|(cause, seconds)| (cause.to_owned(), seconds)).collect(),
        }
    }

    /// The line's values, by their tags in TensorBoard.
    pub fn scalars(&self) -> Vec<(&'static str, f64)> {
        self.values.known().map(|(metric, value)| (metric.tag, value)).collect()
    }
}

/// What a run writes into its folder beside `run.json`, and what it holds counts.
const OWN: [&str; 6] =
    ["checkpoints", "metrics.jsonl", "evaluations.jsonl", "quarantine.jsonl", "manifest.json", "embedding.parquet"];

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
        Err(Error::input(format!(
            "{}: not a run directory (run.json not found); create one with `train`",
            path.display()
        )))
    }

    /// Whether there is a `run.json`.
    pub fn holds_run(&self) -> bool {
        self.join("run.json").is_file()
    }

    /// Whether a new run may begin here: what a run would write is not there yet.
    ///
    /// # Errors
    /// If a run is here, or something that a run would take for its own.
    pub fn check_new(&self) -> Result<()> {
        let path = self.path.display();
        if self.holds_run() {
            return Err(Error::input(format!("{path}: already contains a run; choose another directory")));
        }
        let has_content = |name: &&&str| {
            let place = self.join(name);
            let is_filled_folder = std::fs::read_dir(&place).is_ok_and(|mut entries| entries.next().is_some());
            is_filled_folder || std::fs::metadata(&place).is_ok_and(|known| known.is_file() && known.len() > 0)
        };
        match OWN.iter().find(has_content) {
            None => Ok(()),
            Some(name) => Err(Error::input(format!(
                "{path}: contains {name} but no run.json, so it is not a run to continue, and a new one would replace \
                 {name}; choose another directory, or move {name} away"
            ))),
        }
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
        std::fs::create_dir_all(&self.path).map_err(|error| {
            Error::input(format!("{}: cannot create the run directory: {error}", self.path.display()))
        })?;
        let path = self.join(".lock");
        // What is there under this name, or where a link of this name leads, stays as it is.
        let file = File::options().create(true).write(true).truncate(false).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => {
                Err(Error::input(format!("{}: run directory is locked by another process", self.path.display())))
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
        let derived_digest = stream.derived_digest.clone();
        let schema_version = CONFIG_SCHEMA;
        self.write_record(&RunRecord {
            schema_version,
            config,
            manifest_digest,
            derived_digest,
            plan_digest,
            versions,
            imported,
        })
    }

    /// Writes the `run.json` of a run whose weights were imported and that has no plan yet.
    ///
    /// # Errors
    /// If the folder can't be written.
    pub fn start_imported<C: Serialize>(&self, config: &C, versions: Versions, imported: Imported) -> Result<()> {
        let (manifest_digest, plan_digest) = (String::new(), String::new());
        self.write_record(&RunRecord {
            schema_version: CONFIG_SCHEMA,
            config,
            manifest_digest,
            derived_digest: None,
            plan_digest,
            versions,
            imported: Some(imported),
        })
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
        let text =
            std::fs::read(&path).map_err(|error| Error::input(format!("cannot read {}: {error}", path.display())))?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::input(format!("{}: not a run record: {error}", path.display())))
    }

    /// `metrics.jsonl`, open for the lines after `step`; what was written beyond it is taken back.
    ///
    /// # Errors
    /// If the file can't be read or written.
    pub fn metrics_after(&self, step: u64) -> Result<File> {
        let path = self.join("metrics.jsonl");
        let lines = self.metrics_text()?;
        let stays = |line: &Option<MetricsLine>| line.as_ref().is_none_or(|line| line.step <= step);
        let kept = lines.iter().filter(|(line, _)| stays(line)).fold(String::new(), |all, (_, text)| all + text + "\n");
        write_whole(&path, kept.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
        File::options().append(true).open(&path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The steps in `metrics.jsonl`.
    ///
    /// # Errors
    /// If the file is there and can't be read.
    pub fn metrics(&self) -> Result<Vec<MetricsLine>> {
        Ok(self.metrics_text()?.into_iter().filter_map(|(line, _)| line).collect())
    }

    /// All lines, of which some may be somebody else's; a last one that a kill cut short is left out.
    fn metrics_text(&self) -> Result<Vec<(Option<MetricsLine>, String)>> {
        let path = self.join("metrics.jsonl");
        if !path.is_file() {
            return Ok(Vec::new());
        }
        let mut file = BufReader::new(File::open(&path).with_context(|| format!("cannot read {}", path.display()))?);
        let (mut lines, mut text) = (Vec::new(), String::new());
        while file.read_line(&mut text).with_context(|| format!("cannot read {}", path.display()))? > 0 {
            let line: Option<MetricsLine> = serde_json::from_str(&text).ok();
            if line.is_some() || text.ends_with('\n') {
                lines.push((line, text.trim_end_matches('\n').to_owned()));
            }
            text.clear();
        }
        Ok(lines)
    }

    /// Adds a result to `evaluations.jsonl`.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn add_evaluation(&self, result: &serde_json::Value) -> Result<()> {
        let path = self.join("evaluations.jsonl");
        let file = File::options().create(true).append(true).read(true).open(&path);
        file.and_then(|mut file| end_line(&mut file).and_then(|()| writeln!(file, "{result}")))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The results in `evaluations.jsonl`; what else is there is passed over.
    pub fn evaluations(&self) -> Vec<serde_json::Value> {
        let path = self.join("evaluations.jsonl");
        let bytes = if path.is_file() { std::fs::read(&path).unwrap_or_default() } else { Vec::new() };
        bytes.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }
}
