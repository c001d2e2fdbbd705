//! Where in a stream a batch is, and which part of it a rank has.

use serde::{Deserialize, Serialize};

/// Where in the stream a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The global batch, counted from 0 over all epochs.
    pub batch: u64,
    /// The epoch it belongs to, counted from 0.
    pub epoch: u64,
    /// Its place in that epoch, counted from 0.
    pub batch_in_epoch: u64,
}

/// Which lanes are meant: those of one rank out of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Which one, from 0.
    pub rank: u32,
    /// Of how many; it divides the lanes.
    pub world: u32,
}

impl Share {
    /// All lanes.
    pub const ALL: Share = Share { rank: 0, world: 1 };
}
