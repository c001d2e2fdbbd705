//! What a representation is worth: features of a labelled set, and the evaluations on them.

mod knn;
mod linear;
mod logistic;
mod measure;

use pipeline::loader::Loader;
use tch::{Device, Tensor};

pub use knn::{KnnConfig, KnnResult, knn};
pub use linear::{LinearConfig, LinearResult, linear};
pub use logistic::{LogisticConfig, LogisticResult, logistic};
pub use measure::{Measured, measure};

use crate::device::{self, DeviceSlab};
use crate::error::TrainError;
use crate::simclr::SimClr;

/// Representations of a set.
pub struct Features {
    /// `[N, dim]` f32 on the CPU.
    pub values: Tensor,
    /// `[N]` i64, on the CPU; of images without a label, [`pipeline::batch::NO_LABEL`].
    pub labels: Tensor,
    /// Each image's place in the manifest, `[N]`.
    pub ids: Vec<u64>,
    /// Damaged samples that were left out.
    pub left_out: u64,
}

/// Encodes every image of a sequential stream of one view; with `layers`, through so many layers of the head.
///
/// # Errors
/// If the stream stops, or nothing in the set can be decoded.
pub fn features(
    model: &SimClr,
    layers: usize,
    loader: &mut Loader<DeviceSlab>,
    device: Device,
    on_batch: &mut dyn FnMut(usize),
) -> Result<Features, TrainError> {
    let (mut values, mut labels, mut ids, mut left_out) = (Vec::new(), Vec::new(), Vec::new(), 0);
    while let Some(batch) = loader.next_batch()? {
        let h = model.represent(&device::upload(&batch, device)?, layers).to_device(Device::Cpu);
        // A place whose sample is damaged holds its neighbour, which has a place of its own.
        let sound: Vec<i64> = (0..batch.num_images).filter(|i| !batch.replaced.contains(i)).map(|i| i as i64).collect();
        left_out += batch.replaced.len() as u64;
        labels.extend(sound.iter().map(|&i| batch.labels[i as usize]));
        ids.extend(sound.iter().map(|&i| batch.sample_ids[i as usize]));
        values.push(h.index_select(0, &Tensor::from_slice(&sound)));
        on_batch(batch.num_images);
    }
    if labels.is_empty() {
        return Err(TrainError::Evaluation("none of the samples can be decoded".into()));
    }
    Ok(Features { values: Tensor::cat(&values, 0), labels: Tensor::from_slice(&labels), ids, left_out })
}
