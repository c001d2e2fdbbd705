//! Weighted k nearest neighbours, as the field measures representations without training anything.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::Features;
use crate::error::TrainError;

/// Test rows compared at a time; bounds the memory of the similarities.
const CHUNK: i64 = 512;

/// How neighbours vote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnnConfig {
    /// Neighbours that vote; 200 in the field.
    pub k: u32,
    /// A neighbour's vote is exp(cosine similarity / temperature); 0.1 in the field.
    pub temperature: f64,
}

/// The result of a kNN evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KnnResult {
    /// Share of test images whose class has the most votes.
    pub top1: f64,
    /// Share of test images whose class is among the five with the most votes.
    pub top5: f64,
    /// Neighbours that voted (at most the training images there are).
    pub k: u32,
    /// The votes' temperature.
    pub temperature: f64,
}

/// Classifies `test` by its neighbours in `train`, by cosine similarity.
///
/// # Errors
/// If k or the temperature is not positive.
pub fn knn(train: &Features, test: &Features, config: &KnnConfig) -> Result<KnnResult, TrainError> {
    let wrong = |what: &str| Err(TrainError::Evaluation(what.into()));
    if config.k == 0 {
        return wrong("k = 0: at least one neighbour is wanted");
    }
    if !(config.temperature > 0.0 && config.temperature.is_finite()) {
        return wrong("temperature: above 0 is wanted");
    }
    let k = i64::from(config.k).min(train.values.size()[0]);
    let classes = 1 + i64::try_from(train.labels.max().maximum(&test.labels.max()))?;
    let reference = normalized(&train.values);
    let (mut first, mut fifth) = (0.0, 0.0);
    let rows = test.values.size()[0];
    for from in (0..rows).step_by(CHUNK as usize) {
        let count = CHUNK.min(rows - from);
        let votes = votes(
            &reference,
            &train.labels,
            &normalized(&test.values.narrow(0, from, count)),
            k,
            config.temperature,
            classes,
        );
        let labels = test.labels.narrow(0, from, count);
        let (_, ranked) = votes.topk(classes.min(5), 1, true, true);
        let hits = ranked.eq_tensor(&labels.unsqueeze(1)).to_kind(Kind::Double);
        first += f64::try_from(hits.narrow(1, 0, 1).sum(Kind::Double))?;
        fifth += f64::try_from(hits.sum(Kind::Double))?;
    }
    let (top1, top5) = (first / rows as f64, fifth / rows as f64);
    Ok(KnnResult { top1, top5, k: k as u32, temperature: config.temperature })
}

/// Votes for each class: `[N, classes]`, of the `k` rows of `reference` nearest to each row of `queries`.
fn votes(reference: &Tensor, labels: &Tensor, queries: &Tensor, k: i64, temperature: f64, classes: i64) -> Tensor {
    let (similarity, neighbours) = queries.matmul(&reference.tr()).topk(k, 1, true, true);
    let voted = labels.index_select(0, &neighbours.flatten(0, -1)).view_as(&neighbours);
    // The nearest one weighs 1: ranking is by ratios, and exp(1/τ) alone overflows f32 below τ = 0.0113.
    let nearest = similarity.narrow(1, 0, 1);
    let weights = ((&similarity - nearest) / temperature).exp();
    Tensor::zeros([queries.size()[0], classes], (weights.kind(), weights.device())).scatter_add(1, &voted, &weights)
}

fn normalized(values: &Tensor) -> Tensor {
    values / values.norm_scalaropt_dim(2, [1i64].as_slice(), true).clamp_min(1e-12)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(rows: usize, shift: f64) -> Tensor {
        let value = |i: usize, j: usize| (1.1 * i as f64 + 0.6 * j as f64 + shift).sin();
        let values: Vec<f64> = (0..rows).flat_map(|i| (0..6).map(move |j| value(i, j))).collect();
        Tensor::from_slice(&values).view([rows as i64, 6])
    }

    /// Golden values: `golden/trainer.py` says how, and with which versions, they were made.
    #[test]
    fn votes_equal_the_reference() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../golden/trainer.json")).unwrap();
        let golden = &golden["knn"];
        let labels = Tensor::from_slice(&(0..40).map(|i| i % 4).collect::<Vec<i64>>());
        let found = votes(&normalized(&wave(40, 0.0)), &labels, &normalized(&wave(12, 0.2)), 7, 0.1, 4);
        let rows = golden["scores"].as_array().unwrap();
        assert_eq!(rows.len(), 12);
        let shares = |votes: &[f64]| votes.iter().map(|vote| vote / votes.iter().sum::<f64>()).collect::<Vec<_>>();
        for (found, wanted) in Vec::<Vec<f64>>::try_from(&found).unwrap().iter().zip(rows) {
            let wanted: Vec<f64> = wanted.as_array().unwrap().iter().map(|vote| vote.as_f64().unwrap()).collect();
            for (found, wanted) in shares(found).into_iter().zip(shares(&wanted)) {
                assert!((found - wanted).abs() <= 1e-7, "{found}, {wanted} wanted");
            }
        }
        // With the predicted classes as labels every first guess is right.
        let predicted: Vec<i64> = golden["predicted"].as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect();
        let train = Features { values: wave(40, 0.0), labels, left_out: 0, ids: vec![] };
        let test = Features { values: wave(12, 0.2), labels: Tensor::from_slice(&predicted), left_out: 0, ids: vec![] };
        let result = knn(&train, &test, &KnnConfig { k: 7, temperature: 0.1 }).unwrap();
        assert_eq!((result.top1, result.top5), (1.0, 1.0));
        let wrong: Vec<i64> = predicted.iter().map(|c| (c + 1) % 4).collect();
        let test = Features { values: wave(12, 0.2), labels: Tensor::from_slice(&wrong), left_out: 0, ids: vec![] };
        assert_eq!(knn(&train, &test, &KnnConfig { k: 7, temperature: 0.1 }).unwrap().top1, 0.0);
    }
}
