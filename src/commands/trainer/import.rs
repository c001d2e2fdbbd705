//! `import`: an encoder that another library trained becomes a run, to be evaluated, exported or trained on.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use simclr_ground::error::{Context, Result};
use simclr_plan::STREAM_VERSION;
use simclr_trainer::checkpoint;
use simclr_trainer::model::{SimClr, interop};
use simclr_trainer::optimizer::Optimizer;
use simclr_trainer::run::{Imported, RunFolder, Versions};
use tch::Device;

use crate::commands::Run;
use crate::commands::args::ConfigArgs;
use crate::output::ExitStatus;
use crate::output::Output;

/// Create a run from another library's weights (naming scheme, depth, width and stem are detected).
#[derive(Args)]
pub struct ImportArgs {
    /// Safetensors file with parameter names of torchvision, timm, Hugging Face, lightly, solo-learn, VISSL, MoCo or
    /// the official TensorFlow code.
    pub file: PathBuf,
    /// Run directory to create.
    #[arg(long = "run-dir", visible_alias = "run", value_name = "DIR")]
    pub run: PathBuf,
    /// Parameter prefix, if the file contains several encoders.
    #[arg(long)]
    pub prefix: Option<String>,
    #[command(flatten)]
    pub config: ConfigArgs,
}

impl Run for ImportArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let folder = RunFolder::at(&self.run);
        folder.check_new()?;
        let found = interop::find(&self.file, self.prefix.as_deref())?;
        let mut config = self.config.load()?;
        config.make_paths_absolute()?;
        let shape = found.shape;
        (config.model.encoder, config.model.width) = (shape.encoder, shape.width);
        (config.model.stem, config.model.shortcuts) = (shape.stem, shape.shortcuts);
        if let Some(head) = &found.head {
            config.model.head = head.clone();
        }
        let model = SimClr::new(&config.model, config.seed, Device::Cpu, config.machine.precision)?;
        let left = found.copy_to(&model.parameters)?;
        let bytes = simclr_ground::files::read_named(&self.file)
            .with_context(|| format!("cannot read {}", self.file.display()))?;
        let imported = Imported {
            file: self.file.clone(),
            digest: simclr_ground::files::digest(&bytes),
            names: found.names.clone(),
            head_layers: Some(found.head.as_ref().map_or(0, |head| head.layers as usize)),
        };
        let _lock = folder.lock()?;
        let optimizer = Optimizer::new(&config.optimizer, &model.parameters);
        let checkpoint = folder.checkpoints().save(&checkpoint::imported(), &model.parameters, &optimizer, 1)?;
        folder.start_imported(&config, Versions::current(STREAM_VERSION), imported)?;
        if !left.is_empty() {
            tracing::info!("ignored tensors that are not part of an encoder: {}", left.join(" "));
        }
        let object = json!({
            "out": self.run, "checkpoint": checkpoint, "encoder": config.model.encoder, "width": config.model.width,
            "stem": config.model.stem, "shortcuts": config.model.shortcuts, "head_layers": found.head.as_ref().map_or(0, |head| head.layers),
            "dim": model.encoder.dim(), "names": found.names, "left_out": left,
        });
        output.result(&object, || {
            let name = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
            let head = found.head.as_ref().map_or(String::new(), |head| format!(", head of {} layers", head.layers));
            format!(
                "imported {}, width {}, {} stem{head} ({} parameter names); ignored {} tensors\n{}",
                name("encoder"),
                config.model.width,
                name("stem"),
                found.names,
                left.len(),
                self.run.display()
            )
        })?;
        Ok(ExitStatus::Success)
    }
}
