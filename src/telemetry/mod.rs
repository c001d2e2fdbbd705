//! What this process tells of itself: its metrics, in the text that Prometheus reads; its logs; how far long work is.

pub mod logging;
pub mod progress;
#[cfg(feature = "trainer")]
pub mod tensorboard;

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds of the buckets of times: from a step of a small model on a GPU to one of a large model on a CPU.
const SECONDS_BUCKETS: [f64; 14] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// Installs the metrics recorder of this process, once; metrics registered before it would count for nobody.
pub fn recorder() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS_BUCKETS)
            .expect("the buckets are not empty");
        let handle = builder.install_recorder().expect("no other recorder is installed");
        metrics::describe_gauge!("simclr_build_info", "Program version; always 1.");
        metrics::gauge!("simclr_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        metrics::describe_gauge!(
            "simclr_start_time_seconds",
            metrics::Unit::Seconds,
            "Process start time, in seconds since the Unix epoch; a change means a restart."
        );
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        metrics::gauge!("simclr_start_time_seconds").set(began.as_secs_f64());
        handle
    })
}

/// The metrics as Prometheus reads them.
pub fn render() -> String {
    // The facade counts integers only; totals of seconds are gauges in it that only grow, and counters by name.
    let mut text = String::new();
    for line in recorder().render().lines() {
        match line.strip_prefix("# TYPE ").and_then(|rest| rest.strip_suffix(" gauge")) {
            Some(name) if name.ends_with("_total") => text.push_str(&format!("# TYPE {name} counter\n")),
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}
