//! Runs the journey: plan → store → workers → batches, in order, within a bound.
//!
//! One asynchronous feeder reads samples and hands them to worker threads in parts of a batch; the workers decode
//! and augment straight into the batch's slab. The number of slabs is the bound on memory and the back-pressure:
//! without a free slab nothing is read. Batches come out in the order of the plan, whoever finishes first.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use async_channel::{Receiver, Sender, bounded};
use futures::StreamExt;
use futures::stream::FuturesOrdered;

use crate::augment::view_bytes;
use crate::batch::{Batch, Filled, Layout, NO_LABEL, Part, Slab, split};
use crate::metrics::{PipelineMetrics, Stage, Waiting};
use crate::order::SampleRef;
use crate::plan::{Batches, Plan, PlanError, Share, Traversal};
use crate::quarantine::{BudgetSpent, Damage, Quarantine, QuarantineEntry};
use crate::store::{Located, Store, StoreError};
use crate::views::{Key, ViewMaker};

/// Images that a worker takes at a time.
const PART_IMAGES: usize = 16;

/// Parts whose bytes are being read at the same time, so that a server's latency is paid once for all of them.
const PARTS_READ_AHEAD: usize = 8;

/// How a loader runs; none of this changes what comes out.
#[derive(Debug, Clone, Copy)]
pub struct LoaderOptions {
    /// Worker threads.
    pub threads: usize,
    /// The first global batch.
    pub from_batch: u64,
    /// The global batch to stop before; `None` goes on as long as it is asked (a sequential stream ends by itself).
    pub to_batch: Option<u64>,
    /// Which lanes: a batch holds the places of these only.
    pub share: Share,
}

/// Why the stream stopped.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The lanes can't be shared so.
    #[error(transparent)]
    Share(#[from] PlanError),
    /// Samples can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Too many samples are damaged.
    #[error(transparent)]
    Budget(#[from] BudgetSpent),
    /// No sample of the data set can be decoded.
    #[error("none of the {0} samples can be decoded")]
    NothingSound(u64),
    /// A worker thread died; its message is on stderr.
    #[error("a worker thread died while it made batch {0}")]
    Worker(u64),
}

/// What the loader reads and where it reports to; shared by its threads.
pub struct Source {
    /// Which batches.
    pub plan: Plan,
    /// Where the bytes come from.
    pub store: Store,
    /// Where damage is recorded.
    pub quarantine: Quarantine,
    /// What is counted.
    pub metrics: PipelineMetrics,
}

/// A running stream of batches. Dropping it stops its threads.
pub struct Loader<S: Slab> {
    batches: Option<Receiver<Promise<S>>>,
    slabs: Sender<S>,
    workers: Vec<JoinHandle<()>>,
    source: Arc<Source>,
    started: Instant,
    delivered: u64,
}

/// A batch that is being made: its number, and where it will come from.
type Promise<S> = (u64, Receiver<Result<Batch<S>, LoadError>>);

/// A part of a batch on its way to a worker.
struct Work<S: Slab> {
    part: Part<S>,
    samples: Vec<SampleRef>,
    located: Vec<Located>,
    batch: Arc<Making<S>>,
}

/// A batch that several workers are making.
struct Making<S: Slab> {
    epoch: u64,
    filled: Mutex<Option<Filled>>,
    done: Sender<Result<Batch<S>, LoadError>>,
    home: Sender<S>,
}

impl<S: Slab> Loader<S> {
    /// Starts the stream. `slabs` are the caller's, each of at least [`slab_bytes`] bytes.
    ///
    /// # Errors
    /// If the shards that must be held at a time do not fit, or the lanes can't be shared so.
    ///
    /// # Panics
    /// Without a slab or a thread, or if a slab is too small.
    pub fn start(
        source: Arc<Source>,
        slabs: Vec<S>,
        options: LoaderOptions,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, LoadError> {
        assert!(!slabs.is_empty() && options.threads > 0, "{} slabs, {options:?}", slabs.len());
        source.plan.check_share(options.share)?;
        source.store.prepare(source.plan.open_shards(options.share), &source.plan.shard_sizes)?;
        let num_slabs = slabs.len();
        let (slab_sender, slab_receiver) = bounded(num_slabs);
        for slab in slabs {
            slab_sender.try_send(slab).unwrap_or_else(|_| panic!("the channel holds {num_slabs} slabs"));
        }
        let (batch_sender, batches) = bounded(num_slabs);
        let (work_sender, work) = bounded(2 * options.threads);
        let workers = (0..options.threads)
            .map(|i| {
                let worker = Worker { source: source.clone(), storage: runtime.clone() };
                let work = work.clone();
                let thread = std::thread::Builder::new().name(format!("worker-{i}"));
                thread.spawn(move || worker.run(&work)).expect("the system gives us a thread")
            })
            .collect();
        let feeder = Feeder {
            source: source.clone(),
            options,
            slabs: slab_receiver,
            home: slab_sender.clone(),
            batches: batch_sender,
            work: work_sender,
        };
        runtime.spawn(feeder.run());
        let (started, delivered) = (Instant::now(), 0);
        Ok(Self { batches: Some(batches), slabs: slab_sender, workers, source, started, delivered })
    }

    /// The next batch, in order; `None` at the end of the stream. Blocks until it is there.
    ///
    /// # Errors
    /// Whatever stopped the stream; after an error it is at its end.
    pub fn next_batch(&mut self) -> Result<Option<Batch<S>>, LoadError> {
        let Some(batches) = &self.batches else { return Ok(None) };
        let began = Instant::now();
        let Ok((number, batch)) = batches.recv_blocking() else { return Ok(None) };
        let batch = batch.recv_blocking().unwrap_or(Err(LoadError::Worker(number)));
        let metrics = &self.source.metrics;
        metrics.add_wait(Waiting::ForBatch, began.elapsed());
        match batch {
            Ok(batch) => {
                if self.delivered == 0 {
                    metrics.time_to_first_batch.set(self.started.elapsed().as_secs_f64());
                }
                self.delivered += 1;
                metrics.batches.increment(1);
                Ok(Some(batch))
            }
            Err(error) => {
                self.batches = None;
                Err(error)
            }
        }
    }
}

impl<S: Slab> Drop for Loader<S> {
    fn drop(&mut self) {
        // Without slabs and without a receiver the feeder ends; without the feeder the workers do.
        self.slabs.close();
        self.batches = None;
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// Bytes that a slab needs for this share of the plan: `views × B / world × size × size × 3`, where views have one size.
pub fn slab_bytes(plan: &Plan, share: Share) -> usize {
    layout(plan, (plan.config.batch.size / share.world) as usize).bytes()
}

fn layout(plan: &Plan, images: usize) -> Layout {
    Layout { images, view_bytes: plan.config.recipe.sizes().map(view_bytes).collect() }
}

/// Reads what comes next and hands it to the workers.
struct Feeder<S: Slab> {
    source: Arc<Source>,
    options: LoaderOptions,
    slabs: Receiver<S>,
    home: Sender<S>,
    batches: Sender<Promise<S>>,
    work: Sender<Work<S>>,
}

impl<S: Slab> Feeder<S> {
    /// Ends when the stream does, when nobody listens any more, or on an error, which it hands on.
    async fn run(self) {
        let mut parts = self.parts();
        let mut reading = FuturesOrdered::new();
        let mut ended = false;
        loop {
            tokio::select! {
                next = parts.next(), if !ended && reading.len() < PARTS_READ_AHEAD => match next {
                    Some(next) => reading.push_back(self.locate(next)),
                    None => ended = true,
                },
                Some(read) = reading.next(), if !reading.is_empty() => {
                    if self.hand_on(read).await.is_none() {
                        return;
                    }
                }
                else => return,
            }
        }
    }

    async fn locate(&self, next: NextPart<S>) -> (NextPart<S>, Result<Vec<Located>, StoreError>) {
        let located = self.source.store.locate(&next.samples).await;
        (next, located)
    }

    /// Hands a part to the workers; `None` if that was the last.
    async fn hand_on(&self, (next, located): (NextPart<S>, Result<Vec<Located>, StoreError>)) -> Option<()> {
        let NextPart { part, samples, making } = next;
        let located = match located {
            Ok(located) => located,
            Err(error) => {
                let _ = making.done.try_send(Err(error.into()));
                return None;
            }
        };
        let began = Instant::now();
        self.work.send(Work { part, samples, located, batch: making }).await.ok()?;
        self.source.metrics.add_wait(Waiting::ForWorkers, began.elapsed());
        Some(())
    }

    fn parts(&self) -> Parts<'_, S> {
        let plan = &self.source.plan;
        let end = match plan.config.traversal {
            Traversal::Shuffled(_) => u64::MAX,
            Traversal::Sequential => plan.batches_per_epoch(),
        };
        let numbers = self.options.from_batch..self.options.to_batch.unwrap_or(end).min(end);
        let batches = plan.batches(self.options.share);
        Parts {
            feeder: self,
            numbers,
            batches,
            around: Default::default(),
            coming: VecDeque::new(),
            waiting_since: None,
        }
    }
}

/// The parts of all batches, one after the other; a batch begins when a slab is free for it.
struct Parts<'a, S: Slab> {
    feeder: &'a Feeder<S>,
    numbers: Range<u64>,
    batches: Batches<'a>,
    /// The shards that the last batch was read from, and those that come after them.
    around: (Vec<u32>, Vec<u32>),
    coming: VecDeque<NextPart<S>>,
    /// Since when there is no free slab.
    waiting_since: Option<Instant>,
}

/// A part whose samples are to be read.
struct NextPart<S: Slab> {
    part: Part<S>,
    samples: Vec<SampleRef>,
    making: Arc<Making<S>>,
}

impl<S: Slab> Parts<'_, S> {
    /// The next part; dropped while it waits for a slab, it has changed nothing.
    async fn next(&mut self) -> Option<NextPart<S>> {
        while self.coming.is_empty() {
            let number = self.numbers.clone().next()?;
            let began = *self.waiting_since.get_or_insert_with(Instant::now);
            let slab = self.feeder.slabs.recv().await.ok()?;
            self.feeder.source.metrics.add_wait(Waiting::ForSlab, began.elapsed());
            self.waiting_since = None;
            self.numbers.start += 1;
            self.begin(number, slab)?;
        }
        self.coming.pop_front()
    }

    /// Lays out batch `number` in the slab; `None` when nobody listens any more.
    fn begin(&mut self, number: u64, slab: S) -> Option<()> {
        let source = &self.feeder.source;
        let plan = &source.plan;
        let around = self.batches.shards_around(number);
        if around != self.around {
            source.store.prefetch(&around.0, &around.1);
            self.around = around;
        }
        let samples = self.batches.samples(number);
        let (done, promise) = bounded(1);
        // There is room for as many promises as there are slabs.
        self.feeder.batches.try_send((number, promise)).ok()?;
        let layout = layout(plan, samples.len());
        let position = plan.position(number);
        let manifest = source.store.manifest();
        let label =
            |s: &SampleRef| manifest.shards[s.shard as usize].label(s.index as usize).map_or(NO_LABEL, i64::from);
        let filled = Filled {
            position,
            layout: layout.clone(),
            labels: samples.iter().map(label).collect(),
            sample_ids: samples.iter().map(|&sample| plan.sample_id(sample)).collect(),
            replaced: Vec::new(),
        };
        let (filled, home) = (Mutex::new(Some(filled)), self.feeder.home.clone());
        let making = Arc::new(Making { epoch: position.epoch, filled, done, home });
        self.coming.extend(split(slab, layout, PART_IMAGES).into_iter().map(|part| {
            let samples = samples[part.images.clone()].to_vec();
            NextPart { part, samples, making: making.clone() }
        }));
        Some(())
    }
}

/// What a worker thread works with.
struct Worker {
    source: Arc<Source>,
    /// Where reading runs, for the sample that takes a damaged one's place.
    storage: tokio::runtime::Handle,
}

impl Worker {
    fn run<S: Slab>(&self, work: &Receiver<Work<S>>) {
        let mut maker = ViewMaker::new(&self.source.plan.config);
        let mut memory = Vec::new();
        loop {
            let began = Instant::now();
            let Ok(next) = work.recv_blocking() else { return };
            self.source.metrics.add_wait(Waiting::ForWork, began.elapsed());
            let batch = next.batch.clone();
            match self.make_part(&mut maker, &mut memory, next) {
                Ok(None) => {}
                Ok(Some(slab)) => {
                    // This was the last part; nobody else holds what is known of the batch.
                    let filled = batch.filled.lock().expect("no panic while held").take().expect("taken once");
                    let _ = batch.done.try_send(Ok(Batch::new(filled, slab, batch.home.clone())));
                }
                Err(error) => {
                    let _ = batch.done.try_send(Err(error));
                }
            }
        }
    }

    /// Fills the places of a part; the slab comes back with the last part of a batch.
    fn make_part<S: Slab>(
        &self,
        maker: &mut ViewMaker,
        memory: &mut Vec<u8>,
        work: Work<S>,
    ) -> Result<Option<S>, LoadError> {
        let source = &self.source;
        let Work { mut part, samples, located, batch } = work;
        let images = part.images.clone();
        let num_images = images.len();
        for ((image, wanted), located) in images.zip(samples).zip(located) {
            let used = self.decode_or_replace(maker, memory, batch.epoch, wanted, located)?;
            let decoded = Instant::now();
            for view in 0..maker.steps().len() {
                maker.write(view, part.view_mut(image, view));
            }
            source.metrics.add_busy(Stage::Augment, decoded.elapsed());
            if used != wanted {
                let mut filled = batch.filled.lock().expect("no panic while held");
                let filled = filled.as_mut().expect("not taken before the last part");
                let label = source.store.manifest().shards[used.shard as usize].label(used.index as usize);
                filled.labels[image] = label.map_or(NO_LABEL, i64::from);
                filled.sample_ids[image] = source.plan.sample_id(used);
                filled.replaced.push(image);
                filled.replaced.sort_unstable();
            }
        }
        source.metrics.add_samples(num_images as u64);
        Ok(part.finish())
    }

    /// Decodes the sample, or if it is damaged the first sound one after it in the manifest; which one it was.
    fn decode_or_replace(
        &self,
        maker: &mut ViewMaker,
        memory: &mut Vec<u8>,
        epoch: u64,
        wanted: SampleRef,
        located: Located,
    ) -> Result<SampleRef, LoadError> {
        let source = &self.source;
        // A replacement is augmented as the sample it stands for, so that it differs from itself in its own place.
        let key = Key { seed: source.plan.config.seed, epoch, sample: source.plan.sample_id(wanted) };
        let (mut sample, mut located) = (wanted, Some(located));
        loop {
            if !source.quarantine.holds(source.plan.sample_id(sample)) {
                let located = match located.take() {
                    Some(located) => located,
                    None => self.storage.block_on(source.store.locate(&[sample]))?.pop().expect("one was asked for"),
                };
                let bytes = source.store.bytes(sample, &located, memory, &self.storage)?;
                let rows = source.store.manifest().shards[sample.shard as usize].rows(sample.index as usize);
                let began = Instant::now();
                let decoded = maker.decode(bytes, rows, key);
                source.metrics.add_busy(Stage::Decode, began.elapsed());
                match decoded {
                    Ok(()) => return Ok(sample),
                    Err(damage) => source.quarantine.record(entry(source, sample, damage))?,
                }
            }
            located = None;
            sample = source.plan.next_in_manifest(sample);
            if sample == wanted {
                return Err(LoadError::NothingSound(source.plan.num_samples()));
            }
        }
    }
}

fn entry(source: &Source, sample: SampleRef, damage: Damage) -> QuarantineEntry {
    let shard = &source.store.manifest().shards[sample.shard as usize];
    QuarantineEntry {
        sample: source.plan.sample_id(sample),
        shard: shard.location.clone(),
        entry: shard.entries[sample.index as usize].clone(),
        offset: shard.offsets[sample.index as usize],
        reason: damage.reason.name().into(),
        detail: damage.detail,
    }
}

#[cfg(test)]
mod tests;
