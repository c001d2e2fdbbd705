//! The learning rate over a run: linear warm-up, then a cosine to zero, in the official code's step counts.

use serde::{Deserialize, Serialize};
use simclr_ground::error::InvalidValue;

use crate::error::TrainError;

/// How long a run is and how it warms up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Epochs from start to end.
    pub epochs: f64,
    /// Epochs of linear warm-up; 10 in the paper.
    pub warmup_epochs: f64,
}

/// The learning rate at every step of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The learning rate at the end of the warm-up.
    pub peak: f64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// Steps in all.
    pub total_steps: u64,
}

impl Schedule {
    /// The schedule for `num_samples` images in batches of `batch_size`.
    ///
    /// # Errors
    /// If the run has no length, or warms up for longer than it lasts.
    pub fn new(config: &ScheduleConfig, num_samples: u64, batch_size: u32, peak: f64) -> Result<Self, TrainError> {
        let wrong = |key, found: f64, wanted: &str| Err(TrainError::Value(InvalidValue::new(key, found, wanted)));
        if !(config.epochs > 0.0 && config.epochs <= 1e6) {
            return wrong("schedule.epochs", config.epochs, "must be > 0 and <= 1000000");
        }
        if !(0.0..=config.epochs).contains(&config.warmup_epochs) {
            return wrong(
                "schedule.warmup_epochs",
                config.warmup_epochs,
                "expected a number between 0 and schedule.epochs",
            );
        }
        let (samples, batch) = (num_samples as f64, f64::from(batch_size));
        // As the official code: round(warmup · N // B) and N · E // B + 1.
        let warmup_steps = (config.warmup_epochs * samples / batch).floor() as u64;
        let total_steps = (samples * config.epochs / batch).floor() as u64 + 1;
        Ok(Self { peak, warmup_steps, total_steps })
    }

    /// The learning rate of `step`, counted from 0.
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let decay = (self.total_steps - self.warmup_steps).max(1) as f64;
        let share = ((step - self.warmup_steps) as f64).min(decay) / decay;
        self.peak * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::{Lars, LearningRateRule, OptimizerConfig, OptimizerKind, OptimizerShared};

    /// Golden values: `golden/trainer.py` says how, and with which versions, they were made.
    #[test]
    fn learning_rates_equal_the_official_schedule() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../golden/trainer.json")).unwrap();
        let cases = golden["schedule"].as_array().unwrap();
        assert_eq!(cases.len(), 2);
        for case in cases {
            let (learning_rate, learning_rate_rule) = match case["scaling"].as_str().unwrap() {
                "linear" => (1.0, LearningRateRule::Linear),
                "sqrt" => (0.075, LearningRateRule::Sqrt),
                other => panic!("no rule {other}"),
            };
            let shared = OptimizerShared { learning_rate, learning_rate_rule, ..OptimizerShared::default() };
            let optimizer = OptimizerConfig { kind: OptimizerKind::Lars(Lars::default()), shared };
            let config = ScheduleConfig { epochs: 100.0, warmup_epochs: 10.0 };
            let schedule = Schedule::new(&config, 50_000, 512, optimizer.peak_learning_rate(512)).unwrap();
            assert_eq!(schedule.warmup_steps, case["warmup_steps"].as_u64().unwrap());
            assert_eq!(schedule.total_steps, case["total_steps"].as_u64().unwrap());
            let steps = case["steps"].as_array().unwrap().iter().map(|step| step.as_u64().unwrap());
            for (step, wanted) in steps.zip(case["learning_rates"].as_array().unwrap()) {
                let (found, wanted) = (schedule.learning_rate(step), wanted.as_f64().unwrap());
                assert!((found - wanted).abs() < 1e-8, "step {step}: {found}, {wanted} wanted");
            }
        }
    }

    #[test]
    fn a_run_without_warm_up_begins_at_its_peak() {
        let config = ScheduleConfig { epochs: 1.0, warmup_epochs: 0.0 };
        let schedule = Schedule::new(&config, 100, 10, 0.5).unwrap();
        assert_eq!((schedule.learning_rate(0), schedule.learning_rate(11)), (0.5, 0.0));
    }
}
