//! What a representation is worth: features of a labeled set, and the evaluations on them.
//!
//! Each way of classifying ends in [`Answers`]; what they are worth is measured, and compared, in one place.

mod compare;
mod finetune;
mod knn;
mod linear;
mod logistic;
mod measure;
mod protocol;

use simclr_ground::batch::Batch;
use simclr_ground::batch_stream::BatchStream;
use tch::{Device, Tensor};

pub use compare::{CompareConfig, Comparison, compare};
pub use finetune::{Classifier, FineTuneConfig, FineTuneStep};
pub use knn::{KnnConfig, knn, normalized_halves};
pub use linear::{LinearConfig, LinearResult, linear, linear_on_crops};
pub use logistic::{LogisticConfig, LogisticResult, logistic};
pub use measure::{Answers, Measured, Metric};
pub use protocol::{
    EvalData, EvalView, FinetuneSettings, Outcome, SetInfo, SetRole, StreamRequest, StreamSize, Task, TransferSettings,
    encode,
};

use crate::device::{self, DeviceSlab};
use crate::error::TrainError;

/// Representations of a set.
pub struct Features {
    /// `[N, dim]`: f32 on the CPU, unless they were asked for otherwise.
    pub values: Tensor,
    /// `[N]` i64, on the CPU; of images without a label, [`simclr_ground::batch::NO_LABEL`].
    pub labels: Tensor,
    /// Each image's place in the manifest, `[N]`.
    pub ids: Vec<u64>,
    /// Damaged samples that were left out.
    pub left_out: u64,
}

impl Features {
    /// The same, as neighbors are found by: see [`normalized_halves`].
    pub fn halves(&self) -> Self {
        let (labels, ids) = (self.labels.shallow_clone(), self.ids.clone());
        Self { values: normalized_halves(&self.values), labels, ids, left_out: self.left_out }
    }
}

/// Encodes every image of a sequential stream of one view; `represent` makes rows `[n, dim]` of views `[n, 3, H, W]`.
///
/// # Errors
/// If the stream stops, or nothing in the set can be decoded.
pub fn features(
    represent: &dyn Fn(&Tensor) -> Tensor,
    batches: &mut dyn BatchStream<DeviceSlab>,
    device: Device,
    on_batch: &mut dyn FnMut(usize),
) -> Result<Features, TrainError> {
    let (mut values, mut labels, mut ids, mut left_out) = (Vec::new(), Vec::new(), Vec::new(), 0);
    while let Some(batch) = batches.next_batch()? {
        let rows = tch::no_grad(|| Ok::<_, TrainError>(represent(&device::upload(&batch, device)?)))?;
        let sound = sound(&batch);
        left_out += batch.replaced.len() as u64;
        labels.extend(sound.iter().map(|&i| batch.labels[i as usize]));
        ids.extend(sound.iter().map(|&i| batch.sample_ids[i as usize]));
        values.push(rows.index_select(0, &Tensor::from_slice(&sound).to_device(rows.device())));
        on_batch(batch.num_images);
    }
    if labels.is_empty() {
        return Err(TrainError::Evaluation("none of the samples could be decoded".into()));
    }
    Ok(Features { values: Tensor::cat(&values, 0), labels: Tensor::from_slice(&labels), ids, left_out })
}

/// The batch's places that hold their own sample: one whose sample is damaged holds its neighbor, which has a place of
/// its own.
fn sound(batch: &Batch<DeviceSlab>) -> Vec<i64> {
    (0..batch.num_images).filter(|i| !batch.replaced.contains(i)).map(|i| i as i64).collect()
}

/// How many classes the labels of both sets need.
fn classes(train: &Tensor, test: &Tensor) -> Result<i64, TrainError> {
    Ok(1 + i64::try_from(train.max().maximum(&test.max()))?)
}
