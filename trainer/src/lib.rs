//! The step: a batch of views `x` → representation `h` → projection `z` → loss → new weights.
//!
//! 1. [`device`] finds the device, lends the loader its (pinned) slabs and lifts u8 pixels to floats there.
//! 2. [`model`] encodes views into representations `h` and projects them to `z`; its weights have other libraries' names
//!    too.
//! 3. [`loss`] holds the two views of each image against all others; its gradients move the weights as [`optimizer`] says.
//! 4. [`step`] goes from batch to batch, alone or with the other ranks of a [`distributed`] training.
//! 5. [`run`] keeps what came of it: a folder with configuration, metrics and checkpoints.
//! 6. [`eval`] says what the representation is worth.
//!
//! What tch lacks of libtorch is in `simclr-torch`. Nothing here knows a tar, a JPEG, tokio or a command line: batches come
//! from whatever implements [`simclr_ground::batch_stream::BatchStream`].

pub mod device;
mod memory;
pub mod model;
pub mod loss;
pub mod gradients;
pub mod optimizer;
pub mod checkpoint;
pub mod time_spent;
pub mod step_metrics;
pub mod distributed;
pub mod step;
pub mod run;
pub mod eval;
pub mod metrics;
pub mod error;
