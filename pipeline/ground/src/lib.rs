//! What every part stands on: values and small rules that know no file format, no network and no tensor.
//!
//! - [`rng`] draws random numbers by hashing what they are for; nothing draws from anywhere else.
//! - [`sample`] names samples, [`location`] the places that their bytes lie in.
//! - [`batch`] is what a stream delivers, [`batch_stream`] how it is asked for.
//! - [`stall`] says what somebody waited for, from what [`activity`] saw threads do.
//! - [`patience`] says when a wait is worth a word.
//! - [`error`] says whose an error is; [`files`] reads and writes files whole; [`memory`] says how much there is;
//!   [`mod@kinds`] reads tables whose `kind` decides which keys they have.
//!
//! Randomness has no state: whoever knows what a number is for can have it, in any order.
//!
//! ```
//! use simclr_ground::rng::{Draws, Permutation, Purpose};
//!
//! // The order of shards in epoch 3 of a run with seed 7, and the same once more.
//! let mut order = Draws::new(7, Purpose::ShardOrder, &[3]);
//! let permutation = Permutation::new(&mut order, 1000);
//! let again = Permutation::new(&mut Draws::new(7, Purpose::ShardOrder, &[3]), 1000);
//! assert_eq!(permutation.apply(41), again.apply(41));
//!
//! // Each place is taken once.
//! let mut all: Vec<u64> = (0..1000).map(|i| permutation.apply(i)).collect();
//! all.sort();
//! assert_eq!(all, (0..1000).collect::<Vec<_>>());
//! ```

pub mod rng;
pub mod sample;
pub mod digest;
pub mod location;
pub mod position;
pub mod batch;
pub mod batch_stream;
pub mod activity;
pub mod stall;
pub mod patience;
pub mod error;
pub mod files;
pub mod memory;
pub mod kinds;
