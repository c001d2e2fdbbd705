//! Writes an encoder under the names that another library knows.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use simclr_ground::files::write_whole;
use tch::{Device, Kind};

use super::{HEAD, Names};
use crate::error::TrainError;
use crate::model::parameters::Parameters;

/// Writes the encoder's tensors, and those of its projection head by our own names if `head` is set, to a safetensors file, in f32, batch norm's `num_batches_tracked` among them (`steps`,
/// as torch counts), and `about` as its metadata.
///
/// # Errors
/// If the file can't be written.
pub fn export(
    parameters: &Parameters,
    (names, head): (Names, bool),
    steps: u64,
    about: &BTreeMap<String, String>,
    path: &Path,
) -> Result<usize, TrainError> {
    let mut tensors: Vec<(String, Vec<usize>, Dtype, Vec<u8>)> = Vec::new();
    for parameter in parameters.entries().iter().filter(|p| head || !p.name.starts_with(HEAD)) {
        let values = parameter.tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous().flatten(0, -1);
        let bytes = Vec::<f32>::try_from(values)?.into_iter().flat_map(f32::to_le_bytes).collect();
        let shape = parameter.tensor.size().iter().map(|&n| n as usize).collect();
        tensors.push((names.of(&parameter.name), shape, Dtype::F32, bytes));
        if let Some(norm) = parameter.name.strip_suffix("running_var") {
            let count = (steps as i64).to_le_bytes().to_vec();
            tensors.push((names.of(&format!("{norm}num_batches_tracked")), vec![], Dtype::I64, count));
        }
    }
    let write = |why: String| TrainError::CheckpointWrite { path: path.to_owned(), why };
    let views = tensors.iter().map(|(name, shape, dtype, bytes)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).expect("as many bytes as its shape says"))
    });
    let mut metadata: HashMap<String, String> = about.clone().into_iter().collect();
    // What Hugging Face's loaders ask for.
    metadata.insert("format".into(), "pt".into());
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|error| write(error.to_string()))?;
    write_whole(path, &bytes).map_err(|error| write(error.to_string()))?;
    Ok(tensors.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::resnet::{Encoder, Initialization, ResNet, ResNetShape, Shortcuts, Stem};

    /// The names in `golden/resnet.json` are those of torchvision's models.
    #[test]
    fn a_file_has_torchvisions_names_and_the_same_values() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../../golden/resnet.json")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("encoder.safetensors");
        for case in &golden["cases"].as_array().unwrap()[..3] {
            let encoder: Encoder = serde_json::from_value(case["encoder"].clone()).unwrap();
            let mut parameters = Parameters::new(Device::Cpu, 1);
            let shape = ResNetShape { encoder, width: 1.0, stem: Stem::Imagenet, shortcuts: Shortcuts::default() };
            ResNet::new(&mut parameters, shape, Initialization::He).unwrap();
            let about = BTreeMap::from([("seed".to_owned(), "1".to_owned())]);
            let count = export(&parameters, (Names::Torchvision, false), 7, &about, &path).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
            let metadata = header.metadata().as_ref().unwrap();
            assert_eq!((metadata["seed"].as_str(), metadata["format"].as_str()), ("1", "pt"));
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut wanted: Vec<String> = Vec::new();
            for key in ["gradients", "running"] {
                wanted.extend(case[key].as_object().unwrap().keys().cloned());
            }
            let norms: Vec<String> = wanted
                .iter()
                .filter_map(|name| name.strip_suffix("running_var"))
                .map(|norm| format!("{norm}num_batches_tracked"))
                .collect();
            wanted.extend(norms);
            wanted.sort();
            let mut found: Vec<String> = file.names().into_iter().map(str::to_owned).collect();
            found.sort();
            assert_eq!((found, count), (wanted.clone(), wanted.len()));
            for parameter in parameters.entries() {
                let values: Vec<f32> = Vec::try_from(parameter.tensor.detach().contiguous().flatten(0, -1)).unwrap();
                let stored = file.tensor(&parameter.name).unwrap();
                assert!(
                    stored.data() == values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>(),
                    "{}",
                    parameter.name
                );
            }
        }
    }
}
