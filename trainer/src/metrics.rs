//! The trainer's metrics: one field each, with its unit and the decision it changes.

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::step_metrics::StepGauges;
use crate::time_spent::{CAUSES, TimeSpent};

/// Handles of all metrics of this crate; cheap to clone.
#[derive(Clone)]
pub struct TrainerMetrics {
    /// Steps taken.
    pub steps: Counter,
    /// Images trained on (a pair of views is one image).
    pub images: Counter,
    /// Time of a step, from batch to new weights, without the wait for the batch.
    pub step_seconds: Histogram,
    /// Seconds waited for batches (a gauge that only grows, since the facade counts integers only).
    pub data_wait_seconds: Gauge,
    /// What each step logs.
    pub(crate) step: StepGauges,
    /// Accuracy of the last kNN evaluation.
    pub knn_accuracy: Gauge,
    /// Time to write a checkpoint.
    pub checkpoint_seconds: Gauge,
    /// Checkpoints written.
    pub checkpoints: Counter,
    stalls: [(&'static str, Gauge); CAUSES.len()],
}

impl TrainerMetrics {
    /// Registers the metrics with the recorder installed in this process (without one they count for nobody).
    pub fn register() -> Self {
        describe_counter!("simclr_trainer_steps_total", Unit::Count, "Training steps completed.");
        describe_counter!(
            "simclr_trainer_images_total",
            Unit::Count,
            "Images trained on; its rate is the training throughput (a pair of views counts as one image)."
        );
        describe_histogram!(
            "simclr_trainer_step_seconds",
            Unit::Seconds,
            "Step time from batch to updated weights, without waiting for the batch; if it grows, training is compute-bound."
        );
        describe_gauge!(
            "simclr_trainer_data_wait_seconds_total",
            Unit::Seconds,
            "Seconds spent waiting for batches; if it grows, data loading is the bottleneck."
        );
        describe_gauge!(
            "simclr_trainer_knn_accuracy_ratio",
            "Top-1 accuracy of the last kNN evaluation; stop the run when it stops rising."
        );
        describe_gauge!(
            "simclr_trainer_checkpoint_seconds",
            Unit::Seconds,
            "Time to write the last checkpoint; decrease checkpoint.every if it is small compared to a step."
        );
        describe_counter!(
            "simclr_trainer_checkpoints_total",
            Unit::Count,
            "Checkpoints written; a killed run loses everything after the last one."
        );
        describe_gauge!(
            "simclr_trainer_stall_seconds_total",
            Unit::Seconds,
            "Seconds the next step was delayed, by cause; fix the fastest-growing cause first."
        );
        let metrics = Self {
            steps: counter!("simclr_trainer_steps_total"),
            images: counter!("simclr_trainer_images_total"),
            step_seconds: histogram!("simclr_trainer_step_seconds"),
            data_wait_seconds: gauge!("simclr_trainer_data_wait_seconds_total"),
            step: StepGauges::register(),
            knn_accuracy: gauge!("simclr_trainer_knn_accuracy_ratio"),
            checkpoint_seconds: gauge!("simclr_trainer_checkpoint_seconds"),
            checkpoints: counter!("simclr_trainer_checkpoints_total"),
            stalls: CAUSES.map(|cause| (cause, gauge!("simclr_trainer_stall_seconds_total", "cause" => cause))),
        };
        for (_, stall) in &metrics.stalls {
            stall.increment(0.0);
        }
        metrics.checkpoints.increment(0);
        metrics.data_wait_seconds.increment(0.0);
        // Not yet known is not zero.
        for unknown in [&metrics.knn_accuracy, &metrics.checkpoint_seconds] {
            unknown.set(f64::NAN);
        }
        metrics
    }

    /// Counts what was spent since the last time.
    pub(crate) fn add_stalls(&self, spent: &TimeSpent) {
        for ((cause, seconds), (known, stall)) in spent.stalls().into_iter().zip(&self.stalls) {
            debug_assert_eq!(cause, *known);
            stall.increment(seconds);
        }
    }
}
