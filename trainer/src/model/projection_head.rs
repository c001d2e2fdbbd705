//! The projection head: from representation `h` to `z`, where the contrastive loss is taken.

use serde::{Deserialize, Serialize};
use simclr_ground::error::InvalidValue;
use tch::{Kind, Tensor};

use crate::device::Precision;
use crate::error::TrainError;
use crate::model::parameters::Parameters;
use crate::model::resnet::{BatchNorm, BatchNormMode};

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
            let wanted = "expected 0 to 8 layers (the paper uses 2)";
            return Err(InvalidValue::new("model.head.layers", config.layers, wanted).into());
        }
        if !(1..=65_536).contains(&config.dim) {
            let wanted = "expected a number between 1 and 65536 (the paper uses 128)";
            return Err(InvalidValue::new("model.head.dim", config.dim, wanted).into());
        }
        if config.hidden > 65_536 {
            let wanted = "expected at most 65536 (0 = dimension of h)";
            return Err(InvalidValue::new("model.head.hidden", config.hidden, wanted).into());
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

    /// How many layers there are.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Projections `z`: `[N, dim]` f32, of representations `h`: `[N, inputs]` f32.
    pub fn forward(&self, h: &Tensor, statistics: BatchNormMode, precision: Precision) -> Tensor {
        self.layers_forward(h, self.layers.len(), statistics, precision, Kind::Float)
    }

    /// Length of what the first `layers` layers give.
    ///
    /// # Panics
    /// If there are not so many, or none are meant.
    pub fn length_after(&self, layers: usize) -> i64 {
        self.layers[layers - 1].0.size()[0]
    }

    /// What the first `layers` layers make of representations `h`, the ReLU in front of the next one included: the
    /// representation that SimCLR v2 fine-tunes from (its `ft_proj_selector`). None gives `h` itself.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn up_to(&self, h: &Tensor, layers: usize, statistics: BatchNormMode, precision: Precision) -> Tensor {
        assert!(layers <= self.layers.len(), "{layers} of {} layers", self.layers.len());
        let z = self.layers_forward(h, layers, statistics, precision, Kind::Float);
        if layers > 0 && layers < self.layers.len() { z.relu() } else { z }
    }

    /// As [`ProjectionHead::forward`], of some layers, with batch norm in arithmetic of this kind.
    fn layers_forward(
        &self,
        h: &Tensor,
        layers: usize,
        statistics: BatchNormMode,
        precision: Precision,
        kind: Kind,
    ) -> Tensor {
        let mut z = h.shallow_clone();
        for (i, (weight, norm)) in self.layers[..layers].iter().enumerate() {
            if i > 0 {
                z = z.relu();
            }
            z = match precision {
                Precision::Fp32 | Precision::Tf32 => z.linear(weight, None::<Tensor>),
                Precision::Bf16 => z.to_kind(Kind::BFloat16).linear(&weight.to_kind(Kind::BFloat16), None::<Tensor>),
            };
            z = norm.forward(&z.to_kind(kind), statistics);
        }
        z
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::parameters::Role;
    use crate::model::resnet::tests::wave;
    use tch::Device;

    /// Golden values: `golden/head.py` says how, and with which versions, they were made.
    #[test]
    fn heads_of_none_to_three_layers_are_pytorchs() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../golden/head.json")).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let layers = case["layers"].as_u64().unwrap() as u32;
            let mut parameters = Parameters::new(Device::Cpu, 1);
            let head = ProjectionHead::new(&mut parameters, 12, &HeadConfig { layers, hidden: 10, dim: 6 }).unwrap();
            for parameter in parameters.entries().iter().filter(|p| p.role != Role::Buffer) {
                let wave = wave(&parameter.name, &parameter.tensor.size());
                let value = match () {
                    () if parameter.name.ends_with("bn.weight") => 1.0 + 0.2 * wave,
                    () if parameter.name.ends_with("bias") => 0.1 * wave,
                    () => wave,
                };
                parameter.tensor.shallow_clone().set_data(&value);
            }
            for buffer in parameters.entries().iter().filter(|p| p.role == Role::Buffer) {
                buffer.tensor.shallow_clone().set_data(&buffer.tensor.to_kind(Kind::Double));
            }
            let h = wave("h", &[8, 12]).set_requires_grad(true);
            let z = head.layers_forward(&h, layers as usize, BatchNormMode::Update, Precision::Fp32, Kind::Double);
            (&z * wave("loss", &z.size())).sum(Kind::Double).backward();
            let wanted: Vec<f64> = serde_json::from_value(case["z"].clone()).unwrap();
            let far = f64::try_from((z.flatten(0, -1) - Tensor::from_slice(&wanted)).abs().max()).unwrap();
            assert!(far < 1e-9, "{layers} layers: off by {far}");
            let learning = parameters.entries().iter().filter(|p| p.role != Role::Buffer);
            let all = learning.map(|p| (p.name.as_str(), &p.tensor)).chain([("h", &h)]);
            for (name, tensor) in all {
                let (found, wanted) = (f64::try_from(tensor.grad().norm()).unwrap(), &case["gradients"][name]);
                assert!((found - wanted.as_f64().unwrap()).abs() < 1e-8, "{layers} layers, {name}: {found}, {wanted}");
            }
        }
    }
}
