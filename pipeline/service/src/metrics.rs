//! What the data service counts, on the side that serves and on the side that is fed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

/// Handles of the service's metrics.
pub(super) struct ServiceMetrics {
    batches_sent: Counter,
    batches_shared: Counter,
    bytes_sent: Counter,
    wait: Gauge,
    ready: Gauge,
    memory: Gauge,
    refused: Gauges,
    clients: Arc<Counted>,
    streams: Arc<Counted>,
}

/// Requests refused, by reason.
type Gauges = [(&'static str, Counter); 5];

/// Why requests are refused: a small fixed vocabulary.
const REFUSALS: [&str; 5] = ["token", "ticket", "plan", "limit", "not_ready"];

/// A number of things that are there at the moment.
pub(super) struct Counted {
    now: AtomicUsize,
    exported: Gauge,
}

/// One of them; dropping it counts it out.
pub(super) struct Count(Arc<Counted>);

impl Counted {
    fn new(exported: Gauge) -> Arc<Self> {
        exported.set(0.0);
        Arc::new(Self { now: AtomicUsize::new(0), exported })
    }

    fn count(self: &Arc<Self>, most: usize) -> Option<Count> {
        let more = |now: usize| (now < most).then_some(now + 1);
        self.now.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        self.exported.increment(1.0);
        Some(Count(self.clone()))
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
        self.0.exported.decrement(1.0);
    }
}

impl ServiceMetrics {
    pub fn register() -> Self {
        describe_counter!(
            "simclr_service_batches_sent_total",
            Unit::Count,
            "Batches (or rank shares of batches) sent completely; its rate is the service's throughput."
        );
        describe_counter!(
            "simclr_service_batches_shared_total",
            Unit::Count,
            "Batches sent that were made once and shared by several clients: decoding work saved."
        );
        describe_counter!(
            "simclr_service_sent_bytes_total",
            Unit::Bytes,
            "Batch bytes sent; compare its rate with the link's bandwidth to see whether the network is the bottleneck."
        );
        describe_gauge!(
            "simclr_service_wait_seconds_total",
            Unit::Seconds,
            "Seconds that connections waited for a batch, over all streams; if it grows as fast as time, add batch servers."
        );
        describe_gauge!("simclr_service_clients", Unit::Count, "Open connections.");
        describe_gauge!("simclr_service_streams", Unit::Count, "Open streams; limited by machine.service.streams.");
        describe_gauge!(
            "simclr_service_memory_bytes",
            Unit::Bytes,
            "Bytes of batches in memory; limited by machine.service.memory_bytes."
        );
        describe_gauge!(
            "simclr_service_ready",
            Unit::Count,
            "1 if batches can be made, otherwise 0; see /readyz for the reason."
        );
        describe_counter!(
            "simclr_service_refused_total",
            Unit::Count,
            "Rejected requests, by reason; clients log the details."
        );
        let wait = gauge!("simclr_service_wait_seconds_total");
        wait.increment(0.0);
        let refused = REFUSALS.map(|reason| (reason, counter!("simclr_service_refused_total", "reason" => reason)));
        refused.iter().for_each(|(_, counter)| counter.increment(0));
        Self {
            batches_sent: counter!("simclr_service_batches_sent_total"),
            batches_shared: counter!("simclr_service_batches_shared_total"),
            bytes_sent: counter!("simclr_service_sent_bytes_total"),
            wait,
            ready: gauge!("simclr_service_ready"),
            memory: gauge!("simclr_service_memory_bytes"),
            refused,
            clients: Counted::new(gauge!("simclr_service_clients")),
            streams: Counted::new(gauge!("simclr_service_streams")),
        }
    }

    /// Counts a connection in, if fewer than `most` are open.
    pub fn count_client(&self, most: usize) -> Option<Count> {
        self.clients.count(most)
    }

    /// Counts a stream in, if fewer than `most` are open.
    pub fn count_stream(&self, most: usize) -> Option<Count> {
        self.streams.count(most)
    }

    /// Connections and streams that are open.
    pub fn open(&self) -> (usize, usize) {
        (self.clients.now.load(Ordering::Relaxed), self.streams.now.load(Ordering::Relaxed))
    }

    pub fn add_message(&self, bytes: usize) {
        self.bytes_sent.increment(bytes as u64);
    }

    pub fn add_batch(&self, shared: bool) {
        self.batches_sent.increment(1);
        self.batches_shared.increment(u64::from(shared));
    }

    pub fn add_wait_for_batch(&self, time: Duration) {
        self.wait.increment(time.as_secs_f64());
    }

    pub fn add_refused(&self, reason: &str) {
        if let Some((_, counter)) = self.refused.iter().find(|(known, _)| *known == reason) {
            counter.increment(1);
        }
    }

    pub fn set_ready(&self, ready: bool) {
        self.ready.set(f64::from(u8::from(ready)));
    }

    pub fn set_memory(&self, bytes: u64) {
        self.memory.set(bytes as f64);
    }
}

/// Handles of the metrics of who is fed; cheap to clone.
#[derive(Clone)]
pub(super) struct FeedMetrics {
    received: Counter,
    lost: Counter,
    nodes: Gauge,
}

impl FeedMetrics {
    pub fn register() -> Self {
        describe_counter!("simclr_feed_received_bytes_total", Unit::Bytes, "Batch bytes received from batch servers.");
        describe_counter!(
            "simclr_feed_nodes_lost_total",
            Unit::Count,
            "Batch servers lost, with their lanes reassigned to others; see the log for details."
        );
        describe_gauge!(
            "simclr_feed_nodes",
            Unit::Count,
            "Connected batch servers; fewer than configured means lower throughput."
        );
        let lost = counter!("simclr_feed_nodes_lost_total");
        lost.increment(0);
        let received = counter!("simclr_feed_received_bytes_total");
        received.increment(0);
        Self { received, lost, nodes: gauge!("simclr_feed_nodes") }
    }

    pub fn add_received(&self, bytes: usize) {
        self.received.increment(bytes as u64);
    }

    pub fn add_lost(&self) {
        self.lost.increment(1);
    }

    pub fn set_nodes(&self, nodes: usize) {
        self.nodes.set(nodes as f64);
    }
}
