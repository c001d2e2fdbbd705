//! A training in its folder: what is opened for it, what is written of it, what it may cost the machine.

use std::cell::RefCell;
use std::io::Write;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use pipeline::loader::{LoaderOptions, Source, slab_bytes};
use pipeline::plan::Plan;
use serde_json::json;
use tch::Tensor;
use trainer::checkpoint;
use trainer::device::{self, DeviceSlab, Precision};
use trainer::error::TrainError;
use trainer::eval::{knn, normalized_halves};
use trainer::metrics::TrainerMetrics;
use trainer::ranks::{Meeting, World};
use trainer::simclr::SimClr;
use trainer::time_spent::TimeSpent;
use trainer::train::{Between, End, Evaluate, StepReport, TrainerConfig, Training};

use crate::commands::Voice;
use crate::commands::eval::{Labels, encode};
use crate::config::{Config, MachineConfig};
use crate::live::Live;
use crate::progress::Progress;
use crate::ranks;
use crate::run::{MetricsLine, RunFolder};
use crate::stall::Load;
use crate::tensorboard::Events;
use crate::{WrongInput, stream, telemetry};

/// How a training ended.
pub struct Outcome {
    pub end: End,
    pub step: u64,
    pub loss: Option<f64>,
    pub images_per_second: Option<f64>,
    pub spent: TimeSpent,
}

impl Outcome {
    /// The share of the time that each cause took, and that of the steps themselves.
    pub fn stalls(&self) -> serde_json::Map<String, serde_json::Value> {
        let total = self.spent.total().max(f64::MIN_POSITIVE);
        let all = self.spent.stalls().into_iter().chain([("steps", self.spent.steps)]);
        all.map(|(cause, seconds)| (cause.to_owned(), json!(seconds / total))).collect()
    }
}

/// Trains in `folder` to the end, or until `stop`; with the ranks of a meeting, if there is one.
pub fn train(
    config: &Config,
    folder: &RunFolder,
    resume: bool,
    (stop, live, meeting): (&AtomicBool, &Live, Option<&Rc<Meeting>>),
    runtime: &tokio::runtime::Handle,
    voice: Voice,
) -> anyhow::Result<Outcome> {
    let place = meeting.map(|meeting| meeting.place());
    let local_world = place.map_or(1, |place| place.local_world as usize);
    let device = device::open_nth(&config.machine.device, place.map_or(0, |place| place.local_rank as usize))?;
    device::compute_on_cpu(torch_threads(&config.machine, local_world));
    let mut source = stream::open(config.stream(), &config.machine)?;
    let share = ranks::share(place);
    source.plan.check_share(share)?;
    let world = match meeting {
        Some(meeting) => ranks::join(meeting, (config, &source.plan), device)?,
        None => World::alone(),
    };
    let mut training = new_training(config, &source, device, world.clone())?;
    if config.eval.every > 0 && config.eval.test.as_os_str().is_empty() {
        let wanted =
            "eval.test = \"\": with eval.every a manifest of labelled images that are not trained on is wanted";
        return Err(WrongInput(wanted.into()).into());
    }
    let _lock = if world.leads() { Some(folder.lock()?) } else { None };
    let checkpoints = folder.checkpoints();
    if resume && world.leads() {
        go_on(&mut training, folder, &source.plan, voice)?;
    }
    training.follow_leader()?;
    stream::keep_ledger(&mut source, &folder.ledger(world.rank())?)?;
    let plan = &source.plan;
    metrics::describe_gauge!("simclr_run_info", "The run's plan, and which rank of how many this is; always 1.");
    let [rank, ranks] = [world.rank(), world.size()].map(|number| number.to_string());
    metrics::gauge!("simclr_run_info", "plan" => plan.digest[..16].to_owned(), "rank" => rank, "world" => ranks)
        .set(1.0);
    let threads = loader_threads(&config.machine, device.is_cuda(), local_world);
    let options = LoaderOptions {
        threads,
        from_batch: training.step,
        to_batch: Some(training.last_step().max(training.step)),
        share,
    };
    // The one in use, and beside a GPU the one on its way to it.
    let in_use = if device.is_cuda() { 2 } else { 1 };
    let slabs = DeviceSlab::allocate(config.machine.batches_ahead + in_use, slab_bytes(plan, share), device)?;
    let mut batches = stream::feed(&source, slabs, &config.machine, options, runtime)?;
    // Nothing that the user could put right fails from here on: now it is a run.
    let mut lines = None;
    if world.leads() {
        folder.start(config, plan)?;
        lines = Some(folder.metrics_after(training.step)?);
    }
    tracing::info!(
        excluded = training.optimizer.excluded().len(),
        "tensors without weight decay: {}",
        training.optimizer.excluded().join(" ")
    );
    tracing::info!(device = ?device, threads, parameters = training.model.parameters.num_trainable(), plan = %plan.digest, "training begins");

    let (first, last) = (training.step, training.last_step());
    let fed = !config.machine.feed.nodes.is_empty();
    let load = Load { threads: if fed { 0 } else { threads }, fed, ..Load::default() };
    live.begin(folder.path(), format!("{device:?}").to_lowercase(), source.clone(), (first, last), load);
    let progress = Progress::new("training", first, last, voice.quiet);
    let (mut loss, mut smooth, mut failed) = (None, None::<(f64, f64)>, None);
    let mut events = match config.machine.tensorboard && world.leads() {
        true => Some(Events::create(&folder.join("tensorboard"), first).with_context(|| {
            format!("cannot write {}; machine.tensorboard = false does without", folder.join("tensorboard").display())
        })?),
        false => None,
    };
    let events = &RefCell::new(&mut events);
    let write_events = |step: u64, values: &[(&str, f64)]| match &mut **events.borrow_mut() {
        Some(events) => events.scalars(step, values.iter().copied()),
        None => Ok(()),
    };
    let mut evaluate = |model: &SimClr, step: u64| {
        live.turn_to("evaluating");
        let evaluated = evaluate_neighbours(config, folder, (model, step), device, runtime);
        live.turn_to("training");
        let top1 = evaluated.map_err(|error| TrainError::Evaluation(format!("{error:#}")))?;
        if let Err(error) = write_events(step, &[("evaluation/knn_top1", top1)]) {
            tracing::warn!("TensorBoard's file cannot be written: {error}");
        }
        Ok(())
    };
    let every = u64::from(config.eval.every) * plan.batches_per_epoch();
    let mut on_step = |report: &StepReport| {
        let line = MetricsLine::new(report, plan);
        loss = Some(report.loss);
        let waited = line.data_wait_seconds / (line.step_seconds + line.data_wait_seconds);
        let (rate, wait) = smooth.map_or((line.images_per_second, waited), |(rate, wait)| {
            (0.95 * rate + 0.05 * line.images_per_second, 0.95 * wait + 0.05 * waited)
        });
        smooth = Some((rate, wait));
        let left = (last - report.step) as f64 * report.images as f64 / rate;
        live.step(&line, report.images as u64 / u64::from(world.size()), &report.spent, rate, left);
        if report.step.is_multiple_of(config.train.log_every) || report.step == last {
            let text = serde_json::to_string(&line).expect("a line is plain data");
            let mut write = || match &mut lines {
                Some(lines) => writeln!(lines, "{text}").and_then(|()| write_events(line.step, &line.scalars())),
                None => Ok(()),
            };
            let written = write();
            if let Err(error) = written {
                failed = Some(error);
                stop.store(true, Ordering::Relaxed);
            }
        }
        progress.set(report.step, last, || {
            format!(
                "{rate:.0} images/s, loss {:.3}, waits for data {:.0} %, {left:.0} s left",
                report.loss,
                100.0 * wait
            )
        });
    };
    let evaluation = (every > 0).then_some((every, &mut evaluate as Evaluate<'_>));
    let between = Between { step: &mut on_step, evaluation };
    let end = training.run(&mut *batches, plan, &checkpoints, stop, between)?;
    world.leave()?;
    progress.finish();
    live.turn_to(if end == End::Interrupted { "interrupted" } else { "done" });
    if let Some(error) = failed {
        return Err(error).with_context(|| format!("cannot write {}", folder.path().display()));
    }
    let damaged = source.quarantine.entries().len();
    if damaged > 0 && !voice.quiet {
        eprintln!("{damaged} damaged samples were replaced; {} names them", folder.ledger(0)?.display());
    }
    // A run that was done already has its last loss on record.
    let loss = match loss {
        Some(loss) => Some(loss),
        None => folder.metrics()?.last().map(|line| line.loss),
    };
    Ok(Outcome {
        end,
        step: training.step,
        loss,
        images_per_second: smooth.map(|(rate, _)| rate),
        spent: training.spent,
    })
}

/// Takes the newest checkpoint that is whole, if there is one.
fn go_on(training: &mut Training, folder: &RunFolder, plan: &Plan, voice: Voice) -> anyhow::Result<()> {
    let (newest, mut broken) = folder.checkpoints().newest();
    if newest.is_none() && !broken.is_empty() {
        return Err(broken.swap_remove(0)).context("no checkpoint of this run is whole; remove them to start it anew");
    }
    for error in broken {
        tracing::warn!("not taken: {error}");
    }
    let Some((path, state)) = newest else { return Ok(()) };
    if !state.plan_digest.is_empty() && state.plan_digest != plan.digest {
        let (found, wanted) = (&state.plan_digest, &plan.digest);
        let path = path.display();
        return Err(WrongInput(format!(
            "{path}: was trained on plan {found}, the configuration gives plan {wanted}: the data or the recipe changed"
        ))
        .into());
    }
    // Imported weights begin a run; whatever optimiser it has, it remembers nothing yet.
    let optimizer = (!state.plan_digest.is_empty()).then_some(&training.optimizer);
    checkpoint::load(&path, &training.model.parameters, optimizer)?;
    training.step = state.step;
    if !voice.quiet {
        eprintln!("going on from step {} ({})", state.step, path.display());
    }
    Ok(())
}

/// The accuracy of nearest neighbours among the sets that `[eval]` names; noted in the run's folder.
fn evaluate_neighbours(
    config: &Config,
    folder: &RunFolder,
    (model, step): (&SimClr, u64),
    device: tch::Device,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<f64> {
    let eval = &config.eval;
    let train = if eval.train.as_os_str().is_empty() { &config.data.manifest } else { &eval.train };
    // Training shows its progress already.
    let voice = Voice { json: false, quiet: true };
    let represent = |views: &Tensor| normalized_halves(&model.represent(views, 0));
    let encode = |set: &Path, what| {
        let set = (config.evaluation_stream(set.to_owned(), [0.0, 1.0], config.seed), Labels::Wanted);
        encode(&represent, set, (&config.machine, device), what, runtime, voice)
    };
    let (voters, asked) = (encode(train, "train set")?, encode(&eval.test, "test set")?);
    let result = knn(&voters, &asked, &eval.knn)?.measure()?;
    metrics::gauge!("simclr_trainer_knn_accuracy_ratio").set(result.top1);
    folder.add_evaluation(&json!({
        "evaluation": "knn", "step": step, "top1": result.top1, "top5": result.top5, "k": i64::from(eval.knn.k).min(voters.labels.size()[0]),
        "temperature": eval.knn.temperature, "train": train, "test": eval.test,
        "train_images": voters.labels.size()[0], "test_images": asked.labels.size()[0],
    }))?;
    Ok(result.top1)
}

/// A model with initial weights on `device`.
pub fn new_training(
    config: &Config,
    source: &Source,
    device: tch::Device,
    world: Rc<World>,
) -> anyhow::Result<Training> {
    telemetry::recorder();
    let trainer = TrainerConfig {
        model: config.model.clone(),
        loss: config.loss.clone(),
        optimizer: config.optimizer.clone(),
        schedule: config.schedule.clone(),
        train: config.train.clone(),
        checkpoint: config.checkpoint.clone(),
    };
    let manifest = source.store.manifest();
    let classes = manifest.is_labelled().then(|| manifest.num_classes());
    Ok(Training::new(
        &trainer,
        (&source.plan, classes),
        (device, precision(&config.machine)),
        world,
        TrainerMetrics::register(),
    )?)
}

/// The precision that the configuration names.
pub fn precision(machine: &MachineConfig) -> Precision {
    if machine.precision == "bf16" { Precision::Bf16 } else { Precision::Fp32 }
}

/// libtorch's threads on the CPU, for one of so many processes on it.
pub fn torch_threads(machine: &MachineConfig, processes: usize) -> usize {
    if machine.torch_threads == 0 { (stream::cores() / processes).max(1) } else { machine.torch_threads }
}

/// Loader threads beside a trainer, one of so many on this machine: when it computes on the CPU, one is enough and more
/// would be in its way.
fn loader_threads(machine: &MachineConfig, cuda: bool, processes: usize) -> usize {
    match machine.threads {
        0 if cuda => (stream::cores() / processes).saturating_sub(1).max(1),
        0 => 1,
        threads => threads,
    }
}
