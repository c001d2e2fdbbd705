//! From files and objects to batches.
//!
//! 1. [`objects`] reads bytes from disks and servers; [`compression`], [`frames`], [`tar_entries`] and [`shard`] know the layout
//!    of what is stored there, [`listing`] which images people's own folders, lists and tars hold.
//! 2. [`manifest`] lists every sample of a set and pins it by digest; [`dataset`] makes one of whatever people name as their
//!    data; [`pack`] writes images into shards.
//! 3. [`store`] reads samples and holds them against the manifest. What cannot be decoded goes to [`quarantine`] and is
//!    replaced by rule. A [`source`] is all of that for one plan.
//! 4. [`workers`] decode, within their [`decode_memory`], and augment straight into the places of a batch's slab; a [`promise`] is a batch that is being
//!    made, and the [`loader`] delivers batches in order, within a bound. [`inspect`] looks into one.
//!
//! [`metrics`] counts on the way. Nothing here knows a tensor, a command line, or who the batches are for.
//!
//! From a folder of images to batches of views:
//!
//! ```
//! use simclr_data::dataset::{self, OpenOptions};
//! use simclr_data::listing::Reading;
//! use simclr_data::loader::{Loader, LoaderOptions};
//! use simclr_data::metrics::PipelineMetrics;
//! use simclr_data::source::{DamagePolicy, Source};
//! use simclr_data::store::StoreOptions;
//! use simclr_ground::position::Share;
//! use simclr_image::augment::RecipeConfig;
//! use simclr_image::drawn;
//! use simclr_plan::StreamConfig;
//!
//! let photos = tempfile::tempdir()?;
//! for i in 0..32 {
//!     std::fs::write(photos.path().join(format!("{i}.png")), drawn::png(&drawn::image(1, 0, i, 40)))?;
//! }
//! let options = OpenOptions { reading: Reading::default(), exclude: Default::default(), threads: 1, memory: None, progress: &|_| {} };
//! let manifest = dataset::open(photos.path(), &options)?.manifest;
//! assert_eq!(manifest.samples, 32);
//!
//! let stream = StreamConfig::shuffled(1, 8, 4, RecipeConfig::simclr(16));
//! let storage = StoreOptions { memory_bytes: 1 << 30, ..StoreOptions::default() };
//! let source = Source::open(manifest, stream, &storage, DamagePolicy::Budget, PipelineMetrics::silent())?;
//!
//! // Two slabs: one is filled while the other is used.
//! let slabs = vec![vec![0; source.plan.slab_bytes(Share::ALL)]; 2];
//! let options = LoaderOptions { threads: 1, from_batch: 2, to_batch: Some(4), share: Share::ALL };
//! let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
//! let mut loader = Loader::start(source, slabs, options, runtime.handle())?;
//! while let Some(batch) = loader.next_batch()? {
//!     assert_eq!((batch.num_images, batch.pixels().len()), (8, 8 * 2 * 16 * 16 * 3));
//! }
//! # Ok::<(), simclr_ground::error::Error>(())
//! ```

pub mod metrics;
pub mod objects;
pub mod compression;
pub mod frames;
pub mod tar_entries;
pub mod shard;
pub mod listing;
pub mod manifest;
pub mod dataset;
pub mod pack;
pub mod store;
pub mod quarantine;
pub mod source;
pub mod promise;
pub mod decode_memory;
pub mod workers;
pub mod loader;
pub mod inspect;
#[cfg(test)]
mod testing;
