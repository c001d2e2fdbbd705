//! The projection head: from representation `h` to `z`, where the contrastive loss is taken.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::device::Precision;
use crate::error::TrainError;
use crate::parameters::Parameters;
use crate::resnet::{BatchNorm, Statistics};

/// The shape of a projection head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadConfig {
    /// Linear layers: 0 takes `h` itself, 1 is the paper's linear head, 2 its non-linear one; SimCLR v2 has 3.
    pub layers: u32,
    /// Width of the hidden layers; 0 takes that of `h`.
    pub hidden: u32,
    /// Length of `z`.
    pub dim: u32,
}

/// Linear layers, each without bias and followed by batch norm, ReLU between them, as in the official code; the last
/// batch norm has no shift.
pub struct ProjectionHead {
    layers: Vec<(Tensor, BatchNorm)>,
}

impl ProjectionHead {
    /// A head on representations of length `inputs`, its tensors added to `parameters` under `head.`.
    ///
    /// # Errors
    /// If the head has more layers than make sense, or none of a length.
    pub fn new(parameters: &mut Parameters, inputs: i64, config: &HeadConfig) -> Result<Self, TrainError> {
        if config.layers > 8 {
            let wanted = "between 0 and 8 layers are wanted; the paper has 2".into();
            return Err(TrainError::Value { key: "model.head.layers", found: config.layers.to_string(), wanted });
        }
        if !(1..=65_536).contains(&config.dim) {
            let wanted = "between 1 and 65536 is wanted; the paper has 128".into();
            return Err(TrainError::Value { key: "model.head.dim", found: config.dim.to_string(), wanted });
        }
        if config.hidden > 65_536 {
            let wanted = "at most 65536 is wanted; 0 takes the length of h".into();
            return Err(TrainError::Value { key: "model.head.hidden", found: config.hidden.to_string(), wanted });
        }
        let hidden = if config.hidden == 0 { inputs } else { config.hidden.into() };
        let mut from = inputs;
        let mut layers = Vec::new();
        for i in 0..config.layers {
            let last = i + 1 == config.layers;
            let to = if last { config.dim.into() } else { hidden };
            // The official code draws dense layers from N(0, 0.01²).
            let weight = parameters.normal(format!("head.{i}.weight"), &[to, from], 0.01);
            let name = format!("head.{i}.bn");
            let norm = if last {
                BatchNorm::without_shift(parameters, name, to, 1.0)
            } else {
                BatchNorm::new(parameters, name, to, 1.0)
            };
            layers.push((weight, norm));
            from = to;
        }
        Ok(Self { layers })
    }

    /// Projections `z`: `[N, dim]` f32, of representations `h`: `[N, inputs]` f32.
    pub fn forward(&self, h: &Tensor, statistics: Statistics, precision: Precision) -> Tensor {
        let mut z = h.shallow_clone();
        for (i, (weight, norm)) in self.layers.iter().enumerate() {
            if i > 0 {
                z = z.relu();
            }
            z = match precision {
                Precision::Fp32 => z.linear(weight, None::<Tensor>),
                Precision::Bf16 => z.to_kind(Kind::BFloat16).linear(&weight.to_kind(Kind::BFloat16), None::<Tensor>),
            };
            z = norm.forward(&z.to_kind(Kind::Float), statistics);
        }
        z
    }
}
