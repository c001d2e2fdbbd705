//! `eval knn|linear`: what a run's representation is worth.

use std::path::{Path, PathBuf};

use pipeline::loader::{LoaderOptions, slab_bytes};
use pipeline::plan::Share;
use serde_json::json;
use trainer::checkpoint;
use trainer::device::{self, DeviceSlab};
use trainer::eval::{Features, KnnConfig, LinearConfig, features, knn, linear};
use trainer::simclr::SimClr;

use super::Voice;
use super::train::{precision, torch_threads};
use crate::cli::{CheckpointArgs, EvalCommand};
use crate::config::Config;
use crate::progress::Progress;
use crate::run::RunFolder;
use crate::{Ending, WrongInput, stream};

pub fn run(command: &EvalCommand, voice: Voice) -> anyhow::Result<Ending> {
    let (EvalCommand::Knn { common, .. } | EvalCommand::Linear { common, .. }) = command;
    let (folder, chosen) = find(&common.model, common.untrained)?;
    let recorded = folder.record()?.config;
    let config = recorded.with(&common.settings, &folder.join("run.json").display().to_string())?;
    let stray: Vec<String> =
        recorded.differences(&config, &[]).into_iter().filter(|d| !d.starts_with("eval.")).collect();
    if !stray.is_empty() {
        return Err(WrongInput(format!("--set here takes [eval] and [machine] only, not {}", stray.join("; "))).into());
    }
    let device = device::open(&config.machine.device)?;
    device::set_threads(torch_threads(&config.machine));
    let model = SimClr::new(&config.model, config.seed, device, precision(&config.machine))?;
    let step = match &chosen {
        Some((path, step)) => {
            checkpoint::load(path, &model.parameters, None)?;
            *step
        }
        None => 0,
    };
    let runtime = stream::runtime()?;
    let (layers, there) = (common.head_layer, model.head.num_layers());
    if layers > there {
        return Err(WrongInput(format!("--head-layer {layers}: the run's head has {there} layers; 0 takes h")).into());
    }
    let encode =
        |manifest: &Path, what| encode(&config, (&model, layers), device, manifest, what, runtime.handle(), voice);
    let (train, test) = (encode(&common.train, "train set")?, encode(&common.test, "test set")?);
    let mut object = match command {
        EvalCommand::Knn { k, temperature, .. } => {
            let base = &config.eval.knn;
            let chosen = KnnConfig { k: k.unwrap_or(base.k), temperature: temperature.unwrap_or(base.temperature) };
            let result = knn(&train, &test, &chosen)?;
            json!({ "evaluation": "knn", "top1": result.top1, "top5": result.top5, "k": result.k, "temperature": result.temperature })
        }
        EvalCommand::Linear { epochs, .. } => {
            let settings = LinearConfig { epochs: *epochs, seed: config.seed, ..LinearConfig::default() };
            let result = linear(&train, &test, &settings)?;
            json!({
                "evaluation": "linear", "top1": result.top1, "top5": result.top5, "learning_rate": result.learning_rate,
                "validation_top1": result.validation_top1, "settings": settings, "features": "centre crops, computed once",
            })
        }
    };
    for (key, value) in [
        ("step", json!(step)),
        ("head_layer", json!(layers)),
        ("checkpoint", json!(chosen.as_ref().map(|(path, _)| path))),
        ("train", json!(common.train)),
        ("test", json!(common.test)),
        ("train_images", json!(train.labels.size()[0])),
        ("test_images", json!(test.labels.size()[0])),
        ("left_out", json!(train.left_out + test.left_out)),
    ] {
        object[key] = value;
    }
    folder.add_evaluation(&object)?;
    voice.result(&object, || {
        let percent = |key: &str| 100.0 * object[key].as_f64().unwrap_or(f64::NAN);
        format!(
            "{} at step {step}: top-1 {:.2} %, top-5 {:.2} %",
            object["evaluation"].as_str().unwrap_or(""),
            percent("top1"),
            percent("top5")
        )
    });
    Ok(Ending::Done)
}

/// The run folder, and the checkpoint with its step; none for the initial weights.
type Found = (RunFolder, Option<(PathBuf, u64)>);

pub(super) fn find(args: &CheckpointArgs, untrained: bool) -> anyhow::Result<Found> {
    let (folder, named) = match (&args.run, &args.checkpoint) {
        (Some(run), _) => (RunFolder::open(run)?, None),
        (None, Some(path)) => {
            let path = std::path::absolute(path)?;
            let run = path.parent().and_then(Path::parent).map(Path::to_owned);
            let run = run.ok_or_else(|| WrongInput(format!("{}: is in no run folder", path.display())))?;
            (RunFolder::open(&run)?, Some(path))
        }
        (None, None) => unreachable!("clap asks for one of them"),
    };
    if untrained {
        return Ok((folder, None));
    }
    if let Some(path) = named {
        let state = checkpoint::read_state(&path)?;
        return Ok((folder, Some((path, state.step))));
    }
    let (newest, broken) = folder.checkpoints().newest();
    for error in broken {
        tracing::warn!("not taken: {error}");
    }
    match newest {
        Some((path, state)) => Ok((folder, Some((path, state.step)))),
        None => Err(WrongInput(format!(
            "{}: holds no whole checkpoint; --untrained evaluates the initial weights",
            folder.path().display()
        ))
        .into()),
    }
}

/// Representations of all images that a manifest lists, by the encoder and so many layers of its head.
pub fn encode(
    config: &Config,
    (model, layers): (&SimClr, usize),
    device: tch::Device,
    manifest: &Path,
    what: &'static str,
    runtime: &tokio::runtime::Handle,
    voice: Voice,
) -> anyhow::Result<Features> {
    let source = stream::open(config.evaluation_stream(manifest.to_owned()), &config.machine)?;
    if !source.store.manifest().is_labelled() {
        return Err(WrongInput(format!(
            "{}: lists samples without labels; evaluations need a .cls for every sample",
            manifest.display()
        ))
        .into());
    }
    let threads = if config.machine.threads == 0 { stream::cores() } else { config.machine.threads };
    let options = LoaderOptions { threads, from_batch: 0, to_batch: None, share: Share::ALL };
    let slabs = DeviceSlab::allocate(config.machine.batches_ahead + 1, slab_bytes(&source.plan, Share::ALL), device)?;
    let mut loader = stream::start(&source, slabs, options, runtime)?;
    let (mut done, total) = (0, source.plan.num_samples());
    let progress = Progress::new(what, 0, total, voice.quiet);
    let found = features(model, layers, &mut loader, device, &mut |images| {
        done += images as u64;
        progress.set(done, total, || "images encoded".into());
    })?;
    progress.finish();
    Ok(found)
}
