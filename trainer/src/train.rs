//! From batch to batch: the training loop, its checkpoints and its guard.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pipeline::batch::Batch;
use pipeline::loader::BatchStream;
use pipeline::plan::{Plan, Position};
use pipeline::stall::Waited;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::checkpoint::{self, Checkpoints};
use crate::device::{DeviceSlab, Moment, Precision, Uploaded, Uploader};
use crate::error::{TrainError, of_torch};
use crate::gradient_cache;
use crate::gradients::{Backward, Gradients};
use crate::loss::{Contrast, LossConfig};
use crate::metrics::TrainerMetrics;
use crate::optimizer::{Optimizer, OptimizerConfig};
use crate::probe::Probe;
use crate::ranks::{Reducer, World};
use crate::resnet::Statistics;
use crate::schedule::{Schedule, ScheduleConfig};
use crate::simclr::{ModelConfig, SimClr};
use crate::time_spent::TimeSpent;

/// How long to train and how often to log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Stop after this many steps; 0 goes on to the schedule's end.
    pub steps: u64,
    /// Write a line to metrics.jsonl every so many steps.
    pub log_every: u64,
    /// Images that pass through the encoder at a time, for batches larger than the device's memory; 0 takes all. The
    /// gradient is still that of the whole batch, but batch norm sees one part at a time.
    pub micro_batch: u32,
    /// Train a linear classifier beside the encoder, from the labels, which the encoder does not notice: its accuracy is a
    /// metric.
    #[serde(default)]
    pub probe: bool,
    /// With several ranks, whether batch norm takes the images of all of them together (the paper's global batch norm), or
    /// each rank its own alone.
    #[serde(default = "together")]
    pub sync_batch_norm: bool,
}

/// Runs from before there was a choice had one rank.
fn together() -> bool {
    true
}

/// When to write checkpoints and how many to keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Write one every so many steps; one is written at the end in any case.
    pub every: u64,
    /// Keep this many of the newest.
    pub keep: usize,
}

/// Everything that decides what is learnt from the batches.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerConfig {
    /// The model.
    pub model: ModelConfig,
    /// The loss.
    pub loss: LossConfig,
    /// The optimiser.
    pub optimizer: OptimizerConfig,
    /// The learning rate over time.
    pub schedule: ScheduleConfig,
    /// How long and how chatty.
    pub train: TrainConfig,
    /// Checkpoints.
    pub checkpoint: CheckpointConfig,
}

impl TrainerConfig {
    /// Checks every value that has a range of its own.
    ///
    /// # Errors
    /// Names the key, what was found and what would be right.
    pub fn check(&self) -> Result<(), TrainError> {
        self.loss.check()?;
        self.optimizer.check()?;
        for (key, value) in [
            ("train.log_every", self.train.log_every),
            ("checkpoint.every", self.checkpoint.every),
            ("checkpoint.keep", self.checkpoint.keep as u64),
        ] {
            if value == 0 {
                return Err(TrainError::Value { key, found: "0".into(), wanted: "at least 1 is wanted".into() });
            }
        }
        Ok(())
    }
}

/// What one step did.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Steps taken, this one included.
    pub step: u64,
    /// The batch it was taken on.
    pub position: Position,
    /// The loss before the step.
    pub loss: f64,
    /// Share of images whose second view was found.
    pub contrastive_accuracy: f64,
    /// Entropy of the search, in nats.
    pub contrastive_entropy: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Norm of all gradients together.
    pub gradient_norm: f64,
    /// Spread of the normalised projections: 1 if they fill the sphere, 0 if they have collapsed.
    pub embedding_std: f64,
    /// Share of views that the probe recognises, if there is one.
    pub probe_accuracy: Option<f64>,
    /// Images in the batch, those of all ranks.
    pub images: usize,
    /// Time of the step without the wait.
    pub step_time: Duration,
    /// Time waited for the batch.
    pub data_wait: Duration,
    /// What was waited for.
    pub waited: Waited,
    /// Where the time of all steps went, this one included.
    pub spent: TimeSpent,
}

/// Evaluates the model at a step.
pub type Evaluate<'a> = &'a mut dyn FnMut(&SimClr, u64) -> Result<(), TrainError>;

/// What else is done between steps.
pub struct Between<'a> {
    /// Is told of each step.
    pub step: &'a mut dyn FnMut(&StepReport),
    /// Evaluates, every so many steps.
    pub evaluation: Option<(u64, Evaluate<'a>)>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All steps were taken.
    Done,
    /// Somebody asked it to stop; a checkpoint was written.
    Interrupted,
}

/// A model in training.
pub struct Training {
    /// The model.
    pub model: SimClr,
    /// The optimiser.
    pub optimizer: Optimizer,
    /// The learning rate over time.
    pub schedule: Schedule,
    /// Steps taken.
    pub step: u64,
    /// Where the time of the steps taken here went.
    pub spent: TimeSpent,
    probe: Option<Probe>,
    config: TrainerConfig,
    device: Device,
    uploader: Uploader,
    /// When the last step was done, on a GPU.
    last_done: Option<Moment>,
    world: Rc<World>,
    reducer: Option<Reducer>,
    metrics: TrainerMetrics,
}

/// A batch, its pixels on their way onto the device.
struct Arrived {
    batch: Batch<DeviceSlab>,
    pixels: Uploaded,
    /// How long was waited for it, and for what.
    wait: Duration,
    waited: Waited,
}

/// A step that the device was asked for.
struct Launched {
    arrived: Arrived,
    /// Its numbers, on the device.
    scalars: Tensor,
    learning_rate: f64,
    /// The time that it took to ask; on the CPU, to compute.
    host_time: Duration,
    gpu: Option<OnGpu>,
}

/// Moments of a step on a GPU.
struct OnGpu {
    /// It could begin, but for its pixels.
    ready: Moment,
    /// They are there.
    held: Moment,
    /// It is done.
    done: Moment,
}

/// What a batch says.
struct Told {
    contrast: Contrast,
    /// The gradient of the loss, and of the probe's.
    gradients: Gradients,
    /// The share of views that the probe recognises.
    probe_accuracy: Option<Tensor>,
}

impl Training {
    /// A model with initial weights, to be trained by all of `world` on the batches of `plan`, whose labels name so many
    /// classes.
    ///
    /// # Errors
    /// If a value of the configuration is out of its range, or a rank is gone.
    pub fn new(
        config: &TrainerConfig,
        (plan, classes): (&Plan, Option<usize>),
        (device, precision): (Device, Precision),
        world: Rc<World>,
        metrics: TrainerMetrics,
    ) -> Result<Self, TrainError> {
        config.check()?;
        let sizes: Vec<u32> = plan.config.recipe.sizes().collect();
        if !matches!(sizes[..], [first, second] if first == second) {
            let found = if sizes.len() == 2 { format!("2, of sides {sizes:?}") } else { sizes.len().to_string() };
            return Err(TrainError::Value {
                key: "recipe.views",
                found,
                wanted: "2 of one side are wanted for training".into(),
            });
        }
        let together = if config.train.sync_batch_norm { world.clone() } else { World::alone() };
        let mut model = SimClr::of_ranks(&config.model, plan.config.seed, device, precision, together)?;
        let probe = match (config.train.probe, classes) {
            (false, _) => None,
            (true, Some(classes)) if config.train.micro_batch == 0 => {
                Some(Probe::new(&mut model.parameters, model.encoder.dim(), classes as i64))
            }
            (true, classes) => {
                let wanted = if classes.is_none() {
                    "the manifest has no labels, which a probe learns from"
                } else {
                    "a probe sees whole batches only; train.micro_batch = 0 is wanted beside it"
                };
                return Err(TrainError::Value { key: "train.probe", found: "true".into(), wanted: wanted.into() });
            }
        };
        let optimizer = Optimizer::new(&config.optimizer, &model.parameters);
        let batch_size = plan.config.batch.size;
        let peak = config.optimizer.peak_learning_rate(batch_size);
        let schedule = Schedule::new(&config.schedule, plan.num_samples(), batch_size, peak)?;
        let reducer = world.reducer(&model.parameters)?;
        Ok(Self {
            model,
            optimizer,
            schedule,
            step: 0,
            spent: TimeSpent::default(),
            probe,
            config: config.clone(),
            device,
            uploader: Uploader::new(device)?,
            last_done: None,
            world,
            reducer,
            metrics,
        })
    }

    /// Goes where rank 0 is: its weights, momenta and step. To be called by all ranks, once rank 0 has loaded what there
    /// was to load.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn follow_leader(&mut self) -> Result<(), TrainError> {
        let step = Tensor::from(self.step as i64);
        self.world.share([&step])?;
        self.step = i64::try_from(step)? as u64;
        self.world.share(self.model.parameters.entries().iter().map(|parameter| &parameter.tensor))?;
        self.world.share(self.optimizer.state().into_iter().map(|(_, tensor)| tensor))
    }

    /// The step at which the run is done.
    pub fn last_step(&self) -> u64 {
        match self.config.train.steps {
            0 => self.schedule.total_steps,
            steps => steps.min(self.schedule.total_steps),
        }
    }

    /// Waits for the next batch, and begins to bring it onto the device.
    fn fetch(&self, batches: &mut dyn BatchStream<DeviceSlab>) -> Result<Arrived, TrainError> {
        let (began, before) = (Instant::now(), batches.waited());
        let batch = batches.next_batch()?.expect("a shuffled stream has no end");
        assert_eq!(batch.position.batch, self.step, "step and batch go together");
        let (wait, waited) = (began.elapsed(), batches.waited().since(&before));
        Ok(Arrived { pixels: self.uploader.begin(&batch)?, batch, wait, waited })
    }

    /// Asks the device for a step. A GPU has then only begun: nothing here waits for it.
    ///
    /// # Errors
    /// If libtorch fails, or a rank is gone.
    fn launch(&mut self, arrived: Arrived) -> Result<Launched, TrainError> {
        let began = Instant::now();
        let ready = self.uploader.now()?;
        arrived.pixels.hold()?;
        let held = self.uploader.now()?;
        let Told { contrast, gradients, probe_accuracy } = self.backward(&arrived)?;
        let gradient_norm = gradients.norm(&self.model.parameters)?;
        let spread = embedding_std(&contrast.projections);
        let probe_accuracy = probe_accuracy.unwrap_or_else(|| Tensor::full([], f64::NAN, (Kind::Float, self.device)));
        let scalars = [&contrast.loss, &contrast.accuracy, &contrast.entropy, &gradient_norm, &spread, &probe_accuracy];
        let scalars = Tensor::stack(&scalars.map(|scalar| scalar.detach().to_kind(Kind::Float)), 0);
        let learning_rate = self.schedule.learning_rate(self.step);
        self.step += 1;
        self.optimizer.step(&gradients, learning_rate, self.step)?;
        let gpu = match (ready, held, self.uploader.now()?) {
            (Some(ready), Some(held), Some(done)) => Some(OnGpu { ready, held, done }),
            _ => None,
        };
        Ok(Launched { arrived, scalars, learning_rate, host_time: began.elapsed(), gpu })
    }

    /// Waits for a step's numbers, and counts its time.
    ///
    /// # Errors
    /// If the loss is no number; nothing of the step is ever saved then.
    fn settle(&mut self, launched: Launched) -> Result<StepReport, TrainError> {
        let Launched { arrived: Arrived { batch, wait, waited, .. }, scalars, learning_rate, host_time, gpu } =
            launched;
        let began = Instant::now();
        // One transfer for all of them.
        let scalars = Vec::<f32>::try_from(scalars.to_device(Device::Cpu))?;
        let [loss, contrastive_accuracy, contrastive_entropy, gradient_norm, embedding_std, probe_accuracy] =
            std::array::from_fn(|i| f64::from(scalars[i]));
        if !(loss.is_finite() && gradient_norm.is_finite()) {
            let loss = if loss.is_finite() { gradient_norm } else { loss };
            return Err(TrainError::NotFinite { step: self.step, loss, position: batch.position });
        }
        let (mut data_wait, mut upload, mut step_time) = (wait, Duration::ZERO, host_time + began.elapsed());
        if let Some(OnGpu { ready, held, done }) = gpu {
            upload = ready.until(&held).map_err(of_torch)?;
            step_time = held.until(&done).map_err(of_torch)?;
            if let Some(last) = self.last_done.replace(done) {
                // What was waited for while the last step was still computed has kept nobody waiting.
                data_wait = wait.min(last.until(&ready).map_err(of_torch)?);
            }
        }
        let waited = of_all(data_wait, &waited);
        self.spent.waited = self.spent.waited.plus(&waited);
        self.spent.upload += upload.as_secs_f64();
        self.spent.steps += step_time.as_secs_f64();
        let metrics = &self.metrics;
        metrics.steps.increment(1);
        metrics.images.increment(batch.num_images as u64);
        metrics.step_seconds.record(step_time.as_secs_f64());
        metrics.data_wait_seconds.increment(data_wait.as_secs_f64());
        metrics.loss.set(loss);
        metrics.contrastive_accuracy.set(contrastive_accuracy);
        metrics.contrastive_entropy.set(contrastive_entropy);
        metrics.learning_rate.set(learning_rate);
        metrics.gradient_norm.set(gradient_norm);
        metrics.embedding_std.set(embedding_std);
        metrics.probe_accuracy.set(probe_accuracy);
        Ok(StepReport {
            step: self.step,
            position: batch.position,
            loss,
            contrastive_accuracy,
            contrastive_entropy,
            learning_rate,
            gradient_norm,
            embedding_std,
            probe_accuracy: self.probe.is_some().then_some(probe_accuracy),
            images: batch.num_images * self.world.size() as usize,
            step_time,
            data_wait,
            waited,
            spent: self.spent,
        })
    }

    /// What the batch says to the model.
    fn backward(&mut self, arrived: &Arrived) -> Result<Told, TrainError> {
        let Self { model, config, probe, world, reducer, .. } = self;
        let (batch, loss) = (&arrived.batch, &config.loss);
        let views = |images| arrived.pixels.views(images);
        let (images, part) = (batch.num_images as i64, i64::from(config.train.micro_batch));
        let mut passes = Backward::new(&model.parameters, world, reducer.as_ref());
        if part > 0 && part < images {
            let contrast = gradient_cache::backward(model, (images, part), (loss, world), views, &mut passes)?;
            return Ok(Told { contrast, gradients: passes.gradients(), probe_accuracy: None });
        }
        let (h, z) = model.forward(&views(0..images)?, Statistics::Update);
        let contrast = loss.contrast(&z, world)?;
        // Gradients become the mean over ranks. The whole batch's loss wants the sum; a probe's is a mean over images.
        let mut learnt = &contrast.loss * f64::from(world.size());
        let mut probe_accuracy = None;
        if let Some(probe) = probe {
            let (of_probe, accuracy) =
                probe.loss(&h, &Tensor::from_slice(&batch.labels), config.optimizer.weight_decay);
            learnt += of_probe;
            world.sum(&accuracy)?;
            probe_accuracy = Some(accuracy / f64::from(world.size()));
        }
        passes.add(&learnt, true)?;
        Ok(Told { contrast, gradients: passes.gradients(), probe_accuracy })
    }

    /// Trains to the last step, or until `stop` is set on any rank. The stream must begin at batch [`Training::step`].
    ///
    /// # Errors
    /// If the stream stops, the loss is no number, a checkpoint can't be written, or a rank is gone.
    pub fn run(
        &mut self,
        batches: &mut dyn BatchStream<DeviceSlab>,
        plan: &Plan,
        checkpoints: &Checkpoints,
        stop: &AtomicBool,
        mut between: Between<'_>,
    ) -> Result<End, TrainError> {
        let mut saved = self.step;
        let mut next = None;
        while self.step < self.last_step() {
            let counted = self.spent;
            let arrived = match next.take() {
                Some(arrived) => arrived,
                None => self.fetch(batches)?,
            };
            let launched = self.launch(arrived)?;
            // While a GPU computes, the next batch comes to it. On the CPU the step is done by now.
            if self.device.is_cuda() && self.step < self.last_step() {
                next = Some(self.fetch(batches)?);
            }
            let report = self.settle(launched)?;
            (between.step)(&report);
            if let Some((every, evaluate)) = &mut between.evaluation
                && self.step.is_multiple_of(*every)
            {
                let began = Instant::now();
                if self.world.leads() {
                    evaluate(&self.model, self.step)?;
                }
                self.world.await_leader(&format!("evaluated/{}", self.step))?;
                self.spent.evaluation += began.elapsed().as_secs_f64();
            }
            self.metrics.add_stalls(&self.spent.since(&counted));
            let stopped = self.world.any(stop.load(Ordering::Relaxed))?;
            if self.step.is_multiple_of(self.config.checkpoint.every) || self.step == self.last_step() || stopped {
                self.save(plan, checkpoints)?;
                saved = self.step;
            }
            if stopped && self.step < self.last_step() {
                return Ok(End::Interrupted);
            }
        }
        if saved < self.step {
            self.save(plan, checkpoints)?;
        }
        Ok(End::Done)
    }

    fn save(&mut self, plan: &Plan, checkpoints: &Checkpoints) -> Result<(), TrainError> {
        if !self.world.leads() {
            return Ok(());
        }
        let (began, counted) = (Instant::now(), self.spent);
        let state = checkpoint::state(self.step, self.step, plan);
        checkpoints.save(&state, &self.model.parameters, &self.optimizer, self.config.checkpoint.keep)?;
        let seconds = began.elapsed().as_secs_f64();
        self.spent.checkpoint += seconds;
        self.metrics.checkpoints.increment(1);
        self.metrics.checkpoint_seconds.set(seconds);
        self.metrics.add_stalls(&self.spent.since(&counted));
        Ok(())
    }
}

/// What was waited for, over all of the time that it took to be handed the batch.
fn of_all(wait: Duration, waited: &Waited) -> Waited {
    match (wait.as_secs_f64(), waited.total()) {
        (wait, known) if known > 0.0 => waited.times(wait / known),
        (wait, _) => Waited { decode: wait, ..Waited::default() },
    }
}

/// Spread of the normalised projections `z`: `[N, dim]`: the mean over dimensions of their standard deviation, times
/// √dim.
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
    use super::*;

    #[test]
    fn the_spread_tells_a_sphere_from_a_point() {
        tch::manual_seed(1);
        let sphere = Tensor::randn([2000, 64], (Kind::Float, Device::Cpu));
        let spread = |z: &Tensor| f64::try_from(embedding_std(z)).unwrap();
        assert!((spread(&sphere) - 1.0).abs() < 0.05);
        assert!(spread(&Tensor::ones([2000, 64], (Kind::Float, Device::Cpu))) < 1e-3);
    }
}
