//! The data service: batches for trainers on other machines, over Arrow Flight, with the guarantees of the loader.
//!
//! There is no coordinator, because a batch is a value: any node can make any share of any batch. A client
//! ([`client`]) holds [`ticket`]s for the batches it wants, gives whole lanes to the nodes that it reaches ([`reach`],
//! `nodes`), and asks another node when one is lost; it receives (`receive`) straight into the trainer's memory. A node
//! ([`server`]) makes what is asked for (`maker`, within `memory`), once for all who ask, and sends it (`stream`, `do_get`)
//! in the format of [`wire`]. Nothing here knows command lines, web pages or tensors.
//!
//! What is asked for is a ticket: JSON that any Flight client can write.
//!
//! ```
//! use simclr_ground::position::Share;
//! use simclr_image::augment::RecipeConfig;
//! use simclr_plan::{Plan, SampleCounts, StreamConfig};
//! use simclr_service::ticket::Ticket;
//!
//! let plan = |seed| {
//!     let config = StreamConfig::shuffled(seed, 64, 8, RecipeConfig::simclr(32));
//!     Plan::new(&SampleCounts(vec![100; 20]), config).unwrap()
//! };
//! let served = plan(1);
//! let text = format!(r#"{{"plan_digest": "{}", "first_batch": 4, "stride": 2, "count": 3}}"#, served.digest);
//! let ticket = Ticket::read(text.as_bytes(), &served)?;
//! assert_eq!(ticket.batches().collect::<Vec<_>>(), [4, 6, 8]);
//!
//! // A plan that is not served is refused, with what differs.
//! let other = Ticket::new(&plan(2), Share::ALL, 0, Some(1));
//! let refusal = Ticket::read(&serde_json::to_vec(&other)?, &served).unwrap_err().to_string();
//! assert!(refusal.contains("seed"), "{refusal}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod client;
mod connection;
mod do_get;
mod error;
mod framing;
mod maker;
mod memory;
mod metrics;
mod nodes;
pub mod peers;
pub mod reach;
mod receive;
pub mod server;
mod stream;
pub mod ticket;
pub mod wire;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;

pub use error::{FeedError, ServiceError, StartError};
use simclr_data::source::{LoadError, Source};
use simclr_ground::position::Share;
use simclr_ground::sample::SampleRef;
use simclr_plan::Batches;

use maker::Producer;
use metrics::ServiceMetrics;
use wire::{Group, StreamInfo};

/// How often storage is tried again after a batch could not be made, at first and at most.
const PROBE_PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];

/// How often a service that makes nothing looks whether it still could.
const IDLE_PROBE: Duration = Duration::from_secs(5);

/// Storage that has not answered for this long is taken for lost, until it does; a network file system that lost its
/// server fails no call, it keeps it waiting.
const STORAGE_SILENCE: Duration = Duration::from_secs(10);

/// How long clients that come before the first batch is made wait for it, before they are told to try elsewhere.
const PATIENCE_AT_START: Duration = Duration::from_secs(30);

/// What a service may use and whom it lets in; none of it changes what it serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// Bytes for batches that are being made, are being sent, or were just sent.
    pub memory_bytes: u64,
    /// Connections at a time; what comes beyond is closed at once.
    pub connections: usize,
    /// Streams at a time, all clients together; a client opens one for each share of a batch that it asks for.
    pub streams: usize,
    /// Bytes of pixels in a message, about.
    pub message_bytes: usize,
    /// A client that answers no ping for this long is gone, and its memory is freed; so is one whose connection has
    /// brought no request that is let in.
    pub client_timeout_seconds: u64,
    /// A service that is shut down waits this long for batches that are being sent.
    pub drain_seconds: u64,
    /// File containing the bearer token required from clients; empty: no token.
    pub token: PathBuf,
    /// The service's certificate chain as PEM, for TLS; empty: no TLS.
    pub certificate: PathBuf,
    /// The certificate's private key as PEM.
    pub key: PathBuf,
    /// Certificates as PEM of those who may vouch for clients: these then need a certificate too; empty: they do not.
    pub client_ca: PathBuf,
    /// Host names that this machine goes by beside its own, under which its page may be asked for images.
    #[serde(default)]
    pub names: Vec<String>,
}

/// A running data service, apart from its connections.
pub struct Service {
    maker: Arc<Producer>,
    groups: Vec<Group>,
    rows_per_message: usize,
    batches_ahead: usize,
    config: ServiceConfig,
    metrics: ServiceMetrics,
    health: watch::Sender<Result<(), String>>,
    draining: watch::Sender<bool>,
    /// Whether it is known yet if batches can be made.
    begun: watch::Sender<bool>,
    /// Samples that can be read if and only if batches can be made.
    probe: Mutex<Vec<SampleRef>>,
    /// A worker thread died.
    broken: AtomicBool,
}

impl Service {
    /// A service of the source's batches, made by `threads` threads, for each stream `batches_ahead` beside the one that
    /// is being sent.
    ///
    /// # Errors
    /// If a value of the configuration is out of its range, or the shards or batches in use at a time do not fit.
    pub fn start(
        source: Arc<Source>,
        config: ServiceConfig,
        threads: usize,
        batches_ahead: usize,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Arc<Self>, StartError> {
        let plan = &source.plan;
        source.store.prepare(plan.open_shards(Share::ALL), &plan.shard_sizes)?;
        let value = |key, found: u64, wanted: String| ServiceError::Value { key, found: found.to_string(), wanted };
        for (key, found, most) in [
            ("service.connections", config.connections as u64, 1 << 20),
            ("service.streams", config.streams as u64, 1 << 20),
            ("service.message_bytes", config.message_bytes as u64, 1 << 26),
            ("service.client_timeout_seconds", config.client_timeout_seconds, 86_400),
        ] {
            if !(1..=most).contains(&found) {
                return Err(value(key, found, format!("expected a number between 1 and {most}")).into());
            }
        }
        let needed = (plan.slab_bytes(Share::ALL) as u64).saturating_mul(2);
        if config.memory_bytes < needed {
            let wanted =
                format!("expected at least {needed}, the bytes of one stream (a batch being sent and one being made)");
            return Err(value("service.memory_bytes", config.memory_bytes, wanted).into());
        }
        let groups = wire::groups(plan);
        let rows_per_message = wire::rows_per_message(&groups, config.message_bytes);
        let probe = Mutex::new(Batches::new(plan, Share::ALL).samples(0).into_iter().take(1).collect());
        let maker = Producer::start(source, threads, config.memory_bytes, runtime);
        let metrics = ServiceMetrics::register();
        metrics.set_ready(false);
        let health = watch::Sender::new(Err("the first batch is not ready yet".to_owned()));
        let (draining, begun) = (watch::Sender::new(false), watch::Sender::new(false));
        let broken = AtomicBool::new(false);
        let service = Self {
            maker,
            groups,
            rows_per_message,
            batches_ahead,
            config,
            metrics,
            health,
            draining,
            begun,
            probe,
            broken,
        };
        let service = Arc::new(service);
        runtime.spawn(service.clone().watch_health());
        Ok(service)
    }

    /// Whether batches can be made; if not, why.
    ///
    /// # Errors
    /// The reason, for people.
    pub fn ready(&self) -> Result<(), String> {
        if *self.draining.borrow() {
            return Err("shutting down".into());
        }
        if !self.alive() {
            return Err("a worker thread panicked".into());
        }
        self.health.borrow().clone()
    }

    /// As [`Service::ready`], but in its first moments the service waits until it knows.
    ///
    /// # Errors
    /// The reason, for people.
    pub async fn ready_soon(&self) -> Result<(), String> {
        let mut begun = self.begun.subscribe();
        let known = begun.wait_for(|begun| *begun);
        tokio::select! {
            _ = tokio::time::timeout(PATIENCE_AT_START, known) => {},
            () = self.drained() => {},
        }
        self.ready()
    }

    /// Whether the service works at all, so that it need not be started anew.
    pub fn alive(&self) -> bool {
        !self.broken.load(Ordering::Relaxed)
    }

    /// Ends all streams after the batch that each is sending, and takes no new ones.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// How long open streams may take to end once it drains, in seconds.
    pub fn drain_seconds(&self) -> u64 {
        self.config.drain_seconds
    }

    /// Waits until the service is told to drain.
    pub async fn drained(&self) {
        // The sender is ours, so the wait can't fail.
        let _ = self.draining.subscribe().wait_for(|draining| *draining).await;
    }

    /// How things stand: one JSON object.
    pub fn status(&self) -> serde_json::Value {
        let (clients, streams) = self.metrics.open();
        let (memory, limit) = self.maker.memory();
        self.metrics.set_memory(memory);
        let ready = self.ready();
        json!({
            "ready": ready.is_ok(), "why_not": ready.err(), "draining": *self.draining.borrow(),
            "clients": clients, "streams": streams, "memory_bytes": memory, "memory_limit_bytes": limit,
            "damaged": self.maker.source.quarantine.entries().len(),
            "kind": "serve", "version": env!("CARGO_PKG_VERSION"), "stream": StreamInfo::new(&self.maker.source.plan),
        })
    }

    /// Takes note that a share of a batch could not be made.
    fn failed(&self, error: &LoadError, share: Share, samples: &[SampleRef]) {
        tracing::warn!(?share, "cannot make a batch: {error}");
        match error {
            LoadError::Store(_) => *self.probe.lock().expect("no panic while held") = samples.to_vec(),
            LoadError::Worker(_) => self.broken.store(true, Ordering::Relaxed),
            _ => {}
        }
        self.set_health(Err(error.to_string()));
    }

    fn set_health(&self, health: Result<(), String>) {
        self.metrics.set_ready(health.is_ok());
        self.health.send_if_modified(|known| {
            let changed = *known != health;
            *known = health;
            changed
        });
    }

    /// Whether storage still gives samples; in the meantime, whether it answers.
    async fn probe_storage(&self) -> Result<(), String> {
        let samples = self.probe.lock().expect("no panic while held").clone();
        let probe = self.maker.source.store.probe(&samples);
        tokio::pin!(probe);
        let result = match tokio::time::timeout(STORAGE_SILENCE, &mut probe).await {
            Ok(result) => result,
            Err(_) => {
                let seconds = STORAGE_SILENCE.as_secs();
                self.set_health(Err(format!("storage has not responded for {seconds} s")));
                // Not asked once more beside this: each question that waits takes a thread.
                probe.await
            }
        };
        if result.is_ok() {
            let mut known = self.probe.lock().expect("no panic while held");
            // What could not be read can be again; one sample will do from here on, unless there was news meanwhile.
            if *known == samples {
                known.truncate(1);
            }
        }
        result.map_err(|error| error.to_string())
    }

    /// Makes the first batch, and from then on looks whether batches can still be made.
    async fn watch_health(self: Arc<Self>) {
        let plan = &self.maker.source.plan;
        let share = Share { rank: 0, world: plan.lanes() };
        let [first_pause, longest_pause] = PROBE_PAUSES;
        let (mut pause, mut made) = (first_pause, false);
        loop {
            let result = if made {
                self.probe_storage().await
            } else {
                let samples = Batches::new(plan, share).samples(0);
                let (making, _) = self.maker.make(share, 0, samples, tokio::sync::oneshot::channel().0);
                making.await.map(drop).map_err(|error| error.to_string())
            };
            made |= result.is_ok();
            let ready = result.is_ok();
            self.set_health(result);
            self.begun.send_replace(true);
            pause = if ready { first_pause } else { (2 * pause).min(longest_pause) };
            let wait = if ready { IDLE_PROBE } else { pause };
            let mut health = self.health.subscribe();
            tokio::select! {
                () = tokio::time::sleep(wait) => {},
                // A stream has found that something is wrong: look sooner.
                _ = health.changed() => tokio::time::sleep(first_pause).await,
            }
        }
    }
}
