//! Batches that are being made, handed out in order; how long whoever takes them waited, and for what.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_channel::{Receiver, RecvError};
use simclr_ground::activity::Spent;
use simclr_ground::batch::{Batch, Slab};
use simclr_ground::batch_stream::{LONG, Next};
use simclr_ground::stall::Waited;
use tokio::runtime::Handle;

use crate::metrics::Waiting;
use crate::source::{LoadError, Source};

/// Where a batch comes from when it is made.
type ReadyBatch<S> = Receiver<Result<Batch<S>, LoadError>>;

/// What whoever makes batches says of the next one.
pub enum Promise<S: Slab> {
    /// It is being made: its number, and where it will come from.
    Batch(u64, ReadyBatch<S>),
    /// There is none. That nothing is promised any more does not say so: whoever promises may have died.
    End,
}

/// The batches that are being made, in order.
pub struct Promises<S: Slab> {
    batches: Option<Receiver<Promise<S>>>,
    /// Where waiting for them is timed.
    runtime: Handle,
    /// The batch that is waited for.
    next: Option<(u64, ReadyBatch<S>)>,
    /// Since when a batch is waited for, and what had been done until then.
    waiting: Option<(Instant, Spent)>,
    source: Arc<Source>,
    started: Instant,
    delivered: u64,
    waited: Waited,
}

impl<S: Slab> Promises<S> {
    /// The batches that come through this channel, in its order.
    pub fn new(batches: Receiver<Promise<S>>, source: Arc<Source>, runtime: &Handle) -> Self {
        Self {
            batches: Some(batches),
            runtime: runtime.clone(),
            next: None,
            waiting: None,
            source,
            started: Instant::now(),
            delivered: 0,
            waited: Waited::default(),
        }
    }

    /// As [`simclr_ground::batch_stream::BatchStream::next_batch`].
    pub fn next_batch(&mut self) -> Result<Option<Batch<S>>, LoadError> {
        loop {
            match self.next_within(LONG)? {
                Next::Batch(batch) => return Ok(Some(batch)),
                Next::End => return Ok(None),
                Next::NotYet => {}
            }
        }
    }

    /// As [`BatchStream::next_within`](simclr_ground::batch_stream::BatchStream::next_within).
    pub fn next_within(&mut self, patience: Duration) -> Result<Next<S>, LoadError> {
        let Some(batches) = &self.batches else { return Ok(Next::End) };
        let until = Instant::now() + patience;
        let (began, before) =
            *self.waiting.get_or_insert_with(|| (Instant::now(), self.source.metrics.activities.spent()));
        if self.next.is_none() {
            match received(&self.runtime, batches, until) {
                None => return Ok(Next::NotYet),
                Some(Ok(Promise::Batch(number, batch))) => self.next = Some((number, batch)),
                Some(Ok(Promise::End)) => {
                    self.give_up();
                    return Ok(Next::End);
                }
                Some(Err(RecvError)) => {
                    self.give_up();
                    return Err(LoadError::NothingPromised);
                }
            }
        }
        let (number, batch) = self.next.take().expect("promised above, or before");
        let batch = match received(&self.runtime, &batch, until) {
            None => {
                self.next = Some((number, batch));
                return Ok(Next::NotYet);
            }
            Some(batch) => batch.unwrap_or(Err(LoadError::Worker(number))),
        };
        self.waiting = None;
        let metrics = &self.source.metrics;
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
                Ok(Next::Batch(batch))
            }
            Err(error) => {
                self.give_up();
                Err(error)
            }
        }
    }

    /// As [`simclr_ground::batch_stream::BatchStream::waited`].
    pub fn waited(&self) -> Waited {
        self.waited
    }

    /// What a batch waits for that this process makes, in words for people.
    pub fn waits_for_workers(&self) -> String {
        let shards = &self.source.store.manifest().shards;
        let place =
            shards.first().map_or_else(String::new, |_| self.source.store.manifest().shard_place(0).to_string());
        match self.source.metrics.activities.requests() {
            0 => "worker threads that decode and augment".into(),
            requests => format!("storage: {requests} reads have no answer yet ({place} and its like)"),
        }
    }

    /// Wants no more of them.
    pub fn give_up(&mut self) {
        (self.batches, self.next) = (None, None);
    }
}

/// What comes through the channel until then; `None` if nothing does.
fn received<T>(runtime: &Handle, channel: &Receiver<T>, until: Instant) -> Option<Result<T, RecvError>> {
    // Mostly it is there already.
    if let Ok(item) = channel.try_recv() {
        return Some(Ok(item));
    }
    runtime.block_on(async { tokio::time::timeout_at(until.into(), channel.recv()).await.ok() })
}
