//! Weighted k nearest neighbors, as the field measures representations without training anything.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{Answers, Features, classes};
use crate::error::TrainError;

/// Test rows compared at a time.
const CHUNK: i64 = 512;

/// Training rows that they are compared with at a time.
const REFERENCE_CHUNK: i64 = 65_536;

/// How neighbors vote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnnConfig {
    /// Neighbors that vote; 200 in the field.
    pub k: u32,
    /// A neighbor's vote is exp(cosine similarity / temperature); 0.1 in the field.
    pub temperature: f64,
}

/// Classifies `test` by its neighbors in `train`, by cosine similarity; the scores are votes.
///
/// Works wherever the features are, on parts of them at a time: beside the features it needs the similarities of 512
/// images to 65,536, and no more.
///
/// # Errors
/// If k or the temperature is not positive.
pub fn knn(train: &Features, test: &Features, config: &KnnConfig) -> Result<Answers, TrainError> {
    let wrong = |what: &str| Err(TrainError::Evaluation(what.into()));
    if config.k == 0 {
        return wrong("invalid value 0 for k: expected at least 1");
    }
    if !(config.temperature > 0.0 && config.temperature.is_finite()) {
        return wrong("invalid temperature: expected a number above 0");
    }
    let k = i64::from(config.k).min(train.values.size()[0]);
    let classes = classes(&train.labels, &test.labels)?;
    let labels = train.labels.to_device(train.values.device());
    let rows = test.values.size()[0];
    let of_chunk = |from| {
        let queries = normalized(&test.values.narrow(0, from, CHUNK.min(rows - from)).to_kind(Kind::Float));
        let (similarity, neighbors) = nearest(&train.values, &queries, k);
        votes(&similarity, &neighbors, &labels, config.temperature, classes).to_device(Device::Cpu)
    };
    let scores: Vec<Tensor> = tch::no_grad(|| (0..rows).step_by(CHUNK as usize).map(of_chunk).collect());
    Ok(Answers { scores: Tensor::cat(&scores, 0), labels: test.labels.shallow_clone() })
}

/// Rows brought to length 1, in half precision: all that neighbors are found by, in half of the memory.
pub fn normalized_halves(values: &Tensor) -> Tensor {
    normalized(values).to_kind(Kind::Half)
}

/// Cosine similarities to, and places of, the `k` rows of `reference` nearest to each of the normalized `queries`, the
/// nearest first: `[N, k]` both.
fn nearest(reference: &Tensor, queries: &Tensor, k: i64) -> (Tensor, Tensor) {
    let rows = reference.size()[0];
    let mut best: Option<(Tensor, Tensor)> = None;
    for from in (0..rows).step_by(REFERENCE_CHUNK as usize) {
        let count = REFERENCE_CHUNK.min(rows - from);
        let part = normalized(&reference.narrow(0, from, count).to_kind(queries.kind()));
        let (similarity, places) = queries.matmul(&part.tr()).topk(k.min(count), 1, true, true);
        let found = (similarity, places + from);
        best = Some(match best {
            None => found,
            Some(before) => {
                let similarity = Tensor::cat(&[before.0, found.0], 1);
                let places = Tensor::cat(&[before.1, found.1], 1);
                let (similarity, chosen) = similarity.topk(k.min(places.size()[1]), 1, true, true);
                (similarity, places.gather(1, &chosen, false))
            }
        });
    }
    best.expect("a training set has images")
}

/// Votes for each class, `[N, classes]`, of neighbors with these `labels`.
fn votes(similarity: &Tensor, neighbors: &Tensor, labels: &Tensor, temperature: f64, classes: i64) -> Tensor {
    let voted = labels.index_select(0, &neighbors.flatten(0, -1)).view_as(neighbors);
    // The nearest one weighs 1: ranking is by ratios, and exp(1/τ) alone overflows f32 below τ = 0.0113.
    let nearest = similarity.narrow(1, 0, 1);
    let weights = ((similarity - nearest) / temperature).exp();
    Tensor::zeros([similarity.size()[0], classes], (weights.kind(), weights.device())).scatter_add(1, &voted, &weights)
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

    /// Golden values: `golden/trainer.py` and `golden/evaluation.py` say how, and with which versions, they were made:
    /// by the field's formula, and by scikit-learn.
    #[test]
    fn votes_equal_the_references() {
        let labels = Tensor::from_slice(&(0..40).map(|i| i % 4).collect::<Vec<i64>>());
        let (train, test) = (wave(40, 0.0), wave(12, 0.2));
        let (similarity, neighbors) = nearest(&train, &normalized(&test), 7);
        let found = votes(&similarity, &neighbors, &labels, 0.1, 4);
        let shares = |votes: &[f64]| votes.iter().map(|vote| vote / votes.iter().sum::<f64>()).collect::<Vec<_>>();
        for text in [include_str!("../golden/trainer.json"), include_str!("../golden/evaluation.json")] {
            let golden: serde_json::Value = serde_json::from_str(text).unwrap();
            let rows: Vec<Vec<f64>> = serde_json::from_value(golden["knn"]["scores"].clone()).unwrap();
            assert_eq!(rows.len(), 12);
            for (found, wanted) in Vec::<Vec<f64>>::try_from(&found).unwrap().iter().zip(rows) {
                for (found, wanted) in shares(found).into_iter().zip(shares(&wanted)) {
                    assert!((found - wanted).abs() <= 1e-7, "{found}, {wanted} wanted");
                }
            }
        }
        // With the predicted classes as labels every first guess is right.
        let features =
            |values: &Tensor, labels| Features { values: values.shallow_clone(), labels, left_out: 0, ids: vec![] };
        let predicted = found.argmax(1, false);
        let config = KnnConfig { k: 7, temperature: 0.1 };
        let top1 = |train: &Features, labels: Tensor| {
            knn(train, &features(&test, labels), &config).unwrap().measure().unwrap().top1
        };
        let whole = features(&train, labels.shallow_clone());
        assert_eq!(top1(&whole, predicted.shallow_clone()), 1.0);
        assert_eq!(top1(&whole, (&predicted + 1i64).remainder(4)), 0.0);
        let halves = features(&normalized_halves(&train), labels);
        assert_eq!(top1(&halves, predicted), 1.0, "half precision finds the same");
    }

    #[test]
    fn neighbors_are_found_across_parts() {
        tch::manual_seed(1);
        let random = |rows: i64| Tensor::randn([rows, 4], (Kind::Float, Device::Cpu));
        let (reference, queries) = (random(REFERENCE_CHUNK * 2 + 10), normalized(&random(5)));
        let (similarity, places) = nearest(&reference, &queries, 30);
        let (wanted, wanted_places) = queries.matmul(&normalized(&reference).tr()).topk(30, 1, true, true);
        assert_eq!(places, wanted_places);
        assert!(f64::try_from((similarity - wanted).abs().max()).unwrap() < 1e-6);
    }
}
