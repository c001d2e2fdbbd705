//! What the page's curves show: this process's own metrics, read once a second as Prometheus would read them, so that
//! the two never disagree.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

/// Time between two points.
pub const EVERY: Duration = Duration::from_secs(1);

/// So many points are kept; when there are more, every other one of the older half goes.
const POINTS: usize = 4096;

/// The series that are shown as they are: name on the page, name of the metric. So are all of the trainer's that have no
/// labels, under their own names.
const VALUES: [(&str, &str); 5] = [
    ("threads", "simclr_pipeline_threads"),
    ("slabs", "simclr_pipeline_slabs"),
    ("slabs_ready", "simclr_pipeline_batches_ready"),
    ("clients", "simclr_service_clients"),
    ("quarantined", "simclr_pipeline_quarantined_total"),
];

/// Those that are shown as rates: a service has no trainer, and its images are those that it makes.
const RATES: [(&str, &str); 5] = [
    ("images_per_second", "simclr_pipeline_samples_total"),
    ("images_per_second", "simclr_trainer_images_total"),
    ("read_bytes_per_second", "simclr_pipeline_read_bytes_total"),
    ("batches_sent_per_second", "simclr_service_batches_sent_total"),
    ("sent_bytes_per_second", "simclr_service_sent_bytes_total"),
];

/// Those that are shown as shares of time by a label.
const SHARES: [(&str, &str); 2] =
    [("stall", "simclr_trainer_stall_seconds_total"), ("busy", "simclr_pipeline_stage_seconds_total")];

/// The points of this process so far.
pub struct History {
    boot: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    points: VecDeque<(u64, Value)>,
    next: u64,
    last: Option<(f64, Metrics)>,
}

impl Default for History {
    fn default() -> Self {
        Self { boot: format!("{:.3}", now()), state: Mutex::default() }
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

impl History {
    /// Notes what the metrics say now, in the text that Prometheus reads.
    pub fn note(&self, text: &str) {
        self.note_at(now(), text);
    }

    fn note_at(&self, time: f64, text: &str) {
        let metrics = Metrics::parse(text);
        let mut state = self.state.lock().expect("no panic while held");
        if let Some((before, last)) = &state.last {
            let point = metrics.point(time, last, (time - before).max(1e-3));
            let number = state.next;
            state.next += 1;
            state.points.push_back((number, point));
            if state.points.len() > POINTS {
                let mut at = 0;
                state.points.retain(|_| {
                    at += 1;
                    at > POINTS / 2 || at % 2 == 1
                });
            }
        }
        state.last = Some((time, metrics));
    }

    /// The points from number `after` on, and the number of the next one.
    pub fn after(&self, after: u64) -> Value {
        let state = self.state.lock().expect("no panic while held");
        let points: Vec<&Value> =
            state.points.iter().filter(|(number, _)| *number >= after).map(|(_, point)| point).collect();
        json!({ "boot": self.boot, "next": state.next, "points": points })
    }
}

/// Metrics by name: each series' labels, as text, and its value.
struct Metrics(BTreeMap<String, Vec<(String, f64)>>);

impl Metrics {
    fn parse(text: &str) -> Self {
        let mut all: BTreeMap<String, Vec<(String, f64)>> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            all.entry(name.to_owned()).or_default().push((labels.trim_end_matches('}').to_owned(), value));
        }
        Self(all)
    }

    /// The sum over a metric's series, if it is known.
    fn sum(&self, name: &str) -> Option<f64> {
        let series = self.0.get(name)?;
        Some(series.iter().map(|(_, value)| value).sum::<f64>()).filter(|sum| sum.is_finite())
    }

    /// What is shown of the `seconds` since `last`.
    fn point(&self, time: f64, last: &Self, seconds: f64) -> Value {
        let mut point = Map::new();
        point.insert("t".into(), json!(time));
        for (key, name) in VALUES {
            if let Some(value) = self.sum(name) {
                point.insert(key.into(), json!(value));
            }
        }
        for name in self.0.keys() {
            let Some(key) = name.strip_prefix("simclr_trainer_") else { continue };
            let is_value = !["_total", "_count", "_sum", "_bucket"].iter().any(|end| key.ends_with(end));
            if let Some(value) = self.sum(name).filter(|_| is_value) {
                point.insert(key.trim_end_matches("_ratio").into(), json!(value));
            }
        }
        for (key, name) in RATES {
            if let Some(value) = self.sum(name) {
                let rate = (value - last.sum(name).unwrap_or(0.0)) / seconds;
                point.insert(key.into(), json!(rate.max(0.0)));
            }
        }
        for (key, name) in SHARES {
            let Some(series) = self.0.get(name) else { continue };
            let before = |labels: &str| {
                let series = last.0.get(name).into_iter().flatten();
                series.clone().find(|(known, _)| known == labels).map_or(0.0, |(_, value)| *value)
            };
            let shares = series.iter().map(|(labels, value)| {
                let label = labels.split('"').nth(1).unwrap_or_default().to_owned();
                (label, json!(((value - before(labels)) / seconds).max(0.0)))
            });
            point.insert(key.into(), Value::Object(shares.collect()));
        }
        if let Some(stall) = point.get("stall").and_then(Value::as_object) {
            let wait: f64 = stall.values().filter_map(Value::as_f64).sum();
            point.insert("wait".into(), json!(wait.min(1.0)));
        }
        let checkpoints = "simclr_trainer_checkpoints_total";
        if self.sum(checkpoints) > last.sum(checkpoints) {
            point.insert("checkpoint".into(), json!(true));
        }
        Value::Object(point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(images: u64, decode: f64, loss: &str) -> String {
        format!(
            "# TYPE simclr_trainer_images_total counter\nsimclr_trainer_images_total {images}\n\
             simclr_trainer_stall_seconds_total{{cause=\"decode\"}} {decode}\n\
             simclr_trainer_stall_seconds_total{{cause=\"storage\"}} 1\nsimclr_trainer_loss {loss}\n"
        )
    }

    #[test]
    fn totals_are_shown_as_rates_and_what_is_no_number_not_at_all() {
        let history = History::default();
        history.note_at(10.0, &text(100, 1.0, "NaN"));
        history.note_at(12.0, &text(300, 1.5, "NaN"));
        history.note_at(13.0, &text(300, 1.5, "4.5"));
        let all = history.after(0);
        assert_eq!(all["next"], 2);
        let first = &all["points"][0];
        assert_eq!(
            (&first["images_per_second"], &first["wait"], &first["loss"]),
            (&json!(100.0), &json!(0.25), &Value::Null)
        );
        assert_eq!((&first["stall"]["decode"], &first["stall"]["storage"]), (&json!(0.25), &json!(0.0)));
        assert_eq!(all["points"][1]["loss"], 4.5);
        assert_eq!(history.after(1)["points"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_long_run_keeps_its_beginning_more_coarsely() {
        let history = History::default();
        for second in 0..3 * POINTS {
            history.note_at(second as f64, &text(0, 0.0, "1"));
        }
        let all = history.after(0);
        let points = all["points"].as_array().unwrap();
        assert!(points.len() <= POINTS && points.len() > POINTS / 2);
        assert!(points[0]["t"].as_f64().unwrap() < 64.0 && points.last().unwrap()["t"] == (3 * POINTS - 1) as f64);
    }
}
