//! Damaged samples: why, where, how many, and when it is too many.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use simclr_ground::error::{Classify, ErrorClass};
use simclr_ground::files::write_whole;

use crate::metrics::PipelineMetrics;

/// A line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct QuarantineEntry {
    /// The sample's id: its place in the manifest.
    pub sample: u64,
    /// The shard's location.
    pub shard: String,
    /// The entry in the shard.
    pub entry: String,
    /// Where the entry's bytes begin in the tar stream.
    pub offset: u64,
    /// The reason, of the fixed vocabulary.
    pub reason: String,
    /// What was found.
    pub detail: String,
}

/// The run stops: more samples are damaged than it was told to bear.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("too many damaged samples: {damaged} > {allowed} (data.max_damaged); last: {} in {} (byte {}): {}: {}",
    last.entry, last.shard, last.offset, last.reason, last.detail)]
pub struct BudgetSpent {
    /// How many distinct samples are damaged so far.
    pub damaged: u64,
    /// How many the budget allows.
    pub allowed: u64,
    /// The one that was too many.
    pub last: Box<QuarantineEntry>,
}

impl Classify for BudgetSpent {
    fn class(&self) -> ErrorClass {
        ErrorClass::Runtime
    }
}

/// The damaged samples met so far.
pub struct Quarantine {
    allowed: u64,
    metrics: PipelineMetrics,
    state: Mutex<State>,
}

struct State {
    known: BTreeMap<u64, QuarantineEntry>,
    ledger: Option<Ledger>,
}

/// The file that damaged samples are written to, a line of JSON each. It is not touched before the first of them is met:
/// until then the folder may be another process's.
struct Ledger {
    path: PathBuf,
    file: Option<File>,
}

impl Ledger {
    /// The entries that the file at `path` holds; a line that a kill cut short is left out, its sample will be met again.
    fn read(path: &Path) -> std::io::Result<Vec<QuarantineEntry>> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Adds an entry to those in the file.
    fn append(&mut self, entry: &QuarantineEntry) -> std::io::Result<()> {
        let line = |entry: &QuarantineEntry| serde_json::to_string(entry).expect("an entry is plain data") + "\n";
        if self.file.is_none() {
            // Of a rank on another machine, the folder may not be there yet.
            std::fs::create_dir_all(self.path.parent().unwrap_or(Path::new(".")))?;
            let whole: String = Self::read(&self.path)?.iter().map(line).collect();
            write_whole(&self.path, whole.as_bytes())?;
            self.file = Some(File::options().append(true).open(&self.path)?);
        }
        self.file.as_mut().expect("opened above").write_all(line(entry).as_bytes())
    }
}

impl Quarantine {
    /// An empty quarantine that bears `allowed` damaged samples and keeps no ledger.
    pub fn new(allowed: u64, metrics: PipelineMetrics) -> Self {
        Self { allowed, metrics, state: Mutex::new(State { known: BTreeMap::new(), ledger: None }) }
    }

    /// A quarantine that writes each damaged sample to the file at `ledger` as a line of JSON, and begins with those
    /// that are there already.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn with_ledger(allowed: u64, ledger: &Path, metrics: PipelineMetrics) -> std::io::Result<Self> {
        let known = Ledger::read(ledger)?.into_iter().map(|entry| (entry.sample, entry)).collect();
        let ledger = Some(Ledger { path: ledger.to_owned(), file: None });
        Ok(Self { allowed, metrics, state: Mutex::new(State { known, ledger }) })
    }

    /// Whether the budget is kept.
    ///
    /// # Errors
    /// If more samples are damaged than it allows.
    pub fn check_budget(&self) -> Result<(), BudgetSpent> {
        let state = self.lock();
        let damaged = state.known.len() as u64;
        match state.known.values().next_back() {
            Some(last) if damaged > self.allowed => {
                Err(BudgetSpent { damaged, allowed: self.allowed, last: Box::new(last.clone()) })
            }
            _ => Ok(()),
        }
    }

    /// Whether the sample with this id is known to be damaged.
    pub fn holds(&self, sample: u64) -> bool {
        self.lock().known.contains_key(&sample)
    }

    /// What is known of the damaged sample with this id.
    pub fn entry(&self, sample: u64) -> Option<QuarantineEntry> {
        self.lock().known.get(&sample).cloned()
    }

    /// Puts a sample into quarantine; one that is there already changes nothing.
    ///
    /// # Errors
    /// If that makes more damaged samples than the budget allows.
    pub fn record(&self, entry: QuarantineEntry) -> Result<(), BudgetSpent> {
        let mut state = self.lock();
        if state.known.insert(entry.sample, entry.clone()).is_some() {
            return Ok(());
        }
        self.metrics.add_quarantined(&entry.reason);
        if let Some(ledger) = &mut state.ledger {
            // A full disk must not hide the damage itself: the entry stays known and counted.
            let _ = ledger.append(&entry);
        }
        let damaged = state.known.len() as u64;
        if damaged > self.allowed {
            Err(BudgetSpent { damaged, allowed: self.allowed, last: Box::new(entry) })
        } else {
            Ok(())
        }
    }

    /// All damaged samples met so far, by id.
    pub fn entries(&self) -> Vec<QuarantineEntry> {
        self.lock().known.values().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the quarantine is held")
    }
}
