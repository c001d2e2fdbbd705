//! One client's stream: asks the maker for what comes next, some batches ahead, and cuts it into messages.
//!
//! Messages are made when the connection asks for them, and their pixels are the batch's own memory, so a client that is slow, or gone, holds what was made ahead
//! and no more. Dropping the stream gives everything back.

use std::sync::Arc;
use std::time::Instant;

use async_channel::{Receiver, Sender, bounded};
use bytes::Bytes;
use futures::Stream;
use simclr_data::quarantine::{Quarantine, QuarantineEntry};
use simclr_data::source::LoadError;
use simclr_ground::position::Share;
use simclr_ground::sample::SampleRef;
use simclr_ground::stall::Waited;
use simclr_plan::{Batches, Plan};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tonic::Status;

use crate::Service;
use crate::maker::{PendingBatch, ReadyBatch, Reservation};
use crate::metrics::Count;
use crate::ticket::Ticket;
use crate::wire::{self, MessageInfo};

/// A share of a batch that is coming, and the place that it takes among those made ahead.
struct UpcomingBatch {
    number: u64,
    making: PendingBatch,
    shared: bool,
    samples: Vec<SampleRef>,
    place: OwnedSemaphorePermit,
}

/// A share of a batch that is being sent.
struct Sending {
    batch: ReadyBatch,
    pixels: Bytes,
    next_row: usize,
    shared: bool,
    samples: Vec<SampleRef>,
    waited: Waited,
}

/// A batch's pixels; the batch keeps its place until the last of them is with the system.
struct Pixels {
    batch: ReadyBatch,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Pixels {
    fn as_ref(&self) -> &[u8] {
        self.batch.pixels()
    }
}

/// A stream's state between its messages.
struct State {
    service: Arc<Service>,
    share: Share,
    coming: Receiver<UpcomingBatch>,
    sending: Option<Sending>,
    opened: bool,
    draining: watch::Receiver<bool>,
    /// The task that asks ahead; it ends with the stream.
    asking: tokio::task::JoinHandle<()>,
    _reserved: Reservation,
    _counted: Count,
}

impl Drop for State {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

/// The messages that answer a ticket, which was checked.
///
/// # Errors
/// If the service has no room for one more stream.
pub(super) fn open(
    service: &Arc<Service>,
    ticket: &Ticket,
) -> Result<impl Stream<Item = Result<Vec<Bytes>, Status>> + Send + use<>, Status> {
    let share = ticket.share();
    let counted = service.metrics.count_stream(service.config.streams);
    let counted = counted.ok_or_else(|| {
        let most = service.config.streams;
        Status::resource_exhausted(format!("all {most} streams are in use (machine.service.streams)"))
    })?;
    let (bytes, memory) = (service.maker.share_bytes(share), service.maker.memory().1);
    // As many ahead as the configuration says, but not more than the memory holds; one is sent while one is made.
    let ahead = (memory / bytes).saturating_sub(1).min(service.batches_ahead as u64).max(1);
    let reserved = service.maker.reserve(share, (ahead + 1) * bytes).map_err(|left| {
        Status::resource_exhausted(format!(
            "this stream needs {} bytes, but other streams leave only {left} of machine.service.memory_bytes ({memory})",
            (ahead + 1) * bytes
        ))
    })?;
    let places = Arc::new(Semaphore::new(ahead as usize + 1));
    let (sender, coming) = bounded(ahead as usize + 1);
    let task = tokio::spawn(ask(service.clone(), ticket.clone(), places, sender));
    let state = State {
        service: service.clone(),
        share,
        coming,
        sending: None,
        opened: false,
        draining: service.draining.subscribe(),
        asking: task,
        _reserved: reserved,
        _counted: counted,
    };
    Ok(futures::stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        match state.next().await {
            Ok(Some(message)) => Some((Ok(message), Some(state))),
            Ok(None) => None,
            Err(status) => Some((Err(status), None)),
        }
    }))
}

/// Asks the maker for the ticket's batches in order, as long as there is a place for one more.
async fn ask(service: Arc<Service>, ticket: Ticket, places: Arc<Semaphore>, coming: Sender<UpcomingBatch>) {
    let plan = &service.maker.source.plan;
    let mut batches = Batches::new(plan, ticket.share());
    let mut around = Default::default();
    for number in ticket.batches() {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let now = batches.shards_around(number);
        if now != around {
            service.maker.source.store.prefetch(&now.0, &now.1);
            around = now;
        }
        let samples = batches.samples(number);
        let (fed, all_fed) = oneshot::channel();
        let (making, shared) = service.maker.make(ticket.share(), number, samples.clone(), fed);
        if coming.send(UpcomingBatch { number, making, shared, samples, place }).await.is_err() {
            return;
        }
        // Its parts come before the next one's, so that batches are done in the order in which they are needed.
        let _ = all_fed.await;
    }
}

impl State {
    /// The next message, in pieces; `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<Bytes>>, Status> {
        let service = self.service.clone();
        let plan = &service.maker.source.plan;
        if !self.opened {
            self.opened = true;
            return Ok(Some(vec![wire::schema_message(plan)]));
        }
        if self.sending.is_none() {
            match self.next_batch().await? {
                Some(sending) => self.sending = Some(sending),
                None => return Ok(None),
            }
        }
        let sending = self.sending.as_mut().expect("set above");
        let (batch, from) = (&sending.batch, sending.next_row);
        let to = (from + service.rows_per_message).min(batch.num_images);
        let last = to == batch.num_images;
        let mut info = MessageInfo {
            position: batch.position,
            offset: from,
            images: batch.num_images,
            last,
            replaced: Vec::new(),
            damaged: Vec::new(),
            waited: Waited::default(),
        };
        if last {
            info.waited = sending.waited;
            info.replaced.clone_from(&batch.replaced);
            info.damaged = damaged(plan, &service.maker.source.quarantine, &sending.samples, batch);
        }
        let message = wire::message(&service.groups, batch, &sending.pixels, from..to, &info);
        service.metrics.add_message(message.iter().map(Bytes::len).sum());
        sending.next_row = to;
        if last {
            service.metrics.add_batch(sending.shared);
            self.sending = None;
        }
        Ok(Some(message))
    }

    /// The next share of a batch, as soon as it is made.
    async fn next_batch(&mut self) -> Result<Option<Sending>, Status> {
        let drained = || Status::unavailable("this service is shutting down; use another batch server");
        let activities = &self.service.maker.source.metrics.activities;
        let (began, before) = (Instant::now(), activities.spent());
        let coming = tokio::select! {
            biased;
            _ = self.draining.wait_for(|draining| *draining) => return Err(drained()),
            coming = self.coming.recv() => coming,
        };
        let Ok(coming) = coming else {
            // All batches were asked for, or the task has failed; that must not look like an end.
            let asked = (&mut self.asking).await;
            return asked.map(|()| None).map_err(|error| Status::internal(format!("this stream failed: {error}")));
        };
        let made = tokio::select! {
            biased;
            _ = self.draining.wait_for(|draining| *draining) => return Err(drained()),
            made = coming.making.clone() => made,
        };
        let (wait, now) = (began.elapsed(), activities.spent());
        self.service.metrics.add_wait_for_batch(wait);
        let waited = Waited::for_workers(wait.as_secs_f64(), now.since(before), now);
        match made {
            Ok(batch) => {
                let UpcomingBatch { shared, samples, place, .. } = coming;
                let pixels = Bytes::from_owner(Pixels { batch: batch.clone(), _place: place });
                Ok(Some(Sending { batch, pixels, next_row: 0, shared, samples, waited }))
            }
            Err(error) => {
                self.service.failed(&error, self.share, &coming.samples);
                Err(status(&error, coming.number))
            }
        }
    }
}

/// What a client is told when a batch can't be made.
fn status(error: &LoadError, number: u64) -> Status {
    use simclr_data::store::StoreError;
    let text = format!("batch {number}: {error}");
    match error {
        LoadError::Store(StoreError::Changed { .. } | StoreError::ChangedFile { .. }) => Status::data_loss(text),
        LoadError::Store(_) => Status::unavailable(text),
        LoadError::Value(_) => Status::invalid_argument(text),
        LoadError::Budget(_) | LoadError::NothingSound(_) => Status::failed_precondition(text),
        _ => Status::internal(text),
    }
}

/// The damaged samples whose places others took.
fn damaged(
    plan: &Plan,
    quarantine: &Quarantine,
    wanted: &[SampleRef],
    batch: &simclr_ground::batch::Batch<crate::memory::PooledSlab>,
) -> Vec<QuarantineEntry> {
    let mut found = Vec::new();
    for &place in &batch.replaced {
        // The places after the wanted sample, up to the one that was taken, are all damaged.
        let mut sample = wanted[place];
        while plan.sample_id(sample) != batch.sample_ids[place] {
            found.extend(quarantine.entry(plan.sample_id(sample)));
            sample = plan.next_in_manifest(sample);
        }
    }
    found.sort_by_key(|entry: &QuarantineEntry| entry.sample);
    found.dedup();
    found
}
