//! Which samples global batch `g` holds, and what is done to them: arithmetic, no state.
//!
//! A [`Catalog`] is what a plan sees of a data set. A [`StreamConfig`] says which of its samples are taken, in which
//! order ([`EpochOrder`]) and how many at a time; a [`Plan`] is that, checked, with a digest as its name. [`Batches`] lists
//! the samples of any batch; [`ShuffleQuality`] measures how well an order mixes.
//!
//! ```
//! use simclr_ground::position::Share;
//! use simclr_image::augment::RecipeConfig;
//! use simclr_plan::{Batches, Plan, SampleCounts, StreamConfig};
//!
//! // 20 shards of 100 samples, in batches of 64 that are dealt into 8 lanes.
//! let config = StreamConfig::shuffled(1, 64, 8, RecipeConfig::simclr(32));
//! let plan = Plan::new(&SampleCounts(vec![100; 20]), config)?;
//! assert_eq!((plan.batches_per_epoch(), plan.dropped_per_epoch()), (31, 16));
//!
//! // Any batch can be asked for, without those before it. Two ranks hold halves of what one would.
//! let all = Batches::new(&plan, Share::ALL).samples(1_000_000);
//! let halves: Vec<_> = (0..2).flat_map(|rank| Batches::new(&plan, Share { rank, world: 2 }).samples(1_000_000)).collect();
//! assert_eq!(all, halves);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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
