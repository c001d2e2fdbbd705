//! What every part stands on: values and small rules that know no file format, no network and no tensor.
//!
//! - [`rng`] draws random numbers by hashing what they are for; nothing draws from anywhere else.
//! - [`sample`] names samples, [`location`] the places that their bytes lie in.
//! - [`batch`] is what a stream delivers, [`batch_stream`] how it is asked for.
//! - [`stall`] says what somebody waited for, from what [`activity`] saw threads do.
//! - [`patience`] says when a wait is worth a word.
//! - [`error`] says whose an error is; [`files`] writes files whole or not at all; [`mod@kinds`] reads tables whose `kind`
//!   decides which keys they have.

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
pub mod kinds;
