//! Whether one model is better than another on a set of images, or lucky.

use serde::Serialize;
use simclr_ground::rng::{Draws, Purpose};

use super::measure::mean_average_precision;
use super::{Answers, Metric};
use crate::error::TrainError;

/// How two models are compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompareConfig {
    /// By which number.
    pub metric: Metric,
    /// Random exchanges of the models' answers; 100,000 in the paper.
    pub permutations: u32,
    /// Decides them.
    pub seed: u64,
}

/// What one model has over another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The first one's number, the mean of its runs.
    pub first: f64,
    /// The second one's.
    pub second: f64,
    /// The first one's less the second one's.
    pub difference: f64,
    /// Where the difference lies, in 95 of 100 draws of test images.
    pub interval: [f64; 2],
    /// How often a difference as large comes about if it does not matter whose answer is whose; none for average precision,
    /// for which answers can't be exchanged (SimCLR, appendix B.8).
    pub p_value: Option<f64>,
    /// What was compared and how.
    #[serde(flatten)]
    pub config: CompareConfig,
}

/// Compares the answers of two models, of one or several runs each, to the same images.
///
/// The interval is that of the paired difference: normal for shares (over classes, each with its own spread, for their
/// mean), from 1000 bootstrap draws for average precision. The p-value is that of the two-sided permutation test of the
/// paper's appendix B.8, which exchanges both models' answers to an image half of the time; there is none for average
/// precision, which ranks images of one model against each other.
///
/// # Errors
/// If the images are not the same, or average precision is asked for with several runs.
pub fn compare(first: &[Answers], second: &[Answers], config: &CompareConfig) -> Result<Comparison, TrainError> {
    let labels = first.first().map(Answers::label_list).transpose()?.unwrap_or_default();
    for answers in first.iter().chain(second) {
        if answers.label_list()? != labels {
            return Err(TrainError::Evaluation("only predictions on the same images can be compared".into()));
        }
    }
    if labels.is_empty() || second.is_empty() || config.permutations == 0 {
        return Err(TrainError::Evaluation(
            "expected two models, at least one image and at least one permutation".into(),
        ));
    }
    match (config.metric, first, second) {
        (Metric::Map11, [first], [second]) => precisions(first, second, &labels, config),
        (Metric::Map11, ..) => {
            Err(TrainError::Evaluation("average precision can be compared only for one run of each model".into()))
        }
        _ => shares(first, second, &labels, config),
    }
}

/// Compares by a mean over images, each of which counts for something if it is right.
fn shares(
    first: &[Answers],
    second: &[Answers],
    labels: &[usize],
    config: &CompareConfig,
) -> Result<Comparison, TrainError> {
    let classes = 1 + labels.iter().copied().max().unwrap_or(0);
    let mut images = vec![0u32; classes];
    labels.iter().for_each(|&label| images[label] += 1);
    let known = images.iter().filter(|&&images| images > 0).count();
    // What an image counts, and which images spread together.
    let (weight, group): (Vec<f64>, Vec<usize>) = match config.metric {
        Metric::MeanPerClass => {
            labels.iter().map(|&label| (1.0 / (known as f64 * f64::from(images[label])), label)).unzip()
        }
        _ => labels.iter().map(|_| (1.0 / labels.len() as f64, 0)).unzip(),
    };
    let credit = |runs: &[Answers]| {
        let mut credit = vec![0.0; labels.len()];
        for answers in runs {
            for (i, hit) in answers.hits()?.into_iter().enumerate() {
                credit[i] += if hit { weight[i] / runs.len() as f64 } else { 0.0 };
            }
        }
        Ok::<_, TrainError>(credit)
    };
    let (a, b) = (credit(first)?, credit(second)?);
    let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
    let difference: f64 = differences.iter().sum();
    // The variance of a sum of independent differences, group by group.
    let mut groups = vec![(0.0f64, 0.0f64, 0.0f64); classes];
    for (&d, &group) in differences.iter().zip(&group) {
        let (count, sum, squares) = &mut groups[group];
        (*count, *sum, *squares) = (*count + 1.0, *sum + d, *squares + d * d);
    }
    let of_group = |&(count, sum, squares): &(f64, f64, f64)| {
        if count > 1.0 { (squares - sum * sum / count) * count / (count - 1.0) } else { 0.0 }
    };
    let variance: f64 = groups.iter().map(of_group).sum();
    let margin = 1.959_963_984_540_054 * variance.max(0.0).sqrt();
    // Only where the models differ does an exchange change anything.
    let moved: Vec<f64> = differences.into_iter().filter(|d| *d != 0.0).collect();
    let exchanged = |draws: &mut Draws| {
        let mut sum = 0.0;
        for chunk in moved.chunks(64) {
            let bits = draws.bits();
            sum += chunk.iter().enumerate().map(|(i, d)| if bits >> i & 1 == 1 { *d } else { -d }).sum::<f64>();
        }
        sum
    };
    Ok(Comparison {
        first: a.iter().sum(),
        second: b.iter().sum(),
        difference,
        interval: [difference - margin, difference + margin],
        p_value: Some(p_value(difference, config, exchanged)),
        config: config.clone(),
    })
}

/// Compares by average precision, which is no mean over images.
fn precisions(
    first: &Answers,
    second: &Answers,
    labels: &[usize],
    config: &CompareConfig,
) -> Result<Comparison, TrainError> {
    const DRAWS: usize = 1000;
    let (a, b) = (first.shares()?, second.shares()?);
    let rows = labels.len();
    let value = |shares: &[Vec<f32>], rows: &[usize]| mean_average_precision(shares, labels, rows.iter().copied());
    let all: Vec<usize> = (0..rows).collect();
    let (of_first, of_second) = (value(&a, &all), value(&b, &all));
    let difference = of_first - of_second;
    let mut draws = Draws::new(config.seed, Purpose::Evaluation, &[3]);
    let mut drawn: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let rows: Vec<usize> = (0..rows).map(|_| draws.below(rows as u64) as usize).collect();
            value(&a, &rows) - value(&b, &rows)
        })
        .collect();
    drawn.sort_by(f64::total_cmp);
    Ok(Comparison {
        first: of_first,
        second: of_second,
        difference,
        interval: [drawn[DRAWS * 25 / 1000], drawn[DRAWS * 975 / 1000 - 1]],
        p_value: None,
        config: config.clone(),
    })
}

/// The share of exchanges, the one that was seen among them, that differ as much.
fn p_value(difference: f64, config: &CompareConfig, mut exchanged: impl FnMut(&mut Draws) -> f64) -> f64 {
    // Sums of the same numbers in another order differ in their last bits.
    let as_much = difference.abs() * (1.0 - 1e-9);
    let mut draws = Draws::new(config.seed, Purpose::Evaluation, &[2]);
    let extreme = (0..config.permutations).filter(|_| exchanged(&mut draws).abs() >= as_much).count();
    (extreme + 1) as f64 / f64::from(config.permutations + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    /// Answers that are right where `right` says so.
    fn answers(right: impl Fn(usize) -> bool) -> Answers {
        let labels: Vec<i64> = (0..60).map(|i| i64::from(i % 4 == 0)).collect();
        let score = |i: usize| {
            let said = if right(i) { labels[i] } else { 1 - labels[i] };
            [1.0 - said as f64, said as f64]
        };
        let scores: Vec<f64> = (0..60).flat_map(score).collect();
        Answers { scores: Tensor::from_slice(&scores).view([60, 2]), labels: Tensor::from_slice(&labels) }
    }

    /// Golden values: `golden/evaluation.py` says how, and with which versions, they were made.
    #[test]
    fn p_values_are_scipys() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../golden/evaluation.json")).unwrap();
        let (a, b) = (answers(|i| i % 5 != 0), answers(|i| i % 3 != 0));
        for case in golden["comparisons"].as_array().unwrap() {
            let metric: Metric = serde_json::from_value(case["metric"].clone()).unwrap();
            let config = CompareConfig { metric, permutations: 100_000, seed: 1 };
            let found = compare(std::slice::from_ref(&a), std::slice::from_ref(&b), &config).unwrap();
            let number = |key: &str| case[key].as_f64().unwrap();
            assert!((found.difference - number("difference")).abs() < 1e-12, "{metric:?}: {found:?}");
            for (found, wanted) in found.interval.iter().zip(["low", "high"]) {
                assert!((found - number(wanted)).abs() < 1e-9, "{metric:?}: {found} for {wanted}");
            }
            // scipy's is of all exchanges where it can be; ours of a sample.
            let off = 4.0 * (number("p_value") * (1.0 - number("p_value")) / 1e5).sqrt() + 1e-5;
            assert!((found.p_value.unwrap() - number("p_value")).abs() < off, "{metric:?}: {found:?} for {case}");
        }
        let same = CompareConfig { metric: Metric::Top1, permutations: 100, seed: 1 };
        let found = compare(std::slice::from_ref(&a), std::slice::from_ref(&a), &same).unwrap();
        assert_eq!((found.difference, found.p_value, found.interval), (0.0, Some(1.0), [0.0, 0.0]));
        let of_others = Answers { labels: 1 - &b.labels, scores: b.scores.shallow_clone() };
        assert!(compare(&[a], &[of_others], &same).is_err());
    }

    #[test]
    fn average_precision_is_compared_too() {
        let config = CompareConfig { metric: Metric::Map11, permutations: 500, seed: 1 };
        let found = compare(&[answers(|_| true)], &[answers(|i| i % 2 == 0)], &config).unwrap();
        assert!(found.first == 1.0 && found.second < 1.0 && found.p_value.is_none(), "{found:?}");
        assert!(found.interval[0] > 0.0 && found.interval[0] <= found.difference, "{found:?}");
    }
}
