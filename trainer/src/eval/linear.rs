//! A linear probe on frozen features, with several learning rates trained at the same time.

use pipeline::rng::{Draws, Purpose};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{Features, Measured, measure};
use crate::error::TrainError;

/// How a probe is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearConfig {
    /// Passes over the training features; 90 in the paper.
    pub epochs: u32,
    /// Features per step.
    pub batch: u32,
    /// Learning rates that are tried, for a batch of 256; they follow the batch size linearly.
    pub learning_rates: Vec<f64>,
    /// Share of the training features held out to choose the learning rate.
    pub validation: f64,
    /// Decides the batches and which features are held out.
    pub seed: u64,
}

impl Default for LinearConfig {
    fn default() -> Self {
        let learning_rates = vec![0.03, 0.1, 0.3, 1.0, 3.0, 10.0];
        Self { epochs: 90, batch: 512, learning_rates, validation: 0.1, seed: 1 }
    }
}

/// The result of a linear evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinearResult {
    /// How right it is on the test images.
    pub measured: Measured,
    /// The learning rate that did best on the held-out features.
    pub learning_rate: f64,
    /// Accuracy of each learning rate on the held-out features.
    pub validation_top1: Vec<f64>,
}

/// Trains linear classifiers on `train`, chooses one on held-out features, and measures it on `test`.
///
/// Softmax regression on features whose dimensions are brought to mean 0 and deviation 1 over the training set;
/// Nesterov momentum 0.9, cosine to zero, no regularisation, weights zero at the start. The features are those of
/// centre crops, computed once; the paper trains on random crops instead.
///
/// # Errors
/// If a setting is out of its range or there are too few features to hold any out.
pub fn linear(train: &Features, test: &Features, config: &LinearConfig) -> Result<LinearResult, TrainError> {
    let rows = train.values.size()[0] as usize;
    let held_out = (rows as f64 * config.validation).round() as usize;
    if config.epochs == 0 || config.batch == 0 || config.learning_rates.is_empty() {
        return Err(TrainError::Evaluation(
            "at least one epoch, one feature per batch and one learning rate are wanted".into(),
        ));
    }
    if held_out == 0 || held_out >= rows {
        let found =
            format!("{held_out} of {rows} training features would be held out; at least one on either side is wanted");
        return Err(TrainError::Evaluation(found));
    }
    let classes = 1 + i64::try_from(train.labels.max().maximum(&test.labels.max()))?;
    let mean = train.values.mean_dim([0i64].as_slice(), true, Kind::Float);
    let deviation = train.values.std_dim([0i64].as_slice(), false, true).clamp_min(1e-6);
    let scaled = |values: &Tensor| (values - &mean) / &deviation;
    let (values, test_values) = (scaled(&train.values), scaled(&test.values));
    let mut order: Vec<i64> = (0..rows as i64).collect();
    Draws::new(config.seed, Purpose::Evaluation, &[0]).shuffle(&mut order);
    let (validation, rest) = order.split_at(held_out);

    let probes = Probes::train(&values, &train.labels, rest, classes, config);
    let validation = Tensor::from_slice(validation);
    let validation_top1 =
        probes.accuracy(&values.index_select(0, &validation), &train.labels.index_select(0, &validation))?;
    let best = (0..validation_top1.len()).max_by(|&a, &b| validation_top1[a].total_cmp(&validation_top1[b]));
    let best = best.expect("at least one learning rate");
    let measured = measure(&probes.scores(&test_values).get(best as i64), &test.labels)?;
    Ok(LinearResult { measured, learning_rate: config.learning_rates[best], validation_top1 })
}

/// One classifier for each learning rate, `R` of them.
struct Probes {
    /// `[R, dim, classes]`.
    weight: Tensor,
    /// `[R, 1, classes]`.
    bias: Tensor,
}

impl Probes {
    fn train(values: &Tensor, labels: &Tensor, rows: &[i64], classes: i64, config: &LinearConfig) -> Self {
        let (_, dim) = values.size2().expect("features are a matrix");
        let rates = config.learning_rates.len() as i64;
        let batch = (config.batch as usize).min(rows.len());
        let zeros = |size: [i64; 3]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
        let (mut weight, mut bias) = (zeros([rates, dim, classes]), zeros([rates, 1, classes]));
        let (mut weight_momentum, mut bias_momentum) = (weight.zeros_like(), bias.zeros_like());
        let peaks: Vec<f32> = config.learning_rates.iter().map(|rate| (rate * batch as f64 / 256.0) as f32).collect();
        let peaks = Tensor::from_slice(&peaks).view([rates, 1, 1]);
        let steps_per_epoch = rows.len() / batch;
        let total = steps_per_epoch * config.epochs as usize;
        let mut order = rows.to_vec();
        for step in 0..total {
            if step % steps_per_epoch == 0 {
                let epoch = (step / steps_per_epoch) as u64;
                Draws::new(config.seed, Purpose::Evaluation, &[1, epoch]).shuffle(&mut order);
            }
            let chosen = Tensor::from_slice(&order[step % steps_per_epoch * batch..][..batch]);
            let x = values.index_select(0, &chosen);
            let wanted = labels.index_select(0, &chosen).one_hot(classes).to_kind(Kind::Float);
            // The gradient of softmax cross entropy is known in closed form: x · (p − wanted).
            let logits = x.unsqueeze(0).matmul(&weight) + &bias;
            let error = (logits.softmax(2, Kind::Float) - wanted.unsqueeze(0)) / batch as f64;
            let weight_gradient = x.tr().unsqueeze(0).matmul(&error);
            let bias_gradient = error.sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
            let share = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / total as f64).cos());
            let rate = &peaks * share;
            for (value, momentum, gradient) in
                [(&mut weight, &mut weight_momentum, weight_gradient), (&mut bias, &mut bias_momentum, bias_gradient)]
            {
                let _ = momentum.g_mul_scalar_(0.9).g_add_(&gradient);
                let _ = value.g_sub_(&((gradient + &*momentum * 0.9) * &rate));
            }
        }
        Self { weight, bias }
    }

    /// Scores of each classifier, `[R, N, classes]`.
    fn scores(&self, values: &Tensor) -> Tensor {
        values.unsqueeze(0).matmul(&self.weight) + &self.bias
    }

    /// Accuracy of each classifier.
    fn accuracy(&self, values: &Tensor, labels: &Tensor) -> Result<Vec<f64>, TrainError> {
        // A classifier that diverged ranks nothing.
        let guessed = self.scores(values).nan_to_num(f64::NEG_INFINITY, None, None).argmax(2, false);
        let hits = guessed.eq_tensor(&labels.view([1, -1])).to_kind(Kind::Double);
        Ok(Vec::<f64>::try_from(hits.mean_dim([1i64].as_slice(), false, Kind::Double))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clusters(rows: i64, seed: i64) -> Features {
        tch::manual_seed(seed);
        let labels = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder(4);
        let centres = labels.one_hot(4).to_kind(Kind::Float) * 3.0;
        let noise = Tensor::randn([rows, 4], (Kind::Float, Device::Cpu));
        Features { values: centres + noise * 0.5, labels, left_out: 0, ids: vec![] }
    }

    #[test]
    fn a_probe_separates_what_a_plane_separates_and_nothing_else() {
        let config = LinearConfig { epochs: 10, batch: 64, ..LinearConfig::default() };
        let result = linear(&clusters(800, 1), &clusters(400, 2), &config).unwrap();
        assert!(result.measured.top1 > 0.97 && result.measured.top5 == 1.0, "{result:?}");
        assert_eq!(result, linear(&clusters(800, 1), &clusters(400, 2), &config).unwrap(), "the seed decides");
        let mut shuffled = clusters(800, 1);
        shuffled.labels = Tensor::randint(4, [800], (Kind::Int64, Device::Cpu));
        let chance = linear(&shuffled, &clusters(400, 2), &config).unwrap();
        assert!(chance.measured.top1 < 0.5, "labels that mean nothing teach nothing: {chance:?}");
    }
}
