//! `export`: a run's encoder under the names that other libraries know, and a card that says what it is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;
use simclr_ground::error::{Context, Error, Result};
use simclr_ground::files::write_whole;
use simclr_trainer::checkpoint;
use simclr_trainer::model::SimClr;
use simclr_trainer::model::interop::{self, Names};
use simclr_trainer::run::{RunFolder, RunRecord};
use tch::Device;

use super::model::ModelArgs;
use crate::commands::Run;
use crate::config::Config;
use crate::output::{Ends, ExitStatus, Output, check_replaceable};

/// Export the encoder as safetensors with torchvision, timm or Hugging Face parameter names, plus a model card.
#[derive(Args)]
pub struct ExportArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Output .safetensors file (the model card is written next to it).
    #[arg(long)]
    pub out: PathBuf,
    /// Export the projection head as well (head.0.weight, head.0.bn.weight, …), to import it or to fine-tune from one of
    /// its layers.
    #[arg(long)]
    pub head: bool,
    /// Parameter naming scheme.
    #[arg(long, value_enum, default_value = "torchvision")]
    pub names: ExportNames,
}

/// The libraries whose parameter names are supported.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportNames {
    /// torchvision.models.resnet….
    Torchvision,
    /// timm's resnet…: the same names.
    Timm,
    /// transformers.ResNetModel.
    HuggingFace,
}

impl Run for ExportArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        if self.out.extension().is_none_or(|extension| extension != "safetensors") {
            return Err(Error::input(format!(
                "--out {}: only safetensors files are written; expected a name that ends in .safetensors",
                self.out.display()
            )));
        }
        if self.out.parent().is_some_and(|folder| folder.join("state.json").is_file()) {
            return Err(Error::input(format!(
                "--out {}: a checkpoint's folder holds its own files alone; choose another folder",
                self.out.display()
            )));
        }
        let card = PathBuf::from(format!("{}.md", self.out.display()));
        let is_ours = |file: &Ends| file.contains(MADE_BY);
        check_replaceable("--out", &self.out, "an export", is_ours)?;
        check_replaceable("--out: its model card", &card, "a model card", is_ours)?;
        let (folder, chosen) = self.model.find(false)?;
        let chosen = chosen.expect("without --untrained there is a checkpoint or an error");
        let step = chosen.step;
        let record = Config::recorded(&folder)?;
        let config = &record.config;
        let model = SimClr::new(&config.model, config.seed, Device::Cpu, config.machine.precision)?;
        checkpoint::load(&chosen.path, &model.parameters, None)?;
        let names = match self.names {
            ExportNames::Torchvision | ExportNames::Timm => Names::Torchvision,
            ExportNames::HuggingFace => Names::HuggingFace,
        };
        let about = about(&record, step);
        let tensors = interop::export(&model.parameters, (names, self.head), step, &about, &self.out)?;
        let text = card_text(&folder, config, &about, model.encoder.dim(), self)?;
        write_whole(&card, text.as_bytes()).with_context(|| format!("cannot write {}", card.display()))?;
        let object =
            json!({ "out": self.out, "card": card, "tensors": tensors, "step": step, "dim": model.encoder.dim() });
        output.result(&object, || format!("{} ({tensors} tensors), {}", self.out.display(), card.display()))?;
        Ok(ExitStatus::Success)
    }
}

/// The key of the program's name, by which an export and its card are known.
const MADE_BY: &str = "made_by";

/// Where the weights come from, for the file's metadata and the card.
fn about(record: &RunRecord<Config>, step: u64) -> BTreeMap<String, String> {
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
        (MADE_BY.into(), format!("simclr-pipeline {}", record.versions.simclr_pipeline)),
        ("input".into(), "RGB / 255, no mean subtraction".into()),
    ])
}

fn card_text(
    folder: &RunFolder,
    config: &Config,
    about: &BTreeMap<String, String>,
    dim: i64,
    args: &ExportArgs,
) -> Result<String> {
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
            "It starts with a 3×3 convolution of stride 1 and has no max pooling: replace `conv1` and `maxpool`.",
        );
    }
    if !config.model.shortcuts.is_default() {
        shape.push("The first block of every group has a convolution in its shortcut, as in the official code: add `downsample` to `layer1.0`.");
    }
    if config.model.width != 1.0 {
        shape.push("Its width is not the standard one: build the model with this width.");
    }
    let rows: String = about.iter().map(|(key, value)| format!("| {key} | {value} |\n")).collect();
    let recipe = &config.recipe;
    let mut evaluations = String::new();
    for line in folder.evaluations() {
        let text = |key: &str| line[key].as_str().map_or_else(|| line[key].to_string(), str::to_owned);
        evaluations += &format!("| {} | {} | {} |\n", text("evaluation"), text("step"), text("top1"));
    }
    if evaluations.is_empty() {
        evaluations = "Not evaluated in its run directory.\n".into();
    } else {
        evaluations = format!("| evaluation | after step | top-1 |\n|---|---|---|\n{evaluations}");
    }
    Ok(format!(
        "# {encoder} pretrained with SimCLR\n\n\
         An encoder without a classifier: maps images to representations of dimension {dim}. Trained without labels on views \
         of {size} pixels. {shape}\n\n\
         ```python\n{load}\nmodel.eval()  # input: RGB in [0, 1], no mean subtraction\n```\n\n\
         | | |\n|---|---|\n{rows}\n## Evaluations\n\n{evaluations}\n## Settings\n\n```json\n{settings}\n```\n",
        size = recipe.size,
        shape = shape.join(" "),
        settings = serde_json::to_string_pretty(config).expect("a configuration is plain data"),
    ))
}
