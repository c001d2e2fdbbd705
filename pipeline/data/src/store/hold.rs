//! Shards held whole while they are in use: in the disk cache or in memory, within a bound.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use simclr_ground::error::ErrorClass;
use simclr_ground::location::Location;
use simclr_ground::patience::LongWait;

use super::StoreError;
use super::blocking;
use super::cache::{DiskCache, Reserved, Writing};
use super::error::fetch_error;
use super::files::open_checked;
use crate::manifest::Manifest;
use crate::metrics::{PipelineMetrics, Stage};
use crate::objects::fetched;
use crate::objects::remote::Remote;

/// How often a shard that came with wrong bytes is fetched again.
const WRONG_BYTES_RETRIES: usize = 2;

/// How often we look whether another process has finished writing a shard into the cache.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A shard's tar stream, whole and checked.
pub enum ResidentShard {
    /// In memory.
    Memory(Vec<u8>),
    /// In the disk cache.
    File(File),
}

/// A shard that is being fetched, or has been.
pub(super) type Fetching = Shared<BoxFuture<'static, Result<Arc<ResidentShard>, StoreError>>>;

/// The shards that are held.
pub(super) struct ShardCache {
    fetcher: Arc<Fetcher>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<u32, Entry>,
    bytes: u64,
    clock: u64,
}

struct Entry {
    bytes: u64,
    last_used: u64,
    fetching: Fetching,
}

struct Fetcher {
    manifest: Arc<Manifest>,
    places: Vec<Location>,
    remote: Arc<Remote>,
    memory_bytes: u64,
    cache: Option<Arc<DiskCache>>,
    metrics: PipelineMetrics,
}

impl ShardCache {
    pub(super) fn new(
        manifest: Arc<Manifest>,
        places: Vec<Location>,
        remote: Arc<Remote>,
        memory_bytes: u64,
        cache: Option<DiskCache>,
        metrics: PipelineMetrics,
    ) -> Self {
        let cache = cache.map(Arc::new);
        let fetcher = Fetcher { manifest, places, remote, memory_bytes, cache, metrics };
        Self { fetcher: Arc::new(fetcher), state: Mutex::default() }
    }

    /// The configuration's key that bounds what is held, and the bound in bytes.
    pub(super) fn bound(&self) -> (&'static str, u64) {
        match &self.fetcher.cache {
            Some(cache) => ("cache_bytes", cache.capacity()),
            None => ("memory_bytes", self.fetcher.memory_bytes),
        }
    }

    /// The shard, being fetched from now on if it was not; others make room for it, the longest unused first.
    pub(super) fn hold(&self, shard: u32) -> Fetching {
        let mut state = self.state.lock().expect("no panic while held");
        state.clock += 1;
        let now = state.clock;
        if let Some(entry) = state.entries.get_mut(&shard) {
            entry.last_used = now;
            return entry.fetching.clone();
        }
        let bytes = self.fetcher.manifest.shards[shard as usize].tar_bytes;
        let (_, bound) = self.bound();
        while state.bytes.saturating_add(bytes) > bound {
            let idle = state.entries.iter().filter(|(_, entry)| entry.fetching.peek().is_some());
            let Some(oldest) = idle.min_by_key(|(_, entry)| entry.last_used).map(|(shard, _)| *shard) else { break };
            state.remove(oldest);
        }
        state.insert(shard, bytes, self.fetcher.clone())
    }

    /// Starts fetching `next`, in order, as far as they fit beside `now`; what is in neither makes room.
    pub(super) fn prefetch(&self, now: &[u32], next: &[u32]) {
        let (_, bound) = self.bound();
        let mut state = self.state.lock().expect("no panic while held");
        for &shard in now.iter().chain(next) {
            if state.entries.contains_key(&shard) {
                continue;
            }
            let bytes = self.fetcher.manifest.shards[shard as usize].tar_bytes;
            while state.bytes.saturating_add(bytes) > bound {
                let idle = state.entries.iter().filter(|(shard, entry)| {
                    entry.fetching.peek().is_some() && !now.contains(shard) && !next.contains(shard)
                });
                let Some(oldest) = idle.min_by_key(|(_, entry)| entry.last_used).map(|(shard, _)| *shard) else {
                    return;
                };
                state.remove(oldest);
            }
            let _fetching = state.insert(shard, bytes, self.fetcher.clone());
        }
    }

    /// Lets go of a shard whose bytes turned out wrong, in the cache too; whether it was held.
    pub(super) fn forget(&self, shard: u32) -> bool {
        let held = self.state.lock().expect("no panic while held").remove(shard);
        if let Some(cache) = &self.fetcher.cache {
            cache.discard(&self.fetcher.manifest.shards[shard as usize].tar_blake3);
        }
        held
    }
}

impl State {
    fn insert(&mut self, shard: u32, bytes: u64, fetcher: Arc<Fetcher>) -> Fetching {
        let fetching = match fetcher.cached(shard as usize) {
            Some(held) => futures::future::ready(Ok(Arc::new(held))).boxed().shared(),
            None => Self::begin(shard, fetcher),
        };
        // Somebody must look at a result for `peek` to see it.
        if fetching.clone().now_or_never().is_none() {
            tokio::spawn(fetching.clone());
        }
        self.clock += 1;
        self.bytes += bytes;
        self.entries.insert(shard, Entry { bytes, last_used: self.clock, fetching: fetching.clone() });
        fetching
    }

    /// Fetches the shard in a task of its own.
    fn begin(shard: u32, fetcher: Arc<Fetcher>) -> Fetching {
        let place = fetcher.places[shard as usize].to_string();
        let task = tokio::spawn(async move { fetcher.fetch(shard as usize).await.map(Arc::new) });
        let stopped = |error: tokio::task::JoinError| StoreError::Io {
            place,
            why: format!("prefetching stopped: {error}"),
            class: ErrorClass::Runtime,
        };
        async move { task.await.map_err(stopped)? }.boxed().shared()
    }

    fn remove(&mut self, shard: u32) -> bool {
        let removed = self.entries.remove(&shard);
        self.bytes -= removed.as_ref().map_or(0, |entry| entry.bytes);
        removed.is_some()
    }
}

/// What the disk cache has of a shard.
enum Reservation {
    /// The shard.
    ResidentShard(File),
    /// A place for it, or why there is none.
    Place(Reserved),
}

impl Fetcher {
    /// The shard, if the disk cache has it already.
    fn cached(&self, shard: usize) -> Option<ResidentShard> {
        let cache = self.cache.as_ref()?;
        cache.get(&self.manifest.shards[shard].tar_blake3).ok().flatten().map(ResidentShard::File)
    }

    async fn fetch(&self, shard: usize) -> Result<ResidentShard, StoreError> {
        let mut tries = 0;
        loop {
            match self.fetch_once(shard).await {
                Err(StoreError::Changed { place, what }) if self.is_remote(shard) && tries < WRONG_BYTES_RETRIES => {
                    tries += 1;
                    self.metrics.add_retry("wrong_bytes");
                    tracing::warn!(shard = place, what, "fetched again");
                }
                result => return result,
            }
        }
    }

    fn is_remote(&self, shard: usize) -> bool {
        matches!(self.places[shard], Location::Url(_))
    }

    async fn fetch_once(&self, shard: usize) -> Result<ResidentShard, StoreError> {
        let digest = &self.manifest.shards[shard].tar_blake3;
        let Some(cache) = &self.cache else { return self.fill(shard, None).await.map(|filled| filled.held) };
        let mut long = LongWait::default();
        loop {
            // Locks are waited for and folders are read: not by a thread that others wait for too.
            let (cache_of, digest, bytes) = (cache.clone(), digest.clone(), self.manifest.shards[shard].tar_bytes);
            let reserved = blocking(move || match cache_of.get(&digest)? {
                Some(file) => Ok(Reservation::ResidentShard(file)),
                None => cache_of.reserve(&digest, bytes).map(Reservation::Place),
            });
            let reserved = match reserved.await {
                Ok(Reservation::ResidentShard(file)) => return Ok(ResidentShard::File(file)),
                Ok(Reservation::Place(reserved)) => Ok(reserved),
                Err(error) => Err::<_, std::io::Error>(error),
            };
            match reserved {
                Ok(Reserved::There) => {}
                Ok(Reserved::Busy) => {
                    if let Some(waited) = long.due() {
                        let (place, folder) = (&self.places[shard], cache.folder().display());
                        tracing::warn!(
                            "shard {place} is waited for since {} s: another process holds its lock in {folder} \
                             (machine.cache_dir), and is fetching it",
                            waited.as_secs()
                        );
                    }
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Ok(Reserved::Room(writing)) => {
                    let filled = self.fill(shard, Some(writing)).await?;
                    if let Some(why) = filled.cache_failed {
                        let place = self.places[shard].to_string();
                        tracing::warn!(shard = place, why, "cannot write to the cache; keeping the shard in memory");
                    }
                    return Ok(filled.held);
                }
                Ok(Reserved::Full) => return self.without_cache(shard, "the whole cache is in use".into()),
                Err(error) => return self.without_cache(shard, error.to_string()),
            }
        }
    }

    /// What is not held is read sample by sample; a shard that can't be is an error here.
    fn without_cache(&self, shard: usize, why: String) -> Result<ResidentShard, StoreError> {
        tracing::warn!(shard = self.places[shard].to_string(), why, "cannot use the cache");
        let folder = self.cache.as_ref().map(|cache| cache.folder().to_owned()).unwrap_or_default();
        Err(StoreError::Cache { folder, why: format!("cannot cache shard {}: {why}", self.places[shard]) })
    }

    /// Fetches, unpacks and checks a shard.
    async fn fill(&self, shard: usize, writing: Option<Writing>) -> Result<Filled, StoreError> {
        let expected = &self.manifest.shards[shard];
        let place = self.places[shard].clone();
        let compression = self.manifest.compression(shard);
        let (bytes, tar_bytes, digest) = (expected.bytes, expected.tar_bytes, expected.tar_blake3.clone());
        let (source, failed): (Box<dyn Read + Send>, _) = match &place {
            Location::File(path) => (Box::new(open_checked(path, bytes)?), None),
            Location::Url(url) => {
                let (reader, failed) = fetched(self.remote.clone(), url.clone(), bytes);
                (Box::new(reader), Some(failed))
            }
        };
        let metrics = self.metrics.clone();
        let work = move || {
            let began = Instant::now();
            let source = compression.unpacking(source).map_err(|error| StoreError::io(&place, &error))?;
            let result = copy(source, tar_bytes, writing);
            metrics.add_busy(Stage::Read, began.elapsed());
            let copied = result.map_err(|error| {
                // What stopped the stream says more than that it stopped.
                match failed.and_then(|failed| failed.lock().expect("no panic while held").take()) {
                    Some(error) => fetch_error(&place, error),
                    None => match error {
                        Stopped::Disk(error) => StoreError::io(&place, &error),
                        Stopped::Wrong(what) => StoreError::Changed { place: place.to_string(), what },
                        Stopped::NoMemory => StoreError::NoMemory { place: place.to_string(), needed: tar_bytes },
                    },
                }
            })?;
            if copied.digest != digest {
                let what = format!("the tar stream's BLAKE3 is {}, expected {digest}", copied.digest);
                return Err(StoreError::Changed { place: place.to_string(), what });
            }
            let memory = |tar, cache_failed| Filled { held: ResidentShard::Memory(tar), cache_failed };
            Ok(match copied.sink {
                Sink::Memory(tar) => memory(tar, copied.cache_failed),
                Sink::Cache(writing) => match writing.finish() {
                    Ok(file) => Filled { held: ResidentShard::File(file), cache_failed: None },
                    Err(error) => return Err(StoreError::io(&place, &error)),
                },
            })
        };
        super::blocking(work).await
    }
}

struct Filled {
    held: ResidentShard,
    cache_failed: Option<String>,
}

enum Sink {
    Memory(Vec<u8>),
    Cache(Writing),
}

struct Copied {
    sink: Sink,
    digest: simclr_ground::digest::Digest,
    cache_failed: Option<String>,
}

/// Why a copy stopped.
enum Stopped {
    /// The system says so.
    Disk(std::io::Error),
    /// What comes is not what is expected.
    Wrong(String),
    /// There is no memory for it.
    NoMemory,
}

/// Memory for a tar stream of `bytes` bytes.
fn memory_for(bytes: u64) -> Result<Vec<u8>, Stopped> {
    let mut memory = Vec::new();
    let bytes = usize::try_from(bytes).map_err(|_| Stopped::NoMemory)?;
    memory.try_reserve_exact(bytes).map_err(|_| Stopped::NoMemory)?;
    Ok(memory)
}

/// Copies a tar stream that must have `tar_bytes` bytes. If the cache fails on the way (a full disk), the copy goes
/// on in memory.
fn copy(mut source: impl Read, tar_bytes: u64, writing: Option<Writing>) -> Result<Copied, Stopped> {
    let mut hasher = blake3::Hasher::new();
    let mut cache_failed = None;
    let mut sink = match writing {
        Some(writing) => Sink::Cache(writing),
        None => Sink::Memory(memory_for(tar_bytes)?),
    };
    let mut buffer = vec![0; 1 << 18];
    let mut count = 0u64;
    loop {
        let n = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            // What the system itself says is about the disk; the rest, such as bytes that are not zstd, about what is on it.
            Err(error) if error.raw_os_error().is_some() => return Err(Stopped::Disk(error)),
            Err(error) => return Err(Stopped::Wrong(format!("the tar stream stopped after {count} bytes: {error}"))),
        };
        let bytes = &buffer[..n];
        hasher.update(bytes);
        count += n as u64;
        if count > tar_bytes {
            let what = format!("the tar stream has {count} bytes or more, expected {tar_bytes}");
            return Err(Stopped::Wrong(what));
        }
        let failed = match &mut sink {
            Sink::Memory(tar) => {
                tar.extend_from_slice(bytes);
                None
            }
            Sink::Cache(writing) => writing.write_all(bytes).err(),
        };
        if let Some(error) = failed {
            let Sink::Cache(writing) = &mut sink else { unreachable!("memory does not fail") };
            let mut tar = memory_for(tar_bytes)?;
            writing.read_back(count - n as u64, &mut tar).map_err(Stopped::Disk)?;
            tar.extend_from_slice(bytes);
            cache_failed = Some(error.to_string());
            sink = Sink::Memory(tar);
        }
    }
    if count != tar_bytes {
        return Err(Stopped::Wrong(format!("the tar stream has {count} bytes, expected {tar_bytes}")));
    }
    Ok(Copied { sink, digest: hasher.finalize().into(), cache_failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_a_shard_that_no_memory_holds_is_an_error() {
        assert!(matches!(copy(&[0u8; 10][..], 1 << 62, None), Err(Stopped::NoMemory)));
        assert!(matches!(copy(&[0u8; 10][..], 9, None), Err(Stopped::Wrong(_))));
        assert!(copy(&[0u8; 10][..], 10, None).is_ok());
    }
}
