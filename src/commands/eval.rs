//! `eval knn|linear`: what a run's representation is worth.

use std::path::{Path, PathBuf};

use pipeline::decode::RgbImage;
use pipeline::drawn;
use pipeline::files::write_whole;
use pipeline::loader::{LoaderOptions, slab_bytes};
use pipeline::manifest::Manifest;
use pipeline::plan::Share;
use serde_json::json;
use trainer::checkpoint;
use trainer::device::{self, DeviceSlab};
use trainer::eval::{Features, KnnConfig, LinearConfig, LogisticConfig, Measured, features, knn, linear, logistic};
use trainer::simclr::SimClr;

use super::Voice;
use super::train::{precision, torch_threads};
use crate::cli::{CheckpointArgs, EvalCommand, Solver};
use crate::config::Config;
use crate::picture::{Canvas, Face};
use crate::progress::Progress;
use crate::run::RunFolder;
use crate::{Ending, WrongInput, stream};

pub fn run(command: &EvalCommand, voice: Voice) -> anyhow::Result<Ending> {
    let (EvalCommand::Knn { common, .. } | EvalCommand::Linear { common, .. }) = command;
    let loaded = Loaded::open(&common.model, common.untrained, common.head_layer, &common.settings)?;
    let Loaded { folder, chosen, config, step, .. } = &loaded;
    let runtime = stream::runtime()?;
    let encode = |manifest: &Path, what| encode(&loaded, manifest, what, Labels::Wanted, runtime.handle(), voice);
    let (train, test) = (encode(&common.train, "train set")?, encode(&common.test, "test set")?);
    let mut object = match command {
        EvalCommand::Knn { k, temperature, .. } => {
            let base = &config.eval.knn;
            let chosen = KnnConfig { k: k.unwrap_or(base.k), temperature: temperature.unwrap_or(base.temperature) };
            let result = knn(&train, &test, &chosen)?;
            json!({ "evaluation": "knn", "top1": result.top1, "top5": result.top5, "k": result.k, "temperature": result.temperature })
        }
        EvalCommand::Linear { epochs, solver, confusion, .. } => {
            let (mut object, measured) = match solver {
                Solver::Sgd => {
                    let settings = LinearConfig { epochs: *epochs, seed: config.seed, ..LinearConfig::default() };
                    let result = linear(&train, &test, &settings)?;
                    let object = json!({
                        "solver": "sgd", "learning_rate": result.learning_rate,
                        "validation_top1": result.validation_top1, "settings": settings,
                    });
                    (object, result.measured)
                }
                Solver::Lbfgs => {
                    let settings = LogisticConfig { seed: config.seed, ..LogisticConfig::default() };
                    let result = logistic(&train, &test, &settings)?;
                    let object = json!({
                        "solver": "lbfgs", "lambda": result.lambda, "validation_top1": result.validation_top1,
                        "settings": settings,
                    });
                    (object, result.measured)
                }
            };
            if let Some(out) = confusion {
                let names = Manifest::read(&common.test)?.classes;
                write_whole(out, &drawn::png(&confusion_picture(&measured, &names)))
                    .map_err(|error| WrongInput(format!("{}: cannot write the picture: {error}", out.display())))?;
            }
            for (key, value) in [
                ("evaluation", json!("linear")),
                ("top1", json!(measured.top1)),
                ("top5", json!(measured.top5)),
                ("mean_per_class", json!(measured.mean_per_class)),
                ("per_class", json!(measured.per_class)),
                ("confusion", json!(confusion)),
                ("features", json!("centre crops, computed once")),
            ] {
                object[key] = value;
            }
            object
        }
    };
    for (key, value) in [
        ("step", json!(step)),
        ("head_layer", json!(common.head_layer)),
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

/// A run's model, ready to encode.
pub struct Loaded {
    /// The run's folder.
    pub folder: RunFolder,
    /// The checkpoint and its step; none for the initial weights.
    pub chosen: Option<(PathBuf, u64)>,
    /// The run's configuration, changed where that is allowed.
    pub config: Config,
    /// The plan that it was trained on.
    pub plan_digest: String,
    /// Steps that it was trained for.
    pub step: u64,
    model: SimClr,
    layers: usize,
    device: tch::Device,
}

impl Loaded {
    /// The model that is asked for: its representations, or what so many layers of the head make of them.
    ///
    /// # Errors
    /// If there is none, or `settings` change what it is.
    pub fn open(args: &CheckpointArgs, untrained: bool, layers: usize, settings: &[String]) -> anyhow::Result<Self> {
        let (folder, chosen) = find(args, untrained)?;
        let record = folder.record()?;
        let recorded = record.config;
        let config = recorded.with(settings, &folder.join("run.json").display().to_string())?;
        let stray: Vec<String> =
            recorded.differences(&config, &[]).into_iter().filter(|d| !d.starts_with("eval.")).collect();
        if !stray.is_empty() {
            let stray = stray.join("; ");
            return Err(WrongInput(format!("--set here takes [eval] and [machine] only, not {stray}")).into());
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
        let there = model.head.num_layers();
        if layers > there {
            let text = format!("--head-layer {layers}: the run's head has {there} layers; 0 takes h");
            return Err(WrongInput(text).into());
        }
        Ok(Self { folder, chosen, config, plan_digest: record.plan_digest, step, model, layers, device })
    }
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

/// Whether images must have labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// Each must have one.
    Wanted,
    /// They need not.
    IfThere,
}

/// Representations of all images that a manifest lists.
pub fn encode(
    loaded: &Loaded,
    manifest: &Path,
    what: &'static str,
    labels: Labels,
    runtime: &tokio::runtime::Handle,
    voice: Voice,
) -> anyhow::Result<Features> {
    let model = (&loaded.model, loaded.layers);
    encode_by(&loaded.config, model, loaded.device, (manifest, labels), what, runtime, voice)
}

/// As [`encode`], by an encoder and so many layers of its head.
pub fn encode_by(
    config: &Config,
    (model, layers): (&SimClr, usize),
    device: tch::Device,
    (manifest, labels): (&Path, Labels),
    what: &'static str,
    runtime: &tokio::runtime::Handle,
    voice: Voice,
) -> anyhow::Result<Features> {
    let source = stream::open(config.evaluation_stream(manifest.to_owned()), &config.machine)?;
    if labels == Labels::Wanted && !source.store.manifest().is_labelled() {
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

/// What was taken for what: a row for each class, a column for each answer, darker the more of the class's images.
fn confusion_picture(measured: &Measured, names: &[String]) -> RgbImage {
    const PAPER: [u8; 3] = [251, 251, 249];
    const INK: [u8; 3] = [28, 30, 34];
    const FULL: [f64; 3] = [16.0, 60.0, 140.0];
    let classes = measured.confusion.len() as u32;
    let cell = (720 / classes.max(1)).clamp(2, 56);
    let named = cell >= 20;
    let (left, top) = if named { (150, 74) } else { (24, 74) };
    let side = cell * classes;
    let mut canvas = Canvas::new(left + side + 24, top + side + 40, PAPER);
    let title =
        format!("top-1 {:.1} %, mean per class {:.1} %", 100.0 * measured.top1, 100.0 * measured.mean_per_class);
    canvas.write(&title, 24, 14, left + side - 24, 22.0, Face::Text, INK);
    canvas.write("rows: what it is; columns: what it was taken for", 24, 44, left + side - 24, 13.0, Face::Text, INK);
    for (row, answers) in measured.confusion.iter().enumerate() {
        let images: u64 = answers.iter().sum();
        let y = top + row as u32 * cell;
        if named {
            let name = names.get(row).cloned().unwrap_or_else(|| format!("class {row}"));
            canvas.write(&name, 24, y + cell / 2 - 7, left - 32, 13.0, Face::Text, INK);
        }
        for (column, &count) in answers.iter().enumerate() {
            let share = if images > 0 { count as f64 / images as f64 } else { 0.0 };
            let shade = share.sqrt();
            let color = std::array::from_fn(|i| (f64::from(PAPER[i]) * (1.0 - shade) + FULL[i] * shade) as u8);
            let x = left + column as u32 * cell;
            canvas.fill(x, y, cell - u32::from(cell > 4), cell - u32::from(cell > 4), color);
            if named && cell >= 32 && share >= 0.005 {
                let ink = if shade > 0.6 { PAPER } else { INK };
                canvas.write(
                    &format!("{:.0}", 100.0 * share),
                    x + 6,
                    y + cell / 2 - 7,
                    cell - 8,
                    12.0,
                    Face::Mono,
                    ink,
                );
            }
        }
    }
    if named {
        canvas.write("shares in %", left, top + side + 12, side, 12.0, Face::Text, INK);
    }
    canvas.into_image()
}
