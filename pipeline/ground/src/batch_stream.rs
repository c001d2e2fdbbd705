//! A stream of batches as whoever trains on it sees it: where it is, what it is made of, and how the next batch is had.

use std::fmt;
use std::time::Duration;

use crate::batch::{Batch, Slab};
use crate::error::{Classify, ErrorClass};
use crate::stall::Waited;

/// What a consumer needs to know of a stream, apart from its batches.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamSummary {
    /// The stream's name: equal streams, and only those, have equal digests.
    pub plan_digest: String,
    /// The digest of the data set.
    pub manifest_digest: String,
    /// The digest of how the data set is stored, which changes no batch; `None` where that is not known.
    pub derived_digest: Option<String>,
    /// The run's seed.
    pub seed: u64,
    /// Images per global batch, `B`.
    pub batch_size: u32,
    /// Samples in an epoch, those included that fill no batch.
    pub num_samples: u64,
    /// Batches in an epoch.
    pub batches_per_epoch: u64,
    /// Side in pixels of each view of an image.
    pub view_sizes: Vec<u32>,
    /// One more than the largest label, if the samples are labeled.
    pub num_classes: Option<usize>,
}

/// What comes next of a stream.
// It is taken apart where it is given; a box would be an allocation for each batch.
#[allow(clippy::large_enum_variant)]
pub enum Next<S: Slab> {
    /// A batch.
    Batch(Batch<S>),
    /// Nothing: it was said that the stream ends here.
    End,
    /// A batch, but it is not there yet.
    NotYet,
}

/// How long is waited at a time by those who wait as long as it takes.
pub const LONG: Duration = Duration::from_secs(3600);

/// Batches one after the other, wherever they are made.
pub trait BatchStream<S: Slab> {
    /// What comes next, in order; blocks until it is there, but for so long at most.
    ///
    /// # Errors
    /// Whatever stopped the stream; after an error it is at its end.
    fn next_within(&mut self, patience: Duration) -> Result<Next<S>, StreamError>;

    /// The next batch, in order; `None` at the end of the stream. Blocks until it is there.
    ///
    /// # Errors
    /// Whatever stopped the stream; after an error it is at its end.
    fn next_batch(&mut self) -> Result<Option<Batch<S>>, StreamError> {
        loop {
            match self.next_within(LONG)? {
                Next::Batch(batch) => return Ok(Some(batch)),
                Next::End => return Ok(None),
                Next::NotYet => {}
            }
        }
    }

    /// What the stream itself waits for at this moment, in words for people.
    fn waits_for(&self) -> String;

    /// How long was waited for batches so far, and for what.
    fn waited(&self) -> Waited;
}

/// What stopped a stream. Who made it knows more; here only whose the error is.
#[derive(Debug)]
pub struct StreamError(Box<dyn Classify>);

impl StreamError {
    /// The stream stopped for this reason.
    pub fn new(reason: impl Classify) -> Self {
        Self(Box::new(reason))
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for StreamError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl Classify for StreamError {
    fn class(&self) -> ErrorClass {
        self.0.class()
    }
}
