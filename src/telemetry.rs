//! What the program tells while it runs: logs on stderr, and metrics in the text that Prometheus reads.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// Logs from here on: warnings only when `quiet`, more with each `verbose`.
pub fn start_logging(verbose: u8, quiet: bool, color: bool) {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(color).with_writer(std::io::stderr).try_init();
}

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
