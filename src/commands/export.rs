//! `export`: a run's encoder under the names that other libraries know, and a card that says what it is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pipeline::files::write_whole;
use serde_json::json;
use tch::Device;
use trainer::checkpoint;
use trainer::interop::{self, Names};
use trainer::simclr::SimClr;

use super::Voice;
use super::eval::find;
use super::train::precision;
use crate::cli::{ExportArgs, ExportNames};
use crate::config::Config;
use crate::run::{RunFolder, RunRecord};
use crate::{Ending, WrongInput};

pub fn run(args: &ExportArgs, voice: Voice) -> anyhow::Result<Ending> {
    let (folder, chosen) = find(&args.model, false)?;
    let (checkpoint, step) = chosen.expect("without --untrained there is a checkpoint or an error");
    let record = folder.record()?;
    let config = &record.config;
    let model = SimClr::new(&config.model, config.seed, Device::Cpu, precision(&config.machine))?;
    checkpoint::load(&checkpoint, &model.parameters, None)?;
    let names = match args.names {
        ExportNames::Torchvision | ExportNames::Timm => Names::Torchvision,
        ExportNames::HuggingFace => Names::HuggingFace,
    };
    let about = about(&record, step);
    let tensors = interop::export(&model.parameters, names, step, &about, &args.out)?;
    let card = PathBuf::from(format!("{}.md", args.out.display()));
    let text = card_text(&folder, config, &about, model.encoder.dim(), args)?;
    write_whole(&card, text.as_bytes())
        .map_err(|error| WrongInput(format!("{}: cannot write the card: {error}", card.display())))?;
    let object = json!({ "out": args.out, "card": card, "tensors": tensors, "step": step, "dim": model.encoder.dim() });
    voice.result(&object, || format!("{} ({tensors} tensors), {}", args.out.display(), card.display()));
    Ok(Ending::Done)
}

/// Where the weights come from, for the file's metadata and the card.
fn about(record: &RunRecord, step: u64) -> BTreeMap<String, String> {
    let model = &record.config.model;
    let name = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    BTreeMap::from([
        ("encoder".into(), name(json!(model.encoder))),
        ("width".into(), model.width.to_string()),
        ("stem".into(), name(json!(model.stem))),
        ("steps".into(), step.to_string()),
        ("batch_size".into(), record.config.batch.size.to_string()),
        ("manifest_digest".into(), record.manifest_digest.clone()),
        ("plan_digest".into(), record.plan_digest.clone()),
        ("made_by".into(), format!("simclr-pipeline {}", record.versions.simclr_pipeline)),
        ("input".into(), "RGB / 255, no mean taken off".into()),
    ])
}

fn card_text(
    folder: &RunFolder,
    config: &Config,
    about: &BTreeMap<String, String>,
    dim: i64,
    args: &ExportArgs,
) -> anyhow::Result<String> {
    let file = args.out.file_name().map_or_else(|| args.out.display().to_string(), |n| n.to_string_lossy().into());
    let encoder = &about["encoder"];
    let load = match args.names {
        ExportNames::HuggingFace => format!(
            "from safetensors.torch import load_file\nfrom transformers import ResNetModel\n\
             model = ResNetModel(config)  # a ResNetConfig of a {encoder}\nmodel.load_state_dict(load_file(\"{file}\"))"
        ),
        ExportNames::Timm => format!(
            "import timm\nfrom safetensors.torch import load_file\n\
             model = timm.create_model(\"{encoder}\", num_classes=0)\nmodel.load_state_dict(load_file(\"{file}\"))"
        ),
        ExportNames::Torchvision => format!(
            "import torch, torchvision\nfrom safetensors.torch import load_file\n\
             model = torchvision.models.{encoder}()\nmodel.fc = torch.nn.Identity()\n\
             model.load_state_dict(load_file(\"{file}\"))"
        ),
    };
    let mut shape = Vec::new();
    if about["stem"] == "cifar" {
        shape.push(
            "It begins with a 3×3 convolution of stride 1 and has no max-pooling: replace `conv1` and `maxpool`.",
        );
    }
    if config.model.width != 1.0 {
        shape.push("Its channels are not the usual ones: build the model with this width.");
    }
    let rows: String = about.iter().map(|(key, value)| format!("| {key} | {value} |\n")).collect();
    let recipe = &config.recipe;
    let mut evaluations = String::new();
    for line in folder.evaluations() {
        let text = |key: &str| line[key].as_str().map_or_else(|| line[key].to_string(), str::to_owned);
        evaluations += &format!("| {} | {} | {} |\n", text("evaluation"), text("step"), text("top1"));
    }
    if evaluations.is_empty() {
        evaluations = "Not evaluated in its run folder.\n".into();
    } else {
        evaluations = format!("| evaluation | after step | top-1 |\n|---|---|---|\n{evaluations}");
    }
    Ok(format!(
        "# {encoder} pre-trained with SimCLR\n\n\
         An encoder without classifier: pictures to representations of length {dim}. Trained without labels on views of \
         {size} pixels. {shape}\n\n\
         ```python\n{load}\nmodel.eval()  # takes RGB in [0, 1], no mean taken off\n```\n\n\
         | | |\n|---|---|\n{rows}\n## Evaluations\n\n{evaluations}\n## Settings\n\n```json\n{settings}\n```\n",
        size = recipe.size,
        shape = shape.join(" "),
        settings = serde_json::to_string_pretty(config)?,
    ))
}
