//! ResNets with torchvision's layout and names: the stride in the 3×3 convolution, batch norm after each one.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::device::Precision;
use crate::error::TrainError;
use crate::parameters::{Parameters, Role};

/// Batch norm's ε and momentum (torch's sense), as in the paper's code (decay 0.9) and torchvision.
const EPSILON: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// The depth of a ResNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoder {
    /// 18 layers, basic blocks.
    Resnet18,
    /// 34 layers, basic blocks.
    Resnet34,
    /// 50 layers, bottleneck blocks.
    Resnet50,
}

/// How a ResNet begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stem {
    /// 7×7 convolution with stride 2, then max-pooling: for pictures of about 224 pixels.
    Imagenet,
    /// 3×3 convolution with stride 1, no pooling: for pictures of about 32 pixels (SimCLR, appendix B.9).
    Cifar,
}

/// A ResNet without its classifier.
pub struct ResNet {
    stem: Stem,
    conv1: Conv,
    bn1: BatchNorm,
    blocks: Vec<Block>,
    dim: i64,
}

impl ResNet {
    /// An encoder whose channels are `width` times the usual ones, its tensors added to `parameters`.
    ///
    /// Convolutions begin He-normal (fan out), batch norm's scales at one, but the last one of each block at zero,
    /// so that a block begins as the identity.
    ///
    /// # Errors
    /// If `width` is not positive.
    pub fn new(parameters: &mut Parameters, encoder: Encoder, width: f64, stem: Stem) -> Result<Self, TrainError> {
        if !(width > 0.0 && width <= 16.0) {
            let wanted = "above 0 and at most 16 is wanted; 1 is the usual one".into();
            return Err(TrainError::Value { key: "model.width", found: width.to_string(), wanted });
        }
        let (counts, bottleneck) = match encoder {
            Encoder::Resnet18 => ([2, 2, 2, 2], false),
            Encoder::Resnet34 => ([3, 4, 6, 3], false),
            Encoder::Resnet50 => ([3, 4, 6, 3], true),
        };
        let channels = |base: i64| ((base as f64 * width).round() as i64).max(1);
        let (kernel, stride) = match stem {
            Stem::Imagenet => (7, 2),
            Stem::Cifar => (3, 1),
        };
        let mut inputs = channels(64);
        let conv1 = Conv::new(parameters, "conv1".into(), 3, inputs, kernel, stride);
        let bn1 = BatchNorm::new(parameters, "bn1".into(), inputs, 1.0);
        let mut blocks = Vec::new();
        for (stage, count) in counts.into_iter().enumerate() {
            for index in 0..count {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let name = format!("layer{}.{index}", stage + 1);
                let planes = channels(64 << stage);
                let block = Block::new(parameters, &name, inputs, planes, stride, bottleneck);
                inputs = block.outputs;
                blocks.push(block);
            }
        }
        Ok(Self { stem, conv1, bn1, blocks, dim: inputs })
    }

    /// Length of a representation.
    pub fn dim(&self) -> i64 {
        self.dim
    }

    /// Representations `h`: `[N, dim]` f32, of views `x`: `[N, 3, H, W]` in [0, 1].
    pub fn forward(&self, x: &Tensor, train: bool, precision: Precision) -> Tensor {
        let x = self.bn1.forward(&self.conv1.forward(x, precision), train).relu();
        let mut x = match self.stem {
            Stem::Imagenet => x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false),
            Stem::Cifar => x,
        };
        for block in &self.blocks {
            x = block.forward(&x, train, precision);
        }
        x.to_kind(Kind::Float).mean_dim([2i64, 3].as_slice(), false, Kind::Float)
    }
}

/// A residual block: two 3×3 convolutions, or 1×1, 3×3, 1×1 with four times the channels at the end.
struct Block {
    layers: Vec<(Conv, BatchNorm)>,
    downsample: Option<(Conv, BatchNorm)>,
    outputs: i64,
}

impl Block {
    fn new(p: &mut Parameters, name: &str, inputs: i64, planes: i64, stride: i64, bottleneck: bool) -> Self {
        let outputs = if bottleneck { 4 * planes } else { planes };
        // Kernel, stride and output channels of each convolution.
        let shapes = if bottleneck {
            vec![(1, 1, planes), (3, stride, planes), (1, 1, outputs)]
        } else {
            vec![(3, stride, planes), (3, 1, outputs)]
        };
        let last = shapes.len();
        let mut from = inputs;
        let mut layers = Vec::new();
        for (i, (kernel, stride, to)) in shapes.into_iter().enumerate() {
            let conv = Conv::new(p, format!("{name}.conv{}", i + 1), from, to, kernel, stride);
            let gamma = if i + 1 == last { 0.0 } else { 1.0 };
            layers.push((conv, BatchNorm::new(p, format!("{name}.bn{}", i + 1), to, gamma)));
            from = to;
        }
        let downsample = (stride != 1 || inputs != outputs).then(|| {
            let conv = Conv::new(p, format!("{name}.downsample.0"), inputs, outputs, 1, stride);
            (conv, BatchNorm::new(p, format!("{name}.downsample.1"), outputs, 1.0))
        });
        Self { layers, downsample, outputs }
    }

    fn forward(&self, x: &Tensor, train: bool, precision: Precision) -> Tensor {
        let shortcut = match &self.downsample {
            Some((conv, bn)) => bn.forward(&conv.forward(x, precision), train),
            None => x.shallow_clone(),
        };
        let mut y = x.shallow_clone();
        for (i, (conv, bn)) in self.layers.iter().enumerate() {
            y = bn.forward(&conv.forward(&y, precision), train);
            if i + 1 < self.layers.len() {
                y = y.relu();
            }
        }
        (y + shortcut).relu()
    }
}

/// A convolution without bias, padded so that stride 1 keeps the size.
struct Conv {
    weight: Tensor,
    stride: i64,
    padding: i64,
}

impl Conv {
    fn new(p: &mut Parameters, name: String, inputs: i64, outputs: i64, kernel: i64, stride: i64) -> Self {
        let deviation = (2.0 / (outputs * kernel * kernel) as f64).sqrt();
        let weight = p.normal(format!("{name}.weight"), &[outputs, inputs, kernel, kernel], deviation);
        Self { weight, stride, padding: kernel / 2 }
    }

    fn forward(&self, x: &Tensor, precision: Precision) -> Tensor {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        match precision {
            Precision::Fp32 => x.conv2d(&self.weight, None::<Tensor>, stride, padding, [1, 1], 1),
            Precision::Bf16 => {
                let (x, weight) = (x.to_kind(Kind::BFloat16), self.weight.to_kind(Kind::BFloat16));
                x.conv2d(&weight, None::<Tensor>, stride, padding, [1, 1], 1)
            }
        }
    }
}

/// Batch norm over all but the channel dimension.
pub(crate) struct BatchNorm {
    gamma: Tensor,
    beta: Option<Tensor>,
    running_mean: Tensor,
    running_var: Tensor,
}

impl BatchNorm {
    pub(crate) fn new(p: &mut Parameters, name: String, channels: i64, gamma: f64) -> Self {
        let mut norm = Self::without_shift(p, name.clone(), channels, gamma);
        norm.beta = Some(p.constant(format!("{name}.bias"), channels, 0.0, Role::Excluded));
        norm
    }

    /// Batch norm with a scale but no shift, as the last one of the official projection head.
    pub(crate) fn without_shift(p: &mut Parameters, name: String, channels: i64, gamma: f64) -> Self {
        Self {
            gamma: p.constant(format!("{name}.weight"), channels, gamma, Role::Excluded),
            beta: None,
            running_mean: p.constant(format!("{name}.running_mean"), channels, 0.0, Role::Buffer),
            running_var: p.constant(format!("{name}.running_var"), channels, 1.0, Role::Buffer),
        }
    }

    pub(crate) fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let (mean, var) = (Some(&self.running_mean), Some(&self.running_var));
        x.batch_norm(Some(&self.gamma), self.beta.as_ref(), mean, var, train, MOMENTUM, EPSILON, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn build(encoder: Encoder, width: f64, stem: Stem) -> (ResNet, Parameters) {
        let mut parameters = Parameters::new(Device::Cpu, 1);
        let resnet = ResNet::new(&mut parameters, encoder, width, stem).unwrap();
        (resnet, parameters)
    }

    /// Counts of torchvision 0.26's models without `fc`:
    /// `sum(p.numel() for n, p in resnet18().named_parameters() if not n.startswith("fc"))`
    #[test]
    fn parameter_counts_are_torchvisions() {
        for (encoder, dim, count) in [
            (Encoder::Resnet18, 512, 11_176_512),
            (Encoder::Resnet34, 512, 21_284_672),
            (Encoder::Resnet50, 2048, 23_508_032),
        ] {
            let (resnet, parameters) = build(encoder, 1.0, Stem::Imagenet);
            assert_eq!((resnet.dim(), parameters.num_trainable()), (dim, count), "{encoder:?}");
        }
    }

    #[test]
    fn names_are_torchvisions() {
        let (_, parameters) = build(Encoder::Resnet50, 0.25, Stem::Imagenet);
        let names: Vec<&str> = parameters.entries().iter().map(|p| p.name.as_str()).collect();
        for name in [
            "conv1.weight",
            "bn1.running_var",
            "layer1.0.conv3.weight",
            "layer4.2.bn3.bias",
            "layer2.0.downsample.1.running_mean",
        ] {
            assert!(names.contains(&name), "{name}");
        }
    }

    #[test]
    fn shapes_and_precisions() {
        let (resnet, _) = build(Encoder::Resnet18, 0.25, Stem::Cifar);
        let x = Tensor::rand([4, 3, 32, 32], (Kind::Float, Device::Cpu));
        let exact = resnet.forward(&x, true, Precision::Fp32);
        assert_eq!((exact.size(), exact.kind()), (vec![4, 128], Kind::Float));
        let coarse = resnet.forward(&x, true, Precision::Bf16);
        let off = f64::try_from((&exact - &coarse).abs().max() / exact.abs().max()).unwrap();
        assert!(off < 0.05, "bf16 is off by {off} of the largest value");
        let (resnet, _) = build(Encoder::Resnet50, 0.25, Stem::Imagenet);
        let x = Tensor::rand([2, 3, 64, 64], (Kind::Float, Device::Cpu));
        assert_eq!(resnet.forward(&x, false, Precision::Fp32).size(), [2, 512]);
    }

    #[test]
    fn the_seed_decides_the_weights() {
        let weights = |seed| {
            let mut parameters = Parameters::new(Device::Cpu, seed);
            ResNet::new(&mut parameters, Encoder::Resnet18, 0.25, Stem::Cifar).unwrap();
            let weight = &parameters.entries()[0].tensor;
            assert!((f64::try_from(weight.std(false)).unwrap() - (2.0f64 / (16.0 * 9.0)).sqrt()).abs() < 0.02);
            Vec::<f32>::try_from(weight.flatten(0, -1)).unwrap()
        };
        assert_eq!(weights(1), weights(1));
        assert_ne!(weights(1), weights(2));
    }
}
