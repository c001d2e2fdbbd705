//! One contract for every kind of storage, and what happens when it fails.
//!
//! The servers are real ones: an S3-compatible server, a web server with ranges, one without. Faults are made by a
//! proxy in front of them. Google's and Azure's protocols have no server that could run here.

mod contract;
mod faults;
mod servers;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use simclr_ground::position::Share;
use simclr_plan::Plan;

use super::*;
use crate::loader::{Loader, LoaderOptions};
use crate::quarantine::Quarantine;
use crate::source::{LoadError, Source as Streamed};
use crate::testing::{Set, stream};

/// Patience for tests: faults pass in milliseconds, and the end of patience comes in seconds.
const IMPATIENT: RemoteOptions = RemoteOptions {
    requests: 8,
    give_up_after: Duration::from_secs(3),
    wrong_address_after: Duration::from_millis(300),
    first_backoff: Duration::from_millis(5),
    longest_backoff: Duration::from_millis(100),
    hedge_after: Duration::from_millis(150),
    attempt_timeout: Duration::from_millis(600),
    whole_bytes: 1 << 30,
};

/// Shards held in memory, or read sample by sample.
fn in_memory(memory_bytes: u64) -> StoreOptions {
    StoreOptions { memory_bytes, cache: None, remote: IMPATIENT }
}

/// Shards held in a cache folder.
fn in_cache(folder: &Path, bytes: u64) -> StoreOptions {
    StoreOptions { memory_bytes: 0, cache: Some((folder.to_owned(), bytes)), remote: IMPATIENT }
}

/// The set's manifest with its shards somewhere else.
fn moved(set: &Set, base: &str) -> Manifest {
    let mut manifest = set.manifest.clone();
    manifest.base = Location::parse(base).unwrap();
    manifest
}

/// The local folder of a set.
fn folder(set: &Set) -> PathBuf {
    match &set.manifest.base {
        Location::File(path) => path.clone(),
        Location::Url(url) => panic!("{url} is not local"),
    }
}

/// The digest of two epochs' batches, read through a store that `connect` has made ready.
fn digest(manifest: &Manifest, options: &StoreOptions, connect: &dyn Fn(&Remote)) -> Result<String, LoadError> {
    digest_with(manifest, options, connect, &mut |_| {})
}

/// As `digest`; `after` is called with the number of each batch that has come.
fn digest_with(
    manifest: &Manifest,
    options: &StoreOptions,
    connect: &dyn Fn(&Remote),
    after: &mut dyn FnMut(u64),
) -> Result<String, LoadError> {
    let metrics = PipelineMetrics::register();
    let plan = Plan::new(manifest, stream(1, 8, 4)).unwrap();
    let store = Store::new(Arc::new(manifest.clone()), options, metrics.clone())?;
    connect(store.remote());
    let to = 2 * plan.batches_per_epoch();
    let slabs = vec![vec![0u8; plan.slab_bytes(Share::ALL)]; 2];
    let quarantine = Quarantine::new(0, metrics.clone());
    let source = Arc::new(Streamed::of(plan, store, quarantine, metrics));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let options = LoaderOptions { threads: 1, from_batch: 0, to_batch: Some(to), share: Share::ALL };
    let mut loader = Loader::start(source, slabs, options, runtime.handle())?;
    let mut hasher = blake3::Hasher::new();
    while let Some(batch) = loader.next_batch()? {
        hasher.update(batch.digest().as_bytes());
        after(batch.position.batch);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The digest of the set where it was packed.
fn quiet_digest(set: &Set) -> String {
    digest(&set.manifest, &in_memory(1 << 30), &|_| {}).unwrap()
}
