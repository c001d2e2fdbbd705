//! How nodes are reached: their addresses, the token that they want to see, and TLS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::ServiceError;
use crate::nodes::Node;

/// Which nodes feed a trainer, and how they are spoken to; none of it changes what comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeedConfig {
    /// Addresses of nodes, such as `grpc://host:8815`, or `grpcs://host:8815` with TLS; none: batches are made here.
    pub nodes: Vec<String>,
    /// A file that holds the bearer token that nodes want; empty: none is shown.
    pub token: PathBuf,
    /// Certificates as PEM of those who may vouch for nodes; empty: none that a `grpcs://` address could be held against.
    pub ca: PathBuf,
    /// Our own certificate chain as PEM, for nodes that want one; empty: none.
    pub certificate: PathBuf,
    /// The certificate's private key as PEM.
    pub key: PathBuf,
    /// A node that answers no ping for this long is left.
    pub timeout_seconds: u64,
    /// A node that answers, but from which nothing comes for this long, is left too.
    pub stall_seconds: u64,
    /// The run stops when no node has answered for this long.
    pub patience_seconds: u64,
}

/// Bytes that a node may send of a share before they are asked for.
const STREAM_WINDOW: u32 = 8 << 20;

/// Bytes of a frame that a node sends, at most: large ones cost fewer calls of the system.
const FRAME_BYTES: u32 = 256 << 10;

/// All that one node may send before it is asked for: streams are bounded each by their own window, and one that waits
/// must not keep another from being read.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

impl FeedConfig {
    /// The token that nodes want to see, as a header.
    pub(super) fn token(&self) -> Result<Option<MetadataValue<Ascii>>, ServiceError> {
        if self.token.as_os_str().is_empty() {
            return Ok(None);
        }
        let header = format!("Bearer {}", token("feed.token", &self.token)?).parse();
        let wrong = |_| ServiceError::Value {
            key: "feed.token",
            found: self.token.display().to_string(),
            wanted: "expected a token of visible ASCII characters".into(),
        };
        header.map(Some).map_err(wrong)
    }

    /// The nodes, none of them reached yet.
    pub(super) fn nodes(&self) -> Result<Vec<Node>, ServiceError> {
        for (key, found) in [
            ("feed.timeout_seconds", self.timeout_seconds),
            ("feed.stall_seconds", self.stall_seconds),
            ("feed.patience_seconds", self.patience_seconds),
        ] {
            if !(1..=86_400).contains(&found) {
                let wanted = "expected a number between 1 and 86400".into();
                return Err(ServiceError::Value { key, found: found.to_string(), wanted });
            }
        }
        if self.nodes.is_empty() {
            return Err(wrong_node("[]"));
        }
        let tls = self.tls()?;
        self.nodes.iter().map(|node| self.node(node, tls.as_ref())).collect()
    }

    /// What nodes with TLS are held against and shown; none without `ca`.
    fn tls(&self) -> Result<Option<ClientTlsConfig>, ServiceError> {
        if self.ca.as_os_str().is_empty() {
            return Ok(None);
        }
        let file = |key: &'static str, path: &Path| {
            simclr_ground::files::read_named(path).map_err(|source| ServiceError::File {
                key,
                path: path.to_owned(),
                source,
            })
        };
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(file("feed.ca", &self.ca)?));
        if self.certificate.as_os_str().is_empty() {
            return Ok(Some(tls));
        }
        let (certificate, key) = (file("feed.certificate", &self.certificate)?, file("feed.key", &self.key)?);
        Ok(Some(tls.identity(Identity::from_pem(certificate, key))))
    }

    fn node(&self, text: &str, tls: Option<&ClientTlsConfig>) -> Result<Node, ServiceError> {
        let wrong = || wrong_node(text);
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let rest = rest.trim_end_matches('/');
        let secure = match scheme {
            "grpc" | "grpc+tcp" => false,
            "grpcs" | "grpc+tls" => true,
            _ => return Err(wrong()),
        };
        let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
        if host.is_empty() || port.parse::<u16>().is_err() || rest.contains('/') {
            return Err(wrong());
        }
        let url = format!("{}://{rest}", if secure { "https" } else { "http" });
        let mut endpoint = Endpoint::from_shared(url).map_err(|_| wrong())?;
        if secure {
            let wanted = "expected a CA bundle to verify grpcs:// servers";
            let none = || ServiceError::Value { key: "feed.ca", found: "\"\"".into(), wanted: wanted.into() };
            let tls = endpoint.tls_config(tls.ok_or_else(none)?.clone());
            endpoint = tls.map_err(|error| ServiceError::Tls { key: "feed.ca", why: error.to_string() })?;
        }
        let timeout = Duration::from_secs(self.timeout_seconds);
        let endpoint = endpoint
            .connect_timeout(timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(timeout / 2)
            .keep_alive_timeout(timeout / 2)
            .keep_alive_while_idle(true)
            .max_frame_size(FRAME_BYTES)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        Ok(Node { url: text.to_owned(), endpoint })
    }
}

fn wrong_node(found: &str) -> ServiceError {
    let wanted = "expected addresses like grpc://HOST:8815, or grpcs://HOST:8815 for TLS".into();
    ServiceError::Value { key: "feed.nodes", found: found.to_owned(), wanted }
}

/// The token in a file: its first line.
pub(super) fn token(key: &'static str, path: &Path) -> Result<String, ServiceError> {
    let text = simclr_ground::files::read_named_text(path).map_err(|source| ServiceError::File {
        key,
        path: path.to_owned(),
        source,
    })?;
    let token = text.lines().next().unwrap_or_default().trim().to_owned();
    if token.is_empty() {
        let wanted = "the file is empty; expected a token".into();
        return Err(ServiceError::Value { key, found: path.display().to_string(), wanted });
    }
    Ok(token)
}
