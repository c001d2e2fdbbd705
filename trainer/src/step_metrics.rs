//! The numbers that each step logs: a row each, from which come the gauge, the entry in `metrics.jsonl`, TensorBoard's
//! scalar, the column of the table, and the curves of report and page.

use metrics::{Gauge, describe_gauge, gauge};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::error::TrainError;
use crate::gradients::Gradients;
use crate::loss::LossOutput;
use crate::model::parameters::Parameters;

/// A number that each step logs.
pub struct StepMetric {
    /// Its name in `metrics.jsonl`, in tables, and on the page.
    pub key: &'static str,
    /// Its tag in TensorBoard.
    pub tag: &'static str,
    /// The gauge that shows it, with the decision that it changes; `None` where another metric does.
    pub gauge: Option<(&'static str, &'static str)>,
    /// What its curve is called, and its unit; `None` for numbers that make no curve.
    pub curve: Option<(&'static str, &'static str)>,
    /// Where it comes from.
    pub value: Value,
}

/// Where a number comes from.
pub enum Value {
    /// A scalar on the device, worked out from what the step made of its batch; all of them come to the host at once.
    Device(fn(&StepOutput<'_>) -> Result<Tensor, TrainError>),
    /// A number of the host's.
    Host(fn(&StepTimes) -> f64),
}

/// What a step made of its batch, on the device.
pub struct StepOutput<'a> {
    /// The loss and what comes with it.
    pub contrast: &'a LossOutput,
    /// The gradient of everything that learns.
    pub gradients: &'a Gradients,
    /// All tensors of the model, before the step.
    pub parameters: &'a Parameters,
    /// Share of views that the probe recognizes, if there is one.
    pub probe_accuracy: Option<&'a Tensor>,
}

/// When a step was taken, and what it took.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepTimes {
    /// Epochs seen, this batch included.
    pub epoch: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Images in the batch, those of all ranks.
    pub images: usize,
    /// Seconds of the step without the wait for its batch.
    pub step_seconds: f64,
    /// Seconds waited for the batch.
    pub data_wait_seconds: f64,
    /// Seconds by the clock on the wall, from the end of the step before, or of what came between, to the end of this one.
    pub wall_seconds: f64,
}

/// All of them, in the order in which they are logged.
pub const STEP_METRICS: &[StepMetric] = &[
    StepMetric { key: "epoch", tag: "train/epoch", gauge: None, curve: None, value: Value::Host(|times| times.epoch) },
    StepMetric {
        key: "loss",
        tag: "train/loss",
        gauge: Some((
            "simclr_trainer_loss",
            "Contrastive loss; if the curve is flat, change the learning rate or temperature.",
        )),
        curve: Some(("Loss", "contrastive loss, nats")),
        value: Value::Device(|output| Ok(output.contrast.loss.detach())),
    },
    StepMetric {
        key: "contrastive_accuracy",
        tag: "train/contrastive_accuracy",
        gauge: Some((
            "simclr_trainer_contrastive_accuracy_ratio",
            "Fraction of images whose second view is retrieved among all second views of the batch; near 1 the task is too easy.",
        )),
        curve: Some(("Contrastive accuracy", "fraction of images whose second view is retrieved")),
        value: Value::Device(|output| Ok(output.contrast.accuracy.shallow_clone())),
    },
    StepMetric {
        key: "contrastive_entropy",
        tag: "train/contrastive_entropy",
        gauge: Some((
            "simclr_trainer_contrastive_entropy",
            "Entropy of the similarity distribution over second views, in nats; shows whether the temperature fits.",
        )),
        curve: None,
        value: Value::Device(|output| Ok(output.contrast.entropy.shallow_clone())),
    },
    StepMetric {
        key: "learning_rate",
        tag: "train/learning_rate",
        gauge: Some(("simclr_trainer_learning_rate", "Learning rate of the last step.")),
        curve: Some(("Learning rate", "")),
        value: Value::Host(|times| times.learning_rate),
    },
    StepMetric {
        key: "gradient_norm",
        tag: "train/gradient_norm",
        gauge: Some(("simclr_trainer_gradient_norm", "Global gradient norm; a jump often precedes divergence.")),
        curve: None,
        value: Value::Device(|output| output.gradients.norm(output.parameters)),
    },
    StepMetric {
        key: "embedding_std",
        tag: "train/embedding_std",
        gauge: Some((
            "simclr_trainer_embedding_std",
            "Standard deviation of the normalized projections: 1 if they fill the sphere, 0 if they have collapsed; stop the run when it approaches 0.",
        )),
        curve: Some(("Spread of projections", "1 fills the sphere, 0 is collapsed")),
        value: Value::Device(|output| Ok(embedding_std(&output.contrast.projections))),
    },
    StepMetric {
        key: "probe_accuracy",
        tag: "train/probe_accuracy",
        gauge: Some((
            "simclr_trainer_probe_accuracy_ratio",
            "Top-1 accuracy of the online linear probe (train.probe); should rise during training.",
        )),
        curve: Some(("Probe", "top-1 accuracy of the online linear probe")),
        value: Value::Device(|output| {
            let unknown = || Tensor::full([], f64::NAN, (Kind::Float, output.contrast.loss.device()));
            Ok(output.probe_accuracy.map_or_else(unknown, Tensor::shallow_clone))
        }),
    },
    StepMetric {
        key: "images_per_second",
        tag: "speed/images_per_second",
        gauge: None,
        curve: Some(("Speed", "images per second")),
        value: Value::Host(|times| times.images as f64 / times.wall_seconds),
    },
    StepMetric {
        key: "step_seconds",
        tag: "speed/step_seconds",
        gauge: None,
        curve: None,
        value: Value::Host(|times| times.step_seconds),
    },
    StepMetric {
        key: "data_wait_seconds",
        tag: "speed/data_wait_seconds",
        gauge: None,
        curve: None,
        value: Value::Host(|times| times.data_wait_seconds),
    },
    StepMetric {
        key: "wall_seconds",
        tag: "speed/wall_seconds",
        gauge: None,
        curve: None,
        value: Value::Host(|times| times.wall_seconds),
    },
    StepMetric {
        key: "data_wait_share",
        tag: "speed/data_wait_share",
        gauge: None,
        curve: Some(("Data wait", "fraction of the step time")),
        value: Value::Host(|times| times.data_wait_seconds / (times.step_seconds + times.data_wait_seconds)),
    },
];

const COUNT: usize = STEP_METRICS.len();

/// The place of a metric in the table.
const fn place(key: &str) -> usize {
    let mut i = 0;
    while i < COUNT {
        if equal(STEP_METRICS[i].key.as_bytes(), key.as_bytes()) {
            return i;
        }
        i += 1;
    }
    panic!("no step metric of that name")
}

const fn equal(one: &[u8], other: &[u8]) -> bool {
    let mut i = 0;
    while i < one.len() && i < other.len() && one[i] == other[i] {
        i += 1;
    }
    i == one.len() && i == other.len()
}

/// The values of a step; what is not known is NaN, and left out where it is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepValues([f64; COUNT]);

impl Default for StepValues {
    fn default() -> Self {
        Self([f64::NAN; COUNT])
    }
}

impl StepValues {
    /// The values of the host's numbers, and of the device's as [`scalars`] had them.
    pub(crate) fn new(times: &StepTimes, scalars: &[f32]) -> Self {
        let mut scalars = scalars.iter();
        Self(std::array::from_fn(|i| match STEP_METRICS[i].value {
            Value::Device(_) => f64::from(*scalars.next().expect("a scalar for each row")),
            Value::Host(value) => value(times),
        }))
    }

    /// A value by its key.
    ///
    /// # Panics
    /// If there is no such metric.
    pub fn get(&self, key: &str) -> f64 {
        self.0[place(key)]
    }

    /// All that are known, by their rows.
    pub fn known(&self) -> impl Iterator<Item = (&'static StepMetric, f64)> {
        STEP_METRICS.iter().zip(self.0).filter(|(_, value)| !value.is_nan())
    }
}

/// The device's numbers of a step as one tensor, `[n]` f32, in the table's order.
pub(crate) fn scalars(output: &StepOutput<'_>) -> Result<Tensor, TrainError> {
    let device = STEP_METRICS.iter().filter_map(|metric| match metric.value {
        Value::Device(value) => Some(value(output)),
        Value::Host(_) => None,
    });
    let scalars: Vec<Tensor> =
        device.map(|scalar| Ok(scalar?.detach().to_kind(Kind::Float))).collect::<Result<_, TrainError>>()?;
    Ok(Tensor::stack(&scalars, 0))
}

/// The gauges of the table's rows.
#[derive(Clone)]
pub(crate) struct StepGauges(Vec<Option<Gauge>>);

impl StepGauges {
    /// Registers them.
    pub fn register() -> Self {
        let gauge = |metric: &StepMetric| {
            let (name, help) = metric.gauge?;
            describe_gauge!(name, help);
            let gauge = gauge!(name);
            // Not yet known is not zero.
            gauge.set(f64::NAN);
            Some(gauge)
        };
        Self(STEP_METRICS.iter().map(gauge).collect())
    }

    /// Shows a step's values.
    pub fn set(&self, values: &StepValues) {
        for (gauge, value) in self.0.iter().zip(values.0) {
            if let Some(gauge) = gauge {
                gauge.set(value);
            }
        }
    }
}

/// As a map from keys to known values.
impl Serialize for StepValues {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (metric, value) in self.known() {
            map.serialize_entry(metric.key, &value)?;
        }
        map.end()
    }
}

/// From a map; keys of no row are passed over.
impl<'de> Deserialize<'de> for StepValues {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = StepValues;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of step metrics")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StepValues, A::Error> {
                let mut values = StepValues::default();
                while let Some(key) = map.next_key::<String>()? {
                    let value: serde_json::Value = map.next_value()?;
                    let known = STEP_METRICS.iter().position(|metric| metric.key == key);
                    if let (Some(i), Some(value)) = (known, value.as_f64()) {
                        values.0[i] = value;
                    }
                }
                Ok(values)
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

/// Spread of the normalized projections `z`: `[N, dim]`: the mean over dimensions of their standard deviation, times √dim.
fn embedding_std(z: &Tensor) -> Tensor {
    tch::no_grad(|| {
        let (_, dim) = z.size2().expect("z is a matrix");
        let z = z.to_kind(Kind::Float);
        let z = &z / z.norm_scalaropt_dim(2, [1i64].as_slice(), true).clamp_min(1e-12);
        z.std_dim([0i64].as_slice(), false, false).mean(Kind::Float) * (dim as f64).sqrt()
    })
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn the_spread_tells_a_sphere_from_a_point() {
        tch::manual_seed(1);
        let sphere = Tensor::randn([2000, 64], (Kind::Float, Device::Cpu));
        let spread = |z: &Tensor| f64::try_from(embedding_std(z)).unwrap();
        assert!((spread(&sphere) - 1.0).abs() < 0.05);
        assert!(spread(&Tensor::ones([2000, 64], (Kind::Float, Device::Cpu))) < 1e-3);
    }

    #[test]
    fn values_are_written_by_key_and_read_again() {
        let mut values = StepValues::default();
        values.0[place("loss")] = 4.5;
        let text = serde_json::to_string(&values).unwrap();
        assert_eq!(text, "{\"loss\":4.5}");
        let read: StepValues = serde_json::from_str("{\"loss\":4.5,\"of_tomorrow\":[1]}").unwrap();
        assert_eq!((read.get("loss"), read.get("epoch").is_nan()), (4.5, true));
    }
}
