//! Where a run's time goes: steps, and what keeps the next one waiting, second by second.

use simclr_ground::stall::Waited;

/// What can keep a step waiting, by its name in metrics: first what batches are waited for.
pub const CAUSES: [&str; 8] =
    ["start", "storage", "decode", "augment", "network", "upload", "evaluation", "checkpoint"];

/// Seconds of the training thread, each counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TimeSpent {
    /// Computing steps.
    pub steps: f64,
    /// Waiting for batches.
    pub waited: Waited,
    /// Bringing batches onto a GPU.
    pub upload: f64,
    /// Evaluating in between.
    pub evaluation: f64,
    /// Writing checkpoints.
    pub checkpoint: f64,
}

impl TimeSpent {
    /// What kept steps waiting: each of [`CAUSES`], and its seconds.
    pub fn stalls(&self) -> [(&'static str, f64); 8] {
        let [start, storage, decode, augment, network] = self.waited.causes();
        let others = [("upload", self.upload), ("evaluation", self.evaluation), ("checkpoint", self.checkpoint)];
        let [upload, evaluation, checkpoint] = others;
        [start, storage, decode, augment, network, upload, evaluation, checkpoint]
    }

    /// Seconds that steps were kept waiting.
    pub fn stalled(&self) -> f64 {
        self.stalls().iter().map(|(_, seconds)| seconds).sum()
    }

    /// All seconds.
    pub fn total(&self) -> f64 {
        self.steps + self.stalled()
    }

    /// What was spent since an earlier moment.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            steps: self.steps - earlier.steps,
            waited: self.waited.since(&earlier.waited),
            upload: self.upload - earlier.upload,
            evaluation: self.evaluation - earlier.evaluation,
            checkpoint: self.checkpoint - earlier.checkpoint,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_its_name_and_all_of_it_sums_up() {
        let waited = Waited { start: 1.0, storage: 2.0, decode: 3.0, augment: 4.0, network: 5.0 };
        let spent = TimeSpent { steps: 10.0, waited, upload: 6.0, evaluation: 7.0, checkpoint: 8.0 };
        assert_eq!(spent.stalls().map(|(cause, _)| cause), CAUSES);
        assert_eq!(spent.stalls().map(|(_, seconds)| seconds as u32), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!((spent.stalled(), spent.total()), (36.0, 46.0));
        assert_eq!(spent.since(&spent), TimeSpent::default());
    }
}
