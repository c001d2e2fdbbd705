//! The trainer's side: the same stream of batches as the loader's, made by other machines.
//!
//! The lanes are cut into shares. Each share has a task that receives it for one batch after the other from the node
//! that `Nodes` name, straight into its places of the batch's slab. If a node fails in the middle of a share, another
//! is asked for that share of that batch: every batch comes once, in order, whatever happens to nodes.

use std::sync::Arc;
use std::time::Duration;

use async_channel::{Receiver, Sender, bounded};
use simclr_data::promise::{Promise, Promises};
use simclr_data::quarantine::QuarantineEntry;
use simclr_data::source::{LoadError, Source};
use simclr_data::workers::PendingBatch;
use simclr_ground::batch::{Filled, NO_LABEL, Part, Slab, split};
use simclr_ground::batch_stream::{BatchStream, Next, StreamError};
use simclr_ground::position::Share;
use simclr_ground::stall::Waited;
use tokio::task::JoinSet;

use crate::error::FeedError;
use crate::metrics::FeedMetrics;
use crate::nodes::{Link, Nodes};
use crate::reach::FeedConfig;
use crate::receive::Incoming;
use crate::ticket::Ticket;
use crate::wire::{self, Group, MessageInfo};

/// A running stream of batches, made by nodes. Dropping it closes its connections.
pub struct Feed<S: Slab> {
    promises: Promises<S>,
    slabs: Sender<S>,
    nodes: Arc<Nodes>,
    _tasks: JoinSet<()>,
}

impl<S: Slab> Feed<S> {
    /// Starts the stream of batches `from_batch..to_batch` of the source's plan, or without an end. Its store is not
    /// read. `slabs` are the caller's, each of at least [`simclr_plan::Plan::slab_bytes`] bytes.
    ///
    /// # Errors
    /// If the configuration is wrong. That nodes do not answer is found when a batch is requested.
    ///
    /// # Panics
    /// Without a slab, or if a slab is too small.
    pub fn start(
        source: Arc<Source>,
        slabs: Vec<S>,
        config: &FeedConfig,
        share: Share,
        batches: (u64, Option<u64>),
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, FeedError> {
        let plan = &source.plan;
        plan.check_share(share)?;
        let (nodes, token) = (config.nodes()?, config.token()?);
        let lanes = plan.lanes() / share.world;
        let parts = parts(lanes, nodes.len() as u32);
        let world = share.world * parts;
        let metrics = FeedMetrics::register();
        let timeout = Duration::from_secs(config.timeout_seconds);
        let patience = Duration::from_secs(config.patience_seconds);
        let question = serde_json::to_vec(&Ticket::new(plan, share, batches.0, None)).expect("a ticket is plain data");
        let (slab_sender, slab_receiver) = bounded(slabs.len());
        let num_slabs = slabs.len();
        source.metrics.slabs.set(num_slabs as f64);
        for slab in slabs {
            slab_sender.try_send(slab).unwrap_or_else(|_| panic!("the channel holds {num_slabs} slabs"));
        }
        let asked = (question, source.derived_digest().to_owned());
        let all = Nodes::start(nodes, token, asked, timeout, patience, metrics.clone(), runtime);
        let mut tasks = JoinSet::new();
        let mut shares = Vec::new();
        let columns: Arc<[Group]> = wire::groups(plan).into();
        for part in 0..parts {
            let (sender, wanted) = bounded(num_slabs);
            shares.push(sender);
            let receiver = Receiving {
                source: source.clone(),
                nodes: all.clone(),
                share: Share { rank: share.rank * parts + part, world },
                part: (part, parts),
                to_batch: batches.1,
                stall: Duration::from_secs(config.stall_seconds),
                columns: columns.clone(),
                metrics: metrics.clone(),
            };
            tasks.spawn_on(receiver.run(wanted), runtime);
        }
        let (batch_sender, promised) = bounded(num_slabs + 1);
        let asking =
            Requesting { source: source.clone(), share, slabs: slab_receiver, recycle: slab_sender.clone(), shares };
        tasks.spawn_on(asking.run(batches, batch_sender), runtime);
        Ok(Self { promises: Promises::new(promised, source, runtime), slabs: slab_sender, nodes: all, _tasks: tasks })
    }
}

impl<S: Slab> BatchStream<S> for Feed<S> {
    fn next_within(&mut self, patience: Duration) -> Result<Next<S>, StreamError> {
        self.promises.next_within(patience).map_err(StreamError::new)
    }

    fn waits_for(&self) -> String {
        self.nodes.told()
    }

    fn waited(&self) -> Waited {
        self.promises.waited()
    }
}

impl<S: Slab> Drop for Feed<S> {
    fn drop(&mut self) {
        self.slabs.close();
    }
}

/// Into how many shares the lanes are cut for this many nodes: the fewest that divide the lanes and leave no node, nor
/// those that are left when one is lost, with a third more than its part.
fn parts(lanes: u32, nodes: u32) -> u32 {
    let uneven = |shares: u32, nodes: u32| f64::from(shares.div_ceil(nodes) * nodes) / f64::from(shares);
    let fits = |&shares: &u32| uneven(shares, nodes) < 4.0 / 3.0 && uneven(shares, (nodes - 1).max(1)) < 4.0 / 3.0;
    let mut dividing = (1..=lanes).filter(|&shares| lanes.is_multiple_of(shares));
    dividing.find(fits).unwrap_or(lanes)
}

/// Lays out batches in free slabs and asks for their shares.
struct Requesting<S: Slab> {
    source: Arc<Source>,
    share: Share,
    slabs: Receiver<S>,
    recycle: Sender<S>,
    shares: Vec<Sender<ShareRequest<S>>>,
}

/// A requested share of a batch, and the places that it fills.
struct ShareRequest<S: Slab> {
    number: u64,
    part: Part<S>,
    batch: Arc<PendingBatch<S>>,
}

impl<S: Slab> Requesting<S> {
    async fn run(self, (from, to): (u64, Option<u64>), promises: Sender<Promise<S>>) {
        let plan = &self.source.plan;
        let images = (plan.config.batch.size / self.share.world) as usize;
        for number in from..to.unwrap_or(u64::MAX) {
            let Ok(slab) = self.slabs.recv().await else { return };
            let (done, promise) = bounded(1);
            let layout = plan.layout(images);
            let filled = Filled {
                position: plan.position(number),
                layout: layout.clone(),
                labels: vec![NO_LABEL; images],
                sample_ids: vec![0; images],
                replaced: Vec::new(),
                waited_there: None,
            };
            let batch = Arc::new(PendingBatch::new(filled, done, self.recycle.clone(), &self.source.metrics));
            if promises.send(Promise::Batch(number, promise)).await.is_err() {
                return;
            }
            let parts = split(slab, layout, images / self.shares.len());
            for (share, part) in self.shares.iter().zip(parts) {
                if share.send(ShareRequest { number, part, batch: batch.clone() }).await.is_err() {
                    return;
                }
            }
        }
        let _ = promises.send(Promise::End).await;
    }
}

/// Receives one share of every batch.
struct Receiving {
    source: Arc<Source>,
    nodes: Arc<Nodes>,
    share: Share,
    /// Which part of the lanes that the feed wants, out of how many.
    part: (u32, u32),
    to_batch: Option<u64>,
    stall: Duration,
    columns: Arc<[Group]>,
    metrics: FeedMetrics,
}

/// A stream of a share from one node.
struct Open {
    link: Link,
    messages: Incoming,
}

/// Why a share did not come.
enum Failure {
    /// The node is at fault.
    Node(String),
    /// The run must stop.
    Run(LoadError),
}

impl Receiving {
    async fn run<S: Slab>(self, wanted: Receiver<ShareRequest<S>>) {
        let mut open = None;
        while let Ok(ShareRequest { number, mut part, batch }) = wanted.recv().await {
            match self.receive(number, &mut open, &mut part, &batch).await {
                Ok(()) => {
                    if let Some(slab) = part.finish() {
                        batch.finish(slab);
                    }
                }
                Err(error) => return batch.fail(error),
            }
        }
    }

    /// Fills the share's places of batch `number`, from whichever node.
    async fn receive<S: Slab>(
        &self,
        number: u64,
        open: &mut Option<Open>,
        part: &mut Part<S>,
        batch: &PendingBatch<S>,
    ) -> Result<(), LoadError> {
        loop {
            let link = self.nodes.link(self.part.0, self.part.1).await.map_err(StreamError::new)?;
            if open.as_ref().is_none_or(|open| open.link.number != link.number) {
                *open = None;
                match self.open(&link, number).await {
                    Ok(messages) => *open = Some(Open { link: link.clone(), messages }),
                    Err(why) => {
                        self.nodes.lost(&link, &why);
                        continue;
                    }
                }
            }
            let messages = &mut open.as_mut().expect("opened above").messages;
            match self.fill(number, messages, part, batch).await {
                Ok(()) => {
                    self.nodes.proven(&link);
                    return Ok(());
                }
                Err(Failure::Run(error)) => return Err(error),
                Err(Failure::Node(why)) => {
                    *open = None;
                    self.nodes.lost(&link, &why);
                }
            }
        }
    }

    /// Writes down what a node found damaged. The ledger is a file, which a disk may keep waiting.
    async fn record(&self, damaged: Vec<QuarantineEntry>) -> Result<(), LoadError> {
        if damaged.is_empty() {
            return Ok(());
        }
        let source = self.source.clone();
        let recorded = tokio::task::spawn_blocking(move || {
            damaged.into_iter().try_for_each(|entry| source.quarantine.record(entry))
        });
        match recorded.await {
            Ok(recorded) => Ok(recorded?),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime is being shut down, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }

    async fn open(&self, link: &Link, number: u64) -> Result<Incoming, String> {
        let count = self.to_batch.map(|to| to - number);
        let ticket = Ticket::new(&self.source.plan, self.share, number, count);
        let ticket = serde_json::to_vec(&ticket).expect("a ticket is plain data");
        Incoming::open(link.channel.clone(), self.nodes.token(), ticket, self.stall).await
    }

    /// Reads the messages of batch `number` into the part.
    async fn fill<S: Slab>(
        &self,
        number: u64,
        messages: &mut Incoming,
        part: &mut Part<S>,
        batch: &PendingBatch<S>,
    ) -> Result<(), Failure> {
        let (first, images) = (part.images.start, part.images.len());
        let mut next_row = 0;
        loop {
            let begins = |info: &MessageInfo, rows: usize| {
                let found = (info.position.batch, info.images, info.offset);
                let wanted = (number, images, next_row);
                if found != wanted || rows == 0 || rows > images - next_row {
                    return Err(format!("{rows} rows of batch, images and offset {found:?} came for {wanted:?}"));
                }
                Ok(())
            };
            let to = first + next_row;
            let take = |row: usize, view, within: usize, bytes: &[u8]| {
                part.view_mut(to + row, view)[within..within + bytes.len()].copy_from_slice(bytes);
            };
            let arrived = messages.message(&self.columns, begins, take).await.map_err(Failure::Node)?;
            self.metrics.add_received(arrived.bytes);
            let (info, end) = (&arrived.info, to + arrived.rows);
            next_row += arrived.rows;
            if info.last != (next_row == images) {
                return Err(Failure::Node(format!("{next_row} of {images} images came with the share's last message")));
            }
            batch.note(|filled| {
                filled.labels[to..end].copy_from_slice(&arrived.labels);
                filled.sample_ids[to..end].copy_from_slice(&arrived.sample_ids);
                if info.last {
                    filled.replaced.extend(info.replaced.iter().filter(|&&row| row < images).map(|row| first + row));
                    filled.replaced.sort_unstable();
                    // The batch waits for the slowest of its shares.
                    let slowest = filled.waited_there.filter(|known| known.total() > info.waited.total());
                    filled.waited_there = Some(slowest.unwrap_or(info.waited));
                }
            });
            if info.last {
                return self.record(arrived.info.damaged).await.map_err(Failure::Run);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_cut_finely_enough_that_no_node_has_much_more_than_another() {
        for (lanes, nodes, wanted) in
            [(16, 1, 1), (16, 2, 2), (16, 3, 8), (16, 4, 8), (4, 3, 4), (1, 5, 1), (12, 3, 6), (64, 8, 16)]
        {
            assert_eq!(parts(lanes, nodes), wanted, "{lanes} lanes, {nodes} nodes");
        }
    }
}
