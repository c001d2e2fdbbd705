//! `import`: an encoder that another library trained becomes a run, to be evaluated, exported or trained on.

use anyhow::Context;
use serde_json::json;
use tch::Device;
use trainer::checkpoint;
use trainer::interop;
use trainer::optimizer::Optimizer;
use trainer::simclr::SimClr;

use super::Voice;
use super::train::precision;
use crate::cli::ImportArgs;
use crate::run::{Imported, RunFolder};
use crate::{Ending, WrongInput};

pub fn run(args: &ImportArgs, voice: Voice) -> anyhow::Result<Ending> {
    let folder = RunFolder::at(&args.run);
    if folder.holds_run() {
        return Err(WrongInput(format!("{}: holds a run already; name another folder", args.run.display())).into());
    }
    let found = interop::find(&args.file, args.prefix.as_deref())?;
    let mut config = args.config.load()?;
    config.data.manifest = std::path::absolute(&config.data.manifest)?;
    (config.model.encoder, config.model.width, config.model.stem) = (found.encoder, found.width, found.stem);
    let model = SimClr::new(&config.model, config.seed, Device::Cpu, precision(&config.machine))?;
    let left = found.copy_to(&model.parameters)?;
    let bytes = std::fs::read(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let imported =
        Imported { file: args.file.clone(), digest: pipeline::files::digest(&bytes), names: found.names.clone() };
    let _lock = folder.lock()?;
    let optimizer = Optimizer::new(&config.optimizer, &model.parameters);
    let checkpoint = folder.checkpoints().save(&checkpoint::imported(), &model.parameters, &optimizer, 1)?;
    folder.start_imported(&config, imported)?;
    if !left.is_empty() {
        tracing::info!("tensors that no encoder has were left out: {}", left.join(" "));
    }
    let object = json!({
        "out": args.run, "checkpoint": checkpoint, "encoder": config.model.encoder, "width": config.model.width,
        "stem": config.model.stem, "dim": model.encoder.dim(), "names": found.names, "left_out": left,
    });
    voice.result(&object, || {
        let name = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        format!(
            "{} of width {} with the {} stem, found by {} names; {} tensors of the file are no encoder's\n{}",
            name("encoder"),
            config.model.width,
            name("stem"),
            found.names,
            left.len(),
            args.run.display()
        )
    });
    Ok(Ending::Done)
}
