//! How right a classifier is: overall, class by class, and what it takes for what.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::error::TrainError;

/// What a classifier says of labeled images.
#[derive(Debug)]
pub struct Answers {
    /// A score for each class, the higher the likelier, `[N, classes]`, on the CPU.
    pub scores: Tensor,
    /// What is right, `[N]` i64.
    pub labels: Tensor,
}

/// The number that a data set is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Top-1 accuracy.
    Top1,
    /// Mean per-class accuracy, for datasets whose classes differ in size.
    MeanPerClass,
    /// Mean over classes of the average precision at 11 recalls, as in VOC 2007.
    Map11,
}

/// What scores say of labeled images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Top-1 accuracy.
    pub top1: f64,
    /// Top-5 accuracy.
    pub top5: f64,
    /// Mean per-class accuracy: each class has the same weight, however many images it has.
    pub mean_per_class: f64,
    /// For each class the share of its images that were recognized; `None` for a class without images.
    pub per_class: Vec<Option<f64>>,
    /// The confusion matrix: for each class, in rows, how many of its images were predicted as which.
    pub confusion: Vec<Vec<u64>>,
}

impl Answers {
    /// Measures the scores.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn measure(&self) -> Result<Measured, TrainError> {
        let (rows, classes) = self.scores.size2()?;
        // A classifier that diverged ranks nothing.
        let scores = self.scores.nan_to_num(f64::NEG_INFINITY, None, None);
        let (_, ranked) = scores.topk(classes.min(5), 1, true, true);
        let hits = ranked.eq_tensor(&self.labels.unsqueeze(1)).to_kind(Kind::Double);
        let top5 = f64::try_from(hits.sum(Kind::Double))? / rows as f64;
        let guessed = Vec::<i64>::try_from(ranked.narrow(1, 0, 1).squeeze_dim(1))?;
        let mut confusion = vec![vec![0; classes as usize]; classes as usize];
        for (label, guess) in Vec::<i64>::try_from(&self.labels)?.into_iter().zip(guessed) {
            confusion[label as usize][guess as usize] += 1;
        }
        let share = |(class, row): (usize, &Vec<u64>)| {
            let images: u64 = row.iter().sum();
            (images > 0).then(|| row[class] as f64 / images as f64)
        };
        let per_class: Vec<Option<f64>> = confusion.iter().enumerate().map(share).collect();
        let known: Vec<f64> = per_class.iter().flatten().copied().collect();
        let right: u64 = confusion.iter().enumerate().map(|(class, row)| row[class]).sum();
        Ok(Measured {
            top1: right as f64 / rows as f64,
            top5,
            mean_per_class: known.iter().sum::<f64>() / known.len() as f64,
            per_class,
            confusion,
        })
    }

    /// The value of one metric.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn value(&self, metric: Metric) -> Result<f64, TrainError> {
        match metric {
            Metric::Top1 => Ok(self.measure()?.top1),
            Metric::MeanPerClass => Ok(self.measure()?.mean_per_class),
            Metric::Map11 => Ok(mean_average_precision(&self.shares()?, &self.label_list()?, 0..self.rows())),
        }
    }

    /// How many images there are.
    pub(super) fn rows(&self) -> usize {
        self.labels.size()[0] as usize
    }

    pub(super) fn label_list(&self) -> Result<Vec<usize>, TrainError> {
        Ok(Vec::<i64>::try_from(&self.labels)?.into_iter().map(|label| label as usize).collect())
    }

    /// Whether each image's class has the highest score.
    pub(super) fn hits(&self) -> Result<Vec<bool>, TrainError> {
        let scores = self.scores.nan_to_num(f64::NEG_INFINITY, None, None);
        Ok(Vec::<bool>::try_from(scores.argmax(1, false).eq_tensor(&self.labels))?)
    }

    /// For each class what share of belief each image gives it: the scores' softmax, by columns.
    pub(super) fn shares(&self) -> Result<Vec<Vec<f32>>, TrainError> {
        let shares = self.scores.nan_to_num(f64::NEG_INFINITY, None, None).softmax(1, Kind::Float);
        Ok(Vec::<Vec<f32>>::try_from(shares.tr().contiguous())?)
    }
}

/// The mean over classes of their average precision at 11 recalls, over `rows` of images; `shares` has a row for each
/// class.
pub(super) fn mean_average_precision(
    shares: &[Vec<f32>],
    labels: &[usize],
    rows: impl Iterator<Item = usize> + Clone,
) -> f64 {
    let of_class = |class: usize| {
        let mut ranked: Vec<(f32, bool)> = rows.clone().map(|i| (shares[class][i], labels[i] == class)).collect();
        average_precision(&mut ranked)
    };
    let known: Vec<f64> = (0..shares.len()).filter_map(of_class).collect();
    known.iter().sum::<f64>() / known.len() as f64
}

/// The mean over the recalls 0, 0.1, …, 1 of the best precision at that recall or a higher one (Everingham et al. 2010,
/// section 4.2); `None` if nothing is to be found.
pub(super) fn average_precision(ranked: &mut [(f32, bool)]) -> Option<f64> {
    let wanted = ranked.iter().filter(|(_, is)| *is).count();
    if wanted == 0 {
        return None;
    }
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    // At each image found, the recall and precision there.
    let mut best = [0.0f64; 11];
    let mut found = 0;
    for (i, (_, is)) in ranked.iter().enumerate() {
        if *is {
            found += 1;
            let precision = f64::from(found) / (i + 1) as f64;
            let reached = 10 * found as usize / wanted;
            best.iter_mut().take(reached + 1).for_each(|best| *best = best.max(precision));
        }
    }
    Some(best.iter().sum::<f64>() / 11.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_count_the_same_however_large_they_are() {
        let scores = Tensor::from_slice2(&[[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]);
        let mut answers = Answers { scores, labels: Tensor::from_slice(&[0i64, 0, 0, 2]) };
        let found = answers.measure().unwrap();
        assert_eq!((found.top1, found.top5), (0.5, 1.0));
        assert_eq!(found.per_class, [Some(2.0 / 3.0), None, Some(0.0)]);
        assert!((found.mean_per_class - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(found.confusion, [[2, 0, 1], [0, 0, 0], [1, 0, 0]]);
        assert_eq!(answers.hits().unwrap(), [true, true, false, false]);
        answers.scores *= f64::NAN;
        answers.labels = Tensor::from_slice(&[1i64, 1, 1, 1]);
        let diverged = answers.measure().unwrap();
        assert!(diverged.top1 <= 1.0, "{diverged:?}");
    }

    /// Golden values: `golden/evaluation.py` says how, and with which versions, they were made.
    #[test]
    fn average_precision_is_that_of_the_definition() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../golden/evaluation.json")).unwrap();
        let scores = |i: usize, c: usize| (1.7 * i as f64 + 2.3 * c as f64 + 0.3 * (i * c) as f64).sin();
        let rows: Vec<f64> = (0..40).flat_map(|i| (0..4).map(move |c| scores(i, c))).collect();
        let labels: Vec<i64> = (0..40).map(|i| (i * 7 / 3) % 4).collect();
        let answers = Answers { scores: Tensor::from_slice(&rows).view([40, 4]), labels: Tensor::from_slice(&labels) };
        let found = answers.value(Metric::Map11).unwrap();
        let wanted = golden["map11"].as_f64().unwrap();
        assert!((found - wanted).abs() < 1e-9, "{found}, {wanted} wanted");
        let mut perfect = [(0.9, true), (0.8, true), (0.1, false)];
        assert_eq!(average_precision(&mut perfect), Some(1.0));
        assert_eq!(average_precision(&mut [(0.9, false)]), None);
    }
}
