//! How right a classifier is: overall, class by class, and what it takes for what.

use serde::Serialize;
use tch::{Kind, Tensor};

use crate::error::TrainError;

/// What scores say of labelled images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Share of images whose class has the highest score.
    pub top1: f64,
    /// Share of images whose class is among the five with the highest scores.
    pub top5: f64,
    /// Mean of the classes' shares: each class counts the same, however many images it has.
    pub mean_per_class: f64,
    /// For each class the share of its images that were recognised; `None` for a class without images.
    pub per_class: Vec<Option<f64>>,
    /// For each class, in rows, how many of its images were taken for which.
    pub confusion: Vec<Vec<u64>>,
}

/// Measures scores `[N, classes]` against labels `[N]`.
///
/// # Errors
/// If libtorch fails.
pub fn measure(scores: &Tensor, labels: &Tensor) -> Result<Measured, TrainError> {
    let (rows, classes) = scores.size2()?;
    // A classifier that diverged ranks nothing.
    let scores = scores.nan_to_num(f64::NEG_INFINITY, None, None);
    let (_, ranked) = scores.topk(classes.min(5), 1, true, true);
    let hits = ranked.eq_tensor(&labels.unsqueeze(1)).to_kind(Kind::Double);
    let top5 = f64::try_from(hits.sum(Kind::Double))? / rows as f64;
    let guessed = Vec::<i64>::try_from(ranked.narrow(1, 0, 1).squeeze_dim(1))?;
    let mut confusion = vec![vec![0; classes as usize]; classes as usize];
    for (label, guess) in Vec::<i64>::try_from(labels)?.into_iter().zip(guessed) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_count_the_same_however_large_they_are() {
        let scores = Tensor::from_slice2(&[[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]);
        let found = measure(&scores, &Tensor::from_slice(&[0i64, 0, 0, 2])).unwrap();
        assert_eq!((found.top1, found.top5), (0.5, 1.0));
        assert_eq!(found.per_class, [Some(2.0 / 3.0), None, Some(0.0)]);
        assert!((found.mean_per_class - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(found.confusion, [[2, 0, 1], [0, 0, 0], [1, 0, 0]]);
        let diverged = measure(&(scores * f64::NAN), &Tensor::from_slice(&[1i64, 1, 1, 1])).unwrap();
        assert!(diverged.top1 <= 1.0, "{diverged:?}");
    }
}
