//! Why bytes can't be had.

use std::path::PathBuf;

use simclr_ground::error::{Classify, ErrorClass};
use simclr_ground::location::Location;

use crate::objects::remote::FetchError;

/// Why bytes can't be had. The message names the shard, and the entry where there is one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The shard can't be opened or read.
    #[error("cannot read shard {place}: {why}")]
    Io {
        /// The shard.
        place: String,
        /// Why.
        why: String,
        /// Whether other input would help: a file that is not there is the user's, a disk or a server that fails is not.
        class: ErrorClass,
    },
    /// An image file is not the one that was scanned.
    #[error(
        "{path} is not what was scanned ({what}); put the file back, or start anew with the data set as it is now (after \
         `touch`, if its time did not change)"
    )]
    ChangedFile {
        /// The file.
        path: String,
        /// What was found and what was expected.
        what: String,
    },
    /// The shard is not the one that the manifest describes.
    #[error("shard {place} does not match the manifest ({what}); run `manifest verify`")]
    Changed {
        /// The shard.
        place: String,
        /// What was found and what was expected.
        what: String,
    },
    /// The shards that must be held at the same time do not fit.
    #[error(
        "shards in use at the same time need {needed} bytes, but machine.{key} is {allowed}; increase it, decrease order.lanes or order.shuffle_block_shards, or store the shards uncompressed, on a server that knows HTTP range requests (others are held whole)"
    )]
    Memory {
        /// Bytes that the shards in use need.
        needed: u64,
        /// The key that bounds them.
        key: &'static str,
        /// Bytes allowed.
        allowed: u64,
    },
    /// The system gives no memory for a shard that is to be held.
    #[error(
        "no memory for shard {place}, whose tar stream has {needed} bytes; decrease machine.memory_bytes, set machine.cache_dir, or store the shard uncompressed"
    )]
    NoMemory {
        /// The shard.
        place: String,
        /// Bytes that it needs.
        needed: u64,
    },
    /// The cache folder can't be used.
    #[error("invalid value {} for machine.cache_dir: {why}", folder.display())]
    Cache {
        /// The folder.
        folder: PathBuf,
        /// Why.
        why: String,
    },
}

impl Classify for StoreError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Io { class, .. } => *class,
            Self::Changed { .. }
            | Self::ChangedFile { .. }
            | Self::Memory { .. }
            | Self::NoMemory { .. }
            | Self::Cache { .. } => ErrorClass::Input,
        }
    }
}

impl StoreError {
    /// A shard on this machine that can't be opened or read.
    pub(super) fn io(place: impl ToString, error: &std::io::Error) -> Self {
        Self::Io { place: place.to_string(), why: error.to_string(), class: error.class() }
    }
}

/// A fetch's failure with the shard's name.
pub(super) fn fetch_error(place: &Location, error: FetchError) -> StoreError {
    let place = place.to_string();
    match error {
        FetchError::Size { .. } => StoreError::Changed { place, what: error.to_string() },
        error => StoreError::Io { place, why: error.to_string(), class: error.class() },
    }
}
