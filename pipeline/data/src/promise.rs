//! Batches that are being made, handed out in order; how long whoever takes them waited, and for what.

use std::sync::Arc;
use std::time::Instant;

use async_channel::Receiver;
use simclr_ground::batch::{Batch, Slab};
use simclr_ground::stall::Waited;

use crate::metrics::Waiting;
use crate::source::{LoadError, Source};

/// A batch that is being made: its number, and where it will come from.
pub type Promise<S> = (u64, Receiver<Result<Batch<S>, LoadError>>);

/// The batches that are being made, in order.
pub struct Promises<S: Slab> {
    batches: Option<Receiver<Promise<S>>>,
    source: Arc<Source>,
    started: Instant,
    delivered: u64,
    waited: Waited,
}

impl<S: Slab> Promises<S> {
    /// The batches that come through this channel, in its order.
    pub fn new(batches: Receiver<Promise<S>>, source: Arc<Source>) -> Self {
        Self { batches: Some(batches), source, started: Instant::now(), delivered: 0, waited: Waited::default() }
    }

    /// As [`simclr_ground::batch_stream::BatchStream::next_batch`].
    pub fn next_batch(&mut self) -> Result<Option<Batch<S>>, LoadError> {
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

    /// As [`simclr_ground::batch_stream::BatchStream::waited`].
    pub fn waited(&self) -> Waited {
        self.waited
    }

    /// Wants no more of them.
    pub fn give_up(&mut self) {
        self.batches = None;
    }
}
