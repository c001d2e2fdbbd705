//! Why a service can't be started, or no batches come from one.

use std::path::PathBuf;

use simclr_data::store::StoreError;
use simclr_ground::error::{Classify, ErrorClass, InvalidValue};

/// Why a service can't be what the configuration asks for. All of it is wrong input.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A value that makes no sense.
    #[error("invalid value {found} for machine.{key}: {wanted}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value found.
        found: String,
        /// What would be right.
        wanted: String,
    },
    /// A file that can't be read.
    #[error("machine.{key}: cannot read {}: {source}", path.display())]
    File {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Certificates that TLS does not take.
    #[error("machine.{key}: {why}")]
    Tls {
        /// The key.
        key: &'static str,
        /// What is wrong with them.
        why: String,
    },
}

impl Classify for ServiceError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Input
    }
}

/// Why a service can't be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The shards in use at a time.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Classify for StartError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Service(error) => error.class(),
            Self::Store(error) => error.class(),
        }
    }
}

/// Why no batches come from nodes.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ServiceError),
    /// The lanes can't be shared so.
    #[error(transparent)]
    Share(#[from] InvalidValue),
    /// Every node answers, and none will serve us.
    #[error("all batch servers refused this stream: {0}")]
    Refused(String),
    /// No node answers.
    #[error("no batch server has responded for {seconds} s (machine.feed.patience_seconds): {nodes}")]
    NoNode {
        /// How long.
        seconds: u64,
        /// Every node and why.
        nodes: String,
    },
}

impl Classify for FeedError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Config(_) | Self::Share(_) | Self::Refused(_) => ErrorClass::Input,
            Self::NoNode { .. } => ErrorClass::Runtime,
        }
    }
}
