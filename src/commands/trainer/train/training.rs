//! A training in its folder: what is opened for it, what is written of it, what it may cost the machine.

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::json;
use simclr_data::dataset::MANIFEST;
use simclr_data::loader::LoaderOptions;
use simclr_data::manifest::{Manifest, changes};
use simclr_data::source::{DamagePolicy, Source};
use simclr_ground::batch_stream::{BatchStream, StreamSummary};
use simclr_ground::error::{Context, Error, Result};
use simclr_ground::position::Share;
use simclr_plan::STREAM_VERSION;
use simclr_trainer::checkpoint;
use simclr_trainer::device::{self, DeviceSlab, Local};
use simclr_trainer::distributed::{self, Rendezvous, World};
use simclr_trainer::eval::{SetRole, StreamRequest, encode, knn, normalized_halves};
use simclr_trainer::metrics::TrainerMetrics;
use simclr_trainer::model::SimClr;
use simclr_trainer::run::stall::Load;
use simclr_trainer::run::{MetricsLine, RunFolder, Versions};
use simclr_trainer::step::{End, Evaluate, Hooks, StepReport, TrainerConfig, Training};
use simclr_trainer::time_spent::TimeSpent;
use tch::{Device, Tensor};

use super::live::Live;
use crate::commands::trainer::eval::ManifestData;
use crate::config::{Config, MachineConfig};
use crate::open;
use crate::output::Output;
use crate::signals::Stop;
use crate::telemetry;
use crate::telemetry::logging::say;
use crate::telemetry::progress::Progress;
use crate::telemetry::tensorboard::Events;

/// What may differ between ranks: where things lie on their machines.
const MAY_DIFFER: [&str; 3] = ["data.manifest", "eval.train", "eval.test"];

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

/// Trains in `folder` to the end, or until `stop`; with the ranks of a rendezvous, if there is one.
pub fn train(
    config: &Config,
    folder: &RunFolder,
    resume: bool,
    (stop, live, rendezvous): (&Stop, &Live, Option<&Rc<Rendezvous>>),
    runtime: &tokio::runtime::Handle,
    output: Output,
) -> Result<Outcome> {
    let mut opened = Opened::new(config, folder, resume, (rendezvous, runtime), output)?;
    let mut batches = opened.batches(runtime)?;
    // Nothing that the user could put right fails from here on: now it is a run.
    let lines = if opened.world.is_leader() { Some(opened.start(folder)?) } else { None };
    live.begin(folder.path(), opened.told_device(), opened.source.clone(), opened.steps(), opened.load());
    let journal = RefCell::new(Journal::new(&opened, folder, lines, (stop, live), output)?);
    let Opened { config, source, stream, world, training, device, share, .. } = &mut opened;
    let mut evaluate = |model: &SimClr, step: u64| {
        live.turn_to("evaluating");
        let evaluated = evaluate_neighbors(config, folder, (model, step), *device, (runtime, stop));
        live.turn_to("training");
        journal.borrow_mut().evaluated(step, evaluated?);
        Ok(())
    };
    let every = u64::from(config.eval.every) * source.plan.batches_per_epoch();
    let evaluation = (every > 0).then_some((every, &mut evaluate as Evaluate<'_>));
    let mut on_step = |report: &StepReport| journal.borrow_mut().step(report);
    let between = Hooks { step: &mut on_step, evaluation };
    stop.in_order();
    let end = training.run(&mut *batches, stream, &folder.checkpoints(), stop.flag(), between);
    stop.at_once();
    let end = end?;
    world.leave()?;
    live.turn_to(if end == End::Interrupted { "interrupted" } else { "done" });
    let (loss, images_per_second) = journal.into_inner().finish(folder)?;
    tell_damage(source, folder, *share, output);
    Ok(Outcome { end, step: training.step, loss, images_per_second, spent: training.spent })
}

/// A training that may begin: what it reads, what it trains, where, and with whom.
struct Opened {
    config: Config,
    source: Arc<Source>,
    stream: StreamSummary,
    world: Rc<World>,
    training: Training,
    device: Device,
    local: Local,
    share: Share,
    /// Held by the rank that writes.
    _lock: Option<File>,
}

impl Opened {
    /// Opens the data and the device, meets the other ranks, and goes on from the newest checkpoint if there is one.
    fn new(
        config: &Config,
        folder: &RunFolder,
        resume: bool,
        (rendezvous, runtime): (Option<&Rc<Rendezvous>>, &tokio::runtime::Handle),
        output: Output,
    ) -> Result<Self> {
        let place = rendezvous.map(|rendezvous| rendezvous.place());
        let local = place
            .map_or(Local::ALONE, |place| Local { rank: place.local_rank as usize, size: place.local_world as usize });
        let device = device::open_for(config.machine.device, local)?;
        device::compute_on_cpu(open::torch_threads(&config.machine, local.size));
        let share = distributed::share(place);
        let ledger = folder.ledger(share.rank);
        let mut config = config.clone();
        let manifest = open::fitted(&mut config).map_err(|error| match resume && folder.holds_run() {
            true => error.context("if the data has moved, name its new place with --data (or --manifest)"),
            false => error,
        })?;
        let source = open::source_over(manifest, config.stream(), &config.machine, DamagePolicy::Ledger(&ledger))?;
        source.plan.check_share(share)?;
        let stream = summary(&source);
        let world = match rendezvous {
            Some(rendezvous) => {
                distributed::join(rendezvous, &config, &source.plan.digest, device, |one: &Config, other| {
                    let mut differences = one.differences(other);
                    differences.retain(|difference| !MAY_DIFFER.contains(&difference.key.as_str()));
                    differences.iter().map(ToString::to_string).collect()
                })?
            }
            None => World::alone(),
        };
        let mut training = new_training(&config, &stream, device, world.clone())?;
        if config.eval.every > 0 && config.eval.test.as_os_str().is_empty() {
            return Err(Error::input("eval.every requires eval.test: the manifest of a labeled test set"));
        }
        if config.eval.every > 0 {
            // What keeps it from being evaluated is better known now than after an epoch.
            let (train, test) = evaluated(&config);
            ManifestData::open(&config, train, test, runtime, QUIET)?;
        }
        let lock = if world.is_leader() { Some(folder.lock()?) } else { None };
        if resume && world.is_leader() {
            go_on(&mut training, folder, (&stream, source.store.manifest()), output)?;
        }
        training.follow_leader()?;
        Ok(Self { config, source, stream, world, training, device, local, share, _lock: lock })
    }

    /// The batches that are still to come, from here or from the nodes that make them.
    fn batches(&self, runtime: &tokio::runtime::Handle) -> Result<Box<dyn BatchStream<DeviceSlab>>> {
        let Self { config, source, training, share, .. } = self;
        let (plan, machine) = (&source.plan, &config.machine);
        let options = LoaderOptions {
            threads: self.threads(),
            from_batch: training.step,
            to_batch: Some(training.last_step().max(training.step)),
            share: *share,
        };
        // The one in use, and beside a GPU the one on its way to it.
        let in_use = if self.device.is_cuda() { 2 } else { 1 };
        open::check_memory(plan, machine, *share, in_use)?;
        let slabs = DeviceSlab::allocate(machine.batches_ahead + in_use, plan.slab_bytes(*share), self.device)
            .map_err(|error| open::no_memory_because(plan, machine, *share, in_use, &error))?;
        open::batches(source, slabs, machine, options, runtime)
    }

    fn threads(&self) -> usize {
        loader_threads(&self.config.machine, self.device.is_cuda(), self.local.size)
    }

    /// Writes down what begins here, and opens the file that gets a line a step.
    fn start(&self, folder: &RunFolder) -> Result<File> {
        folder.start(&self.config, &self.stream, Versions::current(STREAM_VERSION))?;
        // What was trained on is known even when the folder of images is another one by then.
        let manifest = self.source.store.manifest();
        if manifest.shards.iter().any(|shard| shard.loose) && !folder.join(MANIFEST).exists() {
            manifest.write(&folder.join(MANIFEST))?;
        }
        folder.metrics_after(self.training.step)
    }

    /// The steps that it has taken, and that it takes in all.
    fn steps(&self) -> (u64, u64) {
        (self.training.step, self.training.last_step())
    }

    fn load(&self) -> Load {
        let fed = !self.config.machine.feed.nodes.is_empty();
        Load { threads: if fed { 0 } else { self.threads() }, fed, ..Load::default() }
    }

    /// The device in words, after the log and the metrics have been told what begins.
    fn told_device(&self) -> String {
        let (plan, optimizer) = (&self.source.plan, &self.training.optimizer);
        metrics::describe_gauge!(
            "simclr_run_info",
            "The run's plan, this process's rank and the world size; always 1."
        );
        let [rank, ranks] = [self.world.rank(), self.world.size()].map(|number| number.to_string());
        metrics::gauge!("simclr_run_info", "plan" => plan.digest[..16].to_owned(), "rank" => rank, "world" => ranks)
            .set(1.0);
        tracing::debug!(
            excluded = optimizer.excluded().len(),
            "tensors without weight decay: {}",
            optimizer.excluded().join(" ")
        );
        tracing::info!(
            device = ?self.device, threads = self.threads(), plan = %plan.digest,
            parameters = self.training.model.parameters.num_trainable(), "training started"
        );
        format!("{:?}", self.device).to_lowercase()
    }
}

/// What is written and shown of a training while it goes on.
struct Journal<'a> {
    live: &'a Live,
    stop: &'a Stop,
    progress: Progress,
    /// Written by the rank that leads.
    lines: Option<File>,
    events: Option<Events>,
    log_every: u64,
    last_step: u64,
    ranks: u64,
    loss: Option<f64>,
    /// Images a second and the share of waiting for data, over some steps.
    smooth: Option<(f64, f64)>,
    /// Why a line could not be written.
    failed: Option<std::io::Error>,
}

impl<'a> Journal<'a> {
    fn new(
        opened: &Opened,
        folder: &RunFolder,
        lines: Option<File>,
        (stop, live): (&'a Stop, &'a Live),
        output: Output,
    ) -> Result<Self> {
        let (first, last) = opened.steps();
        let path = folder.join("tensorboard");
        let events = match opened.config.machine.tensorboard && opened.world.is_leader() {
            true => Some(Events::create(&path, first).with_context(|| {
                let path = path.display();
                format!("cannot write {path}; set machine.tensorboard = false to disable TensorBoard")
            })?),
            false => None,
        };
        Ok(Self {
            live,
            stop,
            progress: Progress::new("training", first, last, output.quiet),
            lines,
            events,
            log_every: opened.config.train.log_every,
            last_step: last,
            ranks: opened.world.size().into(),
            loss: None,
            smooth: None,
            failed: None,
        })
    }

    /// Notes a step.
    fn step(&mut self, report: &StepReport) {
        let line = MetricsLine::new(report);
        let value = |key| report.values.get(key);
        self.loss = Some(value("loss"));
        let (rate, waited) = (value("images_per_second"), value("data_wait_share"));
        let smoothed = |(known, wait)| (0.95 * known + 0.05 * rate, 0.95 * wait + 0.05 * waited);
        let (rate, wait) = self.smooth.map_or((rate, waited), smoothed);
        self.smooth = Some((rate, wait));
        let left = (self.last_step - report.step) as f64 * report.images as f64 / rate;
        self.live.step(&line, report.images as u64 / self.ranks, &report.spent, rate, left);
        if (report.step.is_multiple_of(self.log_every) || report.step == self.last_step)
            && let Err(error) = self.write(&line)
        {
            self.failed = Some(error);
            self.stop.flag().store(true, Ordering::Relaxed);
        }
        self.progress.set(report.step, self.last_step, || {
            format!("{rate:.0} img/s, loss {:.3}, data wait {:.0}%, ETA {left:.0} s", value("loss"), 100.0 * wait)
        });
    }

    fn write(&mut self, line: &MetricsLine) -> std::io::Result<()> {
        let Some(lines) = &mut self.lines else { return Ok(()) };
        writeln!(lines, "{}", serde_json::to_string(line).expect("a line is plain data"))?;
        self.scalars(line.step, &line.scalars())
    }

    fn scalars(&mut self, step: u64, values: &[(&'static str, f64)]) -> std::io::Result<()> {
        self.events.as_mut().map_or(Ok(()), |events| events.scalars(step, values.iter().copied()))
    }

    /// Notes an evaluation.
    fn evaluated(&mut self, step: u64, top1: f64) {
        if let Err(error) = self.scalars(step, &[("evaluation/knn_top1", top1)]) {
            tracing::warn!("cannot write the TensorBoard event file: {error}");
        }
    }

    /// The last loss, and images a second; an error if not all could be written.
    fn finish(self, folder: &RunFolder) -> Result<(Option<f64>, Option<f64>)> {
        self.progress.finish();
        if let Some(error) = self.failed {
            return Err(error).with_context(|| format!("cannot write {}", folder.path().display()));
        }
        // A run that was done already has its last loss on record.
        let loss = match self.loss {
            Some(loss) => Some(loss),
            None => folder.metrics()?.last().map(|line| line.values.get("loss")),
        };
        Ok((loss, self.smooth.map(|(rate, _)| rate)))
    }
}

/// Says how many samples were damaged, and where they are listed.
fn tell_damage(source: &Source, folder: &RunFolder, share: Share, output: Output) {
    let damaged = source.quarantine.damaged();
    if damaged > 0 && !output.quiet {
        let own = folder.ledger(0);
        let ledgers = if share.world > 1 { own.with_file_name("quarantine*.jsonl") } else { own };
        say(&format!("{damaged} damaged samples were replaced; listed in {}", ledgers.display()));
    }
}

/// Takes the newest checkpoint that is whole, if there is one.
fn go_on(
    training: &mut Training,
    folder: &RunFolder,
    (stream, manifest): (&StreamSummary, &Manifest),
    output: Output,
) -> Result<()> {
    // Before the first checkpoint too there may be a ledger and lines of metrics, which are of the plan that began.
    if folder.holds_run() {
        let record = folder.record::<serde_json::Value>()?;
        check_plan(&folder.join("run.json"), &record.plan_digest, stream).map_err(|error| {
            let before = Manifest::read(&folder.join(MANIFEST)).ok();
            let changes = before.map_or(String::new(), |before| changes(&before, manifest));
            if changes.is_empty() { error } else { Error::input(format!("{error} ({changes})")) }
        })?;
        if record.derived_digest.is_some() && record.derived_digest != stream.derived_digest {
            tracing::warn!(
                "the manifest says of its shards' files what it did not say when the run began (bytes, frames, row \
                 index); samples are checked against its digest as ever"
            );
        }
    }
    let (newest, mut broken) = folder.checkpoints().newest();
    if newest.is_none() && !broken.is_empty() {
        return Err(broken.swap_remove(0)).context("all checkpoints are corrupt; delete them to restart from step 0");
    }
    for error in broken {
        tracing::warn!("skipping corrupt checkpoint: {error}");
    }
    let Some((path, state)) = newest else { return Ok(()) };
    check_plan(&path, &state.plan_digest, stream)?;
    // Imported weights begin a run; whatever optimizer it has, it remembers nothing yet.
    let optimizer = (!state.plan_digest.is_empty()).then_some(&training.optimizer);
    checkpoint::load(&path, &training.model.parameters, optimizer)?;
    training.step = state.step;
    if !output.quiet {
        say(&format!("resuming from step {} ({})", state.step, path.display()));
    }
    Ok(())
}

/// Whether what is at `path` is of the stream's plan; an imported run has none yet.
fn check_plan(path: &Path, recorded: &str, stream: &StreamSummary) -> Result<()> {
    if recorded.is_empty() || recorded == stream.plan_digest {
        return Ok(());
    }
    Err(Error::input(format!(
        "{}: data or recipe changed: trained on plan {recorded}, the configuration now gives plan {}",
        path.display(),
        stream.plan_digest
    )))
}

/// Training shows its progress already.
const QUIET: Output = Output { json: false, quiet: true };

/// The sets that `[eval]` names: those who vote, and those who are asked.
fn evaluated(config: &Config) -> (&Path, &Path) {
    let eval = &config.eval;
    (if eval.train.as_os_str().is_empty() { &config.data.manifest } else { &eval.train }, &eval.test)
}

/// The accuracy of nearest neighbors among the sets that `[eval]` names; noted in the run's folder.
fn evaluate_neighbors(
    config: &Config,
    folder: &RunFolder,
    (model, step): (&SimClr, u64),
    device: Device,
    (runtime, stop): (&tokio::runtime::Handle, &Stop),
) -> Result<f64> {
    let (train, test) = evaluated(config);
    let represent = |views: &Tensor| normalized_halves(&model.represent(views, 0));
    let data = ManifestData::open(config, train, test, runtime, QUIET)?.until(stop);
    let encode = |set, what| encode(&represent, &data, &StreamRequest::centers(set, config.seed), device, what);
    let (voters, asked) = (encode(SetRole::Train, "train set")?, encode(SetRole::Test, "test set")?);
    let result = knn(&voters, &asked, &config.eval.knn)?.measure()?;
    metrics::gauge!("simclr_trainer_knn_accuracy_ratio").set(result.top1);
    folder.add_evaluation(&json!({
        "evaluation": "knn", "step": step, "top1": result.top1, "top5": result.top5, "k": i64::from(config.eval.knn.k).min(voters.labels.size()[0]),
        "temperature": config.eval.knn.temperature, "train": train, "test": test,
        "train_images": voters.labels.size()[0], "test_images": asked.labels.size()[0],
    }))?;
    Ok(result.top1)
}

/// What the trainer needs to know of a source's stream.
pub fn summary(source: &Source) -> StreamSummary {
    let manifest = source.store.manifest();
    let summary = source.plan.summary((manifest.num_labeled() > 0).then(|| manifest.num_classes()));
    StreamSummary { derived_digest: Some(source.derived_digest().to_owned()), ..summary }
}

/// A model with initial weights on `device`.
pub fn new_training(config: &Config, stream: &StreamSummary, device: Device, world: Rc<World>) -> Result<Training> {
    telemetry::recorder();
    let trainer = TrainerConfig {
        model: config.model.clone(),
        loss: config.loss.clone(),
        optimizer: config.optimizer.clone(),
        schedule: config.schedule.clone(),
        train: config.train.clone(),
        checkpoint: config.checkpoint.clone(),
    };
    Ok(Training::new(&trainer, stream, (device, config.machine.precision), world, TrainerMetrics::register())?)
}

/// Loader threads beside a trainer, one of so many on this machine: when it computes on the CPU, one is enough and more
/// would be in its way.
fn loader_threads(machine: &MachineConfig, cuda: bool, processes: usize) -> usize {
    match machine.threads {
        0 if cuda => (open::cores() / processes).saturating_sub(1).max(1),
        0 => 1,
        threads => threads,
    }
}
