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
//!
//! A model and its loss, without anything around them:
//!
//! ```
//! use simclr_trainer::device::Precision;
//! use simclr_trainer::distributed::World;
//! use simclr_trainer::loss::{LossConfig, LossKind, LossShared, NtXent};
//! use simclr_trainer::model::projection_head::HeadConfig;
//! use simclr_trainer::model::resnet::{Encoder, Initialization, Shortcuts, BatchNormMode, Stem};
//! use simclr_trainer::model::{ModelConfig, SimClr};
//! use tch::{Device, Kind, Tensor};
//!
//! let config = ModelConfig {
//!     encoder: Encoder::Resnet18,
//!     width: 0.125,
//!     stem: Stem::Cifar,
//!     shortcuts: Shortcuts::ShapeChanges,
//!     initialization: Initialization::He,
//!     head: HeadConfig { layers: 2, hidden: 0, dim: 16 },
//! };
//! let model = SimClr::new(&config, 1, Device::Cpu, Precision::Fp32)?;
//!
//! // The first views of four images, then the second views of the same four.
//! let views = Tensor::rand([8, 3, 32, 32], (Kind::Float, Device::Cpu));
//! let z = model.project(&views, BatchNormMode::Update);
//! assert_eq!(z.size(), [8, 16]);
//! let loss = LossConfig { kind: LossKind::NtXent(NtXent { temperature: 0.5 }), shared: LossShared::default() };
//! let contrast = loss.contrast(&z, &World::alone())?;
//! assert!(contrast.loss.double_value(&[]).is_finite());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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
