//! Local shards, open for reading.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::StoreError;

/// How many plain shards are kept open.
const OPEN_FILES: u64 = 128;

/// Files that a process needs open beside shards and connections: its run, its logs, its pages, what the system takes.
pub const OTHER_FILES: u64 = 48;

/// How many shards are opened for a single read, at a time, at most.
const MOST_SINGLE_READS: u64 = 16;

/// How many shards may be open: a process that may open few files opens them again and again rather than failing.
pub(super) struct Room {
    /// For shards that stay open while they are in use.
    kept: Arc<Semaphore>,
    /// For those that are opened for a read and closed again.
    single: Semaphore,
}

impl Room {
    /// Room within a limit of so many open files, if there is one.
    pub fn within(limit: Option<u64>) -> Self {
        let left = limit.map_or(u64::MAX, |limit| limit.saturating_sub(OTHER_FILES));
        let kept = Arc::new(Semaphore::new((left / 2).min(1 << 20) as usize));
        Self { kept, single: Semaphore::new((left / 4).clamp(1, MOST_SINGLE_READS) as usize) }
    }

    /// Room for a shard that stays open, if there is some.
    pub fn keep(&self) -> Option<OwnedSemaphorePermit> {
        self.kept.clone().try_acquire_owned().ok()
    }

    /// Waits for room for a single read.
    pub async fn single_read(&self) -> SemaphorePermit<'_> {
        self.single.acquire().await.expect("it is never closed")
    }
}

/// A shard that is open for reading.
pub struct OpenFile {
    file: File,
    _room: OwnedSemaphorePermit,
}

impl OpenFile {
    pub(super) fn new(file: File, room: OwnedSemaphorePermit) -> Self {
        Self { file, _room: room }
    }
}

impl Deref for OpenFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

/// Opens a file; `None` for a pipe or a device: opening a pipe waits for somebody to write to it.
pub(super) fn open_regular(path: &Path) -> std::io::Result<Option<File>> {
    if std::fs::metadata(path)?.is_file() { File::open(path).map(Some) } else { Ok(None) }
}

/// Opens a local shard whose size must be `expected`.
pub(super) fn open_checked(path: &Path, expected: u64) -> Result<File, StoreError> {
    let place = path.display().to_string();
    let io = |error: std::io::Error| StoreError::io(&place, &error);
    let Some(file) = open_regular(path).map_err(io)? else {
        return Err(StoreError::Changed { place, what: "not a regular file".into() });
    };
    let found = file.metadata().map_err(io)?.len();
    if found == expected {
        return Ok(file);
    }
    Err(StoreError::Changed { place, what: format!("{found} bytes, expected {expected}") })
}

/// The plain shards that are open, the longest unused closed first.
#[derive(Default)]
pub(super) struct OpenFiles {
    files: HashMap<u32, Arc<OpenFile>>,
    oldest_first: VecDeque<u32>,
}

impl OpenFiles {
    pub fn get(&mut self, shard: u32) -> Option<Arc<OpenFile>> {
        let file = self.files.get(&shard)?.clone();
        // The one just used is the last to go. The list is as long as there are shards in use: short.
        if self.oldest_first.back() != Some(&shard) {
            self.oldest_first.retain(|&other| other != shard);
            self.oldest_first.push_back(shard);
        }
        Some(file)
    }

    pub fn put(&mut self, shard: u32, file: Arc<OpenFile>) {
        if self.files.insert(shard, file).is_none() {
            self.oldest_first.push_back(shard);
        }
        while self.files.len() as u64 > OPEN_FILES {
            let oldest = self.oldest_first.pop_front().expect("as many as files");
            self.files.remove(&oldest);
        }
    }

    /// Closes the one that was not used for the longest time, as far as nobody reads it; whether there was one.
    pub fn close_oldest(&mut self) -> bool {
        let Some(oldest) = self.oldest_first.pop_front() else { return false };
        self.files.remove(&oldest);
        true
    }

    pub fn remove(&mut self, shard: u32) {
        self.files.remove(&shard);
        self.oldest_first.retain(|&other| other != shard);
    }
}
