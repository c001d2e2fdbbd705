//! The gradient of a loss, as a value: one tensor for each of a model's tensors that learn.
//!
//! Asked for as values, gradients are handed over as the backward pass makes them. Left in the tensors, as torch does
//! by default, they would be cleared and added to, a pass over all weights each.

use simclr_torch::foreach::List;
use tch::{Kind, Tensor};

use crate::distributed::{Reducer, World};
use crate::error::{TrainError, of_torch};
use crate::model::parameters::Parameters;
use crate::model::probe;

/// Gradients of [`Parameters::trainable`], in that order; undefined where the loss does not depend on a tensor.
#[derive(Default)]
pub struct Gradients(Vec<Tensor>);

impl Gradients {
    /// The gradient of the scalar `loss`, whose graph is used up.
    ///
    /// # Errors
    /// If libtorch fails, as when the device's memory is full.
    pub fn of(loss: &Tensor, parameters: &Parameters) -> Result<Self, TrainError> {
        let weights: Vec<&Tensor> = parameters.trainable().map(|p| &p.tensor).collect();
        Ok(Self(Tensor::f_run_backward(&[loss], &weights, false, false)?))
    }

    /// Each tensor's.
    pub fn tensors(&self) -> &[Tensor] {
        &self.0
    }

    /// The gradient of the sum of both losses.
    pub fn plus(self, other: Self) -> Self {
        let sum = |(a, b): (Tensor, Tensor)| match (a.defined(), b.defined()) {
            (true, true) => a + b,
            (true, false) => a,
            (false, _) => b,
        };
        Self(self.0.into_iter().zip(other.0).map(sum).collect())
    }

    /// Norm of all together, but for a probe's; a scalar on the device.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn norm(&self, parameters: &Parameters) -> Result<Tensor, TrainError> {
        let of_model =
            parameters.trainable().zip(&self.0).filter(|(p, g)| g.defined() && !p.name.starts_with(probe::PREFIX));
        let all: List<'_> = of_model.map(|(_, gradient)| gradient).collect();
        Ok(all.norms().map_err(of_torch)?.norm().to_kind(Kind::Float))
    }
}

/// The backward passes of a step, whose gradients add up; with other ranks, to the mean over all of them.
pub struct Backward<'a> {
    parameters: &'a Parameters,
    world: &'a World,
    reducer: Option<&'a Reducer>,
    sum: Option<Gradients>,
}

impl<'a> Backward<'a> {
    /// No pass yet. The reducer is the one of the same parameters and world.
    pub fn new(parameters: &'a Parameters, world: &'a World, reducer: Option<&'a Reducer>) -> Self {
        Self { parameters, world, reducer, sum: None }
    }

    /// Adds the gradient of the scalar `loss`, whose graph is used up; `last` if no other follows in this step.
    ///
    /// # Errors
    /// If libtorch fails or a rank is gone.
    pub fn add(&mut self, loss: &Tensor, last: bool) -> Result<(), TrainError> {
        let Some(reducer) = self.reducer else {
            let own = Gradients::of(loss, self.parameters)?;
            self.sum = Some(match self.sum.take() {
                Some(sum) => sum.plus(own),
                None => own,
            });
            return Ok(());
        };
        if self.sum.is_none() {
            reducer.clear().map_err(of_torch)?;
            self.sum = Some(Gradients::default());
        }
        let passed = match last {
            true => self.world.prepare(reducer).and_then(|()| Ok(loss.f_backward()?)),
            false => loss.f_backward().map_err(TrainError::from),
        };
        passed.map_err(|error| self.world.explain(error))
    }

    /// The gradients of all passes together.
    ///
    /// # Panics
    /// If there was no pass.
    pub fn gradients(self) -> Gradients {
        let sum = self.sum.expect("a step has a backward pass");
        if self.reducer.is_none() {
            return sum;
        }
        Gradients(self.parameters.trainable().map(|parameter| parameter.tensor.grad()).collect())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    impl Gradients {
        /// Of tensors that are no model's.
        pub fn from_tensors(tensors: Vec<Tensor>) -> Self {
            Self(tensors)
        }

        /// All values in one row.
        pub fn flat(&self) -> Tensor {
            let defined = self.0.iter().filter(|g| g.defined());
            Tensor::cat(&defined.map(|g| g.flatten(0, -1)).collect::<Vec<_>>(), 0)
        }
    }

    #[test]
    fn a_tensor_that_the_loss_does_not_know_has_none() {
        let mut parameters = Parameters::new(tch::Device::Cpu, 1);
        let used = parameters.normal("used".into(), &[3, 4], 1.0);
        let _unused = parameters.normal("unused".into(), &[3], 1.0);
        let of = |scale: f64| Gradients::of(&(&used * scale).sum(Kind::Float), &parameters).unwrap();
        let both = of(3.0).plus(of(2.0));
        assert!(both.tensors()[0].defined() && !both.tensors()[1].defined());
        let norm = f64::try_from(both.norm(&parameters).unwrap()).unwrap();
        assert!((norm - 5.0 * 12f64.sqrt()).abs() < 1e-5, "{norm}");
    }
}
