//! The step: a batch of views `x` → representation `h` → projection `z` → loss → new weights.
//!
//! 1. [`device`] finds the device, lends the loader its (pinned) slabs and lifts u8 pixels to floats there.
//! 2. [`resnet`] encodes views into representations `h`; [`projection_head`] projects them to `z`; together they are
//!    a [`simclr`] model, whose weights and names are [`parameters`].
//! 3. [`loss`] holds the two views of each image against all others; its [`gradients`], made through a
//!    [`gradient_cache`] if a batch does not fit, move the weights as [`optimizer`] and [`schedule`] say.
//! 4. [`train`] goes from batch to batch, knows where its time is spent ([`time_spent`]), and writes a [`checkpoint`]
//!    that a killed run goes on from exactly.
//! 5. Several processes, the [`ranks`], take each step together, as one would with the whole batch.
//! 6. [`interop`] gives weights the names that other libraries know.
//! 7. [`eval`] says what the representation is worth.
//!
//! What tch lacks of libtorch is C++ in the folder `shim/` beside this one, and Rust over it in `shim`.
//!
//! Nothing here knows a tar, a JPEG, tokio or a command line.

pub mod device;
pub mod parameters;
pub mod resnet;
pub mod probe;
pub mod projection_head;
pub mod simclr;
pub mod loss;
pub mod gradients;
pub mod gradient_cache;
pub mod optimizer;
pub mod schedule;
pub mod time_spent;
pub mod train;
pub mod checkpoint;
pub mod ranks;
mod shim;
pub mod interop;
pub mod eval;
pub mod metrics;
pub mod error;
