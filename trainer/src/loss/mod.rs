//! Contrastive losses: a new one is one file here and a row of [`LossKind`].

mod margin_triplet;
mod nt_logistic;
mod nt_xent;

use std::ops::Range;

use serde::{Deserialize, Deserializer, Serialize};
use simclr_ground::error::InvalidValue;
use simclr_ground::kinds;
use tch::{Device, Kind, Tensor};

pub use margin_triplet::MarginTriplet;
pub use nt_logistic::NtLogistic;
pub use nt_xent::NtXent;

use crate::distributed::{World, own_parts, parts_together};
use crate::error::TrainError;

/// Which loss, and its parameters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LossConfig {
    /// Which loss.
    #[serde(flatten)]
    pub kind: LossKind,
    /// What all losses have.
    #[serde(flatten)]
    pub shared: LossShared,
}

/// What all losses have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossShared {
    /// Whether projections are brought to length 1 first, so that similarities are cosines (SimCLR, table 5).
    pub normalize: bool,
    /// By what gradients are multiplied; the logged loss stays the mean over views. The official code adds the means over both
    /// views of a pair, which is 2: LARS does not feel it, but biases and batch norms, which it leaves alone, learn twice as
    /// fast, and weight decay counts half.
    pub scale: f64,
}

impl Default for LossShared {
    fn default() -> Self {
        Self { normalize: true, scale: 1.0 }
    }
}

impl LossConfig {
    /// The keys of a kind of this name, `None` if there is none.
    pub fn keys(kind: &str) -> Option<Vec<String>> {
        kinds::known_keys::<LossShared, LossKind>(kind)
    }
}

impl<'de> Deserialize<'de> for LossConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (shared, kind) = kinds::deserialize(deserializer)?;
        Ok(Self { kind, shared })
    }
}

simclr_ground::kinds! {
    /// The losses.
    LossKind: Loss {
        /// Normalized temperature-scaled cross entropy: the paper's.
        NtXent(NtXent) = "nt_xent",
        /// Normalized temperature-scaled logistic loss.
        NtLogistic(NtLogistic) = "nt_logistic",
        /// Triplets with a margin.
        MarginTriplet(MarginTriplet) = "margin_triplet",
    }
}

/// A loss with its parameters.
trait Loss {
    /// Checks every value.
    fn check(&self) -> Result<(), InvalidValue>;

    /// The loss of all ranks' projections, and its gradient for this rank's.
    fn contrast(&self, views: &Views, world: &World) -> Result<LossOutput, TrainError>;
}

/// A loss and what the paper reports beside it; scalars on the device, the same on all ranks.
pub struct LossOutput {
    /// The loss. Its gradient is for this rank's own projections alone, as parts of the whole batch.
    pub loss: Tensor,
    /// Share of images whose second view is the most similar one among all second views.
    pub accuracy: Tensor,
    /// Entropy of the first views' distributions over second views, in nats.
    pub entropy: Tensor,
    /// The projections of all ranks that were compared, `[2B, dim]`, first views first, without a graph.
    pub projections: Tensor,
}

impl LossConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// Names the key, what was found and what would be right.
    pub fn check(&self) -> Result<(), InvalidValue> {
        let scale = self.shared.scale;
        if !(scale > 0.0 && scale.is_finite()) {
            return Err(InvalidValue::new("loss.scale", scale, "expected a number above 0"));
        }
        self.kind.get().check()
    }

    /// The loss of all ranks' projections, of which this rank's are `z`: `[2B / world, dim]`, the first views of its
    /// images, then the second ones in the same order. All arithmetic is in f32 whatever `z` is (in f64 for f64).
    ///
    /// # Errors
    /// If a rank is gone.
    ///
    /// # Panics
    /// If `z` has no even number of rows.
    pub fn contrast(&self, z: &Tensor, world: &World) -> Result<LossOutput, TrainError> {
        let (rows, _) = z.size2().expect("projections are a matrix");
        assert!(rows >= 2 && rows % 2 == 0, "{rows} projections do not form pairs");
        let z = if z.kind() == Kind::Double { z.shallow_clone() } else { z.to_kind(Kind::Float) };
        let u = if self.shared.normalize {
            let norms = z.norm_scalaropt_dim(2, [1i64].as_slice(), true).clamp_min(1e-12);
            z / norms
        } else {
            z
        };
        let views = Views::gather(u, world)?;
        self.kind.get().contrast(&views, world)
    }
}

/// Checks a temperature.
fn check_temperature(temperature: f64) -> Result<(), InvalidValue> {
    if temperature > 0.0 && temperature.is_finite() {
        return Ok(());
    }
    let wanted = "expected a number above 0 (the paper uses 0.1 for ImageNet and 0.5 for CIFAR-10)";
    Err(InvalidValue::new("loss.temperature", temperature, wanted))
}

/// The projections that are compared, and where this rank's are among them.
struct Views {
    /// This rank's, `[2B / world, dim]`, with their graph.
    graph: Tensor,
    /// Those of all ranks, `[2B, dim]`, the first views of all images, then the second ones; without a graph.
    all: Tensor,
    /// B, the images of all ranks.
    images: i64,
    /// Which rows are this rank's first views, and which its second ones.
    own: [Range<i64>; 2],
}

impl Views {
    fn gather(graph: Tensor, world: &World) -> Result<Self, TrainError> {
        let all = parts_together(&world.all_gather(&graph)?, 2);
        let n = graph.size()[0] / 2;
        let mut starts = own_parts(world.rank(), world.size(), n, 2);
        let own = std::array::from_fn(|_| starts.next().expect("two parts")).map(|start| start..start + n);
        Ok(Self { graph, images: all.size()[0] / 2, all, own })
    }

    /// Everyone's values for their own views, `[2B / world]`, as one row for all, `[2B]`.
    fn together(&self, own: &Tensor, world: &World) -> Result<Tensor, TrainError> {
        Ok(parts_together(&world.all_gather(own)?, 2))
    }

    /// The scalar `value` with this gradient for this rank's views, `[2B / world, dim]`.
    fn carry(&self, value: Tensor, gradient: &Tensor) -> Tensor {
        // Its value is 0 and its gradient the one given.
        let carrier = (&self.graph * gradient).sum(gradient.kind());
        value + (&carrier - carrier.detach())
    }
}

/// A loss of the similarities `[B, B]` of first views, in rows, to second views, and of those the other way round. The
/// others of a view are the second views of other images alone, as in the paper's comparison (appendix B.10). Every rank
/// works all of it out, and takes its own views' gradient.
fn between_views(
    views: &Views,
    temperature: f64,
    one_way: impl Fn(&Tensor) -> Tensor,
) -> Result<LossOutput, TrainError> {
    let u = views.all.detach().set_requires_grad(true);
    let similarity = u.narrow(0, 0, views.images).matmul(&u.narrow(0, views.images, views.images).tr()) / temperature;
    let loss = (one_way(&similarity) + one_way(&similarity.tr())) / 2.0;
    let mut search = RetrievalStats::new(u.device());
    tch::no_grad(|| search.add(&similarity, 0));
    let gradient = Tensor::f_run_backward(&[&loss], &[&u], false, false)?.swap_remove(0);
    let own = views.own.clone().map(|rows| gradient.narrow(0, rows.start, rows.end - rows.start));
    Ok(search.contrast(views.carry(loss.detach(), &Tensor::cat(&own, 0)), views))
}

/// For each row of similarities `[B, B]`, whose partner is on the diagonal, the similarity of the most similar one of
/// those that are less similar than the partner, `[B]`, and whether there is one.
fn semi_hard(similarity: &Tensor) -> (Tensor, Tensor) {
    let partner = similarity.diagonal(0, 0, 1).unsqueeze(1);
    let eligible = tch::no_grad(|| similarity.lt_tensor(&partner));
    let (hardest, _) = similarity.masked_fill(&eligible.logical_not(), f64::NEG_INFINITY).max_dim(1, false);
    let found = eligible.any_dim(1, false);
    (hardest.masked_fill(&found.logical_not(), 0.0), found)
}

/// The mean of all values of `[B, B]` that are not on the diagonal; 0 if there are none.
fn mean_of_others(values: &Tensor) -> Tensor {
    let n = values.size()[0];
    (values.sum(values.kind()) - values.diagonal(0, 0, 1).sum(values.kind())) / (n * (n - 1)).max(1) as f64
}

/// How well first views find their partners among second views.
struct RetrievalStats {
    hits: Tensor,
    entropy: Tensor,
}

impl RetrievalStats {
    fn new(device: Device) -> Self {
        let zero = || Tensor::zeros([], (Kind::Double, device));
        Self { hits: zero(), entropy: zero() }
    }

    /// Adds first views from `first` on: their logits over all second views, `[n, B]`.
    fn add(&mut self, logits: &Tensor, first: i64) {
        let own = Tensor::arange(logits.size()[0], (Kind::Int64, logits.device())) + first;
        self.hits += logits.argmax(1, false).eq_tensor(&own).sum(Kind::Double);
        let log = logits.log_softmax(1, logits.kind());
        self.entropy -= (log.exp() * log).sum(Kind::Double);
    }

    fn contrast(self, loss: Tensor, views: &Views) -> LossOutput {
        let (images, projections) = (views.images as f64, views.all.shallow_clone());
        LossOutput { loss, accuracy: self.hits / images, entropy: self.entropy / images, projections }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden values: `golden/trainer.py` says how, and with which versions, they were made.
    #[test]
    fn losses_and_gradients_equal_those_written_out() {
        let golden: serde_json::Value = serde_json::from_str(include_str!("../golden/trainer.json")).unwrap();
        let cases = golden["pair_losses"].as_array().unwrap();
        assert_eq!(cases.len(), 10);
        for case in cases {
            // The cases have all keys of all kinds.
            let mut table = case["config"].as_object().unwrap().clone();
            let known = LossConfig::keys(table["kind"].as_str().unwrap()).unwrap();
            table.retain(|key, _| key == "kind" || known.contains(key));
            let config: LossConfig = serde_json::from_value(table.into()).unwrap();
            config.check().unwrap();
            let views: Vec<Vec<f64>> = serde_json::from_value(golden["projections"].clone()).unwrap();
            let z = Tensor::from_slice2(&views).set_requires_grad(true);
            let contrast = config.contrast(&z, &World::alone()).unwrap();
            contrast.loss.backward();
            let close = |found: &Tensor, wanted: &serde_json::Value| {
                let (found, wanted) = (f64::try_from(found).unwrap(), wanted.as_f64().unwrap());
                assert!((found - wanted).abs() < 2e-7, "{}: {found}, {wanted} wanted", case["config"]);
            };
            close(&contrast.loss, &case["loss"]);
            close(&contrast.accuracy, &case["accuracy"]);
            let wanted: Vec<Vec<f64>> = serde_json::from_value(case["gradient"].clone()).unwrap();
            let off = f64::try_from((z.grad() - Tensor::from_slice2(&wanted)).abs().max()).unwrap();
            assert!(off < 2e-7, "{}: gradient off by {off}", case["config"]);
        }
    }

    #[test]
    fn wrong_values_are_named() {
        let fails = |text: &str, wanted: &str| {
            let config: LossConfig = serde_json::from_str(text).unwrap();
            let message = config.check().unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        };
        fails(r#"{"kind": "nt_xent", "temperature": 0}"#, "invalid value 0 for loss.temperature");
        fails(r#"{"kind": "margin_triplet", "margin": -1}"#, "invalid value -1 for loss.margin");
        let refused = serde_json::from_str::<LossConfig>(r#"{"kind": "nt_xent", "semi_hard": true}"#).unwrap_err();
        assert!(refused.to_string().contains("unknown field `semi_hard` of kind nt_xent"), "{refused}");
    }
}
