//! `train`: from a configuration to a run folder, and on from where a run was stopped.

mod training;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pipeline::service::server::Guard;
use serde_json::json;
use trainer::device;
use trainer::ranks::{Meeting, Place, World};
use trainer::train::End;

use super::Voice;
use crate::cli::TrainArgs;
use crate::config::{Config, MachineConfig};
use crate::live::Live;
use crate::pages;
use crate::ranks::{self, launcher};
use crate::run::RunFolder;
use crate::{Ending, WrongInput, stream};

pub use training::{Outcome, new_training, precision, torch_threads, train};

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
                if !launcher::has_launched() {
                    eprintln!("stopping after this step; once more to stop at once");
                }
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
