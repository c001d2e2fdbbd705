//! `train`: from a configuration to a run folder, and on from where a run was stopped.

mod launcher;
pub mod live;
mod training;

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use simclr_data::source::DamagePolicy;
use simclr_ground::error::{Error, Result};
use simclr_service::server::TokenAuth;
use simclr_trainer::device;
use simclr_trainer::distributed::{self, RankInfo, Rendezvous, World};
use simclr_trainer::run::RunFolder;
use simclr_trainer::step::End;

use crate::commands::Run;
use crate::commands::args::{ConfigArgs, FeedArgs};
use crate::commands::trainer::runs;
use crate::config::{self, Config, MachineConfig};
use crate::output::{ExitStatus, Output};
use crate::signals::Stop;
use crate::telemetry::logging::{self, say};
use crate::{open, web};
use live::Live;

pub use training::{Outcome, new_training, train};

/// Train an encoder; writes config, metrics, checkpoints and quarantine log to the run directory.
#[derive(Args)]
pub struct TrainArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Run directory.
    #[arg(long = "run-dir", visible_alias = "run", value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Resume from the latest checkpoint, or start if there is none.
    #[arg(long)]
    pub resume: bool,
    /// Validate the configuration and print the plan without training.
    #[arg(long)]
    pub dry_run: bool,
    /// Number of processes to launch on this machine (one per GPU); use torchrun, srun or mpirun for several machines.
    #[arg(long, value_name = "N", conflicts_with = "dry_run")]
    pub nproc: Option<u32>,
    /// Maximum number of restarts after a process failure (with --nproc).
    #[arg(long, value_name = "K", default_value_t = 0, requires = "nproc")]
    pub restarts: u32,
    #[command(flatten)]
    pub feed: FeedArgs,
}

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

impl Run for TrainArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        if let Some(count) = self.nproc {
            let stop = Stop::on_signals()?;
            // The ranks are to be told.
            stop.in_order();
            return launcher::run(count, self.restarts, stop.flag());
        }
        launcher::follow();
        let stop = Stop::on_signals()?;
        let place = if self.dry_run { None } else { distributed::place(|name| std::env::var(name).ok())? };
        let folder = RunFolder::at(&self.run.clone().map_or_else(|| runs::folder(self.resume), Ok)?);
        let config = configuration(self, &folder)?;
        if self.dry_run {
            return dry_run(&config, output);
        }
        let (rank, world) = place.as_ref().map_or((0, 1), |place| (place.rank, place.world));
        logging::of_run(&folder.path().display().to_string(), rank, world);
        let open = |place: &RankInfo| {
            Rendezvous::open(place, Duration::from_secs(config.machine.rank_timeout_seconds)).map(Rc::new)
        };
        let rendezvous = place.as_ref().map(open).transpose()?;
        // One voice for all ranks.
        let output = if rank == 0 { output } else { Output { quiet: true, ..output } };
        let outcome = train_and_show(&config, &folder, self.resume, (&stop, rendezvous.as_ref()), output);
        if let (Err(error), Some(rendezvous)) = (&outcome, &rendezvous) {
            rendezvous.fail(&format!("{error}"));
        }
        let (outcome, live) = outcome?;
        if rank > 0 {
            return Ok(if outcome.end == End::Interrupted { ExitStatus::Interrupted } else { ExitStatus::Success });
        }
        let object = json!({
            "run": folder.path(), "step": outcome.step, "loss": outcome.loss, "images_per_second": outcome.images_per_second,
            "interrupted": outcome.end == End::Interrupted, "stalls": outcome.stalls(), "verdict": live.sentence(),
        });
        output.result(&object, || {
            let loss = outcome.loss.map_or("none".into(), |loss| format!("{loss:.4}"));
            let told =
                if outcome.images_per_second.is_some() { format!("\n{}", live.sentence()) } else { String::new() };
            let end = if outcome.end == End::Interrupted { "stopped at" } else { "trained to" };
            format!("{end} step {}, loss {loss}, in {}{told}", outcome.step, folder.path().display())
        })?;
        Ok(if outcome.end == End::Interrupted { ExitStatus::Interrupted } else { ExitStatus::Success })
    }
}

/// As [`train`], with a page that shows it.
fn train_and_show(
    config: &Config,
    folder: &RunFolder,
    resume: bool,
    (stop, rendezvous): (&Stop, Option<&Rc<Rendezvous>>),
    output: Output,
) -> Result<(Outcome, Arc<Live>)> {
    let runtime = open::runtime()?;
    let live = Arc::new(Live::default());
    let local_rank = rendezvous.map_or(0, |rendezvous| rendezvous.place().local_rank);
    show(&live, &config.machine, local_rank, runtime.handle(), output)?;
    let outcome = train(config, folder, resume, (stop, &live, rendezvous), runtime.handle(), output)?;
    Ok((outcome, live))
}

/// The configuration: of the flags for a new run; for one that goes on, what was recorded, changed by the flags.
fn configuration(args: &TrainArgs, folder: &RunFolder) -> Result<Config> {
    if !folder.holds_run() {
        folder.check_new()?;
        let mut config = args.config.load()?;
        config.make_paths_absolute()?;
        args.feed.apply(&mut config.machine.feed);
        return Ok(config);
    }
    if !args.resume {
        let path = folder.path().display();
        return Err(Error::input(format!(
            "{path}: already contains a run; pass --resume to continue it or choose another directory"
        )));
    }
    let record = Config::recorded(folder)?;
    let recorded = record.config;
    let mut config = match &args.config.config {
        Some(_) => args.config.load()?,
        None => recorded.with(&args.config.settings()?, &folder.join("run.json").display().to_string())?,
    };
    config.make_paths_absolute()?;
    // What fits itself did so when the run began.
    if config.batch.size == 0 {
        config.batch.size = recorded.batch.size;
    }
    if config.order.lanes == 0 {
        config.order.lanes = recorded.order.lanes;
    }
    if config.schedule.epochs == 0.0 {
        config.schedule.epochs = recorded.schedule.epochs;
    }
    args.feed.apply(&mut config.machine.feed);
    let mut differences = recorded.differences(&config);
    differences.retain(|difference| !MAY_CHANGE.contains(&difference.key.as_str()));
    if record.plan_digest.is_empty() {
        // Nothing has been trained yet: only what the imported weights are is given.
        differences.retain(|difference| difference.is_in("model"));
    }
    if !differences.is_empty() {
        let list = config::listed(&differences);
        return Err(Error::input(format!(
            "cannot resume {}: configuration differs from run.json ({list}); to change it, start a new run",
            folder.path().display()
        )));
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
    output: Output,
) -> Result<()> {
    if machine.metrics.is_empty() {
        return Ok(());
    }
    let guard = TokenAuth::open(&machine.service)?;
    let address = match machine.metrics.parse::<std::net::SocketAddr>() {
        Ok(mut address) if address.port() > 0 => {
            address.set_port(address.port().saturating_add(local_rank as u16));
            address.to_string()
        }
        _ => machine.metrics.clone(),
    };
    let address = web::serve("machine.metrics", &address, live.pages(guard, machine.service.names.clone()), runtime)?;
    if !output.quiet {
        say(&format!("metrics: http://{address}/metrics"));
        say(&format!("dashboard: http://{address}/"));
    }
    Ok(())
}

fn dry_run(config: &Config, output: Output) -> Result<ExitStatus> {
    let device = device::open(config.machine.device)?;
    let mut config = config.clone();
    let manifest = open::fitted(&mut config)?;
    let source = open::source_over(manifest, config.stream(), &config.machine, DamagePolicy::Budget)?;
    let training = new_training(&config, &training::summary(&source), device, World::alone())?;
    let plan = &source.plan;
    let object = json!({
        "plan_digest": plan.digest, "manifest_digest": plan.manifest_digest, "samples": plan.num_samples(),
        "batches_per_epoch": plan.batches_per_epoch(), "dropped_per_epoch": plan.dropped_per_epoch(), "steps": training.last_step(),
        "warmup_steps": training.schedule.warmup_steps, "peak_learning_rate": training.schedule.peak,
        "parameters": training.model.parameters.num_trainable(), "device": format!("{device:?}"), "config": config,
    });
    output.result(&object, || {
        format!(
            "{} samples, {} batches per epoch ({} samples dropped), {} steps ({} of warmup), learning rate up to {}\n{} parameters on {device:?}\nplan {}",
            plan.num_samples(), plan.batches_per_epoch(), plan.dropped_per_epoch(), training.last_step(), training.schedule.warmup_steps,
            training.schedule.peak, training.model.parameters.num_trainable(), plan.digest
        )
    })?;
    Ok(ExitStatus::Success)
}
