//! Which samples global batch `g` holds, and what is done to them: arithmetic, no state.
//!
//! A [`Catalog`] is what a plan sees of a data set. A [`StreamConfig`] says which of its samples are taken, in which
//! order ([`EpochOrder`]) and how many at a time; a [`Plan`] is that, checked, with a digest as its name. [`Batches`] lists
//! the samples of any batch; [`ShuffleQuality`] measures how well an order mixes.

mod catalog;
mod config;
mod order;
mod selection;
mod plan;
mod batches;
mod shuffle;

pub use batches::Batches;
pub use catalog::{Catalog, SampleCounts};
pub use config::{BatchConfig, DataConfig, StreamConfig, Traversal};
pub use order::{EpochOrder, OrderConfig};
pub use plan::{Plan, STREAM_VERSION};
pub use shuffle::ShuffleQuality;
