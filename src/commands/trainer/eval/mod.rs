//! `eval knn|linear|finetune|transfer`: what a run's representation is worth. A new evaluation is a file here and a row
//! below.

mod classes;
mod data;
mod finetune;
mod knn;
mod linear;
mod transfer;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use simclr_ground::error::{Context, Error, Result};
use simclr_ground::files::write_whole;
use simclr_ground::location::absolute;
use simclr_plan::STREAM_VERSION;
use simclr_trainer::checkpoint;
use simclr_trainer::eval::{CompareConfig, Comparison, Outcome, SetRole, Task, compare};
use simclr_trainer::model::SimClr;
use simclr_trainer::optimizer::Optimizer;
use simclr_trainer::run::{FINE_TUNED, Imported, RunFolder, Versions};

use super::model::{ModelArgs, OpenModel};
use crate::commands::{Run, verbs};
use crate::drawing::confusion::confusion_image;
use crate::drawing::{SIGNATURE, signed_png};
use crate::open;
use crate::output::{ExitStatus, Output, check_replaceable};
pub use data::{ManifestData, open_stream};

verbs! {
    /// Evaluate a run's encoder on labeled shards.
    EvalCommand {
        /// Weighted k-nearest-neighbor classification by cosine similarity (no training).
        Knn(Evaluate<knn::KnnArgs>),
        /// Linear evaluation on frozen features (hyperparameters selected on a held-out split).
        Linear(Evaluate<linear::LinearArgs>),
        /// Fine-tune the encoder on all or a fraction of the labels; --untrained trains from scratch.
        Finetune(Evaluate<finetune::FinetuneArgs>),
        /// Transfer evaluation: hyperparameter search on a held-out split, then training on the full set.
        Transfer(Evaluate<transfer::TransferArgs>),
    }
}

/// A way to evaluate, with the arguments that are its own.
pub trait Protocol: Args {
    /// Its name in results.
    const NAME: &'static str;

    /// Evaluates once.
    ///
    /// # Errors
    /// If an argument is out of its range, or the sets can't be read.
    fn evaluate(&self, task: &Task<'_>, model: &OpenModel, seed: u64) -> Result<Outcome>;

    /// The new folder in which the trained model is kept.
    fn save(&self) -> Option<&Path> {
        None
    }

    /// Whether images are looked at whole but for what is beside their central square, as appendix B.8 does, where
    /// `eval.center_crop` is not set for it.
    fn takes_whole_center(&self) -> bool {
        false
    }
}

/// An evaluation: what all have in common, and what is its own.
#[derive(Args)]
pub struct Evaluate<P: Protocol> {
    #[command(flatten)]
    common: EvalArgs,
    #[command(flatten)]
    protocol: P,
}

/// The metric that a dataset is judged by.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// Top-1 accuracy.
    Top1,
    /// Mean per-class accuracy (Aircraft, Pets, Caltech-101, Flowers in the paper).
    MeanPerClass,
    /// 11-point mean average precision (VOC 2007).
    Map11,
}

impl From<Metric> for simclr_trainer::eval::Metric {
    fn from(metric: Metric) -> Self {
        match metric {
            Metric::Top1 => Self::Top1,
            Metric::MeanPerClass => Self::MeanPerClass,
            Metric::Map11 => Self::Map11,
        }
    }
}

#[derive(Args)]
pub struct EvalArgs {
    /// Run directory; uses its latest checkpoint.
    #[arg(long = "run-dir", visible_alias = "run", value_name = "DIR", required_unless_present_any = ["checkpoint", "compare"])]
    pub run: Option<PathBuf>,
    /// Evaluate this checkpoint instead of the latest.
    #[arg(long, conflicts_with = "run")]
    pub checkpoint: Option<PathBuf>,
    /// Compare two runs or checkpoints and report the difference A - B.
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["run", "checkpoint"])]
    pub compare: Vec<PathBuf>,
    /// Number of permutations for the significance test.
    #[arg(long, default_value_t = 100_000)]
    pub permutations: u32,
    /// Metric for comparison and for model selection (`linear --solver lbfgs`, `transfer`).
    #[arg(long, value_enum, default_value = "top1")]
    pub metric: Metric,
    /// Number of seeds, starting from the run's; reports mean and standard deviation.
    #[arg(long, default_value_t = 1)]
    pub seeds: u32,
    /// Write a confusion matrix as PNG.
    #[arg(long, value_name = "FILE", conflicts_with = "compare")]
    pub confusion: Option<PathBuf>,
    /// Evaluate the run's initial weights, for comparison.
    #[arg(long)]
    pub untrained: bool,
    /// Evaluate after K projection-head layers (0 = encoder output h), as in SimCLR v2.
    #[arg(long, default_value_t = 0)]
    pub head_layer: usize,
    /// Labeled training set: a manifest, class folders, a list with classes, or shards.
    #[arg(long, value_name = "DATA")]
    pub train: PathBuf,
    /// Labeled test set; its classes are matched with the training set's by name.
    #[arg(long, value_name = "DATA")]
    pub test: PathBuf,
    /// Override a [machine] or [eval] value (repeatable).
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub settings: Vec<String>,
}

impl EvalArgs {
    /// The models that are evaluated: one, or the two that are compared.
    fn models(&self) -> Vec<ModelArgs> {
        if self.compare.is_empty() {
            return vec![ModelArgs { run: self.run.clone(), checkpoint: self.checkpoint.clone() }];
        }
        let of = |path: &PathBuf| match path.join("state.json").is_file() {
            true => ModelArgs { run: None, checkpoint: Some(path.clone()) },
            false => ModelArgs { run: Some(path.clone()), checkpoint: None },
        };
        self.compare.iter().map(of).collect()
    }
}

impl<P: Protocol> Run for Evaluate<P> {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let common = &self.common;
        if common.seeds == 0 {
            return Err(Error::input("--seeds must be at least 1"));
        }
        // Before hours of work, not after them.
        let save = self.protocol.save().map(RunFolder::at);
        if let Some(folder) = &save {
            folder.check_new().context("--save")?;
        }
        if let Some(out) = &common.confusion {
            check_replaceable("--confusion", out, "a confusion matrix", |file| file.contains(SIGNATURE))?;
        }
        let runtime = open::runtime()?;
        let mut results = Vec::new();
        for model in common.models() {
            let mut model = OpenModel::open(&model, common.untrained, common.head_layer, &common.settings)?;
            let is_set = common.settings.iter().any(|setting| setting.trim_start().starts_with("eval.center_crop"));
            if self.protocol.takes_whole_center() && !is_set {
                model.config.eval.center_crop = 1.0;
            }
            let data = ManifestData::open(&model.config, &common.train, &common.test, runtime.handle(), output)?;
            let task = Task::new(&model.loaded, &data, common.metric.into());
            let outcomes = (0..u64::from(common.seeds))
                .map(|i| self.protocol.evaluate(&task, &model, model.config.seed + i))
                .collect::<Result<Vec<_>>>()?;
            let object = result(P::NAME, common, &model, &data, &outcomes)?;
            if let Some(out) = &common.confusion {
                let image = confusion_image(&outcomes[0].answers.measure()?, &data.manifest(SetRole::Test).classes);
                write_whole(out, &signed_png(&image)).with_context(|| format!("cannot write {}", out.display()))?;
            }
            let (mut answers, mut trained) = (Vec::new(), None);
            for outcome in outcomes {
                answers.push(outcome.answers);
                trained = trained.or(outcome.model);
            }
            if let (Some(folder), Some(trained)) = (&save, trained) {
                keep(folder, &trained, &model, common)?;
                folder.add_evaluation(&object)?;
            }
            model.folder.add_evaluation(&object)?;
            results.push((object, answers));
        }
        match &results[..] {
            [(object, _)] => output.result(object, || sentence(object))?,
            [(first, of_first), (second, of_second)] => {
                let config = CompareConfig { metric: common.metric.into(), permutations: common.permutations, seed: 1 };
                let comparison = compare(of_first, of_second, &config)?;
                let object = json!({ "first": first, "second": second, "comparison": comparison });
                let text = || format!("{}\n{}\n{}", sentence(first), sentence(second), difference(&comparison));
                output.result(&object, text)?;
            }
            _ => unreachable!("one model, or two"),
        }
        Ok(ExitStatus::Success)
    }
}

/// Everything that an evaluation of one model found out, and on what.
fn result(
    name: &str,
    common: &EvalArgs,
    model: &OpenModel,
    data: &ManifestData<'_>,
    outcomes: &[Outcome],
) -> Result<Value> {
    let loaded = &model.loaded;
    let metric: simclr_trainer::eval::Metric = common.metric.into();
    let measured = outcomes.iter().map(|outcome| outcome.answers.measure()).collect::<Result<Vec<_>, _>>()?;
    let values = outcomes.iter().map(|outcome| outcome.answers.value(metric)).collect::<Result<Vec<_>, _>>()?;
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / outcomes.len() as f64;
    let first = &outcomes[0];
    let mut object = json!({
        "evaluation": name,
        "top1": mean(&mut measured.iter().map(|m| m.top1)),
        "top5": mean(&mut measured.iter().map(|m| m.top5)),
        "mean_per_class": mean(&mut measured.iter().map(|m| m.mean_per_class)),
        "metric": metric,
        "value": mean(&mut values.iter().copied()),
        "per_class": measured[0].per_class,
        "confusion": common.confusion,
        "run": model.folder.path(),
        "step": loaded.step(),
        "head_layer": common.head_layer,
        "checkpoint": loaded.chosen.as_ref().map(|chosen| &chosen.path),
        "checkpoint_digest": loaded.digest,
        "plan_digest": model.plan_digest,
        "train": common.train,
        "train_digest": data.manifest(SetRole::Train).digest,
        "test": common.test,
        "test_digest": data.manifest(SetRole::Test).digest,
        "center_crop": model.config.eval.center_crop,
        "train_images": first.train_images,
        "test_images": first.answers.labels.size()[0],
        "left_out": first.left_out,
        "version": env!("CARGO_PKG_VERSION"),
    });
    for (key, value) in first.told.as_object().expect("it is told by keys") {
        object[key] = value.clone();
    }
    if outcomes.len() > 1 {
        let middle = mean(&mut values.iter().copied());
        let squares: f64 = values.iter().map(|value| (value - middle).powi(2)).sum();
        object["seeds"] = json!((0..outcomes.len() as u64).map(|i| model.config.seed + i).collect::<Vec<_>>());
        object["values"] = json!(values);
        // The standard deviation of such runs, estimated from these.
        object["spread"] = json!((squares / (values.len() - 1) as f64).sqrt());
    }
    Ok(object)
}

/// Keeps a fine-tuned encoder as a run of its own.
fn keep(folder: &RunFolder, trained: &SimClr, model: &OpenModel, common: &EvalArgs) -> Result<()> {
    let mut config = model.config.clone();
    config.data.manifest = absolute(&common.train)?;
    let from = model.loaded.chosen.as_ref().map_or(model.folder.path(), |chosen| &chosen.path).to_owned();
    let digest = model.loaded.digest.clone().unwrap_or_default();
    let head_layers = Some(model.head_layers.max(common.head_layer));
    let imported = Imported { file: from, digest, names: FINE_TUNED.into(), head_layers };
    let _lock = folder.lock()?;
    let optimizer = Optimizer::new(&config.optimizer, &trained.parameters);
    folder.checkpoints().save(&checkpoint::imported(), &trained.parameters, &optimizer, 1)?;
    let versions = Versions::current(STREAM_VERSION);
    folder.start_imported(&config, versions, imported)
}

fn sentence(object: &Value) -> String {
    let percent = |key: &str| format!("{:.2} %", 100.0 * object[key].as_f64().unwrap_or(f64::NAN));
    let mut text = format!(
        "{} of {} at step {}: top-1 {}, top-5 {}",
        object["evaluation"].as_str().unwrap_or(""),
        object["run"].as_str().unwrap_or(""),
        object["step"],
        percent("top1"),
        percent("top5")
    );
    match object["metric"].as_str() {
        Some("mean_per_class") => text += &format!(", mean per class {}", percent("value")),
        Some("map11") => text += &format!(", mean average precision {}", percent("value")),
        _ => {}
    }
    if let Some(values) = object["values"].as_array() {
        text += &format!(" (mean of {} seeds, standard deviation {})", values.len(), percent("spread"));
    }
    text
}

fn difference(comparison: &Comparison) -> String {
    let Comparison { difference, interval, p_value, config, .. } = comparison;
    let tested = match p_value {
        Some(p_value) => format!("p = {p_value:.3} ({} permutations)", config.permutations),
        None => "no permutation test: answers cannot be exchanged under average precision".to_owned(),
    };
    let [difference, low, high] = [*difference, interval[0], interval[1]].map(|share| 100.0 * share);
    format!("difference A - B: {difference:+.2} points (95% CI {low:+.2} to {high:+.2}), {tested}")
}
