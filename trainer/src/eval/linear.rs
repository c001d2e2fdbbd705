//! A linear probe on frozen features, with several learning rates trained at the same time.

use serde::{Deserialize, Serialize};
use simclr_ground::batch_stream::BatchStream;
use simclr_ground::rng::{Draws, Purpose};
use tch::{Device, Kind, Tensor};

use super::{Answers, Features, classes};
use crate::device::{self, DeviceSlab};
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
#[derive(Debug)]
pub struct LinearResult {
    /// What it says of the test images.
    pub answers: Answers,
    /// The learning rate that did best on the held-out features.
    pub learning_rate: f64,
    /// Accuracy of each learning rate on the held-out features.
    pub validation_top1: Vec<f64>,
}

impl LinearConfig {
    fn check(&self) -> Result<(), TrainError> {
        if self.epochs == 0 || self.batch == 0 || self.learning_rates.is_empty() {
            let text = "expected at least one epoch, one feature per batch and one learning rate";
            return Err(TrainError::Evaluation(text.into()));
        }
        Ok(())
    }
}

/// Trains linear classifiers on most of `train`, chooses a learning rate on the held-out rest, trains with it on all of
/// `train`, as the paper does, and lets that classifier answer for `test`.
///
/// Softmax regression on features whose dimensions are brought to mean 0 and deviation 1 over the training set;
/// Nesterov momentum 0.9, cosine to zero, no regularization, weights zero at the start. The features are those of
/// center crops, computed once; [`linear_on_crops`] trains on random crops, as the paper does.
///
/// # Errors
/// If a setting is out of its range or there are too few features to hold any out.
pub fn linear(train: &Features, test: &Features, config: &LinearConfig) -> Result<LinearResult, TrainError> {
    config.check()?;
    let rows = train.values.size()[0] as usize;
    let held_out = (rows as f64 * config.validation).round() as usize;
    if held_out == 0 || held_out >= rows {
        return Err(TrainError::Evaluation(format!(
            "{held_out} of {rows} training features would be held out; expected at least one on either side"
        )));
    }
    let scale = Scale::of(&train.values);
    let values = scale.apply(&train.values);
    let mut order: Vec<i64> = (0..rows as i64).collect();
    Draws::new(config.seed, Purpose::Evaluation, &[0]).shuffle(&mut order);
    let (validation, rest) = order.split_at(held_out);

    let classes = classes(&train.labels, &test.labels)?;
    let trained = |rows: &[i64], config: &LinearConfig| {
        let batch = (config.batch as usize).min(rows.len());
        let mut probes = Probes::new(config, batch, scale.clone(), classes);
        let steps_per_epoch = rows.len() / batch;
        let total = steps_per_epoch * config.epochs as usize;
        let mut rows = rows.to_vec();
        for step in 0..total {
            if step % steps_per_epoch == 0 {
                let epoch = (step / steps_per_epoch) as u64;
                Draws::new(config.seed, Purpose::Evaluation, &[1, epoch]).shuffle(&mut rows);
            }
            let chosen = Tensor::from_slice(&rows[step % steps_per_epoch * batch..][..batch]);
            let labels = train.labels.index_select(0, &chosen);
            probes.learn(&values.index_select(0, &chosen), &labels, step as f64 / total as f64);
        }
        probes
    };
    let validation = Tensor::from_slice(validation);
    let (held, labels) = (values.index_select(0, &validation), train.labels.index_select(0, &validation));
    let chosen = trained(rest, config).best(&held, &labels, test, config)?;
    let alone = LinearConfig { learning_rates: vec![chosen.learning_rate], ..config.clone() };
    let answers = trained(&order, &alone).answers(0, test);
    Ok(LinearResult { answers, ..chosen })
}

/// As [`linear`], on a stream of randomly cropped and flipped images instead of features, as the paper trains; the
/// encoder does not learn, and all learning rates are trained in the same pass.
///
/// `batches` has `steps` batches of one view; `held_out` are features of center crops of other images. Whoever calls it trains
/// again on all images with the learning rate that it found.
///
/// # Errors
/// If a setting is out of its range or the stream stops.
pub fn linear_on_crops(
    represent: &dyn Fn(&Tensor) -> Tensor,
    (batches, steps, batch, device): (&mut dyn BatchStream<DeviceSlab>, u64, u32, Device),
    (held_out, test): (&Features, &Features),
    config: &LinearConfig,
    on_step: &mut dyn FnMut(u64),
) -> Result<LinearResult, TrainError> {
    config.check()?;
    let scale = Scale::of(&held_out.values);
    let mut probes = Probes::new(config, batch as usize, scale, classes(&held_out.labels, &test.labels)?);
    for step in 0..steps {
        let batch = batches.next_batch()?.expect("a shuffled stream has no end");
        let rows = tch::no_grad(|| Ok::<_, TrainError>(represent(&device::upload(&batch, device)?)))?;
        let labels = Tensor::from_slice(&batch.labels);
        drop(batch);
        probes.learn(&probes.scale.apply(&rows), &labels, step as f64 / steps as f64);
        on_step(step + 1);
    }
    probes.best(&probes.scale.apply(&held_out.values), &held_out.labels, test, config)
}

/// What brings each dimension to mean 0 and deviation 1.
#[derive(Debug)]
struct Scale {
    mean: Tensor,
    deviation: Tensor,
}

impl Scale {
    fn of(values: &Tensor) -> Self {
        let mean = values.mean_dim([0i64].as_slice(), true, Kind::Float);
        let deviation = values.std_dim([0i64].as_slice(), false, true).clamp_min(1e-6);
        Self { mean, deviation }
    }

    fn clone(&self) -> Self {
        Self { mean: self.mean.shallow_clone(), deviation: self.deviation.shallow_clone() }
    }

    fn apply(&self, values: &Tensor) -> Tensor {
        (values - &self.mean) / &self.deviation
    }
}

/// One classifier for each learning rate, `R` of them, with their momenta.
struct Probes {
    /// `[R, dim, classes]`.
    weight: [Tensor; 2],
    /// `[R, 1, classes]`.
    bias: [Tensor; 2],
    /// Learning rates at the start, `[R, 1, 1]`.
    peaks: Tensor,
    classes: i64,
    scale: Scale,
}

impl Probes {
    /// Classifiers that learn from so many rows at a time.
    fn new(config: &LinearConfig, batch: usize, scale: Scale, classes: i64) -> Self {
        let (rates, dim) = (config.learning_rates.len() as i64, scale.mean.size()[1]);
        let zeros = |size: [i64; 3]| [(); 2].map(|()| Tensor::zeros(size, (Kind::Float, Device::Cpu)));
        let share = batch as f64 / 256.0;
        let peaks: Vec<f32> = config.learning_rates.iter().map(|rate| (rate * share) as f32).collect();
        Self {
            weight: zeros([rates, dim, classes]),
            bias: zeros([rates, 1, classes]),
            peaks: Tensor::from_slice(&peaks).view([rates, 1, 1]),
            classes,
            scale,
        }
    }

    /// Learns from rows `x`, `[n, dim]`, when `done` of the steps, in [0, 1), are done.
    fn learn(&mut self, x: &Tensor, labels: &Tensor, done: f64) {
        let wanted = labels.one_hot(self.classes).to_kind(Kind::Float);
        // The gradient of softmax cross entropy is known in closed form: x · (p − wanted).
        let logits = self.scores(x);
        let error = (logits.softmax(2, Kind::Float) - wanted.unsqueeze(0)) / labels.size()[0] as f64;
        let weight_gradient = x.tr().unsqueeze(0).matmul(&error);
        let bias_gradient = error.sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
        let rate = &self.peaks * (0.5 * (1.0 + (std::f64::consts::PI * done).cos()));
        for ([value, momentum], gradient) in [(&mut self.weight, weight_gradient), (&mut self.bias, bias_gradient)] {
            let _ = momentum.g_mul_scalar_(0.9).g_add_(&gradient);
            let _ = value.g_sub_(&((gradient + &*momentum * 0.9) * &rate));
        }
    }

    /// Scores of each classifier, `[R, N, classes]`.
    fn scores(&self, values: &Tensor) -> Tensor {
        values.unsqueeze(0).matmul(&self.weight[0]) + &self.bias[0]
    }

    /// What one of the classifiers says of the test features.
    fn answers(&self, which: usize, test: &Features) -> Answers {
        let scores = self.scores(&self.scale.apply(&test.values)).get(which as i64);
        Answers { scores, labels: test.labels.shallow_clone() }
    }

    /// Chooses the best by held-out rows, and lets it answer for the test features.
    fn best(
        &self,
        held_out: &Tensor,
        labels: &Tensor,
        test: &Features,
        config: &LinearConfig,
    ) -> Result<LinearResult, TrainError> {
        // A classifier that diverged ranks nothing.
        let guessed = self.scores(held_out).nan_to_num(f64::NEG_INFINITY, None, None).argmax(2, false);
        let hits = guessed.eq_tensor(&labels.view([1, -1])).to_kind(Kind::Double);
        let validation_top1 = Vec::<f64>::try_from(hits.mean_dim([1i64].as_slice(), false, Kind::Double))?;
        let best = (0..validation_top1.len()).max_by(|&a, &b| validation_top1[a].total_cmp(&validation_top1[b]));
        let best = best.expect("at least one learning rate");
        let answers = self.answers(best, test);
        Ok(LinearResult { answers, learning_rate: config.learning_rates[best], validation_top1 })
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
        let (train, test) = (clusters(800, 1), clusters(400, 2));
        let result = linear(&train, &test, &config).unwrap();
        let measured = result.answers.measure().unwrap();
        assert!(measured.top1 > 0.97 && measured.top5 == 1.0, "{result:?}");
        let again = linear(&train, &test, &config).unwrap();
        assert_eq!(result.answers.scores, again.answers.scores, "the seed decides");
        let mut shuffled = clusters(800, 1);
        shuffled.labels = Tensor::randint(4, [800], (Kind::Int64, Device::Cpu));
        let chance = linear(&shuffled, &test, &config).unwrap();
        assert!(chance.answers.measure().unwrap().top1 < 0.5, "labels that mean nothing teach nothing: {chance:?}");
    }

    /// What was held out to choose is learned from in the end: each image in turn is the only one of its class.
    #[test]
    fn the_classifier_that_answers_has_learned_from_all_images() {
        let config = LinearConfig { epochs: 30, batch: 16, validation: 0.25, ..LinearConfig::default() };
        let one_hot = |labels: &[i64]| {
            let labels = Tensor::from_slice(labels);
            let values = labels.one_hot(5).to_kind(Kind::Float) * 3.0;
            Features { values, labels, left_out: 0, ids: vec![] }
        };
        let test = one_hot(&[0, 1, 2, 3, 4]);
        for alone in 0..16 {
            let mut labels: Vec<i64> = (0..40).map(|i| i % 4).collect();
            labels[alone] = 4;
            let result = linear(&one_hot(&labels), &test, &config).unwrap();
            assert_eq!(result.answers.measure().unwrap().top1, 1.0, "image {alone} is the only one of its class");
        }
    }
}
