//! `eval knn|linear|finetune|transfer`: what a run's representation is worth.

mod classify;
mod confusion;
mod model;

use pipeline::drawn;
use pipeline::files::write_whole;
use serde_json::{Value, json};
use trainer::checkpoint;
use trainer::eval::{CompareConfig, Comparison, KnnConfig, Metric, compare};
use trainer::optimizer::Optimizer;
use trainer::simclr::SimClr;

use super::Voice;
use crate::cli::{EvalArgs, EvalCommand};
use crate::run::{Imported, RunFolder};
use crate::{Ending, WrongInput, stream};
use classify::{Outcome, Task};
pub use model::{Labels, Loaded, encode, find};

pub fn run(command: &EvalCommand, voice: Voice) -> anyhow::Result<Ending> {
    let common = command.common();
    if common.seeds == 0 {
        return Err(WrongInput("--seeds 0: at least one is wanted".into()).into());
    }
    let save = match command {
        EvalCommand::Finetune(args) => args.save.as_deref(),
        _ => None,
    };
    // Before hours of work, not after them.
    let save = save.map(RunFolder::at);
    if let Some(folder) = save.as_ref().filter(|folder| folder.holds_run()) {
        let path = folder.path().display();
        return Err(WrongInput(format!("--save {path}: holds a run already; name another folder")).into());
    }
    let runtime = stream::runtime()?;
    let mut results = Vec::new();
    for model in common.models() {
        let loaded = Loaded::open(&model, common.untrained, common.head_layer, &common.settings)?;
        let task = Task::new(&loaded, common, runtime.handle(), voice)?;
        let outcomes = (0..u64::from(common.seeds))
            .map(|i| once(&task, command, loaded.config.seed + i))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let object = result(&task, command, &outcomes)?;
        if let Some(out) = &common.confusion {
            let picture = confusion::confusion_picture(&outcomes[0].answers.measure()?, &task.test.classes);
            write_whole(out, &drawn::png(&picture))
                .map_err(|error| WrongInput(format!("{}: cannot write the picture: {error}", out.display())))?;
        }
        let (mut answers, mut trained) = (Vec::new(), None);
        for outcome in outcomes {
            answers.push(outcome.answers);
            trained = trained.or(outcome.model);
        }
        if let (Some(folder), Some(model)) = (&save, trained) {
            keep(folder, &model, &loaded, common)?;
            folder.add_evaluation(&object)?;
        }
        loaded.folder.add_evaluation(&object)?;
        results.push((object, answers));
    }
    match &results[..] {
        [(object, _)] => voice.result(object, || sentence(object)),
        [(first, of_first), (second, of_second)] => {
            let config = CompareConfig { metric: common.metric.into(), permutations: common.permutations, seed: 1 };
            let comparison = compare(of_first, of_second, &config)?;
            let object = json!({ "first": first, "second": second, "comparison": comparison });
            voice.result(&object, || format!("{}\n{}\n{}", sentence(first), sentence(second), difference(&comparison)));
        }
        _ => unreachable!("one model, or two"),
    }
    Ok(Ending::Done)
}

/// One run of the evaluation.
fn once(task: &Task<'_>, command: &EvalCommand, seed: u64) -> anyhow::Result<Outcome> {
    match command {
        EvalCommand::Knn(args) => {
            let base = &task.loaded.config.eval.knn;
            let (k, temperature) = (args.k.unwrap_or(base.k), args.temperature.unwrap_or(base.temperature));
            task.knn(&KnnConfig { k, temperature })
        }
        EvalCommand::Linear(args) => task.linear(args, seed),
        EvalCommand::Finetune(args) => task.finetune(args, seed),
        EvalCommand::Transfer(args) => task.transfer(args, seed),
    }
}

/// Everything that an evaluation of one model found out, and on what.
fn result(task: &Task<'_>, command: &EvalCommand, outcomes: &[Outcome]) -> anyhow::Result<Value> {
    let (common, loaded) = (command.common(), task.loaded);
    let metric: Metric = common.metric.into();
    let measured = outcomes.iter().map(|outcome| outcome.answers.measure()).collect::<Result<Vec<_>, _>>()?;
    let values = outcomes.iter().map(|outcome| outcome.answers.value(metric)).collect::<Result<Vec<_>, _>>()?;
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / outcomes.len() as f64;
    let first = &outcomes[0];
    let name = match command {
        EvalCommand::Knn(_) => "knn",
        EvalCommand::Linear(_) => "linear",
        EvalCommand::Finetune(_) => "finetune",
        EvalCommand::Transfer(_) => "transfer",
    };
    let mut object = json!({
        "evaluation": name,
        "top1": mean(&mut measured.iter().map(|m| m.top1)),
        "top5": mean(&mut measured.iter().map(|m| m.top5)),
        "mean_per_class": mean(&mut measured.iter().map(|m| m.mean_per_class)),
        "metric": metric,
        "value": mean(&mut values.iter().copied()),
        "per_class": measured[0].per_class,
        "confusion": common.confusion,
        "run": loaded.folder.path(),
        "step": loaded.step,
        "head_layer": common.head_layer,
        "checkpoint": loaded.chosen.as_ref().map(|(path, _)| path),
        "checkpoint_digest": loaded.digest,
        "plan_digest": loaded.plan_digest,
        "train": common.train,
        "train_digest": task.train.digest,
        "test": common.test,
        "test_digest": task.test.digest,
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
        object["seeds"] = json!((0..outcomes.len() as u64).map(|i| loaded.config.seed + i).collect::<Vec<_>>());
        object["values"] = json!(values);
        // The standard deviation of such runs, estimated from these.
        object["spread"] = json!((squares / (values.len() - 1) as f64).sqrt());
    }
    Ok(object)
}

/// Keeps a fine-tuned encoder as a run of its own.
fn keep(folder: &RunFolder, model: &SimClr, loaded: &Loaded, common: &EvalArgs) -> anyhow::Result<()> {
    let mut config = loaded.config.clone();
    config.data.manifest = std::path::absolute(&common.train)?;
    let from = loaded.chosen.as_ref().map_or(loaded.folder.path(), |(path, _)| path).to_owned();
    let digest = loaded.digest.clone().unwrap_or_default();
    let _lock = folder.lock()?;
    let optimizer = Optimizer::new(&config.optimizer, &model.parameters);
    folder.checkpoints().save(&checkpoint::imported(), &model.parameters, &optimizer, 1)?;
    folder.start_imported(&config, Imported { file: from, digest, names: "simclr-pipeline, fine-tuned".into() })
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
        text += &format!(" (mean of {} seeds, which spread by {})", values.len(), percent("spread"));
    }
    text
}

fn difference(comparison: &Comparison) -> String {
    let Comparison { difference, interval, p_value, config, .. } = comparison;
    let [difference, low, high] = [*difference, interval[0], interval[1]].map(|share| 100.0 * share);
    format!(
        "the first has {difference:+.2} points over the second (95 %: {low:+.2} to {high:+.2}), p = {p_value:.3} by {} exchanges",
        config.permutations
    )
}
