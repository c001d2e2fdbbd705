//! The journey of a sample, from a shard on a disk to a place in a batch.
//!
//! 1. [`pack`] writes images into tar shards; [`manifest`] lists every sample in them and pins them by digest.
//! 2. [`plan`] and [`order`] say which samples global batch `g` holds: arithmetic, no state.
//! 3. [`store`] reads their bytes and holds them against the manifest ([`shard`] and [`sample`] know the layout).
//! 4. [`decode`] makes images of them; what cannot be decoded goes to [`quarantine`] and is replaced by rule.
//! 5. [`augment`] turns each image into views, with parameters drawn by [`rng`] from (seed, epoch, sample, view).
//!    [`views`] puts the two together for one sample.
//! 6. The views are written by worker threads straight into their places in a [`batch`]; [`loader`] delivers batches
//!    in order, and [`service`] does so over the network.
//!
//! Nothing here knows a tensor, a command line or a web page. [`metrics`] counts on the way; [`activity`] and [`stall`]
//! say why a consumer waited; [`drawn`] makes images where there are none; [`files`] writes files whole.

pub mod manifest;
pub mod pack;
pub mod plan;
pub mod order;
pub mod store;
pub mod shard;
pub mod sample;
pub mod decode;
mod simd;
pub use simd::vector_instructions;
pub mod quarantine;
pub mod rng;
pub mod augment;
pub mod views;
pub mod batch;
mod workers;
pub mod loader;
pub mod service;
pub mod activity;
pub mod stall;
pub mod metrics;
pub mod drawn;
pub mod files;
#[cfg(test)]
mod test_pictures;
