//! Opens what a configuration describes on this machine: the source of a stream, the batches, the threads.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use simclr_data::dataset::{self, OpenOptions, Opened, ScanProgress};
use simclr_data::listing::{Listing, Reading};
use simclr_data::loader::{Loader, LoaderOptions};
use simclr_data::manifest::Manifest;
use simclr_data::metrics::PipelineMetrics;
use simclr_data::objects::remote::RemoteOptions;
use simclr_data::source::{DamagePolicy, Source};
use simclr_data::store::{OTHER_FILES, StoreOptions};
use simclr_ground::batch::{Slab, zeros};
use simclr_ground::batch_stream::BatchStream;
use simclr_ground::error::{Context, Error, InvalidValue, Result};
use simclr_ground::position::Share;
use simclr_plan::{BatchConfig, DataConfig, Plan, StreamConfig, Traversal};
use simclr_service::client::Feed;

use crate::config::{Config, MachineConfig};
use crate::telemetry::progress::Progress;
use crate::telemetry::{self, logging};

/// The manifest of whatever `what` names as data. What a person should know of it is said once.
///
/// # Errors
/// If there is no data set of this name, or it can't be read.
pub fn manifest(what: &Path, reading: Reading) -> Result<Manifest> {
    manifest_without(what, reading, BTreeSet::new())
}

/// As [`manifest`], without these image files.
///
/// # Errors
/// As [`manifest`].
pub fn manifest_without(what: &Path, reading: Reading, exclude: BTreeSet<PathBuf>) -> Result<Manifest> {
    let Opened { manifest, notes } =
        with_progress(what, reading, exclude, |options| Ok(dataset::open(what, options)?))?;
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    for note in notes {
        let note = format!("{}: {note}", what.display());
        if !logging::is_quiet() && SAID.lock().expect("no panic while held").insert(note.clone()) {
            logging::say(&note);
        }
    }
    Ok(manifest)
}

/// Looks at a data set, and shows how that goes on.
fn with_progress<T>(
    what: &Path,
    reading: Reading,
    exclude: BTreeSet<PathBuf>,
    look: impl FnOnce(&OpenOptions<'_>) -> Result<T>,
) -> Result<T> {
    let quiet = logging::is_quiet();
    let progress: Mutex<Option<Progress>> = Mutex::new(None);
    let told = |told: ScanProgress| match told {
        ScanProgress::Waiting => tracing::warn!("waiting for another process that scans {}", what.display()),
        // What is known already needs no bar.
        ScanProgress::Scanned { bytes: 0, .. } => {}
        ScanProgress::Scanned { unit, done, total, bytes } => {
            let mut progress = progress.lock().expect("no panic while held");
            let progress = progress.get_or_insert_with(|| Progress::new("scanning", 0, total, quiet));
            progress.set(done, total, || format!("{unit}, {:.1} MB read", bytes as f64 / 1e6));
        }
    };
    let found = look(&OpenOptions { reading, exclude, threads: cores(), memory: memory_folder(), progress: &told });
    progress.into_inner().expect("no panic while held").iter().for_each(Progress::finish);
    found
}

/// What `what` names as data, as a listing that can be packed. What a person should know of it is in its notes.
///
/// # Errors
/// As [`manifest`].
pub fn listing(
    what: &Path,
    classes: Option<Vec<String>>,
    reading: Reading,
    machine: &MachineConfig,
    runtime: &tokio::runtime::Handle,
) -> Result<Listing> {
    telemetry::recorder();
    with_progress(what, reading, BTreeSet::new(), |options| {
        Ok(dataset::listing(what, classes, options, &store_options(machine), runtime)?)
    })
}

/// How a configuration says that data sets are read.
pub fn reading(data: &DataConfig) -> Reading {
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let labels = (!data.labels.as_os_str().is_empty()).then(|| data.labels.clone());
    Reading { image: some(&data.image), label_field: some(&data.label_field), labels }
}

/// Where it is remembered what was read of people's data: in the user's cache folder, if there is one.
fn memory_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("simclr-pipeline").join("datasets"))
}

/// The manifest that a configuration names; what in the configuration fits itself to the data is filled in.
///
/// # Errors
/// As [`manifest`].
pub fn fitted(config: &mut Config) -> Result<Manifest> {
    simclr_data::objects::set_patience(config.machine.storage_patience_seconds);
    let manifest = manifest(&config.data.manifest, reading(&config.data))?;
    if manifest.samples < 2 {
        return Err(Error::input(format!(
            "{}: holds one image; contrastive learning tells images apart, so at least 2 are needed",
            config.data.manifest.display()
        )));
    }
    config.fit(taken(config, &manifest)?);
    Ok(manifest)
}

/// How many samples a configuration takes of a data set.
fn taken(config: &Config, manifest: &Manifest) -> Result<u64> {
    let data = &config.data;
    if config.batch.size > 0
        || (data.classes.is_empty() && data.subset.as_os_str().is_empty() && data.part == [0.0, 1.0])
    {
        return Ok(manifest.samples);
    }
    let one = StreamConfig { batch: BatchConfig { size: 1 }, traversal: Traversal::Sequential, ..config.stream() };
    Ok(Plan::new(manifest, one)?.num_samples())
}

/// The source of a stream, which bears as much damage as its configuration allows.
///
/// # Errors
/// If the manifest can't be read or the plan can't be made.
pub fn source(stream: StreamConfig, machine: &MachineConfig) -> Result<Arc<Source>> {
    source_over(manifest(&stream.data.manifest, reading(&stream.data))?, stream, machine, DamagePolicy::Budget)
}

/// The source of a stream over a manifest that was read, with this damage policy.
///
/// # Errors
/// If the ledger can't be read, or the plan can't be made.
pub fn source_over(
    manifest: impl Into<Arc<Manifest>>,
    stream: StreamConfig,
    machine: &MachineConfig,
    damage: DamagePolicy<'_>,
) -> Result<Arc<Source>> {
    telemetry::recorder();
    Source::open(manifest, stream, &store_options(machine), damage, PipelineMetrics::register())
}

/// What the machine lets storage use.
pub fn store_options(machine: &MachineConfig) -> StoreOptions {
    // Half of the files that this process may open beside its own are for connections, half for shards.
    let connections = open_files().map_or(u64::MAX, |limit| limit.saturating_sub(OTHER_FILES) / 2).max(1);
    let remote = RemoteOptions {
        requests: machine.storage_requests.min(usize::try_from(connections).unwrap_or(usize::MAX)),
        give_up_after: Duration::from_secs(machine.storage_patience_seconds),
        ..RemoteOptions::default()
    };
    let cache = (!machine.cache_dir.as_os_str().is_empty()).then(|| (machine.cache_dir.clone(), machine.cache_bytes));
    StoreOptions { memory_bytes: machine.memory_bytes, cache, remote }
}

/// The stream in the caller's slabs: from the nodes that `machine.feed` names, or made on this machine if it names none.
///
/// # Errors
/// If the shards in use at a time do not fit into memory, or the nodes are named wrongly.
pub fn batches<S: Slab>(
    source: &Arc<Source>,
    slabs: Vec<S>,
    machine: &MachineConfig,
    options: LoaderOptions,
    runtime: &tokio::runtime::Handle,
) -> Result<Box<dyn BatchStream<S>>> {
    if machine.feed.nodes.is_empty() {
        return Ok(Box::new(Loader::start(source.clone(), slabs, options, runtime)?));
    }
    let LoaderOptions { from_batch, to_batch, share, .. } = options;
    Ok(Box::new(Feed::start(source.clone(), slabs, &machine.feed, share, (from_batch, to_batch), runtime)?))
}

/// Plain memory for the batches of a share.
///
/// # Errors
/// If the system gives no such memory.
pub fn plain_slabs(plan: &Plan, machine: &MachineConfig, share: Share) -> Result<Vec<Vec<u8>>, InvalidValue> {
    check_memory(plan, machine, share, 1)?;
    let slabs: Option<Vec<Vec<u8>>> = (0..=machine.batches_ahead).map(|_| zeros(plan.slab_bytes(share))).collect();
    slabs.ok_or_else(|| no_memory(plan, machine, share, 1))
}

/// Whether the batches of a share, `in_use` of them beside those that are made ahead, can fit into this machine's memory. A
/// system may promise more than it has, and end the process later, without a word.
///
/// # Errors
/// If they can't, with the arithmetic.
pub fn check_memory(plan: &Plan, machine: &MachineConfig, share: Share, in_use: usize) -> Result<(), InvalidValue> {
    let needed = (plan.slab_bytes(share) as u64).checked_mul((machine.batches_ahead + in_use) as u64);
    match needed {
        Some(needed) if simclr_ground::memory::total().is_none_or(|there| needed <= there) => Ok(()),
        _ => Err(no_memory(plan, machine, share, in_use)),
    }
}

/// The error that there is no memory for the batches of a share, `in_use` of them beside those that are made ahead.
pub fn no_memory(plan: &Plan, machine: &MachineConfig, share: Share, in_use: usize) -> InvalidValue {
    let ahead = machine.batches_ahead;
    let wanted = format!(
        "{} for each of {} batches (machine.batches_ahead {ahead} + {in_use} in use) is more memory than the system gives; \
         decrease batch.size, machine.batches_ahead, or the recipe's size or views",
        plan.slab_arithmetic(share),
        ahead + in_use
    );
    InvalidValue::new("batch.size", plan.config.batch.size, wanted)
}

/// As [`no_memory`], with the words of whoever was asked for it; a device may have reasons of its own.
#[cfg(feature = "trainer")]
pub fn no_memory_because(
    plan: &Plan,
    machine: &MachineConfig,
    share: Share,
    in_use: usize,
    error: &dyn std::error::Error,
) -> InvalidValue {
    let mut value = no_memory(plan, machine, share, in_use);
    let text = error.to_string();
    value.wanted += &format!(" ({})", text.lines().next().unwrap_or_default());
    value
}

/// How many files this process may have open; `None` if any number.
pub fn open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Takes as many open files as the system lets this process have: the usual limit is meant for programs that open few.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // If it is refused, what is there has to do.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// The number of cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The runtime that storage and web pages run on. It ends without waiting for what still runs on it: storage that does not
/// answer must not keep the program from ending.
pub struct IoRuntime(Option<tokio::runtime::Runtime>);

impl Deref for IoRuntime {
    type Target = tokio::runtime::Runtime;

    fn deref(&self) -> &Self::Target {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for IoRuntime {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(tokio::runtime::Runtime::shutdown_background);
    }
}

/// The runtime that storage and web pages run on; computing has threads of its own.
///
/// # Errors
/// If the system gives no threads.
pub fn runtime() -> Result<IoRuntime> {
    // Two do for storage; a feed from many nodes takes a core for each 4 GB/s.
    let threads = (cores() / 8).clamp(2, 8);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(threads).thread_name("io").enable_all().build();
    Ok(IoRuntime(Some(runtime.context("cannot start the I/O threads")?)))
}

/// libtorch's threads on the CPU, for one of so many processes on it.
#[cfg(feature = "trainer")]
pub fn torch_threads(machine: &MachineConfig, processes: usize) -> usize {
    if machine.torch_threads == 0 { (cores() / processes).max(1) } else { machine.torch_threads }
}

#[cfg(test)]
mod tests {
    use simclr_ground::error::{Classify, ErrorClass};
    use simclr_image::augment::RecipeConfig;
    use simclr_plan::{SampleCounts, Traversal};

    use super::*;
    use crate::config::Config;

    #[test]
    fn bounded_batches_that_no_memory_holds_are_an_input_error_with_the_arithmetic() {
        let mut stream = StreamConfig::shuffled(1, u32::MAX, 1, RecipeConfig::simclr(4096));
        stream.traversal = Traversal::Sequential;
        let plan = Plan::new(&SampleCounts(vec![10]), stream).unwrap();
        let settings = ["machine.batches_ahead=2".to_owned()];
        let machine = Config::load(Some("quickstart"), &settings).unwrap().machine;
        let error = plain_slabs(&plan, &machine, Share::ALL).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Input);
        assert_eq!(
            error.to_string(),
            "invalid value 4294967295 for batch.size: batch.size 4294967295 × (2 views × 3 × 4096 × 4096 bytes) = \
             432345564.1 GB for each of 3 batches (machine.batches_ahead 2 + 1 in use) is more memory than the system gives; \
             decrease batch.size, machine.batches_ahead, or the recipe's size or views"
        );
    }
}
