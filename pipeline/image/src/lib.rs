//! From a sample's bytes to its views. Pure computing: no file, no network, no thread of its own, so that each part can
//! be tested and fuzzed alone.
//!
//! 1. [`decode`] makes an image of bytes, or says what [`damage`] they have. `simd` holds the vector kernels.
//! 2. [`augment`] turns the image into views, with parameters drawn from (seed, epoch, sample, view).
//! 3. [`views`] puts the two together for one sample.
//!
//! [`drawn`] makes images where there are none.

pub mod damage;
mod simd;
pub use simd::vector_instructions;
pub mod decode;
pub mod augment;
pub mod views;
pub mod drawn;
