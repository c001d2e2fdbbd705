//! A model's tensors by name: weights, which learn, and buffers, which do not. Initial values come from the run's
//! seed and our own generator, so that they are the same on every device and in every version of libtorch.

use std::rc::Rc;

use simclr_ground::rng::{Draws, Purpose};
use simclr_ground::sample::Check;
use tch::{Device, Tensor};

use crate::distributed::World;

/// A named tensor of a model.
pub struct Parameter {
    /// Its name, as torchvision would name it.
    pub name: String,
    /// Its value.
    pub tensor: Tensor,
    /// What it is.
    pub role: Role,
}

/// What a tensor of a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Learns, with weight decay and (for LARS) adaptation.
    Weight,
    /// Learns without either: batch norm's scale and shift, biases.
    NoDecay,
    /// Does not learn: batch norm's running statistics.
    Buffer,
}

/// All tensors of a model, in the order in which it was built.
pub struct Parameters {
    device: Device,
    seed: u64,
    world: Rc<World>,
    entries: Vec<Parameter>,
}

impl Parameters {
    /// No tensors yet; they will be on `device` and drawn from `seed`.
    pub fn new(device: Device, seed: u64) -> Self {
        Self::of_ranks(device, seed, World::alone())
    }

    /// As [`Parameters::new`]; batch norm's statistics will be those of all images of this world.
    pub fn of_ranks(device: Device, seed: u64, world: Rc<World>) -> Self {
        Self { device, seed, world, entries: Vec::new() }
    }

    /// Where they are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The ranks whose images batch norm takes together.
    pub fn world(&self) -> &Rc<World> {
        &self.world
    }

    /// All tensors.
    pub fn entries(&self) -> &[Parameter] {
        &self.entries
    }

    /// The tensors that learn.
    pub fn trainable(&self) -> impl Iterator<Item = &Parameter> {
        self.entries.iter().filter(|p| p.role != Role::Buffer)
    }

    /// Number of values that learn.
    pub fn num_trainable(&self) -> usize {
        self.trainable().map(|p| p.tensor.numel()).sum()
    }

    /// A weight with normally distributed values; four dimensions lie channels last in memory.
    pub fn normal(&mut self, name: String, shape: &[i64], deviation: f64) -> Tensor {
        self.drawn(name, shape, Role::Weight, |draws| draws.normal() * deviation)
    }

    /// As [`Parameters::normal`], without weight decay and adaptation.
    pub fn normal_excluded(&mut self, name: String, shape: &[i64], deviation: f64) -> Tensor {
        self.drawn(name, shape, Role::NoDecay, |draws| draws.normal() * deviation)
    }

    fn drawn(&mut self, name: String, shape: &[i64], role: Role, value: impl Fn(&mut Draws) -> f64) -> Tensor {
        let count: i64 = shape.iter().product();
        // Each tensor has a stream of its own, keyed by its name, so that adding one does not change the others.
        let key = Check::of(name.as_bytes());
        let mut draws = Draws::new(self.seed, Purpose::Weights, &[key.0]);
        let values: Vec<f32> = (0..count).map(|_| value(&mut draws) as f32).collect();
        let tensor = Tensor::from_slice(&values).view(shape);
        let tensor =
            if shape.len() == 4 { tensor.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]) } else { tensor };
        self.add(name, &tensor, role)
    }

    /// As [`Parameters::normal`], without values farther off than two deviations of the uncut distribution, which is
    /// widened so that `deviation` is the cut one's.
    pub fn truncated_normal(&mut self, name: String, shape: &[i64], deviation: f64) -> Tensor {
        // The standard deviation of a normal distribution cut at ±2.
        const CUT: f64 = 0.879_625_661_034_239_8;
        self.drawn(name, shape, Role::Weight, |draws| {
            let inside = std::iter::repeat_with(|| draws.normal()).find(|value| value.abs() <= 2.0);
            inside.expect("most values are inside") * deviation / CUT
        })
    }

    /// `length` equal values.
    pub fn constant(&mut self, name: String, length: i64, value: f64, role: Role) -> Tensor {
        let tensor = Tensor::full([length], value, (tch::Kind::Float, Device::Cpu));
        self.add(name, &tensor, role)
    }

    /// Forgets all tensors but the first `count`.
    pub fn truncate(&mut self, count: usize) {
        self.entries.truncate(count);
    }

    fn add(&mut self, name: String, tensor: &Tensor, role: Role) -> Tensor {
        assert!(self.entries.iter().all(|p| p.name != name), "two tensors are called {name}");
        let tensor = tensor.to_device(self.device).set_requires_grad(role != Role::Buffer);
        self.entries.push(Parameter { name, tensor: tensor.shallow_clone(), role });
        tensor
    }
}
