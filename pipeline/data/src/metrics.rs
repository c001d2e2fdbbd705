//! The loader's metrics: one field each, with its unit and the decision it changes.
//!
//! Totals of seconds are gauges that only grow, since the metrics facade counts integers only; the exporter calls
//! them counters by their `_total`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};
use simclr_ground::activity::{Activities, Activity, Stopwatch};
use simclr_ground::batch::ReadyGuard;
use simclr_image::damage::DamageReason;

/// A stage of a sample's journey whose busy time is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Reading bytes from storage, decompression included.
    Read,
    /// Decoding images.
    Decode,
    /// Augmenting them into views.
    Augment,
}

impl Stage {
    /// Every stage, in the order of the journey.
    pub const ALL: [Stage; 3] = [Stage::Read, Stage::Decode, Stage::Augment];

    /// The stage's name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Read => "read",
            Stage::Decode => "decode",
            Stage::Augment => "augment",
        }
    }
}

/// The side of a channel that waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The feeder waited for a free slab: the consumer is the slower side.
    ForSlab,
    /// The feeder waited for room in the workers' queue: decoding is the slower side.
    ForWorkers,
    /// Workers waited for work: reading is the slower side.
    ForWork,
    /// The consumer waited for a batch: the loader is the slower side.
    ForBatch,
    /// The feeder waited for bytes from a server, or for a shard to be held.
    ForStorage,
}

/// Why a request to a storage server is repeated.
const RETRY_REASONS: [&str; 6] = ["busy", "timeout", "connection", "truncated", "wrong_bytes", "hedge"];

/// Handles of all metrics of this crate; cheap to clone. The totals can also be read back, for reports.
#[derive(Clone)]
pub struct PipelineMetrics {
    /// Batches completed.
    pub batches: Counter,
    /// Seconds from the loader's start to its first batch.
    pub time_to_first_batch: Gauge,
    /// Bytes that the disk cache takes.
    pub cache_bytes: Gauge,
    /// Slabs of the loader.
    pub slabs: Gauge,
    /// Who is busy with what.
    pub activities: Activities,
    /// Whether nothing is counted.
    silent: bool,
    ready: Gauge,
    threads: Gauge,
    samples: Counter,
    stages: [Seconds; 3],
    waits: [Seconds; 5],
    quarantined: [Counter; DamageReason::ALL.len()],
}

impl PipelineMetrics {
    /// Registers the metrics with the recorder installed in this process (without one they count for nobody).
    pub fn register() -> Self {
        describe_counter!(
            "simclr_pipeline_samples_total",
            Unit::Count,
            "Samples decoded and augmented; its rate is the loader's throughput."
        );
        describe_counter!("simclr_pipeline_batches_total", Unit::Count, "Batches completed.");
        describe_counter!(
            "simclr_pipeline_read_bytes_total",
            Unit::Bytes,
            "Bytes of samples read from storage, by scheme; compare its rate with the disk's bandwidth to see whether storage is the bottleneck."
        );
        describe_counter!(
            "simclr_pipeline_storage_retries_total",
            Unit::Count,
            "Retried storage requests, by reason; if it grows, check the server and the network path to it."
        );
        describe_gauge!(
            "simclr_pipeline_cache_bytes",
            Unit::Bytes,
            "Bytes in the disk cache; at machine.cache_bytes it evicts the least recently used shards."
        );
        describe_gauge!(
            "simclr_pipeline_stage_seconds_total",
            Unit::Seconds,
            "Busy seconds of each stage over all threads; speed up the largest one or add threads."
        );
        describe_gauge!(
            "simclr_pipeline_batches_ready",
            Unit::Count,
            "Completed batches waiting to be consumed; if it is always 0, the loader is too slow."
        );
        describe_gauge!(
            "simclr_pipeline_slabs",
            Unit::Count,
            "Batch slots allocated in memory, including the one in use; set by machine.batches_ahead."
        );
        describe_gauge!(
            "simclr_pipeline_threads",
            Unit::Count,
            "Worker threads; compare with the stages' busy seconds to see whether more would help."
        );
        describe_gauge!(
            "simclr_pipeline_wait_seconds_total",
            Unit::Seconds,
            "Seconds waited on each side of each channel; the side that waits is the faster one."
        );
        describe_counter!(
            "simclr_pipeline_quarantined_total",
            Unit::Count,
            "Damaged samples put into quarantine, by reason; inspect quarantine.jsonl if it grows."
        );
        describe_gauge!(
            "simclr_pipeline_time_to_first_batch_seconds",
            Unit::Seconds,
            "Seconds from the loader's start to its first batch."
        );
        let wait = |channel: &'static str, side: &'static str| {
            Seconds::new(gauge!("simclr_pipeline_wait_seconds_total", "channel" => channel, "side" => side))
        };
        // Shows the series from the start, at zero.
        for reason in RETRY_REASONS {
            counter!("simclr_pipeline_storage_retries_total", "reason" => reason).increment(0);
        }
        let stage = |stage: Stage| Seconds::new(gauge!("simclr_pipeline_stage_seconds_total", "stage" => stage.name()));
        let reason = |reason: DamageReason| counter!("simclr_pipeline_quarantined_total", "reason" => reason.name());
        Self {
            batches: counter!("simclr_pipeline_batches_total"),
            time_to_first_batch: gauge!("simclr_pipeline_time_to_first_batch_seconds"),
            cache_bytes: gauge!("simclr_pipeline_cache_bytes"),
            slabs: gauge!("simclr_pipeline_slabs"),
            activities: Activities::default(),
            silent: false,
            ready: gauge!("simclr_pipeline_batches_ready"),
            threads: gauge!("simclr_pipeline_threads"),
            samples: counter!("simclr_pipeline_samples_total"),
            stages: Stage::ALL.map(stage),
            waits: [
                wait("slabs", "feeder"),
                wait("work", "feeder"),
                wait("work", "worker"),
                wait("batches", "consumer"),
                wait("storage", "feeder"),
            ],
            quarantined: DamageReason::ALL.map(reason),
        }
    }

    /// Metrics that count nothing and time nothing, to measure what counting costs.
    pub fn silent() -> Self {
        let (counter, gauge, seconds) = (Counter::noop, Gauge::noop, || Seconds::new(Gauge::noop()));
        Self {
            batches: counter(),
            time_to_first_batch: gauge(),
            cache_bytes: gauge(),
            slabs: gauge(),
            activities: Activities::default(),
            silent: true,
            ready: gauge(),
            threads: gauge(),
            samples: counter(),
            stages: std::array::from_fn(|_| seconds()),
            waits: std::array::from_fn(|_| seconds()),
            quarantined: std::array::from_fn(|_| counter()),
        }
    }

    /// Counts samples decoded and augmented.
    pub fn add_samples(&self, samples: u64) {
        self.samples.increment(samples);
    }

    /// Counts bytes of samples read from storage of this scheme.
    pub fn add_read_bytes(&self, scheme: &'static str, bytes: u64) {
        if self.silent {
            return;
        }
        counter!("simclr_pipeline_read_bytes_total", "scheme" => scheme).increment(bytes);
    }

    /// Counts a request to a storage server that is repeated, for a reason of a small fixed vocabulary.
    pub fn add_retry(&self, reason: &'static str) {
        debug_assert!(RETRY_REASONS.contains(&reason), "{reason} is no known reason");
        counter!("simclr_pipeline_storage_retries_total", "reason" => reason).increment(1);
    }

    /// Times what a worker thread does, and counts it.
    pub fn worker(&self) -> Worker {
        self.threads.increment(1.0);
        Worker { metrics: self.clone(), stopwatch: self.activities.stopwatch() }
    }

    /// Counts a batch as made and not yet taken, as long as the answer lives.
    pub fn ready(&self) -> ReadyGuard {
        self.ready.increment(1.0);
        Box::new(Ready(self.ready.clone()))
    }

    /// Counts busy time of a stage.
    pub fn add_busy(&self, stage: Stage, time: Duration) {
        self.stages[stage as usize].add(time);
    }

    /// Counts time waited at a side of a channel.
    pub fn add_wait(&self, waiting: Waiting, time: Duration) {
        self.waits[waiting as usize].add(time);
    }

    /// Busy seconds of a stage so far, over all threads.
    pub fn busy_seconds(&self, stage: Stage) -> f64 {
        self.stages[stage as usize].total()
    }

    /// Seconds waited so far at a side of a channel.
    pub fn wait_seconds(&self, waiting: Waiting) -> f64 {
        self.waits[waiting as usize].total()
    }

    /// Counts a damaged sample, for a reason of the fixed vocabulary.
    pub fn add_quarantined(&self, reason: &str) {
        if let Some(i) = DamageReason::ALL.iter().position(|known| known.name() == reason) {
            self.quarantined[i].increment(1);
        }
    }
}

/// A batch that is made and was not yet taken.
struct Ready(Gauge);

impl Drop for Ready {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// A worker thread's time, counted by what it does.
pub struct Worker {
    metrics: PipelineMetrics,
    stopwatch: Stopwatch,
}

impl Worker {
    /// Says what the thread does from now on.
    pub fn turn_to(&mut self, activity: Activity) {
        if self.metrics.silent {
            return;
        }
        let (last, took) = self.stopwatch.turn_to(activity);
        match last {
            Activity::Idle => self.metrics.add_wait(Waiting::ForWork, took),
            Activity::Read => self.metrics.add_busy(Stage::Read, took),
            Activity::Decode => self.metrics.add_busy(Stage::Decode, took),
            Activity::Augment => self.metrics.add_busy(Stage::Augment, took),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.metrics.threads.decrement(1.0);
    }
}

/// A total of seconds: exported, and readable in this process.
#[derive(Clone)]
struct Seconds {
    exported: Gauge,
    nanoseconds: Arc<AtomicU64>,
}

impl Seconds {
    fn new(exported: Gauge) -> Self {
        // Shows the series from the start, at zero.
        exported.increment(0.0);
        Self { exported, nanoseconds: Arc::default() }
    }

    fn add(&self, time: Duration) {
        self.exported.increment(time.as_secs_f64());
        self.nanoseconds.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    fn total(&self) -> f64 {
        self.nanoseconds.load(Ordering::Relaxed) as f64 * 1e-9
    }
}
