//! Damaged samples: why, where, how many, and when it is too many.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use simclr_ground::error::{Classify, ErrorClass};

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
#[error("too many damaged samples: {damaged} > {allowed} (data.max_damaged); `manifest verify --decode` finds all of them, a \
    larger data.max_damaged bears them; last: {} in {} (byte {}): {}: {}",
    last.entry, last.shard, last.offset, last.reason, last.detail)]
pub struct BudgetSpent {
    /// How many distinct samples are damaged so far.
    pub damaged: u64,
    /// How many the budget allows.
    pub allowed: u64,
    /// The one that was too many.
    pub last: Box<QuarantineEntry>,
}

/// Why a damaged sample can't be recorded, or is one too many.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuarantineError {
    /// It is one too many.
    #[error(transparent)]
    Budget(#[from] BudgetSpent),
    /// The ledger can't be written: what is left out of the batches would be forgotten.
    #[error("{}: cannot record the damaged sample {entry}: {why}", path.display())]
    Ledger {
        /// The ledger.
        path: PathBuf,
        /// The sample's entry.
        entry: String,
        /// Why not.
        why: String,
    },
}

impl Classify for QuarantineError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Runtime
    }
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
    /// Those that this process could not decode, or whose maker said so.
    known: BTreeMap<u64, QuarantineEntry>,
    /// Those that the ledger lists and nobody here has looked at yet. They count, but an image is left out only when it
    /// can't be decoded: what a file says changes no batch.
    listed: BTreeMap<u64, QuarantineEntry>,
    ledger: Option<Ledger>,
}

impl State {
    /// The budget is that of the whole run: each rank meets other samples, and may meet another's damaged one as a replacement.
    fn damaged(&self) -> u64 {
        let own = (self.known.len() + self.listed.len()) as u64;
        let others = self.ledger.as_ref().map_or_else(BTreeSet::new, Ledger::of_others);
        let is_new = |sample: &&u64| !self.known.contains_key(sample) && !self.listed.contains_key(sample);
        own + others.iter().filter(is_new).count() as u64
    }
}

/// The file that damaged samples are written to, a line of JSON each. It is not touched before the first of them is met:
/// until then the folder may be another process's.
struct Ledger {
    path: PathBuf,
    plan: String,
    file: Option<File>,
}

/// A line of the ledger: a sample's id means something beside its plan alone.
#[derive(serde::Serialize, serde::Deserialize)]
struct Line {
    #[serde(flatten)]
    entry: QuarantineEntry,
    /// The digest of the plan whose sample it is; none in the ledgers of version 0.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plan: Option<String>,
}

impl Ledger {
    /// The lines that the file at `path` holds; one that a kill cut short is left out, its sample will be met again.
    fn read(path: &Path) -> std::io::Result<Vec<Line>> {
        // Lines are added to it: a pipe can't be a ledger.
        if std::fs::metadata(path).is_ok_and(|known| !known.is_file()) {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let bytes = match simclr_ground::files::read_named(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(bytes.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }

    /// The damaged samples of this plan that other ranks have written down, in ledgers beside this one; what can't be read
    /// counts for nothing.
    fn of_others(&self) -> BTreeSet<u64> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let is_ledger = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("quarantine.") && name.ends_with(".jsonl") && path.file_name() != self.path.file_name()
        };
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let lines =
            entries.map(|entry| entry.path()).filter(is_ledger).filter_map(|path| Self::read(&path).ok()).flatten();
        lines.filter(|line| line.plan.as_ref() == Some(&self.plan)).map(|line| line.entry.sample).collect()
    }

    /// Adds an entry to those in the file.
    fn append(&mut self, entry: &QuarantineEntry) -> std::io::Result<()> {
        let text = |line: &Line| serde_json::to_string(line).expect("a line is plain data") + "\n";
        if self.file.is_none() {
            // Of a rank on another machine, the folder may not be there yet.
            std::fs::create_dir_all(self.path.parent().unwrap_or(Path::new(".")))?;
            let mut file = File::options().create(true).read(true).append(true).open(&self.path)?;
            // A line that a kill cut short stays, and ends here.
            simclr_ground::files::end_line(&mut file)?;
            self.file = Some(file);
        }
        let line = Line { entry: entry.clone(), plan: Some(self.plan.clone()) };
        self.file.as_mut().expect("opened above").write_all(text(&line).as_bytes())
    }
}

impl Quarantine {
    /// An empty quarantine that bears `allowed` damaged samples and keeps no ledger.
    pub fn new(allowed: u64, metrics: PipelineMetrics) -> Self {
        Self {
            allowed,
            metrics,
            state: Mutex::new(State { known: BTreeMap::new(), listed: BTreeMap::new(), ledger: None }),
        }
    }

    /// A quarantine that writes each damaged sample of the plan with this digest to the file at `ledger` as a line of JSON,
    /// and counts those of this plan that are there already; each is looked at again when its turn comes. Those of another
    /// plan stay in the file and do not count: their ids name other samples.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn with_ledger(allowed: u64, ledger: &Path, plan: &str, metrics: PipelineMetrics) -> std::io::Result<Self> {
        let lines = Ledger::read(ledger)?;
        let all = lines.len();
        let own = lines.into_iter().filter(|line| line.plan.as_ref().is_none_or(|of| of == plan));
        let own: Vec<QuarantineEntry> = own.map(|line| line.entry).collect();
        if own.len() < all {
            tracing::warn!(
                ledger = %ledger.display(),
                entries = all - own.len(),
                "damaged samples of another data set or configuration are listed here; they do not count in this run"
            );
        }
        let listed = own.into_iter().map(|entry| (entry.sample, entry)).collect();
        let ledger = Some(Ledger { path: ledger.to_owned(), plan: plan.to_owned(), file: None });
        Ok(Self { allowed, metrics, state: Mutex::new(State { known: BTreeMap::new(), listed, ledger }) })
    }

    /// Leaves out what is listed of samples that are none, or are called otherwise.
    pub fn keep(&self, is_known: impl Fn(&QuarantineEntry) -> bool) {
        let mut state = self.lock();
        let before = state.listed.len();
        state.listed.retain(|_, entry| is_known(entry));
        let dropped = before - state.listed.len();
        if dropped > 0 {
            tracing::warn!(
                "{dropped} damaged samples on record are not in the data set by this name and place; they do not count"
            );
        }
    }

    /// Whether the budget is kept.
    ///
    /// # Errors
    /// If more samples are damaged than it allows.
    pub fn check_budget(&self) -> Result<(), BudgetSpent> {
        let state = self.lock();
        let damaged = state.damaged();
        match state.known.values().chain(state.listed.values()).next_back() {
            Some(last) if damaged > self.allowed => {
                Err(BudgetSpent { damaged, allowed: self.allowed, last: Box::new(last.clone()) })
            }
            _ => Ok(()),
        }
    }

    /// Notes that a sample could be decoded, whatever the ledger says of it.
    pub fn note_sound(&self, sample: u64) {
        let mut state = self.lock();
        if let Some(entry) = state.listed.remove(&sample) {
            tracing::warn!(
                "{} in {} is listed as damaged ({}) but can be decoded; it is used",
                entry.entry,
                entry.shard,
                entry.reason
            );
        }
    }

    /// Whether the sample with this id was found damaged by this process.
    pub fn holds(&self, sample: u64) -> bool {
        self.lock().known.contains_key(&sample)
    }

    /// What is known of the damaged sample with this id.
    pub fn entry(&self, sample: u64) -> Option<QuarantineEntry> {
        let state = self.lock();
        state.known.get(&sample).or_else(|| state.listed.get(&sample)).cloned()
    }

    /// Puts a sample into quarantine; one that is there already changes nothing.
    ///
    /// # Errors
    /// If that makes more damaged samples than the budget allows, or if the ledger can't be written.
    pub fn record(&self, entry: QuarantineEntry) -> Result<(), QuarantineError> {
        let mut state = self.lock();
        if state.known.insert(entry.sample, entry.clone()).is_some() {
            return Ok(());
        }
        self.metrics.add_quarantined(&entry.reason);
        let is_listed = state.listed.remove(&entry.sample).is_some();
        if let Some(ledger) = state.ledger.as_mut().filter(|_| !is_listed) {
            // Without it a run would forget after a restart how many are damaged, and report none.
            ledger.append(&entry).map_err(|error| QuarantineError::Ledger {
                path: ledger.path.clone(),
                entry: entry.entry.clone(),
                why: error.to_string(),
            })?;
        }
        let damaged = state.damaged();
        if damaged > self.allowed {
            Err(BudgetSpent { damaged, allowed: self.allowed, last: Box::new(entry) }.into())
        } else {
            Ok(())
        }
    }

    /// How many distinct samples all ranks that share the run's folder have found damaged.
    pub fn damaged(&self) -> u64 {
        self.lock().damaged()
    }

    /// All damaged samples that this process met so far, by id, without those that only the ledger lists.
    pub fn entries(&self) -> Vec<QuarantineEntry> {
        self.lock().known.values().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the quarantine is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sample: u64) -> QuarantineEntry {
        let text = |what: &str| what.to_owned();
        QuarantineEntry {
            sample,
            shard: text("a.tar"),
            entry: format!("{sample}.jpg"),
            offset: 512,
            reason: text("corrupt"),
            detail: text("none"),
        }
    }

    #[test]
    fn a_ledger_applies_to_its_own_plan_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quarantine.jsonl");
        let open = |plan: &str| Quarantine::with_ledger(9, &path, plan, PipelineMetrics::register()).unwrap();
        open("one").record(entry(3)).unwrap();
        assert_eq!(open("one").damaged(), 1);
        let other = open("other");
        assert_eq!(other.damaged(), 0);
        other.record(entry(5)).unwrap();
        assert_eq!((open("one").damaged(), open("other").damaged()), (1, 1), "what another run wrote is kept");
    }

    #[test]
    fn a_ledger_is_not_believed_before_the_image_was_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quarantine.jsonl");
        let open = || Quarantine::with_ledger(9, &path, "one", PipelineMetrics::register()).unwrap();
        open().record(entry(3)).unwrap();
        open().record(entry(5)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let again = open();
        assert!(!again.holds(3) && !again.holds(5) && again.damaged() == 2);
        again.note_sound(5);
        again.record(entry(3)).unwrap();
        assert!(again.holds(3) && !again.holds(5) && again.damaged() == 1);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "it is listed already");
    }

    #[test]
    fn the_budget_is_that_of_all_ranks_together() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str, plan: &str| {
            Quarantine::with_ledger(3, &folder.path().join(name), plan, PipelineMetrics::register()).unwrap()
        };
        let (first, second) = (open("quarantine.jsonl", "one"), open("quarantine.rank-1.jsonl", "one"));
        // What another plan left behind counts for nothing.
        open("quarantine.rank-2.jsonl", "other").record(entry(7)).unwrap();
        for sample in [1, 2] {
            first.record(entry(sample)).unwrap();
        }
        // The same sample, met by both, is one.
        for sample in [2, 3] {
            second.record(entry(sample)).unwrap();
        }
        assert_eq!((first.damaged(), second.damaged()), (3, 3));
        let message = second.record(entry(4)).unwrap_err().to_string();
        assert!(message.contains("too many damaged samples: 4 > 3") && message.contains("4.jpg"), "{message}");
        assert!(first.check_budget().is_err(), "the others see it too");
    }

    #[test]
    fn what_else_a_ledger_holds_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quarantine.jsonl");
        std::fs::write(&path, "# a note\n{\"cut\": ").unwrap();
        let quarantine = Quarantine::with_ledger(9, &path, "one", PipelineMetrics::register()).unwrap();
        quarantine.record(entry(3)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# a note\n{\"cut\": \n{\"sample\":3"), "{text}");
        let again = Quarantine::with_ledger(9, &path, "one", PipelineMetrics::register()).unwrap();
        assert_eq!(again.damaged(), 1);
        again.keep(|entry| entry.sample != 3);
        assert_eq!(again.damaged(), 0);
    }

    #[test]
    fn a_ledger_that_cannot_be_written_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("quarantine.jsonl");
        let quarantine = Quarantine::with_ledger(9, &path, "one", PipelineMetrics::register()).unwrap();
        std::fs::create_dir(&path).unwrap();
        let message = quarantine.record(entry(3)).unwrap_err().to_string();
        assert!(message.contains("quarantine.jsonl: cannot record the damaged sample 3.jpg"), "{message}");
    }
}
