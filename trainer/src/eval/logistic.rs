//! Multinomial logistic regression by L-BFGS: the protocol of the paper's transfer experiments (appendix B.8), which has
//! one setting to choose, and chooses it on held-out features.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use simclr_ground::rng::{Draws, Purpose};
use tch::{Kind, Tensor};

use super::{Answers, Features, Metric, classes};
use crate::error::TrainError;

/// How the regression is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogisticConfig {
    /// Strengths of the regularization that are tried: 45 from 1e-6 to 1e5, evenly spaced in logarithm, in the paper.
    pub lambdas: Vec<f64>,
    /// Share of the training features held out to choose among them.
    pub validation: f64,
    /// At most so many steps for each.
    pub iterations: u32,
    /// The largest component of the gradient that counts as none.
    pub tolerance: f64,
    /// By which number.
    pub metric: Metric,
    /// Decides which features are held out.
    pub seed: u64,
}

impl Default for LogisticConfig {
    fn default() -> Self {
        let lambdas = (0..45).map(|i| 10f64.powf(-6.0 + 11.0 * f64::from(i) / 44.0)).collect();
        Self { lambdas, validation: 0.1, iterations: 500, tolerance: 1e-6, metric: Metric::Top1, seed: 1 }
    }
}

/// The result of a logistic regression.
#[derive(Debug)]
pub struct LogisticResult {
    /// What it says of the test images.
    pub answers: Answers,
    /// The regularization that did best on the held-out features.
    pub lambda: f64,
    /// What each reached on the held-out features.
    pub validation: Vec<f64>,
}

/// Chooses the regularization on held-out features of `train`, fits once more to all of them, and measures on `test`.
///
/// What is minimized is the mean cross entropy and λ/2 times the sum of the squared weights, biases left out; features
/// are taken as they are.
///
/// # Errors
/// If a setting is out of its range or there are too few features to hold any out.
pub fn logistic(train: &Features, test: &Features, config: &LogisticConfig) -> Result<LogisticResult, TrainError> {
    let wrong = |what: String| Err(TrainError::Evaluation(what));
    if config.lambdas.is_empty() || config.lambdas.iter().any(|lambda| !(*lambda >= 0.0 && lambda.is_finite())) {
        return wrong("invalid lambdas: expected at least one, none below 0".into());
    }
    let rows = train.values.size()[0] as usize;
    let held_out = (rows as f64 * config.validation).round() as usize;
    if held_out == 0 || held_out >= rows {
        return wrong(format!(
            "{held_out} of {rows} training features would be held out; expected at least one on either side"
        ));
    }
    let classes = classes(&train.labels, &test.labels)?;
    let (values, test_values) = (with_ones(&train.values), with_ones(&test.values));
    let mut order: Vec<i64> = (0..rows as i64).collect();
    Draws::new(config.seed, Purpose::Evaluation, &[0]).shuffle(&mut order);
    let (validation, rest) = order.split_at(held_out);
    let some = |chosen: &[i64]| {
        let chosen = Tensor::from_slice(chosen);
        (values.index_select(0, &chosen), train.labels.index_select(0, &chosen))
    };
    let ((validation, validation_labels), (rest, rest_labels)) = (some(validation), some(rest));

    // From the strongest to the weakest, each from where the last one ended.
    let mut strongest_first: Vec<usize> = (0..config.lambdas.len()).collect();
    strongest_first.sort_by(|&a, &b| config.lambdas[b].total_cmp(&config.lambdas[a]));
    let mut weights = Tensor::zeros([values.size()[1], classes], (Kind::Double, values.device()));
    let mut tried: Vec<(f64, Tensor)> = config.lambdas.iter().map(|_| (0.0, Tensor::new())).collect();
    for i in strongest_first {
        let problem = Problem::new(&rest, &rest_labels, classes, config.lambdas[i]);
        weights = minimize(&problem, weights, config)?;
        let answers = Answers { scores: validation.matmul(&weights), labels: validation_labels.shallow_clone() };
        tried[i] = (answers.value(config.metric)?, weights.shallow_clone());
    }
    let validation: Vec<f64> = tried.iter().map(|(reached, _)| *reached).collect();
    let best = (0..tried.len()).max_by(|&a, &b| validation[a].total_cmp(&validation[b]));
    let best = best.expect("at least one was tried");
    let problem = Problem::new(&values, &train.labels, classes, config.lambdas[best]);
    let weights = minimize(&problem, tried.swap_remove(best).1, config)?;
    let answers = Answers { scores: test_values.matmul(&weights), labels: test.labels.shallow_clone() };
    Ok(LogisticResult { answers, lambda: config.lambdas[best], validation })
}

/// Features in f64 with a column of ones behind, whose weights are the biases.
fn with_ones(values: &Tensor) -> Tensor {
    let values = values.to_kind(Kind::Double);
    Tensor::cat(&[&values, &values.ones_like().narrow(1, 0, 1)], 1)
}

/// What is minimized.
struct Problem {
    /// `[N, dim + 1]`, ones in the last column.
    values: Tensor,
    /// `[N, classes]`, ones at the labels.
    wanted: Tensor,
    /// λ for each row of weights: none for the last.
    decay: Tensor,
}

impl Problem {
    fn new(values: &Tensor, labels: &Tensor, classes: i64, lambda: f64) -> Self {
        let columns = values.size()[1];
        let decay = Tensor::full([columns, 1], lambda, (Kind::Double, values.device()));
        let _ = decay.narrow(0, columns - 1, 1).zero_();
        let wanted = labels.one_hot(classes).to_kind(Kind::Double);
        Self { values: values.shallow_clone(), wanted, decay }
    }

    /// The objective at `weights`, `[dim + 1, classes]`, and its gradient.
    fn at(&self, weights: &Tensor) -> Result<(f64, Tensor), TrainError> {
        let rows = self.values.size()[0] as f64;
        let log = self.values.matmul(weights).log_softmax(1, Kind::Double);
        let decay = weights * &self.decay;
        let loss = (&self.wanted * &log).sum(Kind::Double) / -rows + (weights * &decay).sum(Kind::Double) / 2.0;
        let gradient = self.values.tr().matmul(&(log.exp() - &self.wanted)) / rows + decay;
        Ok((f64::try_from(loss)?, gradient))
    }
}

/// The last steps and what the gradient changed by in each, newest last: what L-BFGS knows of the curvature.
struct Memory(VecDeque<(Tensor, Tensor, f64)>);

impl Memory {
    const STEPS: usize = 10;

    fn note(&mut self, step: Tensor, change: Tensor) -> Result<(), TrainError> {
        let product = f64::try_from((&step * &change).sum(Kind::Double))?;
        // Rounding may take the curvature away at the very end; such a step teaches nothing.
        if product > 0.0 {
            if self.0.len() == Self::STEPS {
                self.0.pop_front();
            }
            self.0.push_back((step, change, product));
        }
        Ok(())
    }

    /// Minus the gradient times what is known of the inverse Hessian (Nocedal and Wright 2006, algorithm 7.4).
    fn direction(&self, gradient: &Tensor) -> Result<Tensor, TrainError> {
        let dot = |a: &Tensor, b: &Tensor| Ok::<_, TrainError>(f64::try_from((a * b).sum(Kind::Double))?);
        let mut direction = gradient.neg();
        let mut shares = Vec::with_capacity(self.0.len());
        for (step, change, product) in self.0.iter().rev() {
            let share = dot(step, &direction)? / product;
            direction -= change * share;
            shares.push(share);
        }
        if let Some((_, change, product)) = self.0.back() {
            direction *= product / dot(change, change)?;
        }
        for ((step, change, product), share) in self.0.iter().zip(shares.into_iter().rev()) {
            let back = dot(change, &direction)? / product;
            direction += step * (share - back);
        }
        Ok(direction)
    }
}

/// The weights where the gradient vanishes, from `weights` on.
fn minimize(problem: &Problem, mut weights: Tensor, config: &LogisticConfig) -> Result<Tensor, TrainError> {
    const ENOUGH: f64 = 1e-4;
    const HALVINGS: u32 = 40;
    let mut memory = Memory(VecDeque::new());
    let (mut value, mut gradient) = problem.at(&weights)?;
    for _ in 0..config.iterations {
        if f64::try_from(gradient.abs().max())? <= config.tolerance {
            break;
        }
        let direction = memory.direction(&gradient)?;
        let slope = f64::try_from((&gradient * &direction).sum(Kind::Double))?;
        // Nothing is known at first of how far to go.
        let mut length = if memory.0.is_empty() { (1.0 / -slope).sqrt().min(1.0) } else { 1.0 };
        let mut taken = None;
        for _ in 0..HALVINGS {
            let step = &direction * length;
            let next = &weights + &step;
            let (next_value, next_gradient) = problem.at(&next)?;
            if next_value <= value + ENOUGH * length * slope {
                taken = Some((step, next, next_value, next_gradient));
                break;
            }
            length /= 2.0;
        }
        // No step goes down any more: this is the bottom, as far as numbers tell.
        let Some((step, next, next_value, next_gradient)) = taken else { break };
        memory.note(step, &next_gradient - &gradient)?;
        (weights, value, gradient) = (next, next_value, next_gradient);
    }
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn wave(rows: usize, columns: usize, shift: f64) -> Tensor {
        let value = |i: usize, j: usize| (1.1 * i as f64 + 0.6 * j as f64 + shift).sin();
        let values: Vec<f64> = (0..rows).flat_map(|i| (0..columns).map(move |j| value(i, j))).collect();
        Tensor::from_slice(&values).view([rows as i64, columns as i64])
    }

    fn labels(rows: i64) -> Tensor {
        Tensor::from_slice(&(0..rows).map(|i| (i * 7 / 3) % 4).collect::<Vec<i64>>())
    }

    /// Golden values: `golden/logistic.py` says how, and with which versions, they were made.
    #[test]
    fn weights_are_scikit_learns() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../golden/logistic.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 3);
        let config = LogisticConfig { tolerance: 1e-10, iterations: 5000, ..LogisticConfig::default() };
        for case in cases {
            let lambda = case["lambda"].as_f64().unwrap();
            let problem = Problem::new(&with_ones(&wave(60, 5, 0.0)), &labels(60), 4, lambda);
            let start = Tensor::zeros([6, 4], (Kind::Double, Device::Cpu));
            let found = minimize(&problem, start, &config).unwrap();
            // Adding the same to all biases changes nothing; theirs sum to zero.
            let biases = found.narrow(0, 5, 1);
            let biases = &biases - biases.mean(Kind::Double);
            let found = Tensor::cat(&[found.narrow(0, 0, 5), biases], 0);
            let wanted: Vec<Vec<f64>> = serde_json::from_value(case["weights"].clone()).unwrap();
            let far = f64::try_from((found - Tensor::from_slice2(&wanted)).abs().max()).unwrap();
            assert!(far < 1e-5, "λ {lambda}: weights off by {far}");
            let (value, _) = problem.at(&Tensor::from_slice2(&wanted)).unwrap();
            assert!((value - case["objective"].as_f64().unwrap()).abs() < 1e-7, "λ {lambda}: objective {value}");
        }
    }

    #[test]
    fn the_best_of_all_regularisations_is_chosen() {
        tch::manual_seed(1);
        let clusters = |rows: i64| {
            let labels = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder(4);
            let noise = Tensor::randn([rows, 4], (Kind::Float, Device::Cpu));
            Features {
                values: labels.one_hot(4).to_kind(Kind::Float) * 3.0 + noise * 0.5,
                labels,
                left_out: 0,
                ids: vec![],
            }
        };
        let (train, test) = (clusters(400), clusters(200));
        let result = logistic(&train, &test, &LogisticConfig::default()).unwrap();
        assert!(result.answers.measure().unwrap().top1 > 0.97 && result.validation.len() == 45, "{result:?}");
        let chosen = LogisticConfig::default().lambdas.iter().position(|&lambda| lambda == result.lambda).unwrap();
        let best = result.validation.iter().copied().fold(0.0, f64::max);
        assert_eq!(result.validation[chosen], best, "{result:?}");
        let none = LogisticConfig { lambdas: vec![], ..LogisticConfig::default() };
        assert!(logistic(&train, &test, &none).is_err());
    }
}
