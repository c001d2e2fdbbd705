//! One step: a batch comes to the device, the device is asked for the step, its numbers are waited for. On a GPU the three
//! overlap with those of the next batch.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use simclr_ground::batch::Batch;
use simclr_ground::batch_stream::{BatchStream, Next};
use simclr_ground::patience::{LOOK, LongWait};
use simclr_ground::stall::Waited;
use tch::{Device, Tensor};

use super::gradient_cache;
use super::training::{StepReport, Training};
use crate::device::{DeviceSlab, Event, Uploaded};
use crate::error::{TrainError, of_torch};
use crate::gradients::{Backward, Gradients};
use crate::loss::LossOutput;
use crate::model::resnet::BatchNormMode;
use crate::step_metrics::{self, StepOutput, StepTimes, StepValues};

/// A batch, its pixels on their way onto the device.
pub(super) struct Arrived {
    batch: Batch<DeviceSlab>,
    pixels: Uploaded,
    /// How long was waited for it, and for what.
    wait: Duration,
    waited: Waited,
}

/// A step that the device was asked for.
pub(super) struct Launched {
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
    ready: Event,
    /// They are there.
    held: Event,
    /// It is done.
    done: Event,
}

/// What a batch says.
struct BackwardOutput {
    contrast: LossOutput,
    /// The gradient of the loss, and of the probe's.
    gradients: Gradients,
    /// The share of views that the probe recognizes.
    probe_accuracy: Option<Tensor>,
}

impl Training {
    /// Waits for the next batch, and begins to bring it onto the device; `None` if `stop` is set before it is there.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn fetch(
        &self,
        batches: &mut dyn BatchStream<DeviceSlab>,
        stop: &AtomicBool,
    ) -> Result<Option<Arrived>, TrainError> {
        let (began, before) = (Instant::now(), batches.waited());
        let mut long = LongWait::default();
        let batch = loop {
            match batches.next_within(LOOK)? {
                Next::Batch(batch) => break batch,
                Next::End => return Err(TrainError::StreamEnded { batch: self.step }),
                Next::NotYet if stop.load(Ordering::Relaxed) => return Ok(None),
                Next::NotYet => {
                    if let Some(waited) = long.due() {
                        let (seconds, what) = (waited.as_secs(), batches.waits_for());
                        tracing::warn!("batch {} is waited for since {seconds} s, and so is {what}", self.step);
                    }
                }
            }
        };
        assert_eq!(batch.position.batch, self.step, "step and batch go together");
        let (wait, waited) = (began.elapsed(), batches.waited().since(&before));
        Ok(Some(Arrived { pixels: self.uploader.begin(&batch)?, batch, wait, waited }))
    }

    /// Asks the device for a step. A GPU has then only begun: nothing here waits for it.
    ///
    /// # Errors
    /// If libtorch fails, or a rank is gone.
    pub(super) fn launch(&mut self, arrived: Arrived) -> Result<Launched, TrainError> {
        let began = Instant::now();
        let ready = self.uploader.now()?;
        arrived.pixels.hold()?;
        let held = self.uploader.now()?;
        let BackwardOutput { contrast, gradients, probe_accuracy } = self.backward(&arrived)?;
        let scalars = step_metrics::scalars(&StepOutput {
            contrast: &contrast,
            gradients: &gradients,
            parameters: &self.model.parameters,
            probe_accuracy: probe_accuracy.as_ref(),
        })?;
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
    pub(super) fn settle(&mut self, launched: Launched) -> Result<StepReport, TrainError> {
        let Launched { arrived: Arrived { batch, wait, waited, .. }, scalars, learning_rate, host_time, gpu } =
            launched;
        let began = Instant::now();
        // One transfer for all of them.
        let scalars = Vec::<f32>::try_from(scalars.to_device(Device::Cpu))?;
        let (mut data_wait, mut upload, mut step_time) = (wait, Duration::ZERO, host_time + began.elapsed());
        if let Some(OnGpu { ready, held, done }) = gpu {
            upload = ready.until(&held).map_err(of_torch)?;
            step_time = held.until(&done).map_err(of_torch)?;
            if let Some(last) = self.last_done.replace(done) {
                // What was waited for while the last step was still computed has kept nobody waiting.
                data_wait = wait.min(last.until(&ready).map_err(of_torch)?);
            }
        }
        let position = batch.position;
        let images = batch.num_images * self.world.size() as usize;
        // A GPU's steps overlap with what the host does; the clock says how they follow each other.
        let alone = step_time + data_wait;
        let wall = self.settled.filter(|_| self.device.is_cuda()).map_or(alone, |last| last.elapsed());
        self.settled = Some(Instant::now());
        let times = StepTimes {
            epoch: (position.batch + 1) as f64 / self.batches_per_epoch as f64,
            learning_rate,
            images,
            step_seconds: step_time.as_secs_f64(),
            data_wait_seconds: data_wait.as_secs_f64(),
            wall_seconds: wall.as_secs_f64(),
        };
        let values = StepValues::new(&times, &scalars);
        for key in ["loss", "gradient_norm"] {
            let value = values.get(key);
            if !value.is_finite() {
                return Err(TrainError::NotFinite { step: self.step, loss: value, position });
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
        metrics.step.set(&values);
        Ok(StepReport { step: self.step, position, values, images, step_time, data_wait, waited, spent: self.spent })
    }

    /// What the batch says to the model.
    fn backward(&mut self, arrived: &Arrived) -> Result<BackwardOutput, TrainError> {
        let Self { model, config, probe, world, reducer, .. } = self;
        let (batch, loss) = (&arrived.batch, &config.loss);
        let views = |images| arrived.pixels.views(images);
        let (images, part) = (batch.num_images as i64, i64::from(config.train.micro_batch));
        let mut passes = Backward::new(&model.parameters, world, reducer.as_ref());
        if part > 0 && part < images {
            let contrast = gradient_cache::backward(model, (images, part), (loss, world), views, &mut passes)?;
            return Ok(BackwardOutput { contrast, gradients: passes.gradients(), probe_accuracy: None });
        }
        let (h, z) = model.forward(&views(0..images)?, BatchNormMode::Update);
        let contrast = loss.contrast(&z, world)?;
        // Gradients become the mean over ranks. The whole batch's loss wants the sum; a probe's is a mean over images.
        let mut learned = &contrast.loss * (loss.shared.scale * f64::from(world.size()));
        let mut probe_accuracy = None;
        if let Some(probe) = probe {
            let (of_probe, accuracy) =
                probe.loss(&h, &Tensor::from_slice(&batch.labels), config.optimizer.shared.weight_decay);
            learned += of_probe;
            world.all_reduce(&accuracy)?;
            probe_accuracy = Some(accuracy / f64::from(world.size()));
        }
        passes.add(&learned, true)?;
        Ok(BackwardOutput { contrast, gradients: passes.gradients(), probe_accuracy })
    }
}

/// What was waited for, over all of the time that it took to be handed the batch.
fn of_all(wait: Duration, waited: &Waited) -> Waited {
    match (wait.as_secs_f64(), waited.total()) {
        (wait, known) if known > 0.0 => waited.times(wait / known),
        (wait, _) => Waited { decode: wait, ..Waited::default() },
    }
}
