//! What went wrong with one attempt at a server, and whether another one may do better.

use std::time::Duration;

use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use simclr_ground::error::{Classify, ErrorClass};

use super::redirect::{Following, Refused};

/// Why bytes can't be had from a server.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// There is no such object.
    #[error("no such object: {0}")]
    NotFound(String),
    /// The server knows us not, or not any more.
    #[error("access denied: {0}; check credentials and permissions")]
    Denied(String),
    /// The server answers with whole objects only.
    #[error("server does not support HTTP range requests")]
    NoRanges,
    /// The object has another size than it should.
    #[error("{found} bytes, expected {expected}")]
    Size {
        /// Its size now.
        found: u64,
        /// Its size in the manifest.
        expected: u64,
    },
    /// The server sends more than can be meant or held.
    #[error("more than {most} bytes come from the server, which is too much for this file")]
    TooLarge {
        /// So many bytes are taken.
        most: u64,
    },
    /// Too many attempts failed.
    #[error("giving up after {attempts} attempts in {seconds:.0} s: {story}")]
    GaveUp {
        /// Time since the first attempt.
        seconds: f64,
        /// Requests sent.
        attempts: usize,
        /// What went wrong how often.
        story: String,
    },
    /// There is no server where one should be.
    #[error("{origin} can't be reached ({why}) and has not answered before: check the host, the port and the endpoint")]
    Unreachable {
        /// The server.
        origin: String,
        /// What the system says.
        why: String,
    },
    /// The server can't be spoken to at all.
    #[error("{0}")]
    Setup(String),
    /// A file on this machine can't be read.
    #[error("{why}")]
    Local {
        /// Why.
        why: String,
        /// Whose that is.
        class: ErrorClass,
    },
}

impl FetchError {
    /// What reading a file on this machine came to.
    pub(crate) fn local(error: &std::io::Error) -> Self {
        Self::Local { why: error.to_string(), class: error.class() }
    }
}

impl Classify for FetchError {
    /// What a server says of an object or of us is the user's to put right; that it says nothing is not.
    fn class(&self) -> ErrorClass {
        match self {
            Self::GaveUp { .. } => ErrorClass::Runtime,
            Self::Local { class, .. } => *class,
            Self::NotFound(_)
            | Self::Denied(_)
            | Self::NoRanges
            | Self::Size { .. }
            | Self::TooLarge { .. }
            | Self::Unreachable { .. }
            | Self::Setup(_) => ErrorClass::Input,
        }
    }
}

/// What a server's answer says beyond what `object_store` reports.
#[derive(Debug, thiserror::Error)]
enum Answer {
    #[error("{status}")]
    Busy { status: http::StatusCode, retry_after: Option<Duration> },
    #[error("whole object returned for a range request")]
    WholeOnly,
}

/// Why one attempt failed.
pub(super) enum Failure {
    Final(FetchError),
    Passing {
        reason: &'static str,
        detail: String,
        pause: Option<Duration>,
    },
    /// Nobody is there: the name is unknown, or the port is closed.
    Nobody {
        detail: String,
    },
}

/// What an error means for the next attempt.
pub(super) fn failure(error: &object_store::Error) -> Failure {
    use object_store::Error;
    let text = root(error);
    match error {
        Error::NotFound { path, .. } => return Failure::Final(FetchError::NotFound(path.clone())),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            return Failure::Final(FetchError::Denied(text));
        }
        Error::NotSupported { .. } | Error::NotImplemented { .. } | Error::InvalidPath { .. } => {
            return Failure::Final(FetchError::Setup(text));
        }
        _ => {}
    }
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            return Failure::Final(FetchError::Setup(refused.to_string()));
        }
        match cause.downcast_ref::<Answer>() {
            Some(Answer::Busy { retry_after, .. }) => {
                return Failure::Passing { reason: "busy", detail: text, pause: *retry_after };
            }
            Some(Answer::WholeOnly) => {
                return Failure::Final(FetchError::NoRanges);
            }
            None => source = cause.source(),
        }
    }
    // Refusals of an object have errors of their own; this is one of whoever should give us credentials, or of a signature.
    let refuses = |status: &&str| text.contains(&format!("status code: {status}"));
    if ["400", "401", "403"].iter().any(refuses) && !text.contains("RequestTimeout") {
        return Failure::Final(FetchError::Denied(text));
    }
    if ["405", "501"].iter().any(refuses) {
        return Failure::Final(FetchError::Setup(format!("the server cannot do this: {text}")));
    }
    match is_nobody(error, &text) {
        true => Failure::Nobody { detail: text },
        false => Failure::Passing { reason: "connection", detail: text, pause: None },
    }
}

/// Whether nobody is there to answer: no machine of this name, or no program at this port.
fn is_nobody(error: &object_store::Error, text: &str) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        let refused = cause.downcast_ref::<std::io::Error>();
        // Resolvers have no kind of their own for a name that they do not know.
        if refused.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
            || cause.to_string().starts_with("dns error")
        {
            return true;
        }
        source = cause.source();
    }
    text.contains("failed to lookup address")
}

/// The innermost message, where the fact is; what wraps it names URLs and ranges that differ with each request.
pub(super) fn root(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Connects as usual, and listens to what the answers say.
#[derive(Debug)]
pub(super) struct Listening;

impl HttpConnector for Listening {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Listener { inner: Following::connect(options)? }))
    }
}

#[derive(Debug)]
struct Listener {
    inner: Following,
}

#[async_trait::async_trait]
impl HttpService for Listener {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let ranged = request.headers().contains_key(http::header::RANGE);
        let response = self.inner.execute(request).await?;
        let status = response.status();
        let answer = match status.as_u16() {
            200 if ranged => Answer::WholeOnly,
            // What a server does not know how to do it will not know later.
            501 | 505 => return Ok(response),
            429 | 500..=599 => {
                let header = response.headers().get(http::header::RETRY_AFTER);
                let seconds = header.and_then(|value| value.to_str().ok()).and_then(|text| text.trim().parse().ok());
                Answer::Busy { status, retry_after: seconds.map(Duration::from_secs) }
            }
            _ => return Ok(response),
        };
        Err(HttpError::new(HttpErrorKind::Unknown, answer))
    }
}
