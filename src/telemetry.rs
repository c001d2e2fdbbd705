//! What the program tells while it runs: logs on stderr, metrics over HTTP.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
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

/// Whether something is as it should be; if not, why.
type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the pages tell beside the metrics.
#[derive(Clone)]
pub struct Pages {
    /// `/livez`: whether the program works at all.
    pub alive: Check,
    /// `/readyz`: whether it can do its work now.
    pub ready: Check,
    /// `/status`, and what `/` shows: how things stand.
    pub status: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
}

#[cfg(feature = "trainer")]
impl Default for Pages {
    fn default() -> Self {
        let version = || serde_json::json!({ "version": env!("CARGO_PKG_VERSION") });
        Self { alive: Arc::new(|| Ok(())), ready: Arc::new(|| Ok(())), status: Arc::new(version) }
    }
}

/// Listens at `address`, which `key` names.
///
/// # Errors
/// If the address is none or is taken.
pub fn listen(key: &str, address: &str) -> anyhow::Result<std::net::TcpListener> {
    let wanted: SocketAddr = address
        .parse()
        .map_err(|_| crate::WrongInput(format!("{key} = {address:?}: an address such as 127.0.0.1:9464 is wanted")))?;
    let listener = std::net::TcpListener::bind(wanted)
        .map_err(|error| crate::WrongInput(format!("{key} = {address:?}: cannot listen there: {error}")))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves `/metrics`, `/livez`, `/readyz`, `/status` and a page at `/`, for the life of `runtime`; the address.
///
/// # Errors
/// If the address is none or is taken.
pub fn serve(key: &str, address: &str, pages: &Pages, runtime: &tokio::runtime::Handle) -> anyhow::Result<SocketAddr> {
    recorder();
    let listener = listen(key, address)?;
    let bound = listener.local_addr()?;
    let answer = |check: &Check| {
        let check = check.clone();
        get(async move || match check() {
            Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        })
    };
    let (status, shown) = (pages.status.clone(), pages.status.clone());
    let refresh = pages.status.clone();
    let metrics = async move || {
        // What is only known when it is asked for.
        refresh();
        ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render())
    };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", answer(&pages.alive))
        .route("/readyz", answer(&pages.ready))
        .route("/status", get(async move || ([(CONTENT_TYPE, "application/json")], format!("{}\n", status()))))
        .route("/", get(async move || ([(CONTENT_TYPE, "text/html; charset=utf-8")], page(&shown()))));
    let _guard = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener).context("cannot serve metrics")?;
    runtime.spawn(async move { axum::serve(listener, router).await });
    Ok(bound)
}

/// The status as a page that keeps itself up to date.
fn page(status: &serde_json::Value) -> String {
    let text = serde_json::to_string_pretty(status).expect("a status is plain data");
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"2\">\
         <title>simclr-pipeline</title><h1>simclr-pipeline</h1><pre>{text}</pre>\
         <p><a href=\"/metrics\">metrics</a> <a href=\"/readyz\">readyz</a> <a href=\"/livez\">livez</a> \
         <a href=\"/status\">status</a></p></html>\n"
    )
}

/// As [`serve`], at `machine.metrics`; where, unless that is empty.
///
/// # Errors
/// If the address is none or is taken.
#[cfg(feature = "trainer")]
pub fn serve_configured(
    machine: &crate::config::MachineConfig,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<Option<SocketAddr>> {
    if machine.metrics.is_empty() {
        return Ok(None);
    }
    serve("machine.metrics", &machine.metrics, &Pages::default(), runtime).map(Some)
}
