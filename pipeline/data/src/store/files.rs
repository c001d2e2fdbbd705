//! Local shards, open for reading.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::StoreError;

/// How many plain shards are kept open.
const OPEN_FILES: u64 = 128;

/// Opens a local shard whose size must be `expected`.
pub(super) fn open_checked(path: &Path, expected: u64) -> Result<File, StoreError> {
    let place = path.display().to_string();
    let io = |error: std::io::Error| StoreError::Io { place: place.clone(), why: error.to_string() };
    let file = File::open(path).map_err(io)?;
    let found = file.metadata().map_err(io)?.len();
    if found == expected {
        return Ok(file);
    }
    Err(StoreError::Changed { place, what: format!("{found} bytes, expected {expected}") })
}

/// The plain shards that are open, the longest unused closed first.
#[derive(Default)]
pub(super) struct OpenFiles {
    files: HashMap<u32, Arc<File>>,
    oldest_first: VecDeque<u32>,
}

impl OpenFiles {
    pub fn get(&mut self, shard: u32) -> Option<Arc<File>> {
        let file = self.files.get(&shard)?.clone();
        // The one just used is the last to go. The list is as long as there are shards in use: short.
        if self.oldest_first.back() != Some(&shard) {
            self.oldest_first.retain(|&other| other != shard);
            self.oldest_first.push_back(shard);
        }
        Some(file)
    }

    pub fn put(&mut self, shard: u32, file: Arc<File>) {
        if self.files.insert(shard, file).is_none() {
            self.oldest_first.push_back(shard);
        }
        while self.files.len() as u64 > OPEN_FILES {
            let oldest = self.oldest_first.pop_front().expect("as many as files");
            self.files.remove(&oldest);
        }
    }

    pub fn remove(&mut self, shard: u32) {
        self.files.remove(&shard);
        self.oldest_first.retain(|&other| other != shard);
    }
}
