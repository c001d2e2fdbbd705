//! Runs the journey: plan → store → workers → batches, in order, within a bound.
//!
//! One asynchronous feeder reads samples and hands them to worker threads in parts of a batch; the workers decode
//! and augment straight into the batch's slab. The number of slabs is the bound on memory and the back-pressure:
//! without a free slab nothing is read. Batches come out in the order of the plan, whoever finishes first.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender, bounded};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use simclr_ground::batch::{Batch, PixelOrder, Slab};
use simclr_ground::batch_stream::{BatchStream, Next, StreamError};
use simclr_ground::position::Share;
use simclr_ground::stall::Waited;
use simclr_plan::Batches;
use simclr_plan::Traversal;

use crate::metrics::Waiting;
use crate::promise::{Promise, Promises};
use crate::source::{LoadError, Source};
use crate::store::{Located, StoreError};
use crate::workers::{self, NextPart, Work};

/// Parts whose bytes are being read at the same time, so that a server's latency is paid once for all of them.
pub const PARTS_READ_AHEAD: usize = 8;

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

/// A running stream of batches, made by this process. Dropping it stops its threads.
pub struct Loader<S: Slab> {
    promises: Promises<S>,
    slabs: Sender<S>,
    work: Receiver<Work<S>>,
    feeder: tokio::task::AbortHandle,
    workers: Vec<JoinHandle<()>>,
}

/// How long threads may take to end that are still reading: storage that does not answer keeps nobody.
const PATIENCE_AT_END: Duration = Duration::from_secs(2);

impl<S: Slab> Loader<S> {
    /// Starts the stream. `slabs` are the caller's, each of at least [`simclr_plan::Plan::slab_bytes`] bytes.
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
        // As many as can be made at a time, and the word that there are no more.
        let (batch_sender, batches) = bounded(num_slabs + 1);
        let (work_sender, work) = bounded(2 * options.threads);
        let workers = workers::start(&source, options.threads, &work, runtime);
        let feeder = Feeder {
            source: source.clone(),
            options,
            slabs: slab_receiver,
            recycle: slab_sender.clone(),
            batches: batch_sender,
            work: work_sender,
        };
        let feeder = runtime.spawn(feeder.run()).abort_handle();
        Ok(Self { promises: Promises::new(batches, source, runtime), slabs: slab_sender, work, feeder, workers })
    }

    /// The next batch, in order; `None` at the end of the stream. Blocks until it is there.
    ///
    /// # Errors
    /// Whatever stopped the stream; after an error it is at its end.
    pub fn next_batch(&mut self) -> Result<Option<Batch<S>>, LoadError> {
        self.promises.next_batch()
    }
}

impl<S: Slab> BatchStream<S> for Loader<S> {
    fn next_within(&mut self, patience: Duration) -> Result<Next<S>, StreamError> {
        self.promises.next_within(patience).map_err(StreamError::new)
    }

    fn waits_for(&self) -> String {
        self.promises.waits_for_workers()
    }

    fn waited(&self) -> Waited {
        self.promises.waited()
    }
}

impl<S: Slab> Drop for Loader<S> {
    fn drop(&mut self) {
        self.slabs.close();
        self.promises.give_up();
        // It may be waiting for storage.
        self.feeder.abort();
        self.work.close();
        let until = Instant::now() + PATIENCE_AT_END;
        for worker in self.workers.drain(..) {
            while !worker.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            // One that still reads ends once it has read, and nobody wants what it makes.
            if worker.is_finished() {
                let _ = worker.join();
            }
        }
    }
}

/// Reads what comes next and hands it to the workers.
struct Feeder<S: Slab> {
    source: Arc<Source>,
    options: LoaderOptions,
    slabs: Receiver<S>,
    recycle: Sender<S>,
    batches: Sender<Promise<S>>,
    work: Sender<Work<S>>,
}

impl<S: Slab> Feeder<S> {
    /// Ends when the stream does, which it says, when nobody listens any more, or on an error, which it hands on.
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
                else => break,
            }
        }
        let _ = self.batches.send(Promise::End).await;
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
        let batches = Batches::new(plan, self.options.share);
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
        #[cfg(test)]
        assert!(number != tests::FAULT, "a fault of the feeder's");
        let source = &self.feeder.source;
        let around = self.batches.shards_around(number);
        if around != self.around {
            source.store.prefetch(&around.0, &around.1);
            self.around = around;
        }
        let samples = self.batches.samples(number);
        let (done, promise) = bounded(1);
        // There is room for as many promises as there are slabs.
        self.feeder.batches.try_send(Promise::Batch(number, promise)).ok()?;
        self.coming.extend(workers::begin(
            source,
            number,
            &samples,
            (slab, PixelOrder::Views),
            done,
            self.feeder.recycle.clone(),
        ));
        Some(())
    }
}

#[cfg(test)]
mod tests;
