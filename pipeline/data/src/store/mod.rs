//! Where samples' bytes come from, and the promise that they are the manifest's.
//!
//! A plain local shard is read in place, sample by sample. Any other shard (zstd, or on a server) is held whole while
//! it is in use: in the disk cache if there is one, else in memory, fetched and checked against its digest once. What
//! is not held yet, or does not fit, is read sample by sample through the manifest's index, where that is possible.
//! Knows where shards are, not in which order their samples are wanted.

mod cache;
mod error;
mod files;
mod hold;
mod row_checks;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use futures::{StreamExt, TryStreamExt};

pub use error::StoreError;
pub use files::OTHER_FILES;

use simclr_ground::location::Location;
use simclr_ground::sample::Check;
use simclr_ground::sample::SampleRef;
use simclr_image::decode::Rows;

use crate::compression::Compression;
use crate::frames::unpack;
use crate::manifest::{self, Manifest};
use crate::metrics::{PipelineMetrics, Waiting};
use crate::objects::remote::{FetchError, Remote, RemoteOptions};
use error::fetch_error;
use files::{OpenFile, OpenFiles, Room, open_checked, open_regular};
use hold::{ResidentShard, ShardCache};
use row_checks::RowChecks;

/// How often bytes that came wrong from a server are asked for again.
const WRONG_BYTES_RETRIES: usize = 3;

/// How many samples are asked for at a time to see whether storage is there: few enough to disturb nobody.
const PROBES: usize = 8;

/// A shard of which less than this share is wanted is read sample by sample rather than whole.
const WORTH_HOLDING: f64 = 0.25;

/// What a store may use; none of it changes what it reads.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StoreOptions {
    /// Bytes for shards held in memory.
    pub memory_bytes: u64,
    /// The folder of the disk cache and its bytes; without one, shards are held in memory.
    pub cache: Option<(PathBuf, u64)>,
    /// Patience with storage servers.
    pub remote: RemoteOptions,
}

/// The shards of a manifest, open for reading from any thread.
pub struct Store {
    manifest: Arc<Manifest>,
    places: Vec<Location>,
    remote: Arc<Remote>,
    metrics: PipelineMetrics,
    files: Mutex<OpenFiles>,
    room: Room,
    holder: Arc<ShardCache>,
    /// Which shards are held whole; decided by [`Store::prepare`].
    held: OnceLock<Vec<bool>>,
    row_checks: RowChecks,
}

/// Where a sample's bytes are: read already, or near enough for a thread that may block to read them itself.
pub enum Located {
    /// In memory, and the manifest's.
    Read(Vec<u8>),
    /// In an open file.
    File(Arc<OpenFile>),
    /// In a shard that is held.
    ResidentShard(Arc<ResidentShard>),
    /// In a file of its own.
    Loose,
}

/// Where a shard's bytes are at this moment.
enum Source {
    File(Arc<OpenFile>),
    ResidentShard(Arc<ResidentShard>),
    Direct,
    Loose,
}

impl Store {
    /// A store over `manifest`. Nothing is read yet.
    ///
    /// # Errors
    /// If the cache folder can't be used.
    pub fn new(manifest: Arc<Manifest>, options: &StoreOptions, metrics: PipelineMetrics) -> Result<Self, StoreError> {
        let places: Vec<Location> = (0..manifest.shards.len()).map(|i| manifest.shard_place(i)).collect();
        let remote = Arc::new(Remote::new(options.remote, metrics.clone()));
        let cache = match &options.cache {
            None => None,
            Some((folder, bytes)) => {
                let error =
                    |error: std::io::Error| StoreError::Cache { folder: folder.clone(), why: error.to_string() };
                Some(cache::DiskCache::open(folder, *bytes, metrics.clone()).map_err(error)?)
            }
        };
        let holder = ShardCache::new(
            manifest.clone(),
            places.clone(),
            remote.clone(),
            options.memory_bytes,
            cache,
            metrics.clone(),
        );
        let (files, held) = (Mutex::default(), OnceLock::new());
        let room = Room::within(rustix::process::getrlimit(rustix::process::Resource::Nofile).current);
        let row_checks = RowChecks::of(&manifest);
        Ok(Self { manifest, places, remote, metrics, files, room, holder: Arc::new(holder), held, row_checks })
    }

    /// The manifest that the store reads.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What the manifest says of where a sample's data may be entered, and whether it was found right.
    pub fn rows(&self, sample: SampleRef) -> Option<Rows<'_>> {
        self.row_checks.rows(&self.manifest, sample)
    }

    /// Notes what came of decoding a sample with [`Store::rows`].
    pub fn note_rows(&self, sample: SampleRef, rows: Rows<'_>) {
        self.row_checks.note(&self.manifest, sample, rows);
    }

    /// The servers that the store reads from.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Decides which shards are held whole, if `wanted[i]` samples of shard `i` are read and `open` shards are in use
    /// at a time.
    ///
    /// # Errors
    /// [`StoreError::Memory`] if shards that can't be read sample by sample do not fit together.
    pub fn prepare(&self, open: usize, wanted: &[u32]) -> Result<(), StoreError> {
        let used: Vec<usize> = (0..self.places.len()).filter(|&i| wanted[i] > 0 && !self.is_plain_file(i)).collect();
        let needed = |shards: &[usize]| -> u64 {
            let mut sizes: Vec<u64> = shards.iter().map(|&i| self.manifest.shards[i].tar_bytes).collect();
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            sizes.iter().take(open).fold(0, |sum, &size| sum.saturating_add(size))
        };
        let worth = |&&i: &&usize| {
            let shard = &self.manifest.shards[i];
            !self.has_index(i) || f64::from(wanted[i]) >= WORTH_HOLDING * shard.num_samples() as f64
        };
        let (worth, must): (Vec<usize>, Vec<usize>) = (
            used.iter().filter(worth).copied().collect(),
            used.iter().filter(|&&i| !self.has_index(i)).copied().collect(),
        );
        let (key, allowed) = self.holder.bound();
        let held = if needed(&worth) <= allowed {
            worth
        } else if needed(&must) <= allowed {
            tracing::info!(
                needed = needed(&worth),
                allowed,
                "shards in use exceed machine.{key}: reading sample by sample"
            );
            must
        } else {
            return Err(StoreError::Memory { needed: needed(&must), key, allowed });
        };
        let mut whole = vec![false; self.places.len()];
        held.into_iter().for_each(|i| whole[i] = true);
        let _ = self.held.set(whole);
        Ok(())
    }

    /// Starts fetching the shards `next`, in this order, as far as they fit beside `now`, those in use.
    pub fn prefetch(&self, now: &[u32], next: &[u32]) {
        let held = |shard: &&u32| self.is_held(**shard as usize);
        let (now, next): (Vec<u32>, Vec<u32>) =
            (now.iter().filter(held).copied().collect(), next.iter().filter(held).copied().collect());
        self.holder.prefetch(&now, &next);
    }

    /// The bytes of samples, in their order, each equal to what the manifest was made from. Blocks until they are there;
    /// what has to be waited for runs on `runtime`.
    ///
    /// # Errors
    /// If a shard can't be read or differs from the manifest.
    pub fn read(&self, samples: &[SampleRef], runtime: &tokio::runtime::Handle) -> Result<Vec<Vec<u8>>, StoreError> {
        let located = runtime.block_on(self.locate(samples))?;
        let read = |(&sample, located): (&SampleRef, Located)| {
            let mut memory = Vec::new();
            Ok(self.bytes(sample, &located, &mut memory, runtime)?.to_vec())
        };
        samples.iter().zip(located).map(read).collect()
    }

    /// Asks storage for samples. A shard on this machine is opened and read anew, so that a folder that is gone is noticed
    /// though its files are still open; one on a server need not be asked for while it is held.
    ///
    /// # Errors
    /// If a shard can't be read or differs from the manifest.
    pub async fn probe(&self, samples: &[SampleRef]) -> Result<(), StoreError> {
        let samples = futures::stream::iter(samples.iter().copied().map(Ok));
        samples.try_for_each_concurrent(PROBES, |sample| self.probe_one(sample)).await
    }

    async fn probe_one(&self, sample: SampleRef) -> Result<(), StoreError> {
        let shard = sample.shard as usize;
        match &self.places[shard] {
            Location::Url(_) => drop(self.locate(&[sample]).await?),
            Location::File(_) if self.has_index(shard) => drop(self.read_direct(sample).await?),
            Location::File(path) => {
                let (path, expected) = (path.clone(), self.manifest.shards[shard].bytes);
                blocking(move || open_checked(&path, expected)).await?;
            }
        }
        Ok(())
    }

    /// Where samples' bytes are, in their order. Returns when all that has to be waited for (a server, a shard being
    /// unpacked) is there; what is in files of this machine is announced to the system, which then reads ahead.
    ///
    /// # Errors
    /// If a shard can't be opened or fetched, or differs from the manifest.
    pub async fn locate(&self, samples: &[SampleRef]) -> Result<Vec<Located>, StoreError> {
        let (began, _request) = (Instant::now(), self.metrics.activities.fetch());
        let mut waited = false;
        let mut all: Vec<Option<Located>> = Vec::with_capacity(samples.len());
        let (mut direct, mut loose) = (Vec::new(), Vec::new());
        for (i, &sample) in samples.iter().enumerate() {
            all.push(match self.source(sample.shard as usize).await? {
                Source::File(file) => {
                    self.announce(sample, &file);
                    Some(Located::File(file))
                }
                Source::ResidentShard(held) => {
                    waited = true;
                    Some(Located::ResidentShard(held))
                }
                Source::Direct => {
                    direct.push((i, sample));
                    None
                }
                Source::Loose => {
                    loose.push(self.loose_file(sample));
                    Some(Located::Loose)
                }
            });
        }
        self.announce_files(loose);
        if !direct.is_empty() {
            waited = true;
            let reads = direct.into_iter().map(|(i, sample)| async move { Ok((i, self.read_direct(sample).await?)) });
            let reads: Vec<(usize, Vec<u8>)> =
                futures::stream::iter(reads).buffer_unordered(samples.len()).try_collect().await?;
            for (i, bytes) in reads {
                all[i] = Some(Located::Read(bytes));
            }
        }
        if waited {
            self.metrics.add_wait(Waiting::ForStorage, began.elapsed());
        }
        Ok(all.into_iter().map(|located| located.expect("every sample was located")).collect())
    }

    /// The bytes of a located sample, equal to what the manifest was made from; `memory` is room for them. Blocks: the
    /// thread that decodes them reads them itself, so that they are in its core's cache.
    ///
    /// # Errors
    /// If the shard can't be read or differs from the manifest.
    pub fn bytes<'a>(
        &self,
        sample: SampleRef,
        located: &'a Located,
        memory: &'a mut Vec<u8>,
        runtime: &tokio::runtime::Handle,
    ) -> Result<&'a [u8], StoreError> {
        let shard = sample.shard as usize;
        let size = self.manifest.shards[shard].sizes[sample.index as usize];
        self.metrics.add_read_bytes(self.places[shard].scheme(), size.into());
        let in_memory = match located {
            Located::Read(bytes) => return Ok(bytes),
            Located::ResidentShard(held) => self.read_held(sample, held, memory)?,
            Located::Loose => {
                self.read_loose(sample, memory)?;
                None
            }
            Located::File(file) => {
                self.read_file(sample, file, memory).inspect_err(|_| self.close(sample.shard))?;
                None
            }
        };
        let checked = self.check(sample, in_memory.unwrap_or(memory));
        match checked {
            Ok(()) => Ok(in_memory.unwrap_or(memory)),
            // A file in the cache may have been damaged since it was checked; the origin decides.
            Err(wrong) if self.holder.forget(sample.shard) && !self.has_index(shard) => Err(wrong),
            Err(wrong) if self.is_plain_file(shard) => {
                self.close(sample.shard);
                Err(wrong)
            }
            Err(_) => {
                *memory = runtime.block_on(self.read_direct(sample))?;
                Ok(memory)
            }
        }
    }

    /// Tells the system that a sample's bytes will be read soon.
    fn announce(&self, sample: SampleRef, file: &File) {
        let (shard, i) = (&self.manifest.shards[sample.shard as usize], sample.index as usize);
        let length = std::num::NonZeroU64::new(shard.sizes[i].into());
        // Advice alone: where it can't be given, reading takes as long as it takes.
        let _ = rustix::fs::fadvise(file, shard.offsets[i], length, rustix::fs::Advice::WillNeed);
    }

    /// Tells the system that files will be read soon. Opening them takes time, and nothing waits for it.
    fn announce_files(&self, paths: Vec<PathBuf>) {
        if paths.is_empty() {
            return;
        }
        tokio::task::spawn_blocking(move || {
            for file in paths.iter().filter_map(|path| File::open(path).ok()) {
                let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::WillNeed);
            }
        });
    }

    /// The file that a sample of a loose block is.
    fn loose_file(&self, sample: SampleRef) -> PathBuf {
        let shard = sample.shard as usize;
        let Location::File(folder) = &self.places[shard] else { unreachable!("checked when a manifest is read") };
        manifest::loose::file(folder, &self.manifest.shards[shard].entries[sample.index as usize])
    }

    /// Reads the file that a sample is.
    fn read_loose(&self, sample: SampleRef, memory: &mut Vec<u8>) -> Result<(), StoreError> {
        let path = self.loose_file(sample);
        let size = self.manifest.shards[sample.shard as usize].sizes[sample.index as usize];
        let file = open_checked(&path, size.into()).map_err(|error| match error {
            StoreError::Changed { place, what } => StoreError::ChangedFile { path: place, what },
            other => other,
        })?;
        memory.resize(size as usize, 0);
        let io = |error| StoreError::io(path.display(), &error);
        file.read_exact_at(memory, 0).map_err(io)
    }

    /// A sample of a held shard: in the shard's memory, or else read into `memory`.
    fn read_held<'a>(
        &self,
        sample: SampleRef,
        held: &'a ResidentShard,
        memory: &mut Vec<u8>,
    ) -> Result<Option<&'a [u8]>, StoreError> {
        match held {
            ResidentShard::Memory(tar) => {
                let (shard, i) = (&self.manifest.shards[sample.shard as usize], sample.index as usize);
                Ok(Some(&tar[shard.offsets[i] as usize..][..shard.sizes[i] as usize]))
            }
            ResidentShard::File(file) => self.read_file(sample, file, memory).map(|()| None),
        }
    }

    /// Reads a sample out of a tar on this machine.
    fn read_file(&self, sample: SampleRef, file: &File, memory: &mut Vec<u8>) -> Result<(), StoreError> {
        let (shard, i) = (&self.manifest.shards[sample.shard as usize], sample.index as usize);
        memory.resize(shard.sizes[i] as usize, 0);
        let io = |error| StoreError::io(&self.places[sample.shard as usize], &error);
        file.read_exact_at(memory, shard.offsets[i]).map_err(io)
    }

    /// Where this shard's bytes are now; fetches the shard if it is to be held and can't be read otherwise.
    async fn source(&self, shard: usize) -> Result<Source, StoreError> {
        if self.manifest.shards[shard].loose {
            return Ok(Source::Loose);
        }
        if self.is_plain_file(shard) {
            return Ok(self.file(shard).await?.map_or(Source::Direct, Source::File));
        }
        if !self.is_held(shard) {
            return Ok(Source::Direct);
        }
        let fetching = self.holder.hold(shard as u32);
        let held = match fetching.peek() {
            Some(held) => held.clone(),
            // A shard on a server need not be there whole before its first sample can be read.
            None if self.places[shard].scheme() != "file" && self.has_index(shard) => return Ok(Source::Direct),
            None => fetching.await,
        };
        match held {
            Ok(held) => Ok(Source::ResidentShard(held)),
            // Shards that the cache can't hold are read sample by sample.
            Err(StoreError::Cache { .. }) if self.has_index(shard) => Ok(Source::Direct),
            Err(error) => Err(error),
        }
    }

    /// Reads one sample through the manifest's index.
    async fn read_direct(&self, sample: SampleRef) -> Result<Vec<u8>, StoreError> {
        let mut tries = 0;
        loop {
            let bytes = match self.read_indexed(sample).await {
                // The server gives no ranges after all: the shard has to be held.
                Err(FetchError::NoRanges) => {
                    let (key, allowed) = self.holder.bound();
                    let needed = self.manifest.shards[sample.shard as usize].tar_bytes;
                    if needed > allowed {
                        return Err(StoreError::Memory { needed, key, allowed });
                    }
                    let held = self.holder.hold(sample.shard).await?;
                    let mut memory = Vec::new();
                    self.read_held(sample, &held, &mut memory)?.map(<[u8]>::to_vec).unwrap_or(memory)
                }
                bytes => bytes.map_err(|error| fetch_error(&self.places[sample.shard as usize], error))?,
            };
            tries += 1;
            match self.check(sample, &bytes) {
                Ok(()) => return Ok(bytes),
                Err(wrong) if tries > WRONG_BYTES_RETRIES => return Err(wrong),
                Err(_) => self.metrics.add_retry("wrong_bytes"),
            }
        }
    }

    async fn read_indexed(&self, sample: SampleRef) -> Result<Vec<u8>, FetchError> {
        let shard = &self.manifest.shards[sample.shard as usize];
        let place = &self.places[sample.shard as usize];
        let from = shard.offsets[sample.index as usize];
        let wanted = from..from + u64::from(shard.sizes[sample.index as usize]);
        let frames = shard.frames.as_ref();
        let (stored, skip) = match frames {
            None => (wanted.clone(), 0),
            Some(frames) => frames.covering(wanted.clone()),
        };
        let bytes = match place {
            Location::Url(url) => self.remote.range(url, stored, Some(shard.bytes)).await?.to_vec(),
            Location::File(path) => {
                let (path, expected) = match shard.loose {
                    true => (self.loose_file(sample), shard.sizes[sample.index as usize].into()),
                    false => (path.clone(), shard.bytes),
                };
                let read = move || {
                    let none = || std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
                    let file = open_regular(&path)?.ok_or_else(none)?;
                    let found = file.metadata()?.len();
                    let mut bytes = Vec::new();
                    if found == expected {
                        let size = (stored.end - stored.start) as usize;
                        bytes.try_reserve_exact(size).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
                        bytes.resize(size, 0);
                        file.read_exact_at(&mut bytes, stored.start)?;
                    }
                    Ok::<_, std::io::Error>((bytes, found))
                };
                let _room = self.room.single_read().await;
                let read = blocking(read).await;
                let (bytes, found) = read.map_err(|error| FetchError::local(&error))?;
                if found != expected {
                    return Err(FetchError::Size { found, expected });
                }
                bytes
            }
        };
        if frames.is_none() {
            return Ok(bytes);
        }
        // Too short or not zstd at all: whatever is there, its check will not be right.
        Ok(unpack(&bytes, skip, (wanted.end - wanted.start) as usize).unwrap_or_default())
    }

    fn check(&self, sample: SampleRef, bytes: &[u8]) -> Result<(), StoreError> {
        let (shard, i) = (&self.manifest.shards[sample.shard as usize], sample.index as usize);
        let check = Check::of(bytes);
        if check == shard.checks[i] {
            return Ok(());
        }
        if shard.loose {
            let (path, wanted) = (self.loose_file(sample).display().to_string(), shard.checks[i]);
            return Err(StoreError::ChangedFile {
                path,
                what: format!("its content has XXH3 {check}, expected {wanted}"),
            });
        }
        let (entry, offset, wanted) = (&shard.entries[i], shard.offsets[i], shard.checks[i]);
        let what = format!("the content of {entry} (byte {offset}) has XXH3 {check}, expected {wanted}");
        Err(StoreError::Changed { place: self.places[sample.shard as usize].to_string(), what })
    }

    /// An open plain shard whose size is the manifest's; `None` if no more files may be open.
    async fn file(&self, shard: usize) -> Result<Option<Arc<OpenFile>>, StoreError> {
        let room = {
            let mut files = self.files.lock().expect("no panic while held");
            if let Some(file) = files.get(shard as u32) {
                return Ok(Some(file));
            }
            loop {
                match self.room.keep() {
                    Some(room) => break room,
                    None if files.close_oldest() => {}
                    None => return Ok(None),
                }
            }
        };
        let Location::File(path) = &self.places[shard] else { unreachable!("a plain shard on this machine") };
        let (path, expected) = (path.clone(), self.manifest.shards[shard].bytes);
        // Storage that does not answer keeps this waiting, and must not keep all else waiting with it.
        let file = Arc::new(OpenFile::new(blocking(move || open_checked(&path, expected)).await?, room));
        self.files.lock().expect("no panic while held").put(shard as u32, file.clone());
        Ok(Some(file))
    }

    /// Lets go of an open file that can't be read: by now another one may stand in its place.
    fn close(&self, shard: u32) {
        self.files.lock().expect("no panic while held").remove(shard);
    }

    fn is_plain_file(&self, shard: usize) -> bool {
        matches!(self.places[shard], Location::File(_)) && self.manifest.compression(shard) == Compression::None
    }

    fn is_held(&self, shard: usize) -> bool {
        // A store that nobody prepared holds what it must.
        self.held.get().map_or_else(|| !self.has_index(shard), |held| held[shard])
    }

    /// Whether single samples can be read.
    fn has_index(&self, shard: usize) -> bool {
        let ranges = match &self.places[shard] {
            Location::File(_) => true,
            Location::Url(url) => !self.remote.has_no_ranges(url),
        };
        ranges
            && (self.manifest.compression(shard) == Compression::None || self.manifest.shards[shard].frames.is_some())
    }
}

/// What `work` gives, which may block; it runs beside the threads that wait for storage.
async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is being shut down, and this task with it.
        Err(_) => std::future::pending().await,
    }
}
