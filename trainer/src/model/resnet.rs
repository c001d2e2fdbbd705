//! ResNets with torchvision's layout and names: the stride in the 3×3 convolution, batch norm after each one.

use std::rc::Rc;

use serde::{Deserialize, Serialize};
use simclr_ground::error::InvalidValue;
use tch::{Kind, Tensor};

use crate::device::Precision;
use crate::distributed::World;
use crate::error::TrainError;
use crate::model::parameters::{Parameters, Role};

/// Batch norm's ε, as in the paper's code and torchvision.
const EPSILON: f64 = 1e-5;

/// Share of each batch's statistics in batch norm's running ones: torch's momentum, one less the paper's decay of 0.9.
pub const MOMENTUM: f64 = 0.1;

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
    /// 101 layers, bottleneck blocks.
    Resnet101,
    /// 152 layers, bottleneck blocks.
    Resnet152,
}

/// How a ResNet begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stem {
    /// 7×7 convolution with stride 2, then max-pooling: for images of about 224 pixels.
    Imagenet,
    /// 3×3 convolution with stride 1, no pooling: for images of about 32 pixels (SimCLR, appendix B.9).
    Cifar,
}

/// Which blocks have a convolution in their shortcut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shortcuts {
    /// Those whose shape changes, as in torchvision and in the paper by He et al.
    #[default]
    ShapeChanges,
    /// The first of each group, as in the official code (`use_projection=True`): it differs for ResNet-18 and -34, whose
    /// first group keeps its shape.
    EveryGroup,
}

impl Shortcuts {
    /// Whether it is the default, which records leave out.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The shape of a ResNet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResNetShape {
    /// Depth.
    pub encoder: Encoder,
    /// Multiplies the channels.
    pub width: f64,
    /// How it begins.
    pub stem: Stem,
    /// Which blocks have a convolution in their shortcut.
    pub shortcuts: Shortcuts,
}

/// How a convolution's weights begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Initialization {
    /// Normal with variance 2 / fan out (He et al. 2015), as torchvision.
    He,
    /// Normal, cut at two deviations, with variance 1 / fan in, as the official code (TensorFlow's
    /// `variance_scaling_initializer`).
    VarianceScaling,
}

/// What batch norm normalizes by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BatchNormMode {
    /// The running mean and variance: for evaluation.
    Running,
    /// The batch's own.
    Batch,
    /// The batch's own, which the running ones follow by [`MOMENTUM`]: for training.
    Update,
    /// As `Update`, with this share of each batch's in the running ones, in (0, 1]: for short trainings.
    UpdateBy(f64),
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
    /// Convolutions begin as `start` says, batch norm's scales at one, but the last one of each block at zero, so that
    /// a block begins as the identity.
    ///
    /// # Errors
    /// If `width` is not positive.
    pub fn new(parameters: &mut Parameters, shape: ResNetShape, start: Initialization) -> Result<Self, TrainError> {
        let ResNetShape { encoder, width, stem, shortcuts } = shape;
        if !(width > 0.0 && width <= 16.0) {
            let wanted = "expected a number above 0 and at most 16 (1 = standard width)";
            return Err(InvalidValue::new("model.width", width, wanted).into());
        }
        let (counts, bottleneck) = match encoder {
            Encoder::Resnet18 => ([2, 2, 2, 2], false),
            Encoder::Resnet34 => ([3, 4, 6, 3], false),
            Encoder::Resnet50 => ([3, 4, 6, 3], true),
            Encoder::Resnet101 => ([3, 4, 23, 3], true),
            Encoder::Resnet152 => ([3, 8, 36, 3], true),
        };
        let p = &mut Builder { parameters, start };
        let channels = |base: i64| ((base as f64 * width).round() as i64).max(1);
        let (kernel, stride) = match stem {
            Stem::Imagenet => (7, 2),
            Stem::Cifar => (3, 1),
        };
        let mut inputs = channels(64);
        let conv1 = Conv::new(p, "conv1".into(), 3, inputs, kernel, stride);
        let bn1 = BatchNorm::new(p.parameters, "bn1".into(), inputs, 1.0);
        let mut blocks = Vec::new();
        for (stage, count) in counts.into_iter().enumerate() {
            for index in 0..count {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let name = format!("layer{}.{index}", stage + 1);
                let planes = channels(64 << stage);
                let outputs = if bottleneck { 4 * planes } else { planes };
                let shape_changes = stride != 1 || inputs != outputs;
                let projects = shape_changes || (index == 0 && shortcuts == Shortcuts::EveryGroup);
                let block = Block::new(p, &name, (inputs, planes, outputs), stride, projects);
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
    pub fn forward(&self, x: &Tensor, statistics: BatchNormMode, precision: Precision) -> Tensor {
        // In place, as torchvision's: nothing asks for what was there before, and memory is what these wait for.
        let x = self.bn1.forward(&self.conv1.forward(x, precision), statistics).relu_();
        let mut x = match self.stem {
            Stem::Imagenet => x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false),
            Stem::Cifar => x,
        };
        for block in &self.blocks {
            x = block.forward(&x, statistics, precision);
        }
        x.to_kind(Kind::Float).mean_dim([2i64, 3].as_slice(), false, Kind::Float)
    }
}

/// What the parts of an encoder add their tensors to, and how these begin.
struct Builder<'a> {
    parameters: &'a mut Parameters,
    start: Initialization,
}

/// A residual block: two 3×3 convolutions, or 1×1, 3×3, 1×1 with four times the channels at the end.
struct Block {
    layers: Vec<(Conv, BatchNorm)>,
    downsample: Option<(Conv, BatchNorm)>,
    outputs: i64,
}

impl Block {
    /// A block with these channels at its input, in its middle and at its output; `projects`, its shortcut is a convolution.
    fn new(
        p: &mut Builder<'_>,
        name: &str,
        (inputs, planes, outputs): (i64, i64, i64),
        stride: i64,
        projects: bool,
    ) -> Self {
        // Kernel, stride and output channels of each convolution.
        let shapes = if planes != outputs {
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
            layers.push((conv, BatchNorm::new(p.parameters, format!("{name}.bn{}", i + 1), to, gamma)));
            from = to;
        }
        let downsample = projects.then(|| {
            let conv = Conv::new(p, format!("{name}.downsample.0"), inputs, outputs, 1, stride);
            (conv, BatchNorm::new(p.parameters, format!("{name}.downsample.1"), outputs, 1.0))
        });
        Self { layers, downsample, outputs }
    }

    fn forward(&self, x: &Tensor, statistics: BatchNormMode, precision: Precision) -> Tensor {
        let shortcut = match &self.downsample {
            Some((conv, bn)) => bn.forward(&conv.forward(x, precision), statistics),
            None => x.shallow_clone(),
        };
        let mut y = x.shallow_clone();
        for (i, (conv, bn)) in self.layers.iter().enumerate() {
            y = bn.forward(&conv.forward(&y, precision), statistics);
            if i + 1 < self.layers.len() {
                y = y.relu_();
            }
        }
        y.g_add_(&shortcut).relu_()
    }
}

/// A convolution without bias, padded so that stride 1 keeps the size.
struct Conv {
    weight: Tensor,
    stride: i64,
    padding: i64,
}

impl Conv {
    fn new(p: &mut Builder<'_>, name: String, inputs: i64, outputs: i64, kernel: i64, stride: i64) -> Self {
        let shape = [outputs, inputs, kernel, kernel];
        let name = format!("{name}.weight");
        let (fan_in, fan_out) = ((inputs * kernel * kernel) as f64, (outputs * kernel * kernel) as f64);
        let weight = match p.start {
            Initialization::He => p.parameters.normal(name, &shape, (2.0 / fan_out).sqrt()),
            Initialization::VarianceScaling => p.parameters.truncated_normal(name, &shape, (1.0 / fan_in).sqrt()),
        };
        Self { weight, stride, padding: kernel / 2 }
    }

    fn forward(&self, x: &Tensor, precision: Precision) -> Tensor {
        let (x, stride) = self.subsampled(x);
        let (stride, padding) = ([stride; 2], [self.padding; 2]);
        match precision {
            Precision::Fp32 | Precision::Tf32 => x.conv2d(&self.weight, None::<Tensor>, stride, padding, [1, 1], 1),
            Precision::Bf16 => {
                let (x, weight) = (x.to_kind(Kind::BFloat16), self.weight.to_kind(Kind::BFloat16));
                x.conv2d(&weight, None::<Tensor>, stride, padding, [1, 1], 1)
            }
        }
    }

    /// The pixels that are looked at, and the stride over them. A strided convolution of single pixels sees one of each
    /// `stride` alone; where channels do not fill vectors, they are picked here: libtorch 2.11 (oneDNN's
    /// `jit_avx2_1x1_convolution_bwd_weights_t`) then writes beside its own memory on processors without AVX-512.
    fn subsampled(&self, x: &Tensor) -> (Tensor, i64) {
        const CHANNELS_IN_A_VECTOR: i64 = 8;
        let [_, inputs, height, _] = self.weight.size4().map(<[i64; 4]>::from).expect("a convolution's weight");
        if self.stride == 1 || height > 1 || inputs % CHANNELS_IN_A_VECTOR == 0 {
            return (x.shallow_clone(), self.stride);
        }
        (x.slice(2, None, None, self.stride).slice(3, None, None, self.stride), 1)
    }
}

/// Batch norm over all but the channel dimension, and over all ranks.
pub(crate) struct BatchNorm {
    world: Rc<World>,
    gamma: Tensor,
    beta: Option<Tensor>,
    running_mean: Tensor,
    /// Of the unbiased variance (over n − 1), as in torch. The official code's is over n, the values of a channel in a
    /// batch: for 4096 images even the smallest maps have 200,704 of them, and the ratio is 1.000005.
    running_var: Tensor,
}

impl BatchNorm {
    pub(crate) fn new(p: &mut Parameters, name: String, channels: i64, gamma: f64) -> Self {
        let mut norm = Self::without_shift(p, name.clone(), channels, gamma);
        norm.beta = Some(p.constant(format!("{name}.bias"), channels, 0.0, Role::NoDecay));
        norm
    }

    /// Batch norm with a scale but no shift, as the last one of the official projection head.
    pub(crate) fn without_shift(p: &mut Parameters, name: String, channels: i64, gamma: f64) -> Self {
        Self {
            world: p.world().clone(),
            gamma: p.constant(format!("{name}.weight"), channels, gamma, Role::NoDecay),
            beta: None,
            running_mean: p.constant(format!("{name}.running_mean"), channels, 0.0, Role::Buffer),
            running_var: p.constant(format!("{name}.running_var"), channels, 1.0, Role::Buffer),
        }
    }

    pub(crate) fn forward(&self, x: &Tensor, statistics: BatchNormMode) -> Tensor {
        let running = (statistics != BatchNormMode::Batch).then_some((&self.running_mean, &self.running_var));
        let of_batch = statistics != BatchNormMode::Running;
        let momentum = if let BatchNormMode::UpdateBy(share) = statistics { share } else { MOMENTUM };
        let (gamma, beta) = (&self.gamma, self.beta.as_ref());
        if of_batch && let Some(y) = self.world.batch_norm(x, (gamma, beta), running, momentum, EPSILON) {
            return y;
        }
        let (mean, var) = running.unzip();
        x.batch_norm(Some(gamma), beta, mean, var, of_batch, momentum, EPSILON, true)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tch::Device;

    fn build(encoder: Encoder, width: f64, stem: Stem) -> (ResNet, Parameters) {
        build_with(encoder, width, stem, 1, Initialization::He)
    }

    fn build_with(encoder: Encoder, width: f64, stem: Stem, seed: u64, start: Initialization) -> (ResNet, Parameters) {
        let mut parameters = Parameters::new(Device::Cpu, seed);
        let shape = ResNetShape { encoder, width, stem, shortcuts: Shortcuts::default() };
        let resnet = ResNet::new(&mut parameters, shape, start).unwrap();
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
            (Encoder::Resnet101, 2048, 42_500_160),
            (Encoder::Resnet152, 2048, 58_143_808),
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
        let exact = resnet.forward(&x, BatchNormMode::Update, Precision::Fp32);
        assert_eq!((exact.size(), exact.kind()), (vec![4, 128], Kind::Float));
        let coarse = resnet.forward(&x, BatchNormMode::Update, Precision::Bf16);
        let off = f64::try_from((&exact - &coarse).abs().max() / exact.abs().max()).unwrap();
        assert!(off < 0.05, "bf16 is off by {off} of the largest value");
        let (resnet, _) = build(Encoder::Resnet50, 0.25, Stem::Imagenet);
        let x = Tensor::rand([2, 3, 64, 64], (Kind::Float, Device::Cpu));
        assert_eq!(resnet.forward(&x, BatchNormMode::Running, Precision::Fp32).size(), [2, 512]);
    }

    #[test]
    fn strided_single_pixels_are_convolved_at_any_width() {
        for inputs in [3, 5, 8, 13].repeat(10) {
            // Channels last, as images come.
            let x = Tensor::randn([16, 8, 8, inputs], (Kind::Float, Device::Cpu)).permute([0, 3, 1, 2]);
            let weight = Tensor::randn([2 * inputs - 1, inputs, 1, 1], (Kind::Float, Device::Cpu));
            let gradient_of = |forward: &dyn Fn(Tensor, Tensor) -> Tensor, kind: Kind| {
                let [x, weight] = [&x, &weight].map(|of| of.detach().to_kind(kind).set_requires_grad(true));
                let y = forward(x.shallow_clone(), weight.shallow_clone());
                y.square().sum(kind).backward();
                [y, x.grad(), weight.grad()].map(|found| found.detach().to_kind(Kind::Double))
            };
            let ours = |x: Tensor, weight: Tensor| Conv { weight, stride: 2, padding: 0 }.forward(&x, Precision::Fp32);
            let plain = |x: Tensor, weight: Tensor| x.conv2d(&weight, None::<Tensor>, [2, 2], [0, 0], [1, 1], 1);
            for (found, wanted) in gradient_of(&ours, Kind::Float).iter().zip(gradient_of(&plain, Kind::Double)) {
                assert_eq!(found.size(), wanted.size());
                assert!((found - &wanted).abs().max().double_value(&[]) < 1e-3, "{inputs} channels");
            }
        }
    }

    #[test]
    fn the_seed_decides_the_weights() {
        let weights = |seed| {
            let (_, parameters) = build_with(Encoder::Resnet18, 0.25, Stem::Cifar, seed, Initialization::He);
            let weight = &parameters.entries()[0].tensor;
            assert!((f64::try_from(weight.std(false)).unwrap() - (2.0f64 / (16.0 * 9.0)).sqrt()).abs() < 0.02);
            Vec::<f32>::try_from(weight.flatten(0, -1)).unwrap()
        };
        assert_eq!(weights(1), weights(1));
        assert_ne!(weights(1), weights(2));
    }

    #[test]
    fn the_official_start_has_its_variance_and_is_cut() {
        let (_, parameters) = build_with(Encoder::Resnet18, 1.0, Stem::Imagenet, 1, Initialization::VarianceScaling);
        let weight = parameters.entries().iter().find(|p| p.name == "layer4.0.conv2.weight").unwrap();
        let deviation = (1.0f64 / (512.0 * 9.0)).sqrt();
        let [found, largest] = [weight.tensor.std(false), weight.tensor.abs().max()].map(|x| f64::try_from(x).unwrap());
        assert!((found / deviation - 1.0).abs() < 0.01, "{found} for {deviation}");
        assert!(largest <= deviation * 2.0 / 0.879_625, "{largest}");
    }

    /// The formula of `golden/resnet.py`: values in [-1, 1) that depend on the name and the place alone.
    pub(crate) fn wave(name: &str, shape: &[i64]) -> Tensor {
        let seed = name
            .bytes()
            .fold(0xCBF2_9CE4_8422_2325u64, |seed, byte| (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
        let value = |k: u64| {
            let bits = k.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed) ^ (seed >> 29);
            let bits = (bits ^ (bits >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            (bits >> 40) as f64 / f64::from(1 << 23) - 1.0
        };
        let values: Vec<f64> = (0..shape.iter().product::<i64>() as u64).map(value).collect();
        Tensor::from_slice(&values).view(shape)
    }

    /// The encoder with the weights of `golden/resnet.py`, in arithmetic of this kind.
    fn waves(encoder: Encoder, width: f64, stem: Stem, kind: Kind) -> (ResNet, Parameters) {
        let (resnet, parameters) = build(encoder, width, stem);
        for parameter in parameters.entries() {
            let (name, shape) = (parameter.name.as_str(), parameter.tensor.size());
            let wave = wave(name, &shape);
            let value = if name.ends_with("running_var") {
                1.0 + 0.5 * wave.abs()
            } else if name.ends_with("running_mean") || name.ends_with("bias") {
                0.1 * wave
            } else if let [_, inputs, height, width] = shape[..] {
                wave * (6.0 / (inputs * height * width) as f64).sqrt()
            } else {
                1.0 + 0.2 * wave
            };
            parameter.tensor.shallow_clone().set_data(&value.to_kind(kind));
        }
        (resnet, parameters)
    }

    /// How far `found` is from the golden `wanted`, as a share of its norm.
    fn off(found: &Tensor, wanted: &serde_json::Value) -> f64 {
        let wanted: Vec<f64> = serde_json::from_value(wanted.clone()).unwrap();
        let wanted = Tensor::from_slice(&wanted);
        let found = found.narrow(1, 0, 8).flatten(0, -1).to_kind(Kind::Double);
        f64::try_from((found - &wanted).norm() / wanted.norm()).unwrap()
    }

    /// Golden values: `golden/resnet.py` says how, and with which versions, they were made.
    #[test]
    fn features_gradients_and_statistics_are_torchvisions() {
        are_torchvisions(include_str!("../golden/resnet.json"));
    }

    /// `cargo test --release -p simclr-trainer -- --ignored wide_encoders`
    #[test]
    #[ignore = "takes minutes and 8 GB"]
    fn wide_encoders_are_torchvisions() {
        are_torchvisions(include_str!("../golden/resnet_wide.json"));
    }

    fn are_torchvisions(golden: &str) {
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let encoder: Encoder = serde_json::from_value(case["encoder"].clone()).unwrap();
            let stem: Stem = serde_json::from_value(case["stem"].clone()).unwrap();
            let width = case["width"].as_f64().unwrap();
            let images: Tensor = 0.5 + 0.5 * wave("pictures", &[4, 3, 64, 64]);
            // Batch statistics of few values widen f32's rounding, and where a value next to zero passes a ReLU or not,
            // gradients jump: they are compared in f64.
            for (kind, [most_eval, most_train, most_gradients]) in
                [(Kind::Float, [1e-5, 1e-2, f64::INFINITY]), (Kind::Double, [1e-6; 3])]
            {
                let (resnet, parameters) = waves(encoder, width, stem, kind);
                let x = images.to_kind(kind);
                let evaluated = tch::no_grad(|| resnet.forward(&x, BatchNormMode::Running, Precision::Fp32));
                let trained = resnet.forward(&x, BatchNormMode::Update, Precision::Fp32);
                let forward = [off(&evaluated, &case["eval"]), off(&trained, &case["train"])];
                (&trained * wave("loss", &trained.size())).sum(Kind::Double).backward();
                // What learns, and what does not: farthest from the golden norm and product, as shares of the norm.
                let mut backward = [0.0f64; 2];
                for parameter in parameters.entries() {
                    let name = parameter.name.as_str();
                    let (i, key, tensor) = match parameter.role {
                        Role::Buffer => (1, "running", parameter.tensor.shallow_clone()),
                        _ => (0, "gradients", parameter.tensor.grad()),
                    };
                    let tensor = tensor.to_kind(Kind::Double);
                    let product = (&tensor * wave(name, &tensor.size())).sum(Kind::Double);
                    let found = [tensor.norm(), product].map(|x| f64::try_from(x).unwrap());
                    let wanted: [f64; 2] = serde_json::from_value(case[key][name].clone()).unwrap();
                    for (found, other) in found.iter().zip(wanted) {
                        backward[i] = backward[i].max((found - other).abs() / wanted[0]);
                    }
                }
                println!(
                    "{encoder:?} ×{width} {stem:?} {kind:?}: eval, train {forward:?}, gradients, statistics {backward:?}"
                );
                let right = forward[0] < most_eval && forward[1] < most_train;
                let right = right && backward[0] < most_gradients && backward[1] < most_train;
                assert!(right, "{encoder:?} {kind:?}: {forward:?}, {backward:?}");
            }
        }
    }
}
