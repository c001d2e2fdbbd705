//! `train`: from a configuration to a run folder, and on from where a run was stopped.

use std::cell::RefCell;
use std::io::Write;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use pipeline::loader::{LoaderOptions, Source, slab_bytes};
use pipeline::service::server::Guard;
use serde_json::json;
use tch::Tensor;
use trainer::checkpoint;
use trainer::device::{self, DeviceSlab, Precision};
use trainer::error::TrainError;
use trainer::eval::{knn, normalized_halves};
use trainer::metrics::TrainerMetrics;
use trainer::ranks::{Meeting, Place, World};
use trainer::simclr::SimClr;
use trainer::time_spent::TimeSpent;
use trainer::train::{Between, End, Evaluate, StepReport, TrainerConfig, Training};

use super::Voice;
use super::eval::{Labels, encode};
use crate::cli::TrainArgs;
use crate::config::{Config, MachineConfig};
use crate::live::Live;
use crate::pages;
use crate::progress::Progress;
use crate::ranks::{self, launcher};
use crate::run::{MetricsLine, RunFolder};
use crate::stall::Load;
use crate::tensorboard::Events;
use crate::{Ending, WrongInput, stream, telemetry};

/// What may differ when a run goes on: how long, how chatty, how often it saves.
const MAY_CHANGE: [&str; 9] = [
    "train.steps",
    "train.log_every",
    "checkpoint.every",
    "checkpoint.keep",
    "data.manifest",
    "data.max_damaged",
    "eval.every",
    "eval.train",
    "eval.test",
];

pub fn run(args: &TrainArgs, voice: Voice) -> anyhow::Result<Ending> {
    if let Some(count) = args.nproc {
        let stop = stop_on_signals()?;
        return launcher::run(count, args.restarts, &stop);
    }
    launcher::follow();
    let place = if args.dry_run { None } else { ranks::place(|name| std::env::var(name).ok())? };
    let folder = RunFolder::at(&args.run);
    let config = configuration(args, &folder)?;
    if args.dry_run {
        return dry_run(&config, voice);
    }
    let (rank, world) = place.as_ref().map_or((0, 1), |place| (place.rank, place.world));
    crate::logging::of_run(&folder.path().display().to_string(), rank, world);
    let stop = stop_on_signals()?;
    let open = |place: &Place| Meeting::open(place, ranks::patience(&config)).map(Rc::new);
    let meeting = place.as_ref().map(open).transpose()?;
    // One voice for all ranks.
    let voice = if rank == 0 { voice } else { Voice { quiet: true, ..voice } };
    let outcome = train_and_show(&config, &folder, args.resume, (&stop, meeting.as_ref()), voice);
    if let (Err(error), Some(meeting)) = (&outcome, &meeting) {
        meeting.fail(&format!("{error:#}"));
    }
    let (outcome, live) = outcome?;
    if rank > 0 {
        return Ok(if outcome.end == End::Interrupted { Ending::Interrupted } else { Ending::Done });
    }
    let object = json!({
        "run": folder.path(), "step": outcome.step, "loss": outcome.loss, "images_per_second": outcome.images_per_second,
        "interrupted": outcome.end == End::Interrupted, "stalls": outcome.stalls(), "verdict": live.sentence(),
    });
    voice.result(&object, || {
        let loss = outcome.loss.map_or("none".into(), |loss| format!("{loss:.4}"));
        let told = if outcome.images_per_second.is_some() { format!("\n{}", live.sentence()) } else { String::new() };
        let end = if outcome.end == End::Interrupted { "stopped at" } else { "trained to" };
        format!("{end} step {}, loss {loss}, in {}{told}", outcome.step, folder.path().display())
    });
    Ok(if outcome.end == End::Interrupted { Ending::Interrupted } else { Ending::Done })
}

/// As [`train`], with a page that shows it.
fn train_and_show(
    config: &Config,
    folder: &RunFolder,
    resume: bool,
    (stop, meeting): (&AtomicBool, Option<&Rc<Meeting>>),
    voice: Voice,
) -> anyhow::Result<(Outcome, Arc<Live>)> {
    let runtime = stream::runtime()?;
    let live = Arc::new(Live::default());
    let local_rank = meeting.map_or(0, |meeting| meeting.place().local_rank);
    show(&live, &config.machine, local_rank, runtime.handle(), voice)?;
    let outcome = train(config, folder, resume, (stop, &live, meeting), runtime.handle(), voice)?;
    Ok((outcome, live))
}

/// The configuration: of the flags for a new run; for one that goes on, what was recorded, changed by the flags.
fn configuration(args: &TrainArgs, folder: &RunFolder) -> anyhow::Result<Config> {
    if !folder.holds_run() {
        let mut config = args.config.load()?;
        config.data.manifest = std::path::absolute(&config.data.manifest)?;
        args.feed.apply(&mut config.machine.feed);
        return Ok(config);
    }
    if !args.resume {
        let path = folder.path().display();
        return Err(WrongInput(format!(
            "{path}: holds a run already; --resume goes on with it, or name another folder"
        ))
        .into());
    }
    let record = folder.record()?;
    let recorded = record.config;
    let mut config = match &args.config.config {
        Some(_) => args.config.load()?,
        None => recorded.with(&args.config.settings(), &folder.join("run.json").display().to_string())?,
    };
    config.data.manifest = std::path::absolute(&config.data.manifest)?;
    args.feed.apply(&mut config.machine.feed);
    let mut differences = recorded.differences(&config, &MAY_CHANGE);
    if record.plan_digest.is_empty() {
        // Nothing has been trained yet: only what the imported weights are is given.
        differences.retain(|difference| difference.starts_with("model."));
    }
    if !differences.is_empty() {
        let list = differences.join("; ");
        return Err(WrongInput(format!(
            "{}: the run was started with another configuration ({list}); start a new one instead",
            folder.path().display()
        ))
        .into());
    }
    Ok(config)
}

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
    fn stalls(&self) -> serde_json::Map<String, serde_json::Value> {
        let total = self.spent.total().max(f64::MIN_POSITIVE);
        let all = self.spent.stalls().into_iter().chain([("steps", self.spent.steps)]);
        all.map(|(cause, seconds)| (cause.to_owned(), json!(seconds / total))).collect()
    }
}

/// Serves the pages that show `live` at `machine.metrics`, unless that is empty, and says where. Ranks on one machine take
/// the ports one after the other.
pub fn show(
    live: &Arc<Live>,
    machine: &MachineConfig,
    local_rank: u32,
    runtime: &tokio::runtime::Handle,
    voice: Voice,
) -> anyhow::Result<()> {
    if machine.metrics.is_empty() {
        return Ok(());
    }
    let guard = Guard::open(&machine.service)?;
    let address = match machine.metrics.parse::<std::net::SocketAddr>() {
        Ok(mut address) if address.port() > 0 => {
            address.set_port(address.port().saturating_add(local_rank as u16));
            address.to_string()
        }
        _ => machine.metrics.clone(),
    };
    let address = pages::serve("machine.metrics", &address, live.pages(guard), runtime)?;
    if !voice.quiet {
        eprintln!("metrics at http://{address}/metrics\na page of it all at http://{address}/");
    }
    Ok(())
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
        let (newest, mut broken) = checkpoints.newest();
        if newest.is_none() && !broken.is_empty() {
            return Err(broken.swap_remove(0))
                .context("no checkpoint of this run is whole; remove them to start it anew");
        }
        for error in broken {
            tracing::warn!("not taken: {error}");
        }
        if let Some((path, state)) = newest {
            if !state.plan_digest.is_empty() && state.plan_digest != source.plan.digest {
                let (found, wanted) = (&state.plan_digest, &source.plan.digest);
                return Err(WrongInput(format!("{}: was trained on plan {found}, the configuration gives plan {wanted}: the data or the recipe changed", path.display())).into());
            }
            // Imported weights begin a run; whatever optimiser it has, it remembers nothing yet.
            let optimizer = (!state.plan_digest.is_empty()).then_some(&training.optimizer);
            checkpoint::load(&path, &training.model.parameters, optimizer)?;
            training.step = state.step;
            if !voice.quiet {
                eprintln!("going on from step {} ({})", state.step, path.display());
            }
        }
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

/// A flag that SIGINT and SIGTERM set; a second one ends the program at once.
pub fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let (flag, runtime) = (stop.clone(), tokio::runtime::Builder::new_current_thread().enable_all().build()?);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                if flag.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
                eprintln!("stopping after this step; once more to stop at once");
            }
        });
    })?;
    Ok(stop)
}

fn dry_run(config: &Config, voice: Voice) -> anyhow::Result<Ending> {
    let device = device::open(&config.machine.device)?;
    let source = stream::open(config.stream(), &config.machine)?;
    let training = new_training(config, &source, device, World::alone())?;
    let plan = &source.plan;
    let object = json!({
        "plan_digest": plan.digest, "manifest_digest": plan.manifest_digest, "samples": plan.num_samples(),
        "batches_per_epoch": plan.batches_per_epoch(), "dropped_per_epoch": plan.dropped_per_epoch(), "steps": training.last_step(),
        "warmup_steps": training.schedule.warmup_steps, "peak_learning_rate": training.schedule.peak,
        "parameters": training.model.parameters.num_trainable(), "device": format!("{device:?}"), "config": config,
    });
    voice.result(&object, || {
        format!(
            "{} samples, {} batches per epoch ({} samples dropped), {} steps ({} of warm-up), learning rate up to {}\n{} parameters on {device:?}\nplan {}",
            plan.num_samples(), plan.batches_per_epoch(), plan.dropped_per_epoch(), training.last_step(), training.schedule.warmup_steps,
            training.schedule.peak, training.model.parameters.num_trainable(), plan.digest
        )
    });
    Ok(Ending::Done)
}
