//! Optimizers: a new one is one file here and one row of [`OptimizerKind`].

mod adamw;
mod lars;
mod sgd;
pub mod schedule;

use serde::{Deserialize, Deserializer, Serialize};
use simclr_ground::error::InvalidValue;
use simclr_ground::kinds;
use simclr_torch::TorchError;
use simclr_torch::foreach::List;
use tch::Tensor;

pub use adamw::AdamW;
pub use lars::Lars;
pub use sgd::Sgd;

use crate::error::{TrainError, of_torch};
use crate::gradients::Gradients;
use crate::model::parameters::{Parameter, Parameters, Role};

/// Which optimizer, and its parameters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OptimizerConfig {
    /// Which optimizer.
    #[serde(flatten)]
    pub kind: OptimizerKind,
    /// What all optimizers have.
    #[serde(flatten)]
    pub shared: OptimizerShared,
}

/// What all optimizers have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerShared {
    /// The base learning rate, before the rule.
    pub learning_rate: f64,
    /// How the learning rate follows the batch size.
    pub learning_rate_rule: LearningRateRule,
    /// Share of the last update that is kept; 0.9 in the paper. AdamW's β₁.
    pub momentum: f64,
    /// Share of each weight added to its gradient (AdamW: times the learning rate, taken off the weight); batch norm and
    /// biases are excluded.
    pub weight_decay: f64,
}

impl Default for OptimizerShared {
    /// The paper's, for ImageNet.
    fn default() -> Self {
        Self { learning_rate: 0.3, learning_rate_rule: LearningRateRule::Linear, momentum: 0.9, weight_decay: 1e-6 }
    }
}

impl OptimizerConfig {
    /// The keys of a kind of this name, `None` if there is none.
    pub fn keys(kind: &str) -> Option<Vec<String>> {
        kinds::known_keys::<OptimizerShared, OptimizerKind>(kind)
    }
}

impl<'de> Deserialize<'de> for OptimizerConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (shared, kind) = kinds::deserialize(deserializer)?;
        Ok(Self { kind, shared })
    }
}

simclr_ground::kinds! {
    /// The optimizers.
    OptimizerKind: Update {
        /// Layer-wise adaptive rate scaling, as the official `lars_optimizer.py`: the paper's.
        Lars(Lars) = "lars",
        /// Stochastic gradient descent with momentum, as torch's.
        Sgd(Sgd) = "sgd",
        /// Adam with decoupled weight decay, as torch's.
        AdamW(AdamW) = "adamw",
    }
}

/// An optimizer's rule, with its own parameters.
trait Update {
    /// Checks every value of its own.
    fn check(&self) -> Result<(), InvalidValue> {
        Ok(())
    }

    /// Whether it keeps the mean square of each gradient beside the momentum.
    fn keeps_squares(&self) -> bool {
        false
    }

    /// Moves tensors that are treated alike; `step` counts from 1.
    fn update(
        &self,
        shared: &OptimizerShared,
        all: &Together<'_>,
        learning_rate: f64,
        step: u64,
    ) -> Result<(), TorchError>;
}

/// How the learning rate follows the batch size `B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LearningRateRule {
    /// `learning_rate × B / 256`.
    Linear,
    /// `learning_rate × √B`; better for small batches (SimCLR, table B.1).
    Sqrt,
    /// `learning_rate` itself.
    Constant,
}

impl OptimizerConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// Names the key, what was found and what would be right.
    pub fn check(&self) -> Result<(), InvalidValue> {
        let OptimizerShared { learning_rate, momentum, weight_decay, .. } = self.shared;
        check_positive("optimizer.learning_rate", learning_rate)?;
        check_share("optimizer.momentum", momentum)?;
        check_share("optimizer.weight_decay", weight_decay)?;
        self.kind.get().check()
    }

    /// The learning rate at the end of the warm-up, for batches of `batch_size` images.
    pub fn peak_learning_rate(&self, batch_size: u32) -> f64 {
        let (rate, size) = (self.shared.learning_rate, f64::from(batch_size));
        match self.shared.learning_rate_rule {
            LearningRateRule::Linear => rate * size / 256.0,
            LearningRateRule::Sqrt => rate * size.sqrt(),
            LearningRateRule::Constant => rate,
        }
    }
}

fn check_positive(key: &'static str, found: f64) -> Result<(), InvalidValue> {
    if found > 0.0 && found.is_finite() {
        Ok(())
    } else {
        Err(InvalidValue::new(key, found, "expected a number above 0"))
    }
}

fn check_share(key: &'static str, found: f64) -> Result<(), InvalidValue> {
    if (0.0..1.0).contains(&found) { Ok(()) } else { Err(InvalidValue::new(key, found, "expected 0 <= x < 1")) }
}

/// An optimizer with its momenta, one for each tensor that learns.
pub struct Optimizer {
    config: OptimizerConfig,
    slots: Vec<Slot>,
}

/// Tensors that are moved together, each with its partners at its place in the other lists.
struct Together<'a> {
    weights: List<'a>,
    gradients: List<'a>,
    momenta: List<'a>,
    /// AdamW's mean squares; else none.
    squares: List<'a>,
    /// Whether these are the ones excluded from weight decay and adaptation.
    excluded: bool,
}

/// A tensor that learns and its momentum.
pub struct Slot {
    /// The tensor's name.
    pub name: String,
    /// The momentum, of the tensor's shape; zero at the start.
    pub momentum: Tensor,
    /// AdamW's mean square of gradients, likewise.
    pub second: Option<Tensor>,
    tensor: Tensor,
    excluded: bool,
}

impl Optimizer {
    /// An optimizer of all tensors of `parameters` that learn.
    pub fn new(config: &OptimizerConfig, parameters: &Parameters) -> Self {
        let zeros = |p: &Parameter| tch::no_grad(|| p.tensor.zeros_like());
        let slot = |p: &Parameter| Slot {
            name: p.name.clone(),
            momentum: zeros(p),
            second: config.kind.get().keeps_squares().then(|| zeros(p)),
            tensor: p.tensor.shallow_clone(),
            excluded: p.role == Role::NoDecay,
        };
        Self { config: config.clone(), slots: parameters.trainable().map(slot).collect() }
    }

    /// Moves the weights along their gradients; `step` counts from 1.
    ///
    /// # Errors
    /// If libtorch fails, as when the device's memory is full.
    pub fn step(&mut self, gradients: &Gradients, learning_rate: f64, step: u64) -> Result<(), TrainError> {
        tch::no_grad(|| {
            [false, true].into_iter().try_for_each(|excluded| {
                let slots = || self.slots.iter().zip(gradients.tensors());
                let slots = || slots().filter(|(slot, gradient)| slot.excluded == excluded && gradient.defined());
                let all = Together {
                    weights: slots().map(|(slot, _)| &slot.tensor).collect(),
                    gradients: slots().map(|(_, gradient)| gradient).collect(),
                    momenta: slots().map(|(slot, _)| &slot.momentum).collect(),
                    squares: slots().filter_map(|(slot, _)| slot.second.as_ref()).collect(),
                    excluded,
                };
                if all.weights.is_empty() {
                    return Ok(());
                }
                self.config.kind.get().update(&self.config.shared, &all, learning_rate, step)
            })
        })
        .map_err(of_torch)
    }

    /// What the optimizer remembers, by name: each tensor's momentum by that tensor's, and its mean square with
    /// `.second` behind it.
    pub fn state(&self) -> Vec<(String, &Tensor)> {
        let momenta = self.slots.iter().map(|slot| (slot.name.clone(), &slot.momentum));
        let squares =
            self.slots.iter().filter_map(|slot| Some((format!("{}.second", slot.name), slot.second.as_ref()?)));
        momenta.chain(squares).collect()
    }

    /// Names of the tensors excluded from weight decay (and from LARS's adaptation).
    pub fn excluded(&self) -> Vec<&str> {
        self.slots.iter().filter(|slot| slot.excluded).map(|slot| slot.name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// Golden values: `golden/trainer.py` says how, and with which versions, they were made.
    fn check(key: &str, config: OptimizerConfig) {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../golden/trainer.json")).unwrap();
        let wave = |n: usize, f: &dyn Fn(f64) -> f64| {
            let values: Vec<f64> = (0..n).map(|k| f(k as f64)).collect();
            Tensor::from_slice(&values).set_requires_grad(true)
        };
        let slot = |name: &str, tensor: Tensor, excluded: bool| {
            let momentum = Tensor::zeros_like(&tensor.detach());
            let second = config.kind.get().keeps_squares().then(|| Tensor::zeros_like(&momentum));
            Slot { name: name.into(), momentum, second, tensor, excluded }
        };
        let slots = vec![
            slot("conv", wave(12, &|k| (k + 1.0).sin()), false),
            slot("zero", Tensor::zeros([6], (Kind::Double, Device::Cpu)).set_requires_grad(true), key != "lars"),
            slot("bias", wave(5, &|k| k.cos()), true),
        ];
        let mut optimizer = Optimizer { config, slots };
        let steps = golden[key].as_array().unwrap();
        assert_eq!(steps.len(), 3);
        for (t, step) in steps.iter().enumerate() {
            let gradient = |slot: &Slot| wave(slot.tensor.size()[0] as usize, &|k| 0.1 * (0.5 * k + t as f64).cos());
            let gradients = optimizer.slots.iter().map(|slot| gradient(slot).detach()).collect();
            let gradients = Gradients::from_tensors(gradients);
            optimizer.step(&gradients, step["learning_rate"].as_f64().unwrap(), t as u64 + 1).unwrap();
            for slot in &optimizer.slots {
                let found = Vec::<f64>::try_from(slot.tensor.detach()).unwrap();
                for (found, wanted) in found.iter().zip(step[&slot.name].as_array().unwrap()) {
                    let wanted = wanted.as_f64().unwrap();
                    assert!((found - wanted).abs() < 1e-8, "{key} step {t} {}: {found}, {wanted} wanted", slot.name);
                }
            }
        }
    }

    fn config(kind: OptimizerKind) -> OptimizerConfig {
        let learning_rate_rule = LearningRateRule::Constant;
        let shared = OptimizerShared {
            learning_rate: 1.0,
            learning_rate_rule,
            weight_decay: 0.01,
            ..OptimizerShared::default()
        };
        OptimizerConfig { kind, shared }
    }

    #[test]
    fn lars_equals_the_official_optimizer() {
        check("lars", config(OptimizerKind::Lars(Lars::default())));
    }

    #[test]
    fn sgd_equals_torchs() {
        check("sgd_nesterov", config(OptimizerKind::Sgd(Sgd { nesterov: true })));
        check("sgd_momentum", config(OptimizerKind::Sgd(Sgd { nesterov: false })));
    }

    #[test]
    fn adamw_equals_torchs() {
        check("adamw", config(OptimizerKind::AdamW(AdamW::default())));
    }

    #[test]
    fn rules_follow_the_batch_size() {
        let mut config = config(OptimizerKind::Lars(Lars::default()));
        config.shared.learning_rate = 0.3;
        config.shared.learning_rate_rule = LearningRateRule::Linear;
        assert!((config.peak_learning_rate(4096) - 4.8).abs() < 1e-12);
        config.shared.learning_rate = 0.075;
        config.shared.learning_rate_rule = LearningRateRule::Sqrt;
        assert!((config.peak_learning_rate(4096) - 4.8).abs() < 1e-12);
    }
}
