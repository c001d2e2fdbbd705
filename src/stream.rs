//! Opens the stream of batches that a configuration describes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use pipeline::batch::Slab;
use pipeline::loader::{BatchStream, Loader, LoaderOptions, Source};
use pipeline::manifest::Manifest;
use pipeline::metrics::PipelineMetrics;
use pipeline::plan::{Plan, Share, StreamConfig};
use pipeline::quarantine::Quarantine;
use pipeline::service::client::Feed;
use pipeline::store::{RemoteOptions, Store, StoreOptions};

use crate::config::MachineConfig;

/// The source of a stream: plan, store and quarantine.
///
/// # Errors
/// If the manifest can't be read or the plan can't be made.
pub fn open(stream: StreamConfig, machine: &MachineConfig) -> anyhow::Result<Arc<Source>> {
    crate::telemetry::recorder();
    open_counting(stream, machine, PipelineMetrics::register())
}

/// As [`open`], counting with these metrics.
///
/// # Errors
/// If the manifest can't be read or the plan can't be made.
pub fn open_counting(
    stream: StreamConfig,
    machine: &MachineConfig,
    metrics: PipelineMetrics,
) -> anyhow::Result<Arc<Source>> {
    let manifest = Manifest::read(&stream.data.manifest)?;
    let plan = Plan::new(&manifest, stream)?;
    let store = Store::new(Arc::new(manifest), &store_options(machine), metrics.clone())?;
    let quarantine = Quarantine::new(allowed_damage(&plan), metrics.clone());
    Ok(Arc::new(Source { plan, store, quarantine, metrics }))
}

/// Makes a source that no loader reads yet write its damaged samples to the ledger at `path`, beginning with those
/// that are there already.
///
/// # Errors
/// If the ledger can't be read or written, or what it holds exceeds the budget.
#[cfg_attr(not(feature = "trainer"), expect(dead_code))]
pub fn keep_ledger(source: &mut Arc<Source>, path: &Path) -> anyhow::Result<()> {
    let source = Arc::get_mut(source).expect("no loader shares the source before it is started");
    let quarantine = Quarantine::with_ledger(allowed_damage(&source.plan), path, source.metrics.clone());
    source.quarantine = quarantine.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(source.quarantine.check_budget()?)
}

/// Makes a source that no loader reads yet bear any number of damaged samples.
pub fn bear_all(source: &mut Arc<Source>) {
    let source = Arc::get_mut(source).expect("no loader shares the source before it is started");
    source.quarantine = Quarantine::new(source.plan.num_samples(), source.metrics.clone());
}

/// What the machine lets storage use.
fn store_options(machine: &MachineConfig) -> StoreOptions {
    let remote = RemoteOptions {
        requests: machine.storage_requests,
        give_up_after: Duration::from_secs(machine.storage_patience_seconds),
        ..RemoteOptions::default()
    };
    let cache = (!machine.cache_dir.as_os_str().is_empty()).then(|| (machine.cache_dir.clone(), machine.cache_bytes));
    StoreOptions { memory_bytes: machine.memory_bytes, cache, remote }
}

/// How many damaged samples the plan bears.
fn allowed_damage(plan: &Plan) -> u64 {
    (plan.config.data.max_damaged * plan.num_samples() as f64) as u64
}

/// Starts the stream on this machine with plain memory, on `threads` threads.
///
/// # Errors
/// If the shards in use at a time do not fit into memory.
pub fn start_plain(
    source: &Arc<Source>,
    machine: &MachineConfig,
    options: LoaderOptions,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<Loader<Vec<u8>>> {
    start(source, plain_slabs(&source.plan, machine, options.share), options, runtime)
}

/// Starts the stream on this machine with the caller's slabs.
///
/// # Errors
/// If the shards in use at a time do not fit into memory.
pub fn start<S: Slab>(
    source: &Arc<Source>,
    slabs: Vec<S>,
    options: LoaderOptions,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<Loader<S>> {
    Ok(Loader::start(source.clone(), slabs, options, runtime)?)
}

/// Starts the stream with the caller's slabs: by the nodes that `machine.feed` names, or on this machine if it names none.
///
/// # Errors
/// If the shards in use at a time do not fit into memory, or the nodes are named wrongly.
pub fn feed<S: Slab>(
    source: &Arc<Source>,
    slabs: Vec<S>,
    machine: &MachineConfig,
    options: LoaderOptions,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<Box<dyn BatchStream<S>>> {
    if machine.feed.nodes.is_empty() {
        return Ok(Box::new(start(source, slabs, options, runtime)?));
    }
    let LoaderOptions { from_batch, to_batch, share, .. } = options;
    Ok(Box::new(Feed::start(source.clone(), slabs, &machine.feed, share, (from_batch, to_batch), runtime)?))
}

/// Plain memory for the batches of a share.
pub fn plain_slabs(plan: &Plan, machine: &MachineConfig, share: Share) -> Vec<Vec<u8>> {
    vec![vec![0; pipeline::loader::slab_bytes(plan, share)]; machine.batches_ahead + 1]
}

/// The number of cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The runtime that storage and web pages run on; computing has threads of its own.
///
/// # Errors
/// If the system gives no threads.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    // Two do for storage; a feed from many nodes takes a core for each 4 GB/s.
    let threads = (cores() / 8).clamp(2, 8);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).thread_name("io").enable_all().build().context("cannot start the I/O threads")
}
