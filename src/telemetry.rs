//! The metrics of this process, in the text that Prometheus reads.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// Installs the metrics recorder of this process, once; metrics registered before it would count for nobody.
pub fn recorder() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new();
        #[cfg(feature = "trainer")]
        let builder = builder
            .set_buckets_for_metric(
                metrics_exporter_prometheus::Matcher::Full("simclr_trainer_step_seconds".into()),
                &trainer::metrics::STEP_SECONDS_BUCKETS,
            )
            .expect("the buckets are not empty");
        let handle = builder.install_recorder().expect("no other recorder is installed");
        metrics::describe_gauge!("simclr_build_info", "The program's version; always 1.");
        metrics::gauge!("simclr_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        metrics::describe_gauge!(
            "simclr_start_time_seconds",
            metrics::Unit::Seconds,
            "When this process began, in seconds since 1970; a change is a restart."
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
