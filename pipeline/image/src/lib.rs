//! From a sample's bytes to its views. Pure computing: no file, no network, no thread of its own, so that each part can
//! be tested and fuzzed alone.
//!
//! 1. [`decode`] makes an image of bytes, or says what [`damage`] they have. `simd` holds the vector kernels.
//! 2. [`augment`] turns the image into views, with parameters drawn from (seed, epoch, sample, view).
//! 3. [`views`] puts the two together for one sample.
//!
//! [`drawn`] makes images where there are none.
//!
//! A view depends on the bytes, the recipe and the key, and on nothing else:
//!
//! ```
//! use simclr_image::augment::{RecipeConfig, view_bytes};
//! use simclr_image::drawn;
//! use simclr_image::views::{DecodeLimits, Key, ViewMaker};
//!
//! // A drawn triangle as PNG; the bytes of any JPEG, PNG or WebP would do.
//! let png = drawn::png(&drawn::image(1, 3, 0, 64));
//!
//! // The paper's recipe: two views of 32 pixels.
//! let recipe = RecipeConfig::simclr(32);
//! recipe.check()?;
//! let mut maker = ViewMaker::new(&recipe, DecodeLimits { max_pixels: 1 << 20, exif_orientation: false });
//! let mut views = |epoch| {
//!     maker.decode(&png, None, Key { seed: 7, epoch, sample: 42 })?;
//!     let mut views = vec![vec![0; view_bytes(recipe.size)]; recipe.count()];
//!     views.iter_mut().enumerate().for_each(|(view, out)| maker.write(view, out));
//!     Ok::<_, simclr_image::damage::Damage>(views)
//! };
//!
//! let first = views(0)?;
//! assert_eq!(first[0].len(), 32 * 32 * 3);
//! assert_ne!(first[0], first[1], "each view has parameters of its own");
//! assert_ne!(first, views(1)?, "and so has each epoch");
//! assert_eq!(first, views(0)?, "the same key gives the same bytes again");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod damage;
mod simd;
pub use simd::vector_instructions;
pub mod decode;
pub mod augment;
pub mod views;
pub mod drawn;
