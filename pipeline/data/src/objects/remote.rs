//! Bytes of objects on storage servers: ranges, retried until they come or patience ends.
//!
//! `object_store` speaks the protocols and signs; everything about failing servers is here: retries with backoff and
//! jitter, `Retry-After`, fewer requests after a refusal ([`Pace`]), and a second request for one that is stuck.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::ClientOptions;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, RetryConfig};
use tokio::sync::mpsc;
use url::Url;

pub use super::failure::FetchError;

use super::credentials;
use super::failure::{Failure, Listening, failure, root};
use super::pace::Pace;
use crate::metrics::PipelineMetrics;

/// Whole objects are read in ranges of this many bytes.
const RANGE_BYTES: u64 = 4 << 20;

/// Ranges of one object that are under way at the same time.
const RANGES_AT_A_TIME: usize = 8;

/// A request may take [`RemoteOptions::attempt_timeout`] and the time its bytes need at this rate.
const SLOWEST_BYTES_PER_SECOND: u64 = 100_000;

/// How patient we are with storage servers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RemoteOptions {
    /// Requests to one server at a time, at most.
    pub requests: usize,
    /// When one read has failed for this long the run stops.
    pub give_up_after: Duration,
    /// A server that has never answered, and whose name is unknown or whose port is closed, is given up after this long:
    /// its address is wrong.
    pub wrong_address_after: Duration,
    /// Mean wait before the second attempt; it doubles with each further one.
    pub first_backoff: Duration,
    /// The longest wait between two attempts.
    pub longest_backoff: Duration,
    /// A request that takes longer than this, and than four times the usual, gets a second one beside it.
    pub hedge_after: Duration,
    /// A request that takes longer than this has failed.
    pub attempt_timeout: Duration,
    /// An object that is read whole, such as a manifest or a shard from a server without ranges, has no more bytes.
    pub whole_bytes: u64,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self {
            requests: 64,
            give_up_after: Duration::from_secs(120),
            wrong_address_after: Duration::from_secs(3),
            first_backoff: Duration::from_millis(100),
            longest_backoff: Duration::from_secs(10),
            hedge_after: Duration::from_secs(1),
            attempt_timeout: Duration::from_secs(20),
            whole_bytes: simclr_ground::memory::total().map_or(MAX_WHOLE_BYTES, |all| (all / 4).min(MAX_WHOLE_BYTES)),
        }
    }
}

/// Storage servers, each with its pace.
pub struct Remote {
    options: RemoteOptions,
    metrics: PipelineMetrics,
    servers: Mutex<HashMap<String, Arc<Server>>>,
}

struct Server {
    /// Its scheme and host, or bucket.
    origin: String,
    /// As [`RemoteOptions::whole_bytes`].
    whole_bytes: u64,
    store: Arc<dyn ObjectStore>,
    pace: Pace,
    no_ranges: AtomicBool,
    /// Whether it has ever answered, whatever that was.
    answered: AtomicBool,
    /// When it was last said that it fails.
    told: Mutex<Option<Instant>>,
    /// When it was last said that it takes long.
    told_slow: Mutex<Option<Instant>>,
}

/// A response that has not come after this long is told of, with the time added that its bytes usually take.
const SLOW_RESPONSE: Duration = Duration::from_secs(5);
const USUAL_BYTES_PER_SECOND: u64 = 10_000_000;

/// That a server fails is said at once, and then again each time that so much has passed.
const TELL_AGAIN: Duration = Duration::from_secs(30);

impl Server {
    fn new(origin: &str, store: Arc<dyn ObjectStore>, options: &RemoteOptions) -> Self {
        let (pace, origin) = (Pace::new(options.requests), origin.to_owned());
        Self {
            origin,
            whole_bytes: options.whole_bytes,
            store,
            pace,
            no_ranges: false.into(),
            answered: false.into(),
            told: Mutex::default(),
            told_slow: Mutex::default(),
        }
    }

    /// Says that a response takes long, unless that was said a moment ago.
    fn tell_slow(&self, slow: Duration, timeout: Duration) {
        if is_due(&self.told_slow) {
            let (origin, slow, timeout) = (&self.origin, slow.as_secs(), timeout.as_secs());
            tracing::warn!("{origin}: no complete response for {slow} s; waiting for it, {timeout} s at most");
        }
    }

    /// Says that a request has failed and is repeated, unless that was said a moment ago.
    fn tell(&self, why: &str, since: Duration, patience: Duration) {
        if is_due(&self.told) {
            let (origin, since, patience) = (&self.origin, since.as_secs_f64(), patience.as_secs());
            tracing::warn!("{origin} fails for {since:.1} s: {why}; tried again, for {patience} s at most");
        }
    }
}

/// Whether it is time to say something that was said last at this time; it is taken as said.
fn is_due(told: &Mutex<Option<Instant>>) -> bool {
    let mut told = told.lock().expect("no panic while held");
    let is_due = told.is_none_or(|at| at.elapsed() >= TELL_AGAIN);
    if is_due {
        *told = Some(Instant::now());
    }
    is_due
}

impl Remote {
    /// No server is contacted yet.
    pub fn new(options: RemoteOptions, metrics: PipelineMetrics) -> Self {
        Self { options, metrics, servers: Mutex::default() }
    }

    /// Reads objects below `origin` (`scheme://host`) from `store` from now on.
    pub fn register(&self, origin: &str, store: Arc<dyn ObjectStore>) {
        let server = Server::new(origin, store, &self.options);
        self.servers.lock().expect("no panic while held").insert(origin.to_owned(), Arc::new(server));
    }

    /// Whether the object's server is known to give whole objects only.
    pub fn has_no_ranges(&self, url: &Url) -> bool {
        self.server(url).is_ok_and(|(server, _)| server.no_ranges.load(Ordering::Relaxed))
    }

    /// A part of an object, which must have `size` bytes in all if that is known.
    ///
    /// # Errors
    /// If it is not there, is refused, has another size, or can't be had for too long.
    pub async fn range(&self, url: &Url, range: Range<u64>, size: Option<u64>) -> Result<Bytes, FetchError> {
        let (server, path) = self.server(url)?;
        if server.no_ranges.load(Ordering::Relaxed) {
            return Err(FetchError::NoRanges);
        }
        self.persist(&server, range.end - range.start, || get_range(&server, &path, range.clone(), size)).await
    }

    /// All bytes of an object that has `size` of them, in order and in pieces, into `pieces`. An error is the last
    /// piece.
    pub async fn pieces(&self, url: &Url, size: u64, pieces: mpsc::Sender<Result<Bytes, FetchError>>) {
        let starts = (0..size).step_by(RANGE_BYTES as usize);
        let ranges = starts.map(|start| start..(start + RANGE_BYTES).min(size));
        let mut parts =
            futures::stream::iter(ranges).map(|range| self.range(url, range, Some(size))).buffered(RANGES_AT_A_TIME);
        while let Some(part) = parts.next().await {
            let part = match part {
                Err(FetchError::NoRanges) => self.whole(url, size).await,
                part => part,
            };
            // Without ranges the first piece is all of it.
            let last = part.as_ref().map_or(true, |bytes| bytes.len() as u64 == size);
            if pieces.send(part).await.is_err() || last {
                return;
            }
        }
    }

    /// An object at once, from a server that gives no ranges.
    async fn whole(&self, url: &Url, size: u64) -> Result<Bytes, FetchError> {
        let (server, path) = self.server(url)?;
        self.persist(&server, size, || get_whole(&server, &path, Some(size))).await
    }

    /// A small object such as a manifest.
    ///
    /// # Errors
    /// As [`Remote::range`].
    pub async fn read(&self, url: &Url) -> Result<Bytes, FetchError> {
        let (server, path) = self.server(url)?;
        self.persist(&server, RANGE_BYTES, || get_whole(&server, &path, None)).await
    }

    /// An object's size in bytes.
    ///
    /// # Errors
    /// As [`Remote::range`].
    pub async fn size(&self, url: &Url) -> Result<u64, FetchError> {
        let (server, path) = self.server(url)?;
        let head = || async { Ok(server.store.head(&path).await.map_err(|error| failure(&error))?.size) };
        self.persist(&server, 0, head).await
    }

    /// The URLs of all objects below `url`.
    ///
    /// # Errors
    /// As [`Remote::range`]; a web server lists nothing unless it speaks WebDAV.
    pub async fn list(&self, url: &Url) -> Result<Vec<Url>, FetchError> {
        let (server, path) = self.server(url)?;
        let objects = || async {
            let list = server.store.list(Some(&path)).try_collect::<Vec<_>>().await;
            list.map_err(|error| failure(&error))
        };
        let objects = self.persist(&server, 0, objects).await?;
        let url_of = |path: &Path| {
            let mut found = url.clone();
            found.set_path(path.as_ref());
            found
        };
        Ok(objects.iter().map(|object| url_of(&object.location)).collect())
    }

    /// Repeats `attempt` until it succeeds, fails for good, or patience ends.
    async fn persist<T, F>(&self, server: &Server, bytes: u64, attempt: impl Fn() -> F) -> Result<T, FetchError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let options = &self.options;
        let timeout = options.attempt_timeout + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND);
        // A wait that is longer than what is asked for would take is worth a word.
        let slow = SLOW_RESPONSE + Duration::from_secs(bytes / USUAL_BYTES_PER_SECOND);
        let began = Instant::now();
        let (mut attempts, mut backoff) = (0, options.first_backoff);
        let mut failures: BTreeMap<String, usize> = BTreeMap::new();
        loop {
            let permit = server.pace.enter().await;
            attempts += 1;
            let mut response = std::pin::pin!(tokio::time::timeout(timeout, self.hedged(server, &attempt)));
            let result = tokio::select! {
                biased;
                result = &mut response => result,
                () = tokio::time::sleep(slow) => {
                    server.tell_slow(slow, timeout);
                    response.await
                }
            };
            let result = result.unwrap_or_else(|_| {
                let detail = format!("no response within {:.1} s", timeout.as_secs_f64());
                Err(Failure::Passing { reason: "timeout", detail, pause: None })
            });
            let (reason, detail, pause, nobody) = match result {
                Ok(value) => {
                    server.answered.store(true, Ordering::Relaxed);
                    permit.succeeded();
                    return Ok(value);
                }
                Err(Failure::Final(error)) => {
                    server.answered.store(true, Ordering::Relaxed);
                    if matches!(error, FetchError::NoRanges) {
                        server.no_ranges.store(true, Ordering::Relaxed);
                    }
                    return Err(error);
                }
                Err(Failure::Passing { reason, detail, pause }) => (reason, detail, pause, false),
                Err(Failure::Nobody { detail }) => ("connection", detail, None, true),
            };
            drop(permit);
            if reason == "busy" {
                server.answered.store(true, Ordering::Relaxed);
            }
            let wrong_address = nobody && !server.answered.load(Ordering::Relaxed);
            let patience = if wrong_address {
                options.wrong_address_after.min(options.give_up_after)
            } else {
                options.give_up_after
            };
            server.tell(&detail, began.elapsed(), patience);
            self.metrics.add_retry(reason);
            tracing::debug!(reason, detail, attempts, "storage request failed");
            if wrong_address && began.elapsed() + backoff > patience {
                return Err(FetchError::Unreachable { origin: server.origin.clone(), why: detail });
            }
            *failures.entry(detail).or_default() += 1;
            if matches!(reason, "busy" | "timeout") {
                server.pace.slow_down(pause);
            }
            if began.elapsed() + backoff > options.give_up_after {
                let story: Vec<String> = failures.iter().map(|(what, times)| format!("{times} × {what}")).collect();
                let seconds = began.elapsed().as_secs_f64();
                return Err(FetchError::GaveUp { seconds, attempts, story: story.join("; ") });
            }
            // Between half and one and a half times the backoff, so that many readers do not come back together.
            tokio::time::sleep(backoff.mul_f64(0.5 + jitter())).await;
            backoff = (backoff * 2).min(options.longest_backoff);
        }
    }

    /// One attempt, and a second one beside it if the first takes unusually long.
    async fn hedged<T, F>(&self, server: &Server, attempt: &impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let usual = server.pace.usual_time().unwrap_or_default();
        let mut first = std::pin::pin!(attempt());
        tokio::select! {
            result = &mut first => return result,
            () = tokio::time::sleep(self.options.hedge_after.max(usual * 4)) => {}
        }
        let Some(_permit) = server.pace.try_enter() else { return first.await };
        self.metrics.add_retry("hedge");
        let mut second = std::pin::pin!(attempt());
        let (result, other_is_first) = tokio::select! {
            result = &mut first => (result, false),
            result = &mut second => (result, true),
        };
        match result {
            Err(Failure::Passing { .. } | Failure::Nobody { .. }) if other_is_first => first.await,
            Err(Failure::Passing { .. } | Failure::Nobody { .. }) => second.await,
            result => result,
        }
    }

    fn server(&self, url: &Url) -> Result<(Arc<Server>, Path), FetchError> {
        let setup = |error: &dyn std::fmt::Display| FetchError::Setup(format!("{url}: {error}"));
        let path = Path::from_url_path(url.path()).map_err(|error| setup(&error))?;
        let origin = url[..url::Position::BeforePath].to_owned();
        if let Some(server) = self.servers.lock().expect("no panic while held").get(&origin) {
            return Ok((server.clone(), path));
        }
        let store = connect(url, &origin).map_err(|error| setup(&root(&error)))?;
        self.register(&origin, store);
        Ok((self.servers.lock().expect("no panic while held")[&origin].clone(), path))
    }
}

/// A bucket of a server on this machine.
#[cfg(test)]
pub(crate) fn test_bucket(endpoint: &str, bucket: &str, secret: &str) -> Arc<dyn ObjectStore> {
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let builder = AmazonS3Builder::new().with_bucket_name(bucket).with_endpoint(endpoint).with_allow_http(true);
    let builder = builder.with_region("us-east-1").with_access_key_id("key").with_secret_access_key(secret);
    Arc::new(builder.with_retry(retry).with_http_connector(Listening).build().unwrap())
}

/// Opens a connection pool to the server of `url`; credentials come from the environment.
fn connect(url: &Url, origin: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
    // Retrying is ours, so that every failure is counted and paced.
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let environment = |name: &str| std::env::var(name).ok();
    let none = |why: String| object_store::Error::Generic { store: "credentials", source: why.into() };
    Ok(match url.scheme() {
        "s3" => {
            let profile = credentials::aws(&environment).map_err(none)?;
            let mut builder =
                AmazonS3Builder::from_env().with_url(origin).with_retry(retry).with_http_connector(Listening);
            if let Some((id, secret, token)) = profile.keys {
                builder = builder.with_access_key_id(id).with_secret_access_key(secret);
                builder = token.map_or_else(|| builder.clone(), |token| builder.clone().with_token(token));
            }
            let is_set = |names: &[&str]| names.iter().find_map(|name| environment(name));
            if let Some(region) = profile.region.filter(|_| is_set(&["AWS_REGION", "AWS_DEFAULT_REGION"]).is_none()) {
                builder = builder.with_region(region);
            }
            let named = is_set(&["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"]);
            if let Some(endpoint) = profile.endpoint.clone().filter(|_| named.is_none()) {
                builder = builder.with_endpoint(endpoint);
            }
            let plain = named.or(profile.endpoint).is_some_and(|at| at.starts_with("http://"));
            Arc::new(if plain { builder.with_allow_http(true) } else { builder }.build()?)
        }
        "gs" => {
            credentials::google(&environment).map_err(none)?;
            let builder = GoogleCloudStorageBuilder::from_env().with_url(origin);
            Arc::new(builder.with_retry(retry).with_http_connector(Listening).build()?)
        }
        "az" => {
            credentials::azure(&environment).map_err(none)?;
            let builder = MicrosoftAzureBuilder::from_env().with_url(origin);
            Arc::new(builder.with_retry(retry).with_http_connector(Listening).build()?)
        }
        "http" | "https" => {
            let options = ClientOptions::new().with_allow_http(url.scheme() == "http");
            let builder = HttpBuilder::new().with_url(origin).with_client_options(options);
            Arc::new(builder.with_retry(retry).with_http_connector(Listening).build()?)
        }
        other => {
            let source = format!("no server is known for {other}://").into();
            return Err(object_store::Error::Generic { store: "memory", source });
        }
    })
}

async fn get_range(server: &Server, path: &Path, range: Range<u64>, size: Option<u64>) -> Result<Bytes, Failure> {
    let wanted = range.end - range.start;
    let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
    let bytes = get(server, path, options, size).await?;
    if bytes.len() as u64 == wanted {
        return Ok(bytes);
    }
    let detail = format!("{} bytes returned for a request for {wanted}", bytes.len());
    Err(Failure::Passing { reason: "truncated", detail, pause: None })
}

async fn get_whole(server: &Server, path: &Path, size: Option<u64>) -> Result<Bytes, Failure> {
    let bytes = get(server, path, GetOptions::default(), size).await?;
    match size {
        Some(wanted) if bytes.len() as u64 != wanted => {
            let detail = format!("{} of the object's {wanted} bytes", bytes.len());
            Err(Failure::Passing { reason: "truncated", detail, pause: None })
        }
        _ => Ok(bytes),
    }
}

async fn get(server: &Server, path: &Path, options: GetOptions, size: Option<u64>) -> Result<Bytes, Failure> {
    let is_whole = options.range.is_none();
    let answer = server.store.get_opts(path, options).await.map_err(|error| failure(&error))?;
    // A body of unknown length reports none; the bytes are counted when they are all there.
    let found = answer.meta.size;
    if let Some(expected) = size.filter(|&expected| expected != found && found > 0) {
        return Err(Failure::Final(FetchError::Size { found, expected }));
    }
    let most = size.map_or(server.whole_bytes, |size| size.min(server.whole_bytes));
    if is_whole && found > most {
        return Err(Failure::Final(FetchError::TooLarge { most }));
    }
    // What a server says of the size may be anything; memory follows what comes.
    let mut parts = answer.into_stream();
    let mut all = Vec::with_capacity(found.min(FIRST_BYTES) as usize);
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| failure(&error))?;
        let found = (all.len() + part.len()) as u64;
        if found > most {
            return Err(Failure::Final(match size {
                Some(expected) => FetchError::Size { found, expected },
                None => FetchError::TooLarge { most },
            }));
        }
        // Grown by hand, by a quarter: that there is no memory for it is no reason to end the process.
        if all.capacity() - all.len() < part.len() && all.try_reserve_exact(part.len().max(all.len() / 4)).is_err() {
            return Err(Failure::Final(FetchError::TooLarge { most: all.len() as u64 }));
        }
        all.extend_from_slice(&part);
    }
    Ok(all.into())
}

/// Nothing that is read whole into memory has more bytes, nor more than a quarter of the machine's.
const MAX_WHOLE_BYTES: u64 = 16 << 30;

/// So much room is made before anything has come.
const FIRST_BYTES: u64 = 16 << 20;

/// A number in [0, 1) for waiting times; nothing in the stream depends on it.
pub(super) fn jitter() -> f64 {
    (RandomState::new().hash_one(0) >> 11) as f64 / (1u64 << 53) as f64
}
