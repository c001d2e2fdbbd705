//! Where samples' bytes come from: shards on local disks, checked against the manifest as they are read.
//!
//! A plain shard is read in place, sample by sample. A zstd shard has no way in but from its beginning, so it is
//! decompressed once, checked against its digest and kept in memory while it is in use, within a bound.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use crate::manifest::Manifest;
use crate::metrics::{PipelineMetrics, Stage};
use crate::order::SampleRef;
use crate::sample::Check;
use crate::shard;

/// How many plain shards are kept open.
const OPEN_FILES: usize = 128;

/// Why bytes can't be had. The message names the shard, and the entry where there is one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The shard's file can't be opened or read.
    #[error("shard {}: cannot be read: {why}", path.display())]
    Io {
        /// The shard's file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The shard is not the one that the manifest describes.
    #[error("shard {}: {what}; it is not the shard that the manifest describes: `manifest verify` lists every difference", path.display())]
    Changed {
        /// The shard's file.
        path: PathBuf,
        /// What was found and what was expected.
        what: String,
    },
    /// The shards that must be in memory at the same time do not fit.
    #[error(
        "the zstd shards in use at the same time need {needed} bytes, but machine.memory_bytes = {allowed}: raise it, or lower order.lanes or order.shuffle_block_shards, or store the shards uncompressed"
    )]
    Memory {
        /// Bytes that the shards in use need.
        needed: u64,
        /// Bytes allowed.
        allowed: u64,
    },
}

/// The shards of a manifest, open for reading from any thread.
pub struct Store {
    manifest: Arc<Manifest>,
    memory_bytes: u64,
    metrics: PipelineMetrics,
    files: Mutex<Kept<Arc<File>>>,
    unpacked: Mutex<Kept<Unpacked>>,
}

/// A decompressed shard, once somebody has decompressed it.
type Unpacked = Arc<OnceLock<Result<Vec<u8>, StoreError>>>;

impl Store {
    /// A store over `manifest` whose decompressed shards take at most `memory_bytes`.
    pub fn new(manifest: Arc<Manifest>, memory_bytes: u64, metrics: PipelineMetrics) -> Self {
        Self { manifest, memory_bytes, metrics, files: Mutex::default(), unpacked: Mutex::default() }
    }

    /// The manifest that the store reads.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Checks that `open` zstd shards, the largest of those that samples are taken from, fit into memory together.
    ///
    /// # Errors
    /// [`StoreError::Memory`] if they do not.
    pub fn check_memory(&self, open: usize, shard_sizes: &[u32]) -> Result<(), StoreError> {
        let used = self.manifest.shards.iter().zip(shard_sizes).filter(|(_, samples)| **samples > 0);
        let zstd = used.filter(|(shard, _)| shard::is_zstd(Path::new(&shard.location)));
        let mut sizes: Vec<u64> = zstd.map(|(shard, _)| shard.tar_bytes).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        let needed = sizes.iter().take(open).sum();
        if needed <= self.memory_bytes {
            Ok(())
        } else {
            Err(StoreError::Memory { needed, allowed: self.memory_bytes })
        }
    }

    /// The bytes of one sample, equal to what the manifest was made from. Blocks on the disk.
    ///
    /// # Errors
    /// If the shard can't be read or differs from the manifest.
    pub fn read(&self, sample: SampleRef) -> Result<Vec<u8>, StoreError> {
        let began = Instant::now();
        let (at, i) = (sample.shard as usize, sample.index as usize);
        let shard = &self.manifest.shards[at];
        let path = self.manifest.shard_path(at);
        let (offset, size) = (shard.offsets[i], shard.sizes[i] as usize);
        let bytes = if shard::is_zstd(&path) {
            let unpacked = self.unpacked(sample.shard, &path);
            let tar = unpacked.get().expect("decompressed above").as_ref().map_err(Clone::clone)?;
            tar[offset as usize..][..size].to_vec()
        } else {
            let mut bytes = vec![0; size];
            let file = self.file(sample.shard, &path)?;
            file.read_exact_at(&mut bytes, offset).map_err(|error| io(&path, &error))?;
            bytes
        };
        let check = Check::of(&bytes);
        if check != shard.checks[i] {
            let what = format!(
                "the bytes of {} (byte {offset}) have XXH3 {check}, {} expected",
                shard.entries[i], shard.checks[i]
            );
            return Err(StoreError::Changed { path, what });
        }
        self.metrics.add_read_bytes(size as u64);
        self.metrics.add_busy(Stage::Read, began.elapsed());
        Ok(bytes)
    }

    /// An open plain shard whose size is the manifest's.
    fn file(&self, shard: u32, path: &Path) -> Result<Arc<File>, StoreError> {
        if let Some(file) = self.files.lock().expect("no panic while held").get(shard) {
            return Ok(file);
        }
        let file = File::open(path).map_err(|error| io(path, &error))?;
        let found = file.metadata().map_err(|error| io(path, &error))?.len();
        self.check_size(shard, path, found)?;
        let file = Arc::new(file);
        let mut files = self.files.lock().expect("no panic while held");
        files.put(shard, 1, file.clone(), OPEN_FILES as u64);
        Ok(file)
    }

    /// A zstd shard's tar stream; the first caller decompresses it, others wait for that.
    fn unpacked(&self, shard: u32, path: &Path) -> Unpacked {
        let place = {
            let mut unpacked = self.unpacked.lock().expect("no panic while held");
            unpacked.get(shard).unwrap_or_else(|| {
                let place = Unpacked::default();
                unpacked.put(shard, self.manifest.shards[shard as usize].tar_bytes, place.clone(), self.memory_bytes);
                place
            })
        };
        place.get_or_init(|| self.unpack(shard, path));
        place
    }

    fn unpack(&self, shard: u32, path: &Path) -> Result<Vec<u8>, StoreError> {
        let expected = &self.manifest.shards[shard as usize];
        let changed = |what: String| StoreError::Changed { path: path.to_owned(), what };
        self.check_size(shard, path, std::fs::metadata(path).map_err(|error| io(path, &error))?.len())?;
        let mut tar = Vec::with_capacity(expected.tar_bytes as usize);
        let reader = shard::open_tar(path).map_err(|error| io(path, &error))?;
        // One byte more than expected is enough to know that it is too long.
        reader
            .take(expected.tar_bytes + 1)
            .read_to_end(&mut tar)
            .map_err(|error| changed(format!("decompression stopped after {} bytes: {error}", tar.len())))?;
        if tar.len() as u64 != expected.tar_bytes {
            return Err(changed(format!(
                "its tar stream has {} bytes or more, {} expected",
                tar.len(),
                expected.tar_bytes
            )));
        }
        let found = blake3::hash(&tar).to_hex();
        if found.as_str() != expected.tar_blake3 {
            return Err(changed(format!("its tar stream's BLAKE3 is {found}, {} expected", expected.tar_blake3)));
        }
        Ok(tar)
    }

    fn check_size(&self, shard: u32, path: &Path, found: u64) -> Result<(), StoreError> {
        let expected = self.manifest.shards[shard as usize].bytes;
        if found == expected {
            return Ok(());
        }
        Err(StoreError::Changed { path: path.to_owned(), what: format!("{found} bytes, {expected} expected") })
    }
}

fn io(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Io { path: path.to_owned(), why: error.to_string() }
}

/// Values kept by shard, the oldest given up when their costs exceed a bound.
struct Kept<T> {
    values: HashMap<u32, (u64, T)>,
    oldest_first: VecDeque<u32>,
    cost: u64,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { values: HashMap::new(), oldest_first: VecDeque::new(), cost: 0 }
    }
}

impl<T: Clone> Kept<T> {
    fn get(&mut self, shard: u32) -> Option<T> {
        let value = self.values.get(&shard)?.1.clone();
        // The one just used is the last to go. The list is as long as there are shards in use: short.
        if self.oldest_first.back() != Some(&shard) {
            self.oldest_first.retain(|&other| other != shard);
            self.oldest_first.push_back(shard);
        }
        Some(value)
    }

    fn put(&mut self, shard: u32, cost: u64, value: T, bound: u64) {
        if self.values.insert(shard, (cost, value)).is_none() {
            self.oldest_first.push_back(shard);
            self.cost += cost;
        }
        while self.cost > bound && self.oldest_first.len() > 1 {
            let oldest = self.oldest_first.pop_front().expect("more than one");
            self.cost -= self.values.remove(&oldest).expect("listed values are kept").0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_values_stay_within_their_bound() {
        let mut kept = Kept::default();
        for shard in 0..4 {
            kept.put(shard, 10, shard, 30);
            assert_eq!(kept.get(0), (shard < 4).then_some(0), "the one in use stays");
        }
        assert_eq!((kept.get(1), kept.get(2), kept.get(3), kept.cost), (None, Some(2), Some(3), 30));
    }
}
