//! Finds an encoder among the tensors of a file that another library wrote, whatever that calls them.
//!
//! What it is (depth, width, stem) follows from the tensors themselves. Known are the names of torchvision and timm,
//! Hugging Face, encoders cut into an `nn.Sequential` as lightly's examples do, and the variables of the official
//! TensorFlow code; before them may stand whatever a trainer puts there (`backbone.`, `module.encoder_q.`, …).

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Kind, Tensor};

use super::{hugging_face, weights_file};
use crate::error::TrainError;
use crate::model::parameters::Parameters;
use crate::model::projection_head::HeadConfig;
use crate::model::resnet::{Encoder, ResNetShape, Shortcuts, Stem};

/// An encoder in a file.
pub struct Found {
    /// Its shape.
    pub shape: ResNetShape,
    /// The projection head behind it, if there is one that is built as ours.
    pub head: Option<HeadConfig>,
    /// Whose names its tensors have, in words, with what stands before them.
    pub names: String,
    style: Style,
    prefix: String,
    /// What stands behind the names of TensorFlow's variables.
    suffix: String,
    tensors: BTreeMap<String, Tensor>,
    path: std::path::PathBuf,
}

/// Whose names they are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Style {
    Torchvision,
    HuggingFace,
    /// The children of torchvision's model by their numbers; stage 1 has this one.
    Sequential(usize),
    TensorFlow,
}

/// Copies of an encoder that follow another one: not the ones wanted where that is there too.
const FOLLOWERS: [&str; 5] = ["encoder_k", "momentum", "teacher", "target", "ema"];

/// Finds the encoder in a safetensors file; with `prefix`, the one whose names begin with it.
///
/// # Errors
/// If the file can't be read, or holds no encoder, or several.
pub fn find(path: &Path, prefix: Option<&str>) -> Result<Found, TrainError> {
    let wrong = |what: String| TrainError::Checkpoint { path: path.to_owned(), what };
    if let Some(what) = weights_file::no_safetensors(path).map_err(|error| wrong(format!("cannot read: {error}")))? {
        return Err(wrong(what));
    }
    let tensors = Tensor::read_safetensors(path).map_err(|error| wrong(format!("not a safetensors file: {error}")))?;
    let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    let mut all: Vec<Beginning<'_>> =
        tensors.iter().filter_map(|(name, tensor)| beginning(name, tensor, &tensors)).collect();
    if let Some(wanted) = prefix {
        all.retain(|(_, prefix, ..)| prefix == wanted);
    }
    let follows = |prefix: &str| FOLLOWERS.iter().any(|word| prefix.contains(word));
    if all.iter().any(|(_, prefix, ..)| !follows(prefix)) {
        all.retain(|(_, prefix, ..)| !follows(prefix));
    }
    let (style, prefix, suffix, first) = match &all[..] {
        [one] => one.clone(),
        [] => {
            let names: Vec<&str> = tensors.keys().take(4).map(String::as_str).collect();
            let which = prefix.map_or(String::new(), |prefix| format!(" with the prefix {prefix:?}"));
            return Err(wrong(format!(
                "no ResNet{which} found: expected a first convolution of three input channels, named as in torchvision, \
                 Hugging Face, an nn.Sequential or TensorFlow; the names start with {names:?}"
            )));
        }
        several => {
            let prefixes: Vec<&str> = several.iter().map(|(_, prefix, ..)| prefix.as_str()).collect();
            return Err(wrong(format!("the file contains several encoders; choose a prefix from {prefixes:?}")));
        }
    };
    let shape = if style == Style::TensorFlow { from_tensorflow(first).size() } else { first.size() };
    let (width, stem) = match shape[..] {
        [channels, 3, 7, 7] => (channels as f64 / 64.0, Stem::Imagenet),
        [channels, 3, 3, 3] => (channels as f64 / 64.0, Stem::Cifar),
        _ => return Err(wrong(format!("the first convolution has shape {shape:?}; expected 7×7 or 3×3"))),
    };
    let convolutions = tensors
        .iter()
        .filter(|(name, tensor)| name.starts_with(&prefix) && name.ends_with(&suffix) && tensor.dim() == 4)
        .filter(|(name, _)| style != Style::TensorFlow || name.ends_with(&format!("/kernel{suffix}")))
        .count();
    // Blocks times their convolutions, the first one, and one for each stage that changes the channels.
    let (encoder, shortcuts) = match convolutions {
        20 => (Encoder::Resnet18, Shortcuts::ShapeChanges),
        21 => (Encoder::Resnet18, Shortcuts::EveryGroup),
        36 => (Encoder::Resnet34, Shortcuts::ShapeChanges),
        37 => (Encoder::Resnet34, Shortcuts::EveryGroup),
        53 => (Encoder::Resnet50, Shortcuts::ShapeChanges),
        104 => (Encoder::Resnet101, Shortcuts::ShapeChanges),
        155 => (Encoder::Resnet152, Shortcuts::ShapeChanges),
        _ => {
            return Err(wrong(format!(
                "found {convolutions} convolutions with the prefix {prefix:?}; ResNet-18, -34, -50, -101 and -152 have 20, 36, \
                 53, 104 and 155, and one more with the official code's shortcuts"
            )));
        }
    };
    let names = match style {
        Style::Torchvision => "torchvision's",
        Style::HuggingFace => "Hugging Face's",
        Style::Sequential(_) => "an nn.Sequential's",
        Style::TensorFlow => "the official TensorFlow code's",
    };
    let names = if prefix.is_empty() { names.to_owned() } else { format!("{names} with prefix {prefix:?}") };
    let shape = ResNetShape { encoder, width, stem, shortcuts };
    let head = head(&tensors, style, &suffix);
    Ok(Found { shape, head, names, style, prefix, suffix, tensors, path: path.to_owned() })
}

/// A projection head among the tensors: as the official code builds it, by its names or by ours.
fn head(tensors: &BTreeMap<String, Tensor>, style: Style, suffix: &str) -> Option<HeadConfig> {
    let sizes = |layer: usize| {
        let size = |name: &String| tensors.get(name).filter(|tensor| tensor.dim() == 2).map(Tensor::size);
        match style {
            // Inputs come first there.
            Style::TensorFlow => head_scopes(layer)
                .iter()
                .find_map(|scope| size(&format!("{scope}/dense/kernel{suffix}")))
                .map(|size| [size[1], size[0]]),
            _ => size(&format!("{}{layer}.weight", super::HEAD)).map(|size| [size[0], size[1]]),
        }
    };
    let layers: Vec<[i64; 2]> = (0..).map_while(sizes).collect();
    let [dim, hidden] = *layers.last()?;
    let hidden = if layers.len() > 1 { hidden } else { 0 };
    Some(HeadConfig { layers: layers.len() as u32, hidden: hidden as u32, dim: dim as u32 })
}

/// Where the official code keeps layer `i` of its head: of several layers, and of one alone.
fn head_scopes(i: usize) -> [String; 2] {
    [format!("head_contrastive/nl_{i}"), format!("head_contrastive/l_{i}")]
}

/// A beginning of an encoder: style, prefix, suffix and first convolution.
type Beginning<'a> = (Style, String, String, &'a Tensor);

/// Whether a tensor is the first convolution of an encoder, and whose.
fn beginning<'a>(name: &str, tensor: &'a Tensor, all: &BTreeMap<String, Tensor>) -> Option<Beginning<'a>> {
    if tensor.dim() != 4 {
        return None;
    }
    if let Some((prefix, suffix)) = name.split_once("conv2d/kernel") {
        let [_, _, 3, _] = tensor.size()[..] else { return None };
        return Some((Style::TensorFlow, prefix.to_owned(), suffix.to_owned(), tensor));
    }
    let [_, 3, _, _] = tensor.size()[..] else { return None };
    let found = |style, prefix: &str| Some((style, prefix.to_owned(), String::new(), tensor));
    if let Some(prefix) = name.strip_suffix("embedder.embedder.convolution.weight") {
        return found(Style::HuggingFace, prefix);
    }
    if let Some(prefix) = name.strip_suffix("conv1.weight") {
        return found(Style::Torchvision, prefix);
    }
    let prefix = name.strip_suffix("0.weight")?;
    // Behind the convolution stand its norm and, in the usual encoder, a ReLU and a pooling.
    let stage = [2, 4].into_iter().find(|stage| all.contains_key(&format!("{prefix}{stage}.0.conv1.weight")))?;
    found(Style::Sequential(stage), prefix)
}

impl Found {
    /// Copies the encoder, and the head if there is one, into a model of its shape; the names of the file's tensors that were not needed.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn copy_to(&self, parameters: &Parameters) -> Result<Vec<String>, TrainError> {
        let wrong = |what: String| TrainError::Checkpoint { path: self.path.clone(), what };
        let ours: Vec<&str> = parameters.entries().iter().map(|p| p.name.as_str()).collect();
        let numbers = tensorflow_numbers(&ours);
        let mut left: Vec<String> = self.tensors.keys().cloned().collect();
        for parameter in parameters.entries() {
            let name = match parameter.name.strip_prefix(super::HEAD) {
                Some(_) if self.head.is_none() => continue,
                Some(rest) => self.name_in_head(rest),
                None => self.name_of(&parameter.name, &numbers),
            };
            let source = self.tensors.get(&name).ok_or_else(|| {
                wrong(format!("tensor {name} is missing ({} of a {:?})", parameter.name, self.shape.encoder))
            })?;
            let source = if self.style == Style::TensorFlow && source.dim() == 4 {
                from_tensorflow(source)
            } else if self.style == Style::TensorFlow && source.dim() == 2 {
                source.transpose(0, 1)
            } else {
                source.shallow_clone()
            };
            if source.size() != parameter.tensor.size() {
                let (found, expected) = (source.size(), parameter.tensor.size());
                return Err(wrong(format!("{name} has shape {found:?}, expected {expected:?}")));
            }
            tch::no_grad(|| parameter.tensor.shallow_clone().copy_(&source.to_kind(Kind::Float)));
            left.retain(|other| *other != name);
        }
        // Counters of batches that batch norm has seen are no weights.
        left.retain(|name| !name.ends_with("num_batches_tracked"));
        Ok(left)
    }

    /// The file's name of a tensor of the head, which is `rest` behind [`HEAD`](super::HEAD).
    fn name_in_head(&self, rest: &str) -> String {
        if self.style != Style::TensorFlow {
            return format!("{}{rest}", super::HEAD);
        }
        let (layer, value) = rest.split_once('.').expect("a layer and its value");
        let value = match value {
            "weight" => "dense/kernel",
            "bn.weight" => "batch_normalization/gamma",
            "bn.bias" => "batch_normalization/beta",
            "bn.running_mean" => "batch_normalization/moving_mean",
            _ => "batch_normalization/moving_variance",
        };
        let scopes = head_scopes(layer.parse().expect("layers are numbered"));
        let name = |scope: &String| format!("{scope}/{value}{}", self.suffix);
        scopes.iter().map(name).find(|name| self.tensors.contains_key(name)).unwrap_or_else(|| name(&scopes[0]))
    }

    /// The file's name of the tensor that torchvision calls `name`.
    fn name_of(&self, name: &str, numbers: &BTreeMap<String, usize>) -> String {
        let prefix = &self.prefix;
        match self.style {
            Style::Torchvision => format!("{prefix}{name}"),
            Style::HuggingFace => format!("{prefix}{}", hugging_face(name).unwrap_or_else(|| name.to_owned())),
            Style::Sequential(first_stage) => {
                let (part, rest) = name.split_once('.').expect("a tensor's name has a place and a kind");
                let child = match part {
                    "conv1" => 0,
                    "bn1" => 1,
                    stage => {
                        let number: usize = stage.trim_start_matches("layer").parse().expect("a stage has a number");
                        first_stage + number - 1
                    }
                };
                format!("{prefix}{child}.{rest}")
            }
            Style::TensorFlow => {
                let (place, kind) = name.rsplit_once('.').expect("a tensor's name has a place and a kind");
                let number = match numbers[place] {
                    0 => String::new(),
                    n => format!("_{n}"),
                };
                let is_convolution =
                    place.starts_with("conv") || place.contains(".conv") || place.ends_with("downsample.0");
                let (layer, value) = match kind {
                    "weight" if is_convolution => ("conv2d", "kernel"),
                    "weight" => ("batch_normalization", "gamma"),
                    "bias" => ("batch_normalization", "beta"),
                    "running_mean" => ("batch_normalization", "moving_mean"),
                    _ => ("batch_normalization", "moving_variance"),
                };
                format!("{prefix}{layer}{number}/{value}{}", self.suffix)
            }
        }
    }
}

/// TensorFlow counts layers in the order in which they were made: the one beside a block's shortcut comes first.
fn tensorflow_numbers(names: &[&str]) -> BTreeMap<String, usize> {
    let mut blocks: Vec<(String, Vec<String>)> = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(".weight") && !name.starts_with(super::HEAD)) {
        let place = name.trim_end_matches(".weight");
        let block: String = match place.split('.').collect::<Vec<_>>()[..] {
            [stage, block, ..] => format!("{stage}.{block}"),
            _ => "stem".to_owned(),
        };
        match blocks.last_mut() {
            Some((last, places)) if *last == block => places.push(place.to_owned()),
            _ => blocks.push((block, vec![place.to_owned()])),
        }
    }
    let mut numbers = BTreeMap::new();
    let (mut convolutions, mut norms) = (0, 0);
    for (_, mut places) in blocks {
        places.sort_by_key(|place| !place.contains("downsample"));
        for place in places {
            let is_norm = place.contains("bn") || place.ends_with("downsample.1");
            let count = if is_norm { &mut norms } else { &mut convolutions };
            numbers.insert(place, *count);
            *count += 1;
        }
    }
    numbers
}

/// `[height, width, inputs, outputs]` as `[outputs, inputs, height, width]`.
fn from_tensorflow(kernel: &Tensor) -> Tensor {
    kernel.permute([3, 2, 0, 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::projection_head::ProjectionHead;
    use crate::model::resnet::{Initialization, ResNet};
    use tch::Device;

    fn encoder(depth: Encoder, width: f64, stem: Stem, seed: u64) -> Parameters {
        let mut parameters = Parameters::new(Device::Cpu, seed);
        let shape = ResNetShape { encoder: depth, width, stem, shortcuts: Shortcuts::default() };
        ResNet::new(&mut parameters, shape, Initialization::He).unwrap();
        parameters
    }

    /// Writes the tensors under other names, with some more, and reads them back into a model of another seed.
    fn check(
        depth: Encoder,
        stem: Stem,
        rename: &dyn Fn(&str, &Tensor) -> (String, Tensor),
        more: &[&str],
    ) -> Vec<String> {
        let source = encoder(depth, 0.125, stem, 1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        let mut tensors: Vec<(String, Tensor)> =
            source.entries().iter().map(|p| rename(&p.name, &p.tensor.detach().contiguous())).collect();
        tensors.extend(
            more.iter().map(|name| ((*name).to_owned(), Tensor::zeros([8, 3, 3, 3], (Kind::Float, Device::Cpu)))),
        );
        let named: Vec<(&str, Tensor)> = tensors.iter().map(|(name, x)| (name.as_str(), x.contiguous())).collect();
        Tensor::write_safetensors(&named, &path).unwrap();
        let found = find(&path, None).unwrap();
        assert_eq!((found.shape.encoder, found.shape.width, found.shape.stem), (depth, 0.125, stem));
        let target = encoder(depth, 0.125, stem, 2);
        let left = found.copy_to(&target).unwrap();
        for (a, b) in source.entries().iter().zip(target.entries()) {
            assert!(a.tensor.equal(&b.tensor), "{} through {}", a.name, found.names);
        }
        left
    }

    #[test]
    fn encoders_are_found_whatever_stands_before_their_names() {
        for prefix in
            ["", "backbone.", "module.encoder_q.", "classy_state_dict.base_model.model.trunk._feature_blocks."]
        {
            for (depth, stem) in [(Encoder::Resnet18, Stem::Cifar), (Encoder::Resnet50, Stem::Imagenet)] {
                let left = check(depth, stem, &|name, x| (format!("{prefix}{name}"), x.shallow_clone()), &[]);
                assert!(left.is_empty(), "{left:?}");
            }
        }
        // The copy that follows is not the one wanted.
        let behind = |name: &str, x: &Tensor| (format!("module.encoder_q.{name}"), x.shallow_clone());
        let left = check(Encoder::Resnet18, Stem::Imagenet, &behind, &["module.encoder_k.conv1.weight", "queue"]);
        assert_eq!(left, ["module.encoder_k.conv1.weight", "queue"]);
    }

    #[test]
    fn hugging_faces_and_sequences_names_are_known() {
        let named = |name: &str, x: &Tensor| (format!("resnet.{}", hugging_face(name).unwrap()), x.shallow_clone());
        check(Encoder::Resnet50, Stem::Imagenet, &named, &["classifier.1.weight"]);
        for first in [2, 4] {
            // list(resnet18().children()): conv1, bn1, relu, maxpool, layer1, …; the second two may be left out.
            let named = |name: &str, x: &Tensor| {
                let (part, rest) = name.split_once('.').unwrap();
                let child = match part {
                    "conv1" => 0,
                    "bn1" => 1,
                    stage => stage[5..].parse::<usize>().unwrap() - 1 + first,
                };
                (format!("backbone.{child}.{rest}"), x.shallow_clone())
            };
            check(Encoder::Resnet18, Stem::Cifar, &named, &["projection_head.layers.0.weight"]);
        }
    }

    /// The official code makes a block's shortcut first: these are the layers of its ResNet-50 around the first block,
    /// in the order of `resnet.py` (`projection_shortcut` is called before the block's own convolutions).
    #[test]
    fn tensorflow_counts_in_its_own_order() {
        let parameters = encoder(Encoder::Resnet50, 0.125, Stem::Imagenet, 1);
        let names: Vec<&str> = parameters.entries().iter().map(|p| p.name.as_str()).collect();
        let numbers = tensorflow_numbers(&names);
        for (place, number) in [
            ("conv1", 0),
            ("bn1", 0),
            ("layer1.0.downsample.0", 1),
            ("layer1.0.downsample.1", 1),
            ("layer1.0.conv1", 2),
            ("layer1.0.bn3", 4),
            ("layer1.1.conv1", 5),
            ("layer2.0.downsample.0", 11),
            ("layer4.2.conv3", 52),
            ("layer4.2.bn3", 52),
        ] {
            assert_eq!(numbers[place], number, "{place}");
        }
        let named = |name: &str, x: &Tensor| {
            let (place, kind) = name.rsplit_once('.').unwrap();
            let number = if numbers[place] == 0 { String::new() } else { format!("_{}", numbers[place]) };
            let (layer, value, x) = match (kind, x.dim()) {
                ("weight", 4) => ("conv2d", "kernel", x.permute([2, 3, 1, 0])),
                ("weight", _) => ("batch_normalization", "gamma", x.shallow_clone()),
                ("bias", _) => ("batch_normalization", "beta", x.shallow_clone()),
                ("running_mean", _) => ("batch_normalization", "moving_mean", x.shallow_clone()),
                _ => ("batch_normalization", "moving_variance", x.shallow_clone()),
            };
            (format!("base_model/{layer}{number}/{value}:0"), x)
        };
        check(Encoder::Resnet50, Stem::Imagenet, &named, &["head_contrastive/nl_0/dense/kernel:0"]);
    }

    /// The official code's names and shapes (its `model_util.py`, `resnet.py`), and ours.
    #[test]
    fn heads_and_the_official_shortcuts_come_with_their_encoder() {
        let model = |seed, layers| {
            let shape = ResNetShape {
                encoder: Encoder::Resnet18,
                width: 0.125,
                stem: Stem::Cifar,
                shortcuts: Shortcuts::EveryGroup,
            };
            let mut parameters = Parameters::new(Device::Cpu, seed);
            ResNet::new(&mut parameters, shape, Initialization::VarianceScaling).unwrap();
            let head = HeadConfig { layers, hidden: if layers > 1 { 64 } else { 0 }, dim: 16 };
            ProjectionHead::new(&mut parameters, 64, &head).unwrap();
            (parameters, shape, head)
        };
        let official = |name: &str, x: &Tensor, numbers: &BTreeMap<String, usize>, layers: u32| -> (String, Tensor) {
            let (place, kind) = name.rsplit_once('.').unwrap();
            let value = match kind {
                "weight" => "gamma",
                "bias" => "beta",
                "running_mean" => "moving_mean",
                _ => "moving_variance",
            };
            if let Some(rest) = name.strip_prefix("head.") {
                let scope = if layers == 1 { "l_" } else { "nl_" };
                let layer = rest.split('.').next().unwrap();
                return match x.dim() {
                    2 => (format!("head_contrastive/{scope}{layer}/dense/kernel"), x.transpose(0, 1)),
                    _ => (format!("head_contrastive/{scope}{layer}/batch_normalization/{value}"), x.shallow_clone()),
                };
            }
            let number = if numbers[place] == 0 { String::new() } else { format!("_{}", numbers[place]) };
            match x.dim() {
                4 => (format!("base_model/conv2d{number}/kernel"), x.permute([2, 3, 1, 0])),
                _ => (format!("base_model/batch_normalization{number}/{value}"), x.shallow_clone()),
            }
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        for layers in [1, 2, 3] {
            let (source, shape, head) = model(1, layers);
            let ours: Vec<&str> = source.entries().iter().map(|p| p.name.as_str()).collect();
            let numbers = tensorflow_numbers(&ours);
            for is_official in [false, true] {
                let named = source.entries().iter().map(|p| match is_official {
                    true => official(&p.name, &p.tensor.detach(), &numbers, layers),
                    false => (p.name.clone(), p.tensor.detach()),
                });
                let named: Vec<(String, Tensor)> = named.map(|(name, x)| (name, x.contiguous())).collect();
                let named: Vec<(&str, &Tensor)> = named.iter().map(|(name, x)| (name.as_str(), x)).collect();
                Tensor::write_safetensors(&named, &path).unwrap();
                let found = find(&path, None).unwrap();
                assert_eq!((found.shape, found.head.as_ref()), (shape, Some(&head)), "{}", found.names);
                let (target, ..) = model(2, layers);
                assert_eq!(found.copy_to(&target).unwrap(), Vec::<String>::new());
                for (a, b) in source.entries().iter().zip(target.entries()) {
                    assert!(a.tensor.equal(&b.tensor), "{} of {layers} layers through {}", a.name, found.names);
                }
            }
        }
    }

    #[test]
    fn what_is_no_encoder_is_refused_with_what_was_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.safetensors");
        let fails = |tensors: &[(&str, Vec<i64>)], wanted: &str| {
            let tensors: Vec<(&str, Tensor)> = tensors
                .iter()
                .map(|(name, shape)| (*name, Tensor::zeros(shape.as_slice(), (Kind::Float, Device::Cpu))))
                .collect();
            Tensor::write_safetensors(&tensors, &path).unwrap();
            let message = find(&path, None).err().expect("no encoder").to_string();
            assert!(message.contains(wanted), "{message}");
        };
        fails(&[("embeddings.weight", vec![4, 4])], "no ResNet found");
        fails(&[("conv1.weight", vec![8, 3, 7, 7])], "1 convolutions");
        fails(&[("a.conv1.weight", vec![8, 3, 7, 7]), ("b.conv1.weight", vec![8, 3, 7, 7])], "[\"a.\", \"b.\"]");
        std::fs::write(&path, b"no tensors").unwrap();
        let found = find(&path, None).err().unwrap().to_string();
        assert!(found.contains("not a safetensors file") && found.contains(path.to_str().unwrap()), "{found}");
    }
}
