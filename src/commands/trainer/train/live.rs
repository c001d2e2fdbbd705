//! A training as it goes, for the pages that show it.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use simclr_data::metrics::Stage;
use simclr_data::source::Source;
use simclr_service::server::TokenAuth;
use simclr_trainer::run::MetricsLine;
use simclr_trainer::run::stall::{Load, sentence};
use simclr_trainer::step_metrics::{STEP_METRICS, StepMetric};
use simclr_trainer::time_spent::TimeSpent;

use crate::web::Pages;

/// What is known of a training; all who show it share one.
#[derive(Default)]
pub struct Live(Mutex<State>);

#[derive(Default)]
struct State {
    run: String,
    device: String,
    source: Option<Arc<Source>>,
    /// What it does.
    doing: &'static str,
    first_step: u64,
    last_step: u64,
    line: Option<MetricsLine>,
    images_per_second: f64,
    seconds_left: f64,
    spent: TimeSpent,
    load: Load,
}

impl Live {
    /// Says what will be trained, in the folder `run`, between two steps.
    pub fn begin(&self, run: &Path, device: String, source: Arc<Source>, steps: (u64, u64), load: Load) {
        let mut state = self.state();
        state.run = run.display().to_string();
        (state.device, state.source, state.load) = (device, Some(source), load);
        (state.first_step, state.last_step) = steps;
        state.doing = "training";
    }

    /// Says what it does from now on.
    pub fn turn_to(&self, doing: &'static str) {
        self.state().doing = doing;
    }

    /// Says that a step was taken.
    pub fn step(&self, line: &MetricsLine, images: u64, spent: &TimeSpent, images_per_second: f64, seconds_left: f64) {
        let mut state = self.state();
        state.line = Some(line.clone());
        state.load.images += images;
        (state.spent, state.images_per_second, state.seconds_left) = (*spent, images_per_second, seconds_left);
    }

    /// Where the time went, in a sentence.
    pub fn sentence(&self) -> String {
        self.state().sentence()
    }

    /// The pages that show it.
    pub fn pages(self: &Arc<Self>, guard: TokenAuth, names: Vec<String>) -> Pages {
        let (ready, status, source) = (self.clone(), self.clone(), self.clone());
        Pages {
            alive: Arc::new(|| Ok(())),
            ready: Arc::new(move || ready.state().ready()),
            status: Arc::new(move || status.state().status()),
            source: Arc::new(move || source.state().source.clone()),
            guard,
            names,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while held")
    }
}

impl State {
    fn sentence(&self) -> String {
        let busy = |source: &Arc<Source>| -> f64 {
            let stages = [Stage::Read, Stage::Decode, Stage::Augment];
            stages.iter().map(|&stage| source.metrics.busy_seconds(stage)).sum()
        };
        let cpu = self.source.as_ref().map_or(0.0, busy);
        let cpu_per_image = if self.load.images > 0 { cpu / self.load.images as f64 } else { 0.0 };
        sentence(&self.spent, &Load { cpu_per_image, ..self.load })
    }

    /// Whether it does what it was started for; else why not.
    fn ready(&self) -> Result<(), String> {
        match (&self.line, self.doing) {
            (Some(_), _) | (None, "done" | "evaluating") => Ok(()),
            (None, "") => Err("starting: the data set and the model are being opened".into()),
            (None, _) => Err("no step has been taken yet".into()),
        }
    }

    fn status(&self) -> Value {
        let mut status = json!({
            "kind": "train", "version": env!("CARGO_PKG_VERSION"), "ready": self.ready().is_ok(),
            "state": if self.doing.is_empty() { "starting" } else { self.doing },
        });
        let Some(source) = &self.source else { return status };
        for (key, value) in [
            ("run", json!(self.run)),
            ("device", json!(self.device)),
            ("threads", json!(self.load.threads)),
            ("plan_digest", json!(source.plan.digest)),
            ("batches_per_epoch", json!(source.plan.batches_per_epoch())),
            ("step", json!(self.line.as_ref().map_or(self.first_step, |line| line.step))),
            ("last_step", json!(self.last_step)),
            ("sentence", json!(self.sentence())),
            ("curves", curves()),
        ] {
            status[key] = value;
        }
        if let Some(line) = &self.line {
            status["epoch"] = json!(line.values.get("epoch"));
            status["loss"] = json!(line.values.get("loss"));
            status["images_per_second"] = json!(self.images_per_second);
            status["seconds_left"] = json!(self.seconds_left);
        }
        status
    }
}

/// What is logged at each step and makes a curve: key, name and unit of each.
fn curves() -> Value {
    let drawn = STEP_METRICS.iter().filter(|metric| metric.gauge.is_some());
    let curve =
        |metric: &StepMetric| metric.curve.map(|(name, unit)| json!({ "key": metric.key, "name": name, "unit": unit }));
    drawn.filter_map(curve).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trainer_is_ready_once_it_takes_steps() {
        let live = Arc::new(Live::default());
        let pages = live.pages(TokenAuth::default(), Vec::new());
        let ready = || ((pages.ready)().is_ok(), (pages.status)()["ready"].as_bool());
        assert_eq!(ready(), (false, Some(false)), "it opens its data");
        live.turn_to("training");
        assert!((pages.ready)().unwrap_err().contains("no step"));
        live.turn_to("done");
        assert_eq!(ready(), (true, Some(true)), "there was nothing left to do");
    }
}
