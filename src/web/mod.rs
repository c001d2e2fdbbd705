//! What a running program answers over HTTP: metrics and probes for machines, and at `/` a page for people: how fast it
//! goes, why it waits, whether it learns, and what is in any batch. All of it is read-only.

mod batch;
mod connections;
mod history;
mod host;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Value, json};
use simclr_data::source::Source;
use simclr_ground::error::{Context, Error, Result};
use simclr_service::server::TokenAuth;
use tokio::sync::Semaphore;

use crate::telemetry;
use history::History;
use host::Names;

/// The page; everything else it asks for at the addresses below.
const PAGE: &str = include_str!("index.html");

/// Nothing of the page comes from elsewhere, and nothing of it goes there.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Damaged samples listed, the last ones found.
const LISTED: usize = 100;

/// Batches looked into at the same time: people look, workers work.
const LOOKING: usize = 1;

/// Whether something is as it should be; if not, why.
type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the pages tell beside the metrics.
#[derive(Clone)]
pub struct Pages {
    /// `/livez`: whether the program works at all.
    pub alive: Check,
    /// `/readyz`: whether it can do its work now.
    pub ready: Check,
    /// `/status`: how things stand.
    pub status: Arc<dyn Fn() -> Value + Send + Sync>,
    /// `/batch` and `/quarantine`: what is streamed, as soon as it is known.
    pub source: Arc<dyn Fn() -> Option<Arc<Source>> + Send + Sync>,
    /// Who may see samples and settings.
    pub guard: TokenAuth,
    /// Names that this machine goes by beside its own, as `machine.service.names` lists them.
    pub names: Vec<String>,
}

/// What the answers are made from.
struct Shown {
    pages: Pages,
    names: Names,
    history: History,
    looking: Semaphore,
    runtime: tokio::runtime::Handle,
}

/// Listens at `address`, which `key` names.
///
/// # Errors
/// If the address is none or is taken.
pub fn listen(key: &str, address: &str) -> Result<std::net::TcpListener> {
    use std::net::ToSocketAddrs;
    let wrong = |why: &str| {
        Error::input(format!("invalid value {address:?} for {key}: expected an address such as 127.0.0.1:9464{why}"))
    };
    // A host name, too; without one before the port, this machine only.
    let whole = if address.starts_with(':') { format!("127.0.0.1{address}") } else { address.to_owned() };
    let is_numeric = whole.parse::<SocketAddr>().is_ok();
    let found: Vec<SocketAddr> = match whole.rsplit_once(':') {
        Some((host, port)) if !host.contains('/') && port.parse::<u16>().is_ok() => {
            let unknown =
                |error: std::io::Error| wrong(&format!(", and {host} is no host name that is known: {error}"));
            whole.to_socket_addrs().map_err(|error| if is_numeric { wrong("") } else { unknown(error) })?.collect()
        }
        _ => return Err(wrong("")),
    };
    let listener = std::net::TcpListener::bind(&found[..])
        .map_err(|error| Error::input(format!("cannot listen on {address} ({key}): {error}")))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves all pages for the life of `runtime`; the address. Metrics and probes are for everyone, the rest for whom the
/// guard lets in, under a name of this machine.
///
/// # Errors
/// If the address is none or is taken, or a name is none.
pub fn serve(key: &str, address: &str, pages: Pages, runtime: &tokio::runtime::Handle) -> Result<SocketAddr> {
    telemetry::recorder();
    let names = Names::new(&pages.names)?;
    let listener = listen(key, address)?;
    let bound = listener.local_addr()?;
    if !bound.ip().is_loopback() {
        tell_who_can_reach(key, bound, pages.guard.wants_token());
    }
    let shown = Arc::new(Shown {
        pages,
        names,
        history: History::default(),
        looking: Semaphore::new(LOOKING),
        runtime: runtime.clone(),
    });
    let guarded = Router::new()
        .route("/status", get(status))
        .route("/history", get(past))
        .route("/quarantine", get(quarantine))
        .route("/batch/{number}", get(look_at_batch))
        .route("/batch/{number}/{image}/{which}", get(look_at_image))
        .layer(middleware::from_fn_with_state(shown.clone(), let_in));
    let router = Router::new()
        .route(
            "/",
            get(async || ([(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, POLICY)], PAGE)),
        )
        .route("/metrics", get(metrics))
        .route("/livez", get(async |State(shown): State<Arc<Shown>>| probe(&shown.pages.alive)))
        .route("/readyz", get(async |State(shown): State<Arc<Shown>>| probe(&shown.pages.ready)))
        .merge(guarded)
        .with_state(shown.clone());
    let _guard = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener).context("cannot serve pages")?;
    runtime.spawn(connections::answer_all(listener, router));
    runtime.spawn(async move {
        let mut every = tokio::time::interval(history::EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            // What is only known when it is asked for.
            (shown.pages.status)();
            shown.history.note(&telemetry::render());
        }
    });
    Ok(bound)
}

/// Warns of what others can see, or overhear, at an address that is not this machine's alone.
fn tell_who_can_reach(key: &str, bound: SocketAddr, with_token: bool) {
    let instead = "listen at 127.0.0.1 and forward the port, as ssh -L does, or put a proxy with TLS before it";
    match with_token {
        true => tracing::warn!(
            "{key} = {bound} has no TLS: a browser that opens the page there sends the token of machine.service.token \
             in clear, the one that streams are had with; {instead}"
        ),
        false => tracing::warn!(
            "{key} = {bound} can be reached from other machines: without machine.service.token everyone sees images \
             and settings there; {instead}"
        ),
    }
}

async fn let_in(State(shown): State<Arc<Shown>>, request: Request, next: Next) -> Response {
    if let Err(why) = shown.names.check(request.headers()) {
        return (StatusCode::MISDIRECTED_REQUEST, format!("{why}\n")).into_response();
    }
    if shown.pages.guard.lets_in(request.headers()) {
        return next.run(request).await;
    }
    (StatusCode::UNAUTHORIZED, "bearer token required\n").into_response()
}

fn probe(check: &Check) -> (StatusCode, String) {
    match check() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn metrics(State(shown): State<Arc<Shown>>) -> impl IntoResponse {
    // What is only known when it is asked for.
    (shown.pages.status)();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], telemetry::render())
}

fn answer(value: &Value) -> Response {
    ([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], format!("{value}\n")).into_response()
}

async fn status(State(shown): State<Arc<Shown>>) -> Response {
    answer(&(shown.pages.status)())
}

#[derive(Deserialize)]
struct Past {
    #[serde(default)]
    after: u64,
}

async fn past(State(shown): State<Arc<Shown>>, Query(Past { after }): Query<Past>) -> Response {
    answer(&shown.history.after(after))
}

async fn quarantine(State(shown): State<Arc<Shown>>) -> Response {
    let entries = (shown.pages.source)().map(|source| source.quarantine.entries()).unwrap_or_default();
    let newest: Vec<_> = entries.iter().rev().take(LISTED).collect();
    answer(&json!({ "total": entries.len(), "entries": newest }))
}

#[derive(Deserialize)]
struct Which {
    #[serde(default)]
    from: usize,
    #[serde(default = "a_few")]
    images: usize,
}

fn a_few() -> usize {
    8
}

async fn look_at_batch(
    State(shown): State<Arc<Shown>>,
    Path(number): Path<u64>,
    Query(Which { from, images }): Query<Which>,
) -> Response {
    let look = move |source: &Source, storage| batch::describe(source, number, from, images, storage);
    match shown.look(look).await {
        Ok(value) => answer(&value),
        Err(refusal) => refusal.into_response(),
    }
}

async fn look_at_image(
    State(shown): State<Arc<Shown>>,
    Path((number, image, name)): Path<(u64, usize, String)>,
) -> Response {
    let Some(which) = name.strip_suffix(".png").map(str::to_owned) else {
        return (StatusCode::NOT_FOUND, "expected original.png or NUMBER.png\n").into_response();
    };
    let look = move |source: &Source, storage| batch::image(source, number, image, &which, storage);
    match shown.look(look).await {
        // A batch is a value: what is at an address never changes while this program runs.
        Ok(png) => {
            ([(CONTENT_TYPE, "image/png"), (CACHE_CONTROL, "private, max-age=3600")], Body::from(png)).into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

impl Shown {
    /// Looks into the stream, on a thread that may block.
    async fn look<T: Send + 'static>(
        self: &Arc<Self>,
        look: impl FnOnce(&Source, tokio::runtime::Handle) -> Result<T, batch::Refusal> + Send + 'static,
    ) -> Result<T, batch::Refusal> {
        let unavailable = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, why.to_owned());
        let source = (self.pages.source)().ok_or_else(|| unavailable("the stream is not open yet"))?;
        let _turn = self.looking.acquire().await.map_err(|_| unavailable("the program is shutting down"))?;
        let storage = self.runtime.clone();
        let looked = tokio::task::spawn_blocking(move || look(&source, storage)).await;
        looked.map_err(|_| (StatusCode::INTERNAL_SERVER_ERROR, "cannot read the batch".to_owned()))?
    }
}
