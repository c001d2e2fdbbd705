//! From batch to batch: the training loop, its checkpoints and its guard.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use simclr_ground::batch_stream::{BatchStream, StreamSummary};
use simclr_ground::error::{Error, ErrorClass, InvalidValue, Result};
use simclr_ground::position::Position;
use simclr_ground::stall::Waited;
use tch::{Device, Tensor};

use super::config::TrainerConfig;
use crate::checkpoint::{self, Checkpoints};
use crate::device::{DeviceSlab, Event, Precision, Uploader};
use crate::distributed::{Reducer, World};
use crate::error::TrainError;
use crate::memory::in_memory;
use crate::metrics::TrainerMetrics;
use crate::model::SimClr;
use crate::model::probe::Probe;
use crate::optimizer::Optimizer;
use crate::optimizer::schedule::Schedule;
use crate::step_metrics::StepValues;
use crate::time_spent::TimeSpent;

/// What one step did.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Steps taken, this one included.
    pub step: u64,
    /// The batch it was taken on.
    pub position: Position,
    /// What it logs.
    pub values: StepValues,
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
pub type Evaluate<'a> = &'a mut dyn FnMut(&SimClr, u64) -> Result<()>;

/// What else is done between steps.
pub struct Hooks<'a> {
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
    /// The optimizer.
    pub optimizer: Optimizer,
    /// The learning rate over time.
    pub schedule: Schedule,
    /// Steps taken.
    pub step: u64,
    /// Where the time of the steps taken here went.
    pub spent: TimeSpent,
    pub(super) probe: Option<Probe>,
    pub(super) config: TrainerConfig,
    pub(super) batches_per_epoch: u64,
    pub(super) device: Device,
    pub(super) uploader: Uploader,
    /// When the last step was done, on a GPU.
    pub(super) last_done: Option<Event>,
    /// When it was known to be done, unless something else was done since.
    pub(super) settled: Option<Instant>,
    pub(super) world: Rc<World>,
    pub(super) reducer: Option<Reducer>,
    pub(super) metrics: TrainerMetrics,
}

impl Training {
    /// A model with initial weights, to be trained by all of `world` on the batches of `stream`.
    ///
    /// # Errors
    /// If a value of the configuration is out of its range, or a rank is gone.
    pub fn new(
        config: &TrainerConfig,
        stream: &StreamSummary,
        (device, precision): (Device, Precision),
        world: Rc<World>,
        metrics: TrainerMetrics,
    ) -> Result<Self, TrainError> {
        config.check()?;
        let sizes = &stream.view_sizes;
        if !matches!(sizes[..], [first, second] if first == second) {
            let found = if sizes.len() == 2 { format!("2 (sides {sizes:?})") } else { sizes.len().to_string() };
            return Err(
                InvalidValue::new("recipe.views", found, "expected 2 views of the same size for training").into()
            );
        }
        let together = if config.train.sync_batch_norm { world.clone() } else { World::alone() };
        let mut model = SimClr::of_ranks(&config.model, stream.seed, device, precision, together)?;
        let probe = match (config.train.probe, stream.num_classes) {
            (false, _) => None,
            (true, Some(classes)) if config.train.micro_batch == 0 => {
                Some(Probe::new(&mut model.parameters, model.encoder.dim(), classes as i64))
            }
            (true, classes) => {
                let wanted = if classes.is_none() {
                    "requires a labeled dataset"
                } else {
                    "requires train.micro_batch = 0 (the probe needs whole batches)"
                };
                return Err(InvalidValue::new("train.probe", true, wanted).into());
            }
        };
        let optimizer = Optimizer::new(&config.optimizer, &model.parameters);
        let batch_size = stream.batch_size;
        if batch_size < 2 {
            let wanted = "expected at least 2: a contrastive loss compares the images of a batch with each other";
            return Err(InvalidValue::new("batch.size", batch_size.to_string(), wanted).into());
        }
        let peak = config.optimizer.peak_learning_rate(batch_size);
        let schedule = Schedule::new(&config.schedule, stream.num_samples, batch_size, peak)?;
        let learning: Vec<&Tensor> = model.parameters.trainable().map(|parameter| &parameter.tensor).collect();
        let reducer = world.reducer(&learning)?;
        Ok(Self {
            model,
            optimizer,
            schedule,
            step: 0,
            spent: TimeSpent::default(),
            probe,
            config: config.clone(),
            batches_per_epoch: stream.batches_per_epoch,
            device,
            uploader: Uploader::new(device)?,
            last_done: None,
            settled: None,
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
        self.world.broadcast([&step])?;
        self.step = i64::try_from(step)? as u64;
        self.world.broadcast(self.model.parameters.entries().iter().map(|parameter| &parameter.tensor))?;
        self.world.broadcast(self.optimizer.state().into_iter().map(|(_, tensor)| tensor))
    }

    /// The step at which the run is done.
    pub fn last_step(&self) -> u64 {
        match self.config.train.steps {
            0 => self.schedule.total_steps,
            steps => steps.min(self.schedule.total_steps),
        }
    }

    /// Trains to the last step, or until `stop` is set on any rank. The stream must begin at batch [`Training::step`].
    ///
    /// What is learned is kept in a checkpoint whenever this ends between two steps: when it is asked to, when no batch
    /// comes, and when an evaluation fails. Once a step was taken, the input was right: what fails then is nobody's input.
    ///
    /// # Errors
    /// If the stream stops, the loss is no number, a checkpoint can't be written, or a rank is gone.
    pub fn run(
        &mut self,
        batches: &mut dyn BatchStream<DeviceSlab>,
        stream: &StreamSummary,
        checkpoints: &Checkpoints,
        stop: &AtomicBool,
        mut between: Hooks<'_>,
    ) -> Result<End> {
        let began = self.step;
        let mut saved = self.step;
        let mut next = None;
        while self.step < self.last_step() {
            let counted = self.spent;
            let arrived = next.take().unwrap_or_else(|| self.fetch(batches, stop));
            // All ranks end after the same step, so that what one of them keeps is what all of them know.
            let gives_up = stop.load(Ordering::Relaxed) || matches!(arrived, Ok(None));
            let [stopped, failed] = self.world.any([gives_up, arrived.is_err()])?;
            let arrived = match arrived {
                Ok(Some(arrived)) if !stopped && !failed => arrived,
                ended => {
                    let kept = self.keep(saved, stream, checkpoints);
                    self.world.await_leader(&format!("kept/{}", self.step))?;
                    let error: Error = match ended {
                        Err(error) => error.into(),
                        Ok(_) if failed => self.world.failure_elsewhere().into(),
                        Ok(_) => return kept.map(|()| End::Interrupted).map_err(Into::into),
                    };
                    return Err(while_running(error, self.step > began));
                }
            };
            let first = self.spent.steps == 0.0;
            let launched = in_memory(self.device, first, || self.launch(arrived))?;
            // While a GPU computes, the next batch comes to it. On the CPU the step is done by now.
            if self.device.is_cuda() && self.step < self.last_step() {
                next = Some(self.fetch(batches, stop));
            }
            let report = in_memory(self.device, first, || self.settle(launched))?;
            (between.step)(&report);
            if let Some((every, evaluate)) = &mut between.evaluation
                && self.step.is_multiple_of(*every)
            {
                let started = Instant::now();
                self.settled = None;
                if self.world.is_leader()
                    && let Err(error) = evaluate(&self.model, self.step)
                    // One that was given up ends with the run, at the next step.
                    && !stop.load(Ordering::Relaxed)
                {
                    // Said already if it can't be: what made the evaluation fail is what is to be known.
                    let _ = self.keep(saved, stream, checkpoints);
                    return Err(while_running(error, true));
                }
                self.world.await_leader(&format!("evaluated/{}", self.step))?;
                self.spent.evaluation += started.elapsed().as_secs_f64();
            }
            self.metrics.add_stalls(&self.spent.since(&counted));
            if self.step.is_multiple_of(self.config.checkpoint.every) || self.step == self.last_step() {
                self.save(stream, checkpoints)?;
                saved = self.step;
            }
        }
        if saved < self.step {
            self.save(stream, checkpoints)?;
        }
        Ok(End::Done)
    }

    /// Saves what was learned since the step `saved`, before this ends.
    fn keep(&mut self, saved: u64, stream: &StreamSummary, checkpoints: &Checkpoints) -> Result<(), TrainError> {
        if saved == self.step {
            return Ok(());
        }
        self.save(stream, checkpoints).inspect_err(|error| tracing::error!("the steps since {saved} are lost: {error}"))
    }

    fn save(&mut self, stream: &StreamSummary, checkpoints: &Checkpoints) -> Result<(), TrainError> {
        if !self.world.is_leader() {
            return Ok(());
        }
        let (began, counted) = (Instant::now(), self.spent);
        self.settled = None;
        let state = checkpoint::state(self.step, self.step, stream);
        checkpoints.save(&state, &self.model.parameters, &self.optimizer, self.config.checkpoint.keep)?;
        let seconds = began.elapsed().as_secs_f64();
        self.spent.checkpoint += seconds;
        self.metrics.checkpoints.increment(1);
        self.metrics.checkpoint_seconds.set(seconds);
        self.metrics.add_stalls(&self.spent.since(&counted));
        Ok(())
    }
}

/// What ended a run that had taken a step, or none: input that was right for a step has not become wrong since.
fn while_running(error: Error, stepped: bool) -> Error {
    if stepped { error.with_class(ErrorClass::Runtime) } else { error }
}
