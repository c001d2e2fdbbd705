//! The model that is trained: an encoder and a projection head.

pub mod interop;
pub mod parameters;
pub mod probe;
pub mod projection_head;
pub mod resnet;

use std::rc::Rc;

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::device::{self, Precision};
use crate::distributed::World;
use crate::error::TrainError;
use crate::model::parameters::Parameters;
use crate::model::projection_head::{HeadConfig, ProjectionHead};
use crate::model::resnet::{BatchNormMode, Encoder, Initialization, ResNet, ResNetShape, Shortcuts, Stem};

/// The shape of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Depth of the encoder.
    pub encoder: Encoder,
    /// Multiplies the encoder's channels: 1, 2 and 4 in the paper, less than 1 for small machines.
    pub width: f64,
    /// How the encoder begins.
    pub stem: Stem,
    /// Which blocks of the encoder have a convolution in their shortcut.
    #[serde(default, skip_serializing_if = "Shortcuts::is_default")]
    pub shortcuts: Shortcuts,
    /// How the encoder's weights begin.
    pub initialization: Initialization,
    /// The projection head.
    pub head: HeadConfig,
}

impl ModelConfig {
    /// The shape of the encoder.
    pub fn shape(&self) -> ResNetShape {
        ResNetShape { encoder: self.encoder, width: self.width, stem: self.stem, shortcuts: self.shortcuts }
    }
}

/// An encoder with its projection head.
pub struct SimClr {
    /// From views to representations `h`.
    pub encoder: ResNet,
    /// From `h` to projections `z`.
    pub head: ProjectionHead,
    /// All tensors of both.
    pub parameters: Parameters,
    precision: Precision,
}

impl SimClr {
    /// A model with initial weights drawn from `seed`.
    ///
    /// # Errors
    /// If the configuration makes no sense.
    pub fn new(config: &ModelConfig, seed: u64, device: Device, precision: Precision) -> Result<Self, TrainError> {
        Self::of_ranks(config, seed, device, precision, World::alone())
    }

    /// As [`SimClr::new`]; batch norm's statistics are those of all images of `world`.
    ///
    /// # Errors
    /// If the configuration makes no sense.
    pub fn of_ranks(
        config: &ModelConfig,
        seed: u64,
        device: Device,
        precision: Precision,
        world: Rc<World>,
    ) -> Result<Self, TrainError> {
        device::set_precision(precision)?;
        let mut parameters = Parameters::of_ranks(device, seed, world);
        let encoder = ResNet::new(&mut parameters, config.shape(), config.initialization)?;
        let head = ProjectionHead::new(&mut parameters, encoder.dim(), &config.head)?;
        Ok(Self { encoder, head, parameters, precision })
    }

    /// Projections `z`: `[N, dim]` f32, of views `x`: `[N, 3, H, W]` in [0, 1].
    pub fn project(&self, x: &Tensor, statistics: BatchNormMode) -> Tensor {
        self.forward(x, statistics).1
    }

    /// Representations `h` and projections `z` of views, as [`SimClr::project`].
    pub fn forward(&self, x: &Tensor, statistics: BatchNormMode) -> (Tensor, Tensor) {
        let h = self.encoder.forward(x, statistics, self.precision);
        let z = self.head.forward(&h, statistics, self.precision);
        (h, z)
    }

    /// Representations `h`: `[N, dim]` f32, of views `x`, or what the first `layers` layers of the head make of them,
    /// with running statistics and without gradients.
    ///
    /// # Panics
    /// If the head has not so many layers.
    pub fn represent(&self, x: &Tensor, layers: usize) -> Tensor {
        tch::no_grad(|| self.hidden(x, layers, BatchNormMode::Running))
    }

    /// As [`SimClr::represent`], with gradients and these statistics.
    ///
    /// # Panics
    /// If the head has not so many layers.
    pub fn hidden(&self, x: &Tensor, layers: usize, statistics: BatchNormMode) -> Tensor {
        let h = self.encoder.forward(x, statistics, self.precision);
        self.head.up_to(&h, layers, statistics, self.precision)
    }
}
