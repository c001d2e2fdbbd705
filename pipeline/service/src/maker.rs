//! Makes shares of batches when they are asked for, once for all who ask.
//!
//! A batch is a value, so one that is being made, or was just made, serves everyone who wants the same. What nobody
//! wants any more is given up. Knows no connections and no tickets.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use async_channel::{Sender, bounded};
use futures::future::{BoxFuture, Shared, WeakShared};
use futures::{FutureExt, StreamExt};
use simclr_data::loader::PARTS_READ_AHEAD;
use simclr_data::metrics::Waiting;
use simclr_data::source::{LoadError, Source};
use simclr_data::workers::{self, Work};
use simclr_ground::batch::{Batch, PixelOrder, Slab};
use simclr_ground::error::InvalidValue;
use simclr_ground::position::Share;
use simclr_ground::sample::SampleRef;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::memory::{Memory, PooledSlab};

/// A finished share of a batch.
pub(super) type ReadyBatch = Arc<Batch<PooledSlab>>;

/// A share of a batch that will be there; everyone who wants it has one of these.
pub(super) type PendingBatch = Shared<Outcome>;

/// What a share of a batch comes to.
type Outcome = BoxFuture<'static, Result<ReadyBatch, Arc<LoadError>>>;

/// Which share of which batch: rank, world, number.
type Key = (u32, u32, u64);

/// Makes shares of batches on its own threads, within its memory.
pub(super) struct Producer {
    /// What is made.
    pub source: Arc<Source>,
    memory: Arc<Memory>,
    work: Sender<Work<PooledSlab>>,
    workers: Vec<thread::JoinHandle<()>>,
    runtime: tokio::runtime::Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    making: HashMap<Key, WeakShared<Outcome>>,
    /// The batches made last, the oldest first.
    recent: VecDeque<(Key, ReadyBatch)>,
    /// Bytes that are promised to streams.
    reserved: u64,
    /// How many streams there are of each share.
    streams: HashMap<(u32, u32), usize>,
}

/// How long the workers may take to finish what they are at when the maker is dropped. One that waits for storage is left
/// behind: the process ends with or without it.
const LEAVING: Duration = Duration::from_secs(1);

impl Drop for Producer {
    fn drop(&mut self) {
        // Each ends by itself then.
        self.work.close();
        let until = Instant::now() + LEAVING;
        while Instant::now() < until && !self.workers.iter().all(thread::JoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(1));
        }
        for worker in self.workers.drain(..).filter(thread::JoinHandle::is_finished) {
            // A panic was told where it happened.
            let _ = worker.join();
        }
    }
}

/// Memory that is promised to a stream of a share; dropping it gives it back.
pub(super) struct Reservation {
    maker: Arc<Producer>,
    share: Share,
    bytes: u64,
}

impl Producer {
    /// Starts the threads. They end when the maker is dropped.
    pub fn start(source: Arc<Source>, threads: usize, memory: u64, runtime: &tokio::runtime::Handle) -> Arc<Self> {
        let (work, coming) = bounded(2 * threads);
        let workers = workers::start(&source, threads, &coming, runtime);
        let (memory, runtime, state) = (Memory::new(memory), runtime.clone(), Mutex::default());
        Arc::new(Self { source, memory, work, workers, runtime, state })
    }

    /// Bytes of one share of a batch.
    pub fn share_bytes(&self, share: Share) -> u64 {
        self.source.plan.slab_bytes(share) as u64
    }

    /// Bytes of batches in memory, and how many there may be.
    pub fn memory(&self) -> (u64, u64) {
        (self.memory.used(), self.memory.limit())
    }

    /// Promises `bytes` of the memory to a stream of a share, so that streams never wait for each other; the bytes that
    /// are left if there are too few.
    pub fn reserve(self: &Arc<Self>, share: Share, bytes: u64) -> Result<Reservation, u64> {
        let mut state = self.state();
        let left = self.memory.limit() - state.reserved;
        if bytes > left {
            return Err(left);
        }
        state.reserved += bytes;
        *state.streams.entry((share.rank, share.world)).or_default() += 1;
        self.forget(&mut state);
        Ok(Reservation { maker: self.clone(), share, bytes })
    }

    /// The share of batch `number` that holds `samples`, and whether somebody else asked for it before. `fed` is dropped
    /// when all of its parts are with the workers: the time to ask for the next one.
    pub fn make(
        self: &Arc<Self>,
        share: Share,
        number: u64,
        samples: Vec<SampleRef>,
        fed: oneshot::Sender<()>,
    ) -> (PendingBatch, bool) {
        let key = (share.rank, share.world, number);
        let mut state = self.state();
        if let Some((_, made)) = state.recent.iter().find(|(known, _)| *known == key) {
            return (std::future::ready(Ok(made.clone())).boxed().shared(), true);
        }
        if let Some(making) = state.making.get(&key).and_then(WeakShared::upgrade) {
            return (making, true);
        }
        let task = self.runtime.spawn(self.clone().make_new(key, samples, fed));
        let making =
            AbortOnDrop(task).map(move |made| made.unwrap_or_else(|| Err(Arc::new(LoadError::Worker(number)))));
        let making = making.boxed().shared();
        state.making.retain(|_, making| making.upgrade().is_some());
        state.making.insert(key, making.downgrade().expect("it has not been awaited yet"));
        (making, false)
    }

    async fn make_new(
        self: Arc<Self>,
        key: Key,
        samples: Vec<SampleRef>,
        fed: oneshot::Sender<()>,
    ) -> Result<ReadyBatch, Arc<LoadError>> {
        let (rank, world, number) = key;
        let share = Share { rank, world };
        let slab = self.memory.take(self.source.plan.slab_bytes(share)).await.ok_or_else(|| {
            let arithmetic = self.source.plan.slab_arithmetic(share);
            let wanted = format!("{arithmetic} for a batch is more memory than the system gives; decrease batch.size");
            Arc::new(LoadError::from(InvalidValue::new("batch.size", self.source.plan.config.batch.size, wanted)))
        })?;
        let (done, made) = bounded(1);
        // Slabs go recycle by themselves.
        let (recycle, _) = bounded(1);
        {
            let parts = workers::begin(&self.source, number, &samples, (slab, PixelOrder::Images), done, recycle);
            let read = |next: workers::NextPart<PooledSlab>| async {
                let located = self.source.store.locate(&next.samples).await;
                (next, located)
            };
            let mut reads = futures::stream::iter(parts).map(read).buffered(PARTS_READ_AHEAD);
            while let Some((next, located)) = reads.next().await {
                let work = next.with(located.map_err(|error| Arc::new(LoadError::from(error)))?);
                let began = Instant::now();
                self.work.send(work).await.map_err(|_| Arc::new(LoadError::Worker(number)))?;
                self.source.metrics.add_wait(Waiting::ForWorkers, began.elapsed());
            }
        }
        drop(fed);
        let batch = made.recv().await.unwrap_or(Err(LoadError::Worker(number)))?;
        self.source.metrics.batches.increment(1);
        let batch = Arc::new(batch);
        let mut state = self.state();
        // Kept for another stream that may want it soon; with one stream there is none.
        if state.streams.get(&(rank, world)).is_some_and(|&streams| streams > 1) {
            state.recent.push_back((key, batch.clone()));
            self.forget(&mut state);
        }
        Ok(batch)
    }

    /// Forgets the oldest batches, until those that are kept need only memory that is promised to nobody.
    fn forget(&self, state: &mut State) {
        let left = self.memory.limit() - state.reserved;
        let mut kept: u64 = state.recent.iter().map(|(_, made)| made.slab().bytes().len() as u64).sum();
        while kept > left {
            let Some((_, oldest)) = state.recent.pop_front() else { return };
            kept -= oldest.slab().bytes().len() as u64;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.maker.state();
        state.reserved -= self.bytes;
        let (rank, world) = (self.share.rank, self.share.world);
        let streams = state.streams.get_mut(&(rank, world)).expect("counted when it was promised");
        *streams -= 1;
        if *streams < 2 {
            // Nobody is left who may want the same.
            state.recent.retain(|((r, w, _), _)| (*r, *w) != (rank, world));
        }
        state.streams.retain(|_, streams| *streams > 0);
    }
}

/// A task that ends when nobody waits for it any more; `None` if it died.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Future for AbortOnDrop<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.poll_unpin(context).map(Result::ok)
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
