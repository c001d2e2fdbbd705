//! `preview`: a contact sheet of a batch, any moment of any run, since a batch is a value.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use simclr_data::source::DamagePolicy;
use simclr_ground::error::{Context, Error, Result};
use simclr_ground::files::write_whole;

use super::Run;
use super::args::ConfigArgs;
use crate::drawing::contact_sheet::contact_sheet;
use crate::drawing::{SIGNATURE, signed_png};
use crate::open;
use crate::output::{ExitStatus, Output, check_replaceable};

/// Render a contact sheet of images, their augmented views and the sampled parameters.
#[derive(Args)]
pub struct PreviewArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Global batch to show.
    #[arg(long, default_value_t = 0)]
    pub batch: u64,
    /// Number of images to show.
    #[arg(long, default_value_t = 12)]
    pub images: usize,
    /// PNG file to write.
    #[arg(long, default_value = "preview.png")]
    pub out: PathBuf,
}

impl Run for PreviewArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        if self.out.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("png")) {
            return Err(Error::input(format!("--out must end in .png, got {}", self.out.display())));
        }
        check_replaceable("--out", &self.out, "a preview", |file| file.contains(SIGNATURE))?;
        let mut config = self.config.load()?;
        let manifest = open::fitted(&mut config)?;
        let source = open::source_over(manifest, config.stream(), &config.machine, DamagePolicy::Budget)?;
        if self.images == 0 {
            return Err(Error::input("--images must be at least 1"));
        }
        let sheet = contact_sheet(&source, self.batch, self.images)?;
        write_whole(&self.out, &signed_png(&sheet)).with_context(|| format!("cannot write {}", self.out.display()))?;
        let object = json!({ "out": self.out, "batch": self.batch, "plan_digest": source.plan.digest, "width": sheet.width, "height": sheet.height });
        output.result(&object, || self.out.display().to_string())?;
        Ok(ExitStatus::Success)
    }
}
