//! Weights of other libraries, to and fro: [`export`] gives an encoder's tensors the names that they know, `import`
//! finds an encoder among tensors that they wrote.

mod export;
mod import;
mod weights_file;

use serde::{Deserialize, Serialize};

pub use export::export;
pub use import::{Found, find};

/// Whose names an encoder's tensors have in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Names {
    /// torchvision's `resnet…`, which timm's have too.
    Torchvision,
    /// Hugging Face's `ResNetModel`.
    HuggingFace,
}

/// What all names of a projection head begin with; other libraries have none.
const HEAD: &str = "head.";

impl Names {
    /// The library's name of the tensor that torchvision calls `name`.
    fn of(self, name: &str) -> String {
        match self {
            Names::Torchvision => name.to_owned(),
            Names::HuggingFace => hugging_face(name).unwrap_or_else(|| name.to_owned()),
        }
    }
}

/// Hugging Face's name: what stands where, `convolution` or `normalization`, and the value's own name.
fn hugging_face(name: &str) -> Option<String> {
    let (place, value) = name.rsplit_once('.')?;
    let of = |part: &str| if part.starts_with("conv") { "convolution" } else { "normalization" };
    if let "conv1" | "bn1" = place {
        return Some(format!("embedder.embedder.{}.{value}", of(place)));
    }
    let mut parts = place.split('.');
    let stage: u32 = parts.next()?.strip_prefix("layer")?.parse().ok()?;
    let block = parts.next()?;
    let layer = match (parts.next()?, parts.next()) {
        ("downsample", Some("0")) => "shortcut.convolution".to_owned(),
        ("downsample", Some("1")) => "shortcut.normalization".to_owned(),
        (part, None) => {
            let number: u32 = part.trim_start_matches(char::is_alphabetic).parse().ok()?;
            format!("layer.{}.{}", number.checked_sub(1)?, of(part))
        }
        _ => return None,
    };
    Some(format!("encoder.stages.{}.layers.{block}.{layer}.{value}", stage.checked_sub(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of `transformers.ResNetModel(ResNetConfig())`, version 5.24.0.
    #[test]
    fn hugging_faces_names_are_known() {
        for (torchvision, hugging_face) in [
            ("conv1.weight", "embedder.embedder.convolution.weight"),
            ("bn1.running_mean", "embedder.embedder.normalization.running_mean"),
            ("layer1.0.downsample.0.weight", "encoder.stages.0.layers.0.shortcut.convolution.weight"),
            ("layer1.0.downsample.1.bias", "encoder.stages.0.layers.0.shortcut.normalization.bias"),
            ("layer3.5.conv3.weight", "encoder.stages.2.layers.5.layer.2.convolution.weight"),
            ("layer4.2.bn1.num_batches_tracked", "encoder.stages.3.layers.2.layer.0.normalization.num_batches_tracked"),
        ] {
            assert_eq!(Names::HuggingFace.of(torchvision), hugging_face);
        }
    }
}
