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
