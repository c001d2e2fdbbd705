//! Runs the journey: plan → store → workers → batches, in order, within a bound.
//!
//! One asynchronous feeder reads samples and hands them to worker threads in parts of a batch; the workers decode
//! and augment straight into the batch's slab. The number of slabs is the bound on memory and the back-pressure:
//! without a free slab nothing is read. Batches come out in the order of the plan, whoever finishes first.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use async_channel::{Receiver, Sender, bounded};
use futures::StreamExt;
use futures::stream::FuturesOrdered;

use crate::augment::view_bytes;
use crate::batch::{Batch, Layout, PixelOrder, Slab};
use crate::metrics::{PipelineMetrics, Waiting};
use crate::plan::{Batches, Plan, PlanError, Share, Traversal};
use crate::quarantine::{BudgetSpent, Quarantine};
use crate::stall::Waited;
use crate::store::{Located, Store, StoreError};
use crate::workers::{self, NextPart, Work};

/// Parts whose bytes are being read at the same time, so that a server's latency is paid once for all of them.
pub(crate) const PARTS_READ_AHEAD: usize = 8;

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
    /// Nodes that should make the batches do not.
    #[error(transparent)]
    Feed(#[from] crate::service::client::FeedError),
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

/// Batches one after the other, wherever they are made.
pub trait BatchStream<S: Slab> {
    /// The next batch, in order; `None` at the end of the stream. Blocks until it is there.
    ///
    /// # Errors
    /// Whatever stopped the stream; after an error it is at its end.
    fn next_batch(&mut self) -> Result<Option<Batch<S>>, LoadError>;

    /// How long was waited for batches so far, and for what.
    fn waited(&self) -> Waited;
}

/// A running stream of batches, made by this process. Dropping it stops its threads.
pub struct Loader<S: Slab> {
    promises: Promises<S>,
    slabs: Sender<S>,
    workers: Vec<JoinHandle<()>>,
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
        source.metrics.slabs.set(num_slabs as f64);
        let (slab_sender, slab_receiver) = bounded(num_slabs);
        for slab in slabs {
            slab_sender.try_send(slab).unwrap_or_else(|_| panic!("the channel holds {num_slabs} slabs"));
        }
        let (batch_sender, batches) = bounded(num_slabs);
        let (work_sender, work) = bounded(2 * options.threads);
        let workers = workers::start(&source, options.threads, &work, runtime);
        let feeder = Feeder {
            source: source.clone(),
            options,
            slabs: slab_receiver,
            home: slab_sender.clone(),
            batches: batch_sender,
            work: work_sender,
        };
        runtime.spawn(feeder.run());
        Ok(Self { promises: Promises::new(batches, source), slabs: slab_sender, workers })
    }

    /// The next batch, in order; `None` at the end of the stream. Blocks until it is there.
    ///
    /// # Errors
    /// Whatever stopped the stream; after an error it is at its end.
    pub fn next_batch(&mut self) -> Result<Option<Batch<S>>, LoadError> {
        self.promises.next()
    }
}

impl<S: Slab> BatchStream<S> for Loader<S> {
    fn next_batch(&mut self) -> Result<Option<Batch<S>>, LoadError> {
        Loader::next_batch(self)
    }

    fn waited(&self) -> Waited {
        self.promises.waited()
    }
}

impl<S: Slab> Drop for Loader<S> {
    fn drop(&mut self) {
        // Without slabs and without a receiver the feeder ends; without the feeder the workers do.
        self.slabs.close();
        self.promises.give_up();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// A batch that is being made: its number, and where it will come from.
type Promise<S> = (u64, Receiver<Result<Batch<S>, LoadError>>);

/// The batches that are being made, in order.
pub(crate) struct Promises<S: Slab> {
    batches: Option<Receiver<Promise<S>>>,
    source: Arc<Source>,
    started: Instant,
    delivered: u64,
    waited: Waited,
}

impl<S: Slab> Promises<S> {
    pub fn new(batches: Receiver<Promise<S>>, source: Arc<Source>) -> Self {
        Self { batches: Some(batches), source, started: Instant::now(), delivered: 0, waited: Waited::default() }
    }

    /// As [`BatchStream::next_batch`].
    pub fn next(&mut self) -> Result<Option<Batch<S>>, LoadError> {
        let Some(batches) = &self.batches else { return Ok(None) };
        let metrics = &self.source.metrics;
        let (began, before) = (Instant::now(), metrics.activities.spent());
        let Ok((number, batch)) = batches.recv_blocking() else { return Ok(None) };
        let batch = batch.recv_blocking().unwrap_or(Err(LoadError::Worker(number)));
        let (wait, now) = (began.elapsed(), metrics.activities.spent());
        metrics.add_wait(Waiting::ForBatch, wait);
        match batch {
            Ok(mut batch) => {
                batch.take();
                let wait = wait.as_secs_f64();
                let waited = match &batch.waited_there {
                    _ if self.delivered == 0 => Waited::for_start(wait),
                    Some(there) => Waited::for_node(wait, there),
                    None => Waited::for_workers(wait, now.since(before), now),
                };
                self.waited = self.waited.plus(&waited);
                if self.delivered == 0 {
                    metrics.time_to_first_batch.set(self.started.elapsed().as_secs_f64());
                }
                self.delivered += 1;
                metrics.batches.increment(1);
                Ok(Some(batch))
            }
            Err(error) => {
                self.give_up();
                Err(error)
            }
        }
    }

    /// As [`BatchStream::waited`].
    pub fn waited(&self) -> Waited {
        self.waited
    }

    /// Wants no more of them.
    pub fn give_up(&mut self) {
        self.batches = None;
    }
}

/// Bytes that a slab needs for this share of the plan: `views × B / world × size × size × 3`, where views have one size.
pub fn slab_bytes(plan: &Plan, share: Share) -> usize {
    layout(plan, (plan.config.batch.size / share.world) as usize).bytes()
}

pub(crate) fn layout(plan: &Plan, images: usize) -> Layout {
    let view_bytes = plan.config.recipe.sizes().map(view_bytes).collect();
    Layout { images, view_bytes, order: PixelOrder::Views }
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
        let located = match located {
            Ok(located) => located,
            Err(error) => {
                next.fail(error.into());
                return None;
            }
        };
        let began = Instant::now();
        self.work.send(next.with(located)).await.ok()?;
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
        let around = self.batches.shards_around(number);
        if around != self.around {
            source.store.prefetch(&around.0, &around.1);
            self.around = around;
        }
        let samples = self.batches.samples(number);
        let (done, promise) = bounded(1);
        // There is room for as many promises as there are slabs.
        self.feeder.batches.try_send((number, promise)).ok()?;
        self.coming.extend(workers::begin(
            source,
            number,
            &samples,
            (slab, PixelOrder::Views),
            done,
            self.feeder.home.clone(),
        ));
        Some(())
    }
}

#[cfg(test)]
mod tests;
