//! Fine-tuning: a classifier on top of an encoder, and both learn from labels.

use serde::{Deserialize, Serialize};
use simclr_ground::batch_stream::BatchStream;
use tch::{Device, Kind, Tensor};

use crate::device::{self, DeviceSlab};
use crate::error::TrainError;
use crate::gradients::Gradients;
use crate::model::SimClr;
use crate::model::parameters::Role;
use crate::model::resnet::BatchNormMode;
use crate::optimizer::schedule::Schedule;
use crate::optimizer::{LearningRateRule, Optimizer, OptimizerConfig, OptimizerKind, OptimizerShared, Sgd};

/// How an encoder and its classifier are trained: Nesterov momentum 0.9, no warm-up, the learning rate along a cosine
/// to zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FineTuneConfig {
    /// Steps in all.
    pub steps: u64,
    /// The learning rate at the start.
    pub learning_rate: f64,
    /// Weight decay; batch norm and biases are excluded.
    pub weight_decay: f64,
    /// Share of each batch's statistics in the running ones, in (0, 1].
    pub statistics_share: f64,
}

/// What one step did.
#[derive(Debug, Clone, Copy)]
pub struct FineTuneStep {
    /// Steps taken, this one included.
    pub step: u64,
    /// Mean cross entropy of the batch before the step, in nats.
    pub loss: f64,
    /// Share of the batch that was recognized before the step.
    pub top1: f64,
}

/// An encoder, some layers of its projection head, and a linear classifier.
pub struct Classifier {
    model: SimClr,
    layers: usize,
    weight: Tensor,
    bias: Tensor,
    /// How many of the model's tensors are its own.
    own: usize,
}

impl Classifier {
    /// A classifier of what the first `layers` layers of the head make of `h`, its weights zero, as the
    /// official commands have them (`--zero_init_logits_layer=True`).
    ///
    /// # Panics
    /// If the head has not so many layers.
    pub fn new(mut model: SimClr, layers: usize, classes: i64) -> Self {
        let own = model.parameters.entries().len();
        let inputs = if layers == 0 { model.encoder.dim() } else { model.head.length_after(layers) };
        let weight = model.parameters.normal("classifier.weight".into(), &[classes, inputs], 0.0);
        let bias = model.parameters.constant("classifier.bias".into(), classes, 0.0, Role::NoDecay);
        Self { model, layers, weight, bias, own }
    }

    /// Scores `[N, classes]` f32 of views `x`: `[N, 3, H, W]`.
    pub fn scores(&self, x: &Tensor, statistics: BatchNormMode) -> Tensor {
        self.model.hidden(x, self.layers, statistics).linear(&self.weight, Some(&self.bias))
    }

    /// Learns from a stream of labeled images of one view.
    ///
    /// # Errors
    /// If the stream stops or the loss is no number.
    pub fn train(
        &mut self,
        batches: &mut dyn BatchStream<DeviceSlab>,
        device: Device,
        config: &FineTuneConfig,
        on_step: &mut dyn FnMut(FineTuneStep),
    ) -> Result<(), TrainError> {
        let schedule = Schedule { peak: config.learning_rate, warmup_steps: 0, total_steps: config.steps };
        let shared = OptimizerShared {
            learning_rate: config.learning_rate,
            learning_rate_rule: LearningRateRule::Constant,
            momentum: 0.9,
            weight_decay: config.weight_decay,
        };
        let optimizer = OptimizerConfig { kind: OptimizerKind::Sgd(Sgd { nesterov: true }), shared };
        let mut optimizer = Optimizer::new(&optimizer, &self.model.parameters);
        for step in 0..config.steps {
            let batch = batches.next_batch()?.expect("a shuffled stream has no end");
            let (x, labels) = (device::upload(&batch, device)?, Tensor::from_slice(&batch.labels).to_device(device));
            let position = batch.position;
            drop(batch);
            let scores = self.scores(&x, BatchNormMode::UpdateBy(config.statistics_share));
            let loss = scores.cross_entropy_for_logits(&labels);
            let hits = scores.argmax(1, false).eq_tensor(&labels).to_kind(Kind::Float).mean(Kind::Float);
            let gradients = Gradients::of(&loss, &self.model.parameters)?;
            let told = Tensor::stack(&[loss.detach(), hits], 0).to_device(Device::Cpu);
            let (loss, top1) = (told.double_value(&[0]), told.double_value(&[1]));
            if !loss.is_finite() {
                return Err(TrainError::NotFinite { step: step + 1, loss, position });
            }
            optimizer.step(&gradients, schedule.learning_rate(step), step + 1)?;
            on_step(FineTuneStep { step: step + 1, loss, top1 });
        }
        Ok(())
    }

    /// The encoder and its head, without the classifier.
    pub fn into_model(mut self) -> SimClr {
        self.model.parameters.truncate(self.own);
        self.model
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Precision;
    use crate::model::ModelConfig;
    use crate::model::projection_head::HeadConfig;
    use crate::model::resnet::{Encoder, Initialization, Shortcuts, Stem};

    #[test]
    fn a_classifier_sits_where_it_is_told_and_leaves_the_model_as_it_was() {
        let config = ModelConfig {
            encoder: Encoder::Resnet18,
            width: 0.125,
            stem: Stem::Cifar,
            shortcuts: Shortcuts::default(),
            initialization: Initialization::He,
            head: HeadConfig { layers: 2, hidden: 24, dim: 16 },
        };
        let x = Tensor::rand([6, 3, 16, 16], (Kind::Float, Device::Cpu));
        for (layers, inputs) in [(0, 64), (1, 24), (2, 16)] {
            let model = SimClr::new(&config, 1, Device::Cpu, Precision::Fp32).unwrap();
            let names = model.parameters.entries().len();
            let classifier = Classifier::new(model, layers, 5);
            assert_eq!(classifier.weight.size(), [5, inputs]);
            let scores = classifier.scores(&x, BatchNormMode::UpdateBy(1.0));
            assert_eq!(scores.size(), [6, 5]);
            let labels = Tensor::from_slice(&[0i64, 1, 2, 3, 4, 0]);
            let loss = scores.cross_entropy_for_logits(&labels);
            let gradients = Gradients::of(&loss, &classifier.model.parameters).unwrap();
            // The encoder learns, and of the head only the layers below.
            let with: Vec<&str> = classifier
                .model
                .parameters
                .trainable()
                .zip(gradients.tensors())
                .filter(|(_, gradient)| gradient.defined())
                .map(|(parameter, _)| parameter.name.as_str())
                .collect();
            assert!(with.contains(&"conv1.weight") && with.contains(&"classifier.bias"));
            for layer in 0..2 {
                let name = format!("head.{layer}.weight");
                assert_eq!(with.contains(&name.as_str()), layer < layers, "{name} below layer {layers}");
            }
            assert_eq!(classifier.into_model().parameters.entries().len(), names);
        }
    }
}
