//! Damaged samples: why, where, how many, and when it is too many.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;

use crate::files::write_whole;
use crate::metrics::PipelineMetrics;

/// Why a sample can't be used. A small fixed vocabulary, used as a metric's label; `detail` is for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Damage {
    /// The kind of damage.
    pub reason: DamageReason,
    /// What was found.
    pub detail: String,
}

/// The kinds of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DamageReason {
    /// No bytes at all.
    Empty,
    /// Not JPEG, PNG or WebP.
    UnknownFormat,
    /// The data ends before the picture does.
    Truncated,
    /// The data contradicts itself.
    Corrupt,
    /// A variant of the format that is not decoded (arithmetic coding, 12 bits, lossless JPEG).
    Unsupported,
    /// More pixels than `data.max_pixels`, or none.
    Dimensions,
}

impl DamageReason {
    /// The reason's name in metrics and the ledger.
    pub fn name(self) -> &'static str {
        match self {
            DamageReason::Empty => "empty",
            DamageReason::UnknownFormat => "unknown_format",
            DamageReason::Truncated => "truncated",
            DamageReason::Corrupt => "corrupt",
            DamageReason::Unsupported => "unsupported",
            DamageReason::Dimensions => "dimensions",
        }
    }

    /// Every reason.
    pub const ALL: [DamageReason; 6] = [
        DamageReason::Empty,
        DamageReason::UnknownFormat,
        DamageReason::Truncated,
        DamageReason::Corrupt,
        DamageReason::Unsupported,
        DamageReason::Dimensions,
    ];
}

impl std::fmt::Display for DamageReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Damage {
    /// Damage of this kind.
    pub fn new(reason: DamageReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

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
#[error("{damaged} damaged samples, more than the {allowed} that data.max_damaged allows; the last one: {} in {} (byte {}): {}: {}",
    last.entry, last.shard, last.offset, last.reason, last.detail)]
pub struct BudgetSpent {
    /// How many distinct samples are damaged so far.
    pub damaged: u64,
    /// How many the budget allows.
    pub allowed: u64,
    /// The one that was too many.
    pub last: Box<QuarantineEntry>,
}

/// The damaged samples met so far.
pub struct Quarantine {
    allowed: u64,
    metrics: PipelineMetrics,
    state: Mutex<State>,
}

struct State {
    known: BTreeMap<u64, QuarantineEntry>,
    ledger: Option<File>,
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
    /// If the file can't be read or written.
    pub fn with_ledger(allowed: u64, ledger: &Path, metrics: PipelineMetrics) -> std::io::Result<Self> {
        let text = match std::fs::read_to_string(ledger) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        // A line that a kill cut short is dropped; its sample will be met again.
        let parse = |line| serde_json::from_str::<QuarantineEntry>(line).ok().map(|entry| (line, entry));
        let whole: Vec<(&str, QuarantineEntry)> = text.lines().filter_map(parse).collect();
        let kept: String = whole.iter().map(|(line, _)| format!("{line}\n")).collect();
        write_whole(ledger, kept.as_bytes())?;
        let ledger = Some(File::options().append(true).open(ledger)?);
        let known = whole.into_iter().map(|(_, entry)| (entry.sample, entry)).collect();
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
            let mut line = serde_json::to_vec(&entry).expect("an entry is plain data");
            line.push(b'\n');
            // A full disk must not hide the damage itself: the entry stays known and counted.
            let _ = ledger.write_all(&line);
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
