//! A linear classifier that is trained beside the encoder, on its representations, without the encoder noticing: how
//! good they are can be seen while they are learned (the official code's `lineareval_while_pretraining`).

use simclr_ground::batch::NO_LABEL;
use tch::{Kind, Tensor};

use crate::model::parameters::{Parameters, Role};

/// What the names of a probe's tensors begin with.
pub(crate) const PREFIX: &str = "probe.";

/// A linear classifier of representations.
pub struct Probe {
    weight: Tensor,
    bias: Tensor,
}

impl Probe {
    /// A probe of representations of length `inputs`, its tensors added to `parameters`. They learn at the encoder's rate,
    /// without LARS's adaptation.
    pub fn new(parameters: &mut Parameters, inputs: i64, classes: i64) -> Self {
        let weight = parameters.normal_excluded(format!("{PREFIX}weight"), &[classes, inputs], 0.01);
        let bias = parameters.constant(format!("{PREFIX}bias"), classes, 0.0, Role::NoDecay);
        Self { weight, bias }
    }

    /// The probe's loss on representations `h`, `[views × N, dim]` with the first views first, of images with these
    /// `labels`, `[N]`; and the share of views that it recognizes. Both are scalars on the device.
    ///
    /// Images without a label, whose entry is -1, are passed over; without any label both are 0.
    ///
    /// The loss is the mean cross entropy and `weight_decay / 2` times the sum of the squared weights, as in the official
    /// code. `h` itself gets no gradient.
    pub fn loss(&self, h: &Tensor, labels: &Tensor, weight_decay: f64) -> (Tensor, Tensor) {
        let h = h.detach().to_kind(Kind::Float);
        let labels = labels.to_device(h.device()).repeat([h.size()[0] / labels.size()[0]]);
        let scores = h.linear(&self.weight, Some(&self.bias));
        // -1 is no class of any scores, so it is never recognized.
        let labeled = labels.ge(0).sum(Kind::Float).clamp_min(1.0);
        let entropy = scores.cross_entropy_loss(&labels, None::<Tensor>, tch::Reduction::Sum, NO_LABEL, 0.0) / &labeled;
        let loss = entropy + self.weight.square().sum(Kind::Float) * (0.5 * weight_decay);
        let accuracy = scores.argmax(1, false).eq_tensor(&labels).sum(Kind::Float) / labeled;
        (loss, accuracy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradients::Gradients;
    use tch::Device;

    #[test]
    fn a_probe_learns_and_leaves_what_it_looks_at_alone() {
        tch::manual_seed(1);
        let mut parameters = Parameters::new(Device::Cpu, 1);
        let encoder = parameters.normal("encoder".into(), &[3, 4], 1.0);
        let probe = Probe::new(&mut parameters, 4, 3);
        let roles: Vec<Role> = parameters.entries().iter().map(|p| p.role).collect();
        assert_eq!(roles, [Role::Weight, Role::NoDecay, Role::NoDecay]);
        let labels = Tensor::from_slice(&[0i64, 1, 2]);
        let once = |n: i64| {
            let views = labels.repeat([n]).one_hot(3).to_kind(Kind::Float);
            let (loss, accuracy) = probe.loss(&views.matmul(&encoder), &labels, 1e-4);
            let gradients = Gradients::of(&loss, &parameters).unwrap();
            assert!(!gradients.tensors()[0].defined(), "nothing comes back");
            tch::no_grad(|| {
                for (parameter, gradient) in parameters.trainable().zip(gradients.tensors()).skip(1) {
                    let _ = parameter.tensor.shallow_clone().g_sub_(gradient);
                }
            });
            f64::try_from(accuracy).unwrap()
        };
        (0..200).for_each(|_| _ = once(2));
        assert_eq!(once(1), 1.0);
        // Half of the images have no label, then none has one.
        let h = labels.one_hot(3).to_kind(Kind::Float).matmul(&encoder);
        let of = |labels: &[i64]| {
            let (loss, accuracy) = probe.loss(&h, &Tensor::from_slice(labels), 0.0);
            (f64::try_from(loss).unwrap(), f64::try_from(accuracy).unwrap())
        };
        let (some, all) = (of(&[0, -1, -1]), of(&[0, 1, 2]));
        assert!(some.0 > 0.0 && all.0 > 0.0 && some.1 == 1.0);
        assert_eq!(of(&[-1, -1, -1]), (0.0, 0.0));
    }
}
