//! The trainer's metrics: one field each, with its unit and the decision it changes.

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

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
    /// The loss of the last logged step.
    pub loss: Gauge,
    /// Share of images whose second view is found among all second views.
    pub contrastive_accuracy: Gauge,
    /// Entropy of that search, in nats.
    pub contrastive_entropy: Gauge,
    /// The learning rate of the last step.
    pub learning_rate: Gauge,
    /// Norm of all gradients together.
    pub gradient_norm: Gauge,
    /// Spread of the projections.
    pub embedding_std: Gauge,
    /// Share of views that the probe recognises.
    pub probe_accuracy: Gauge,
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
        describe_counter!("simclr_trainer_steps_total", Unit::Count, "Training steps taken.");
        describe_counter!(
            "simclr_trainer_images_total",
            Unit::Count,
            "Images trained on; its rate is the trainer's speed (a pair of views is one image)."
        );
        describe_histogram!(
            "simclr_trainer_step_seconds",
            Unit::Seconds,
            "Time of a step from batch to new weights, without the wait for the batch; if it grows, the device is the limit."
        );
        describe_gauge!(
            "simclr_trainer_data_wait_seconds_total",
            Unit::Seconds,
            "Seconds waited for batches; if it grows, the loader is the limit."
        );
        describe_gauge!(
            "simclr_trainer_loss",
            "Contrastive loss; a flat curve asks for another learning rate or temperature."
        );
        describe_gauge!(
            "simclr_trainer_contrastive_accuracy_ratio",
            "Share of images whose second view is found among all second views of the batch; near 1 the task is too easy."
        );
        describe_gauge!(
            "simclr_trainer_contrastive_entropy",
            "Entropy of the search for the second view, in nats; it tells whether the temperature fits."
        );
        describe_gauge!("simclr_trainer_learning_rate", "Learning rate of the last step.");
        describe_gauge!(
            "simclr_trainer_gradient_norm",
            "Norm of all gradients together; a jump foretells a divergence."
        );
        describe_gauge!(
            "simclr_trainer_embedding_std",
            "Spread of the normalised projections: 1 if they fill the sphere, 0 if they have collapsed; stop the run when it falls towards 0."
        );
        describe_gauge!(
            "simclr_trainer_probe_accuracy_ratio",
            "Share of views that the linear probe beside the encoder recognises (train.probe); it should rise with the run."
        );
        describe_gauge!(
            "simclr_trainer_knn_accuracy_ratio",
            "Top-1 accuracy of the last kNN evaluation; stop the run when it no longer rises."
        );
        describe_gauge!(
            "simclr_trainer_checkpoint_seconds",
            Unit::Seconds,
            "Time that the last checkpoint took to write; lower checkpoint.every if it is a small share of a step."
        );
        describe_counter!(
            "simclr_trainer_checkpoints_total",
            Unit::Count,
            "Checkpoints written; a run that is killed loses what came after the last one."
        );
        describe_gauge!(
            "simclr_trainer_stall_seconds_total",
            Unit::Seconds,
            "Seconds that kept the next step waiting, by cause; the cause that grows fastest is the one to mend first."
        );
        let metrics = Self {
            steps: counter!("simclr_trainer_steps_total"),
            images: counter!("simclr_trainer_images_total"),
            step_seconds: histogram!("simclr_trainer_step_seconds"),
            data_wait_seconds: gauge!("simclr_trainer_data_wait_seconds_total"),
            loss: gauge!("simclr_trainer_loss"),
            contrastive_accuracy: gauge!("simclr_trainer_contrastive_accuracy_ratio"),
            contrastive_entropy: gauge!("simclr_trainer_contrastive_entropy"),
            learning_rate: gauge!("simclr_trainer_learning_rate"),
            gradient_norm: gauge!("simclr_trainer_gradient_norm"),
            embedding_std: gauge!("simclr_trainer_embedding_std"),
            probe_accuracy: gauge!("simclr_trainer_probe_accuracy_ratio"),
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
        for unknown in [
            &metrics.loss,
            &metrics.contrastive_accuracy,
            &metrics.contrastive_entropy,
            &metrics.learning_rate,
            &metrics.gradient_norm,
            &metrics.embedding_std,
            &metrics.probe_accuracy,
            &metrics.knn_accuracy,
            &metrics.checkpoint_seconds,
        ] {
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
