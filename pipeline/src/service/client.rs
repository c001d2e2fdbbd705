//! The trainer's side: the same stream of batches as the loader's, made by other machines.
//!
//! The lanes are cut into shares. Each share has a task that receives it for one batch after the other from the node
//! that [`Nodes`] name, straight into its places of the batch's slab. If a node fails in the middle of a share, another
//! is asked for that share of that batch: every batch comes once, in order, whatever happens to nodes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow_flight::{FlightData, Ticket as FlightTicket};
use async_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tonic::Streaming;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::ServiceError;
use super::metrics::FeedMetrics;
use super::nodes::{Bearer, Link, Node, Nodes};
use super::ticket::Ticket;
use super::wire::{self, Group, Rows};
use crate::batch::{Batch, Filled, NO_LABEL, Part, Slab, split};
use crate::loader::{BatchStream, LoadError, Promises, Source, layout};
use crate::plan::{PlanError, Share};
use crate::workers::Making;

/// Bytes that a node may send of a share before they are asked for.
const STREAM_WINDOW: u32 = 8 << 20;

/// All that one node may send before it is asked for: streams are bounded each by their own window, and one that waits
/// must not keep another from being read.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// Which nodes feed a trainer, and how they are spoken to; none of it changes what comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeedConfig {
    /// Addresses of nodes, such as `grpc://host:8815`, or `grpcs://host:8815` with TLS; none: batches are made here.
    pub nodes: Vec<String>,
    /// A file that holds the bearer token that nodes want; empty: none is shown.
    pub token: PathBuf,
    /// Certificates as PEM of those who may vouch for nodes; empty: none that a `grpcs://` address could be held against.
    pub ca: PathBuf,
    /// Our own certificate chain as PEM, for nodes that want one; empty: none.
    pub certificate: PathBuf,
    /// The certificate's private key as PEM.
    pub key: PathBuf,
    /// A node that answers no ping for this long is left.
    pub timeout_seconds: u64,
    /// A node that answers, but from which nothing comes for this long, is left too.
    pub stall_seconds: u64,
    /// The run stops when no node has answered for this long.
    pub patience_seconds: u64,
}

/// Why no batches come from nodes.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ServiceError),
    /// The lanes can't be shared so.
    #[error(transparent)]
    Share(#[from] PlanError),
    /// Every node answers, and none will serve us.
    #[error("no node serves this stream: {0}")]
    Refused(String),
    /// No node answers.
    #[error("no node has answered for {seconds} s (machine.feed.patience_seconds): {nodes}")]
    NoNode {
        /// How long.
        seconds: u64,
        /// Every node and why.
        nodes: String,
    },
}

/// A running stream of batches, made by nodes. Dropping it closes its connections.
pub struct Feed<S: Slab> {
    promises: Promises<S>,
    slabs: Sender<S>,
    _tasks: JoinSet<()>,
}

impl<S: Slab> Feed<S> {
    /// Starts the stream of batches `from_batch..to_batch` of the source's plan, or without an end. Its store is not
    /// read. `slabs` are the caller's, each of at least [`crate::loader::slab_bytes`] bytes.
    ///
    /// # Errors
    /// If the configuration is wrong. That nodes do not answer is found when a batch is wanted.
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
        let nodes = nodes(config)?;
        let token = match config.token.as_os_str().is_empty() {
            true => None,
            false => Some(token("feed.token", &config.token)?),
        };
        let bearer = |token: String| {
            format!("Bearer {token}").parse().map_err(|_| ServiceError::Value {
                key: "feed.token",
                found: config.token.display().to_string(),
                wanted: "a token of visible ASCII characters is wanted".into(),
            })
        };
        let bearer = Bearer(token.map(bearer).transpose()?);
        for (key, found) in [
            ("feed.timeout_seconds", config.timeout_seconds),
            ("feed.stall_seconds", config.stall_seconds),
            ("feed.patience_seconds", config.patience_seconds),
        ] {
            if !(1..=86_400).contains(&found) {
                let wanted = "between 1 and 86400 is wanted".into();
                return Err(ServiceError::Value { key, found: found.to_string(), wanted }.into());
            }
        }
        let lanes = plan.lanes() / share.world;
        let parts = parts(lanes, nodes.len() as u32);
        let world = share.world * parts;
        let metrics = FeedMetrics::register();
        let timeout = Duration::from_secs(config.timeout_seconds);
        let patience = Duration::from_secs(config.patience_seconds);
        let question = serde_json::to_vec(&Ticket::new(plan, share, batches.0, None)).expect("a ticket is plain data");
        let (slab_sender, slab_receiver) = bounded(slabs.len());
        let num_slabs = slabs.len();
        for slab in slabs {
            slab_sender.try_send(slab).unwrap_or_else(|_| panic!("the channel holds {num_slabs} slabs"));
        }
        let all = Nodes::start(nodes, bearer, question, timeout, patience, metrics.clone(), runtime);
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
        let (batch_sender, promised) = bounded(num_slabs);
        let asking = Asking { source: source.clone(), share, slabs: slab_receiver, home: slab_sender.clone(), shares };
        tasks.spawn_on(asking.run(batches, batch_sender), runtime);
        Ok(Self { promises: Promises::new(promised, source), slabs: slab_sender, _tasks: tasks })
    }
}

impl<S: Slab> BatchStream<S> for Feed<S> {
    fn next_batch(&mut self) -> Result<Option<Batch<S>>, LoadError> {
        self.promises.next()
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
struct Asking<S: Slab> {
    source: Arc<Source>,
    share: Share,
    slabs: Receiver<S>,
    home: Sender<S>,
    shares: Vec<Sender<Wanted<S>>>,
}

/// A share of a batch that is wanted, and the places that it fills.
struct Wanted<S: Slab> {
    number: u64,
    part: Part<S>,
    batch: Arc<Making<S>>,
}

type Promise<S> = (u64, Receiver<Result<Batch<S>, LoadError>>);

impl<S: Slab> Asking<S> {
    async fn run(self, (from, to): (u64, Option<u64>), promises: Sender<Promise<S>>) {
        let plan = &self.source.plan;
        let images = (plan.config.batch.size / self.share.world) as usize;
        for number in from..to.unwrap_or(u64::MAX) {
            let Ok(slab) = self.slabs.recv().await else { return };
            let (done, promise) = bounded(1);
            let layout = layout(plan, images);
            let filled = Filled {
                position: plan.position(number),
                layout: layout.clone(),
                labels: vec![NO_LABEL; images],
                sample_ids: vec![0; images],
                replaced: Vec::new(),
            };
            let batch = Arc::new(Making::new(filled, done, self.home.clone()));
            if promises.send((number, promise)).await.is_err() {
                return;
            }
            let parts = split(slab, layout, images / self.shares.len());
            for (share, part) in self.shares.iter().zip(parts) {
                if share.send(Wanted { number, part, batch: batch.clone() }).await.is_err() {
                    return;
                }
            }
        }
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
    messages: Streaming<FlightData>,
}

/// Why a share did not come.
enum Failure {
    /// The node is at fault.
    Node(String),
    /// The run must stop.
    Run(LoadError),
}

impl Receiving {
    async fn run<S: Slab>(self, wanted: Receiver<Wanted<S>>) {
        let mut open = None;
        while let Ok(Wanted { number, mut part, batch }) = wanted.recv().await {
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
        batch: &Making<S>,
    ) -> Result<(), LoadError> {
        loop {
            let link = self.nodes.link(self.part.0, self.part.1).await?;
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

    async fn open(&self, link: &Link, number: u64) -> Result<Streaming<FlightData>, String> {
        let count = self.to_batch.map(|to| to - number);
        let ticket = Ticket::new(&self.source.plan, self.share, number, count);
        let ticket = FlightTicket::new(serde_json::to_vec(&ticket).expect("a ticket is plain data"));
        let mut client = link.client.clone();
        match tokio::time::timeout(self.stall, client.do_get(ticket)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(describe(&status)),
            Err(_) => Err(format!("no answer for {} s", self.stall.as_secs())),
        }
    }

    /// Reads the messages of batch `number` into the part.
    async fn fill<S: Slab>(
        &self,
        number: u64,
        messages: &mut Streaming<FlightData>,
        part: &mut Part<S>,
        batch: &Making<S>,
    ) -> Result<(), Failure> {
        let (first, images) = (part.images.start, part.images.len());
        let mut next_row = 0;
        loop {
            let message = match tokio::time::timeout(self.stall, messages.message()).await {
                Ok(Ok(Some(message))) => message,
                Ok(Ok(None)) => return Err(Failure::Node("its stream ended early".into())),
                Ok(Err(status)) => return Err(Failure::Node(describe(&status))),
                Err(_) => return Err(Failure::Node(format!("nothing came for {} s", self.stall.as_secs()))),
            };
            let rows = Rows::read(&self.columns, message).map_err(|error| Failure::Node(error.to_string()))?;
            let Some(rows) = rows else { continue };
            let info = &rows.info;
            let found = (info.position.batch, info.images, info.offset);
            if found != (number, images, next_row) {
                let wanted = (number, images, next_row);
                let what = format!("batch, images and offset {found:?} came, {wanted:?} were to come");
                return Err(Failure::Node(what));
            }
            self.metrics.add_received(rows.bytes());
            let to = first + next_row;
            rows.for_each_view(&self.columns, |row, view, pixels| {
                part.view_mut(to + row, view).copy_from_slice(pixels);
            });
            batch.note(|filled| {
                filled.labels[to..to + rows.rows]
                    .iter_mut()
                    .zip(rows.labels())
                    .for_each(|(place, label)| *place = label);
                filled.sample_ids[to..to + rows.rows]
                    .iter_mut()
                    .zip(rows.sample_ids())
                    .for_each(|(place, id)| *place = id);
                if info.last {
                    filled.replaced.extend(info.replaced.iter().filter(|&&row| row < images).map(|row| first + row));
                    filled.replaced.sort_unstable();
                }
            });
            next_row += rows.rows;
            if info.last {
                if next_row != images {
                    return Err(Failure::Node(format!("a share of {next_row} images came, {images} were to come")));
                }
                for entry in &info.damaged {
                    let recorded = self.source.quarantine.record(entry.clone());
                    recorded.map_err(|spent| Failure::Run(spent.into()))?;
                }
                return Ok(());
            }
            if rows.rows == 0 {
                return Err(Failure::Node("a message without rows".into()));
            }
        }
    }
}

fn describe(status: &tonic::Status) -> String {
    let cause = std::error::Error::source(status);
    let causes = std::iter::successors(cause, |cause| cause.source()).map(ToString::to_string);
    let text: Vec<String> = std::iter::once(status.message().to_owned()).chain(causes).collect();
    text.join(": ")
}

/// The token in a file: its first line.
pub(super) fn token(key: &'static str, path: &Path) -> Result<String, ServiceError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ServiceError::File { key, path: path.to_owned(), source })?;
    let token = text.lines().next().unwrap_or_default().trim().to_owned();
    if token.is_empty() {
        let wanted = "a file that holds the token is wanted, this one is empty".into();
        return Err(ServiceError::Value { key, found: path.display().to_string(), wanted });
    }
    Ok(token)
}

/// The nodes that the configuration names.
fn nodes(config: &FeedConfig) -> Result<Vec<Node>, ServiceError> {
    let value = |found: &str, wanted: &str| ServiceError::Value {
        key: "feed.nodes",
        found: found.to_owned(),
        wanted: wanted.to_owned(),
    };
    if config.nodes.is_empty() {
        return Err(value("[]", "at least one node is wanted, such as grpc://host:8815"));
    }
    let file = |key: &'static str, path: &Path| {
        std::fs::read(path).map_err(|source| ServiceError::File { key, path: path.to_owned(), source })
    };
    let mut tls = ClientTlsConfig::new();
    if !config.ca.as_os_str().is_empty() {
        tls = tls.ca_certificate(Certificate::from_pem(file("feed.ca", &config.ca)?));
    }
    if !config.certificate.as_os_str().is_empty() {
        let (certificate, key) = (file("feed.certificate", &config.certificate)?, file("feed.key", &config.key)?);
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let timeout = Duration::from_secs(config.timeout_seconds);
    let node = |text: &String| {
        let wrong = || value(text, "an address such as grpc://host:8815 or grpcs://host:8815 is wanted");
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let rest = rest.trim_end_matches('/');
        let secure = match scheme {
            "grpc" | "grpc+tcp" => false,
            "grpcs" | "grpc+tls" => true,
            _ => return Err(wrong()),
        };
        let has_port =
            rest.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !has_port || rest.contains('/') {
            return Err(wrong());
        }
        let url = format!("{}://{rest}", if secure { "https" } else { "http" });
        let mut endpoint = Endpoint::from_shared(url).map_err(|_| wrong())?;
        if secure {
            if config.ca.as_os_str().is_empty() {
                let wanted = "certificates that grpcs:// addresses are held against are wanted".into();
                return Err(ServiceError::Value { key: "feed.ca", found: "\"\"".into(), wanted });
            }
            let tls = endpoint.tls_config(tls.clone());
            endpoint = tls.map_err(|error| ServiceError::Tls { key: "feed.ca", why: error.to_string() })?;
        }
        let endpoint = endpoint
            .connect_timeout(timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(timeout / 2)
            .keep_alive_timeout(timeout / 2)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        Ok(Node { url: text.clone(), endpoint })
    };
    config.nodes.iter().map(node).collect()
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
