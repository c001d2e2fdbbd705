//! `pack`: images in folders, tars or lists → shards and a manifest.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use simclr_data::pack::{PackOptions, Resize, abandon, pack};
use simclr_ground::error::{Error, Result};

use super::Run;
use crate::open::cores;
use crate::output::{ExitStatus, Output, say};
use crate::signals::Stop;
use crate::telemetry::progress::Progress;

/// Pack images into shards and a manifest: class folders, ILSVRC2012's tars, or a list.
#[derive(Args)]
pub struct PackArgs {
    /// A folder of class folders (SRC/<class>/<image>); a tar of class tars (ILSVRC2012_img_train.tar); a tar of
    /// images; or a list (.txt) with a path and a class on each line.
    pub source: PathBuf,
    /// Output directory to create.
    #[arg(long)]
    pub out: PathBuf,
    /// Maximum shard size, e.g. 256MiB.
    #[arg(long, default_value_t = 256 << 20)]
    pub shard_bytes: u64,
    /// Compress shards with zstd at this level (seekable frames).
    #[arg(long, value_name = "LEVEL")]
    pub zstd: Option<i32>,
    /// Downscale images so that the short side is at most PX (re-encoded as JPEG).
    #[arg(long, value_name = "PX")]
    pub resize_short: Option<u32>,
    /// Re-encode images at this JPEG quality (1-100) [default with --resize-short: 90].
    #[arg(long, value_name = "Q")]
    pub quality: Option<u8>,
    /// Use 4:2:0 chroma subsampling (smaller files, faster decoding).
    #[arg(long)]
    pub subsample: bool,
    /// Label file for a tar of images: one class per line in filename order, or `NAME CLASS` per line.
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Random seed for the sample order.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// How many images that could not be re-encoded are listed.
const SHOWN: usize = 10;

/// The default JPEG quality, which the field packs with.
const QUALITY: u8 = 90;

/// How images are re-encoded, if at all.
fn resize(args: &PackArgs) -> Result<Option<Resize>> {
    if args.resize_short.is_none() && args.quality.is_none() {
        if args.subsample {
            return Err(Error::input("--subsample requires --resize-short or --quality"));
        }
        return Ok(None);
    }
    let quality = args.quality.unwrap_or(QUALITY);
    if !(1..=100).contains(&quality) {
        return Err(Error::input(format!("--quality must be between 1 and 100, got {quality}")));
    }
    if args.resize_short == Some(0) {
        return Err(Error::input("--resize-short must be at least 1"));
    }
    Ok(Some(Resize { short_side: args.resize_short.unwrap_or(0), quality, subsample: args.subsample }))
}

impl Run for PackArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let progress = Progress::new("packing", 0, 1, output.quiet);
        let options = PackOptions {
            shard_bytes: self.shard_bytes,
            zstd: self.zstd,
            seed: self.seed,
            resize: resize(self)?,
            labels: self.labels.clone(),
            threads: cores(),
            progress: &|done, total| progress.set(done, total, || "images".into()),
        };
        let out = self.out.clone();
        Stop::before_leaving(move || abandon(&out))?;
        let packed = pack(&self.source, &self.out, &options)?;
        progress.finish();
        if !packed.left_out.is_empty() && !output.quiet {
            let first = packed.left_out[0].display();
            say(&format!(
                "skipped {} non-image files (not .jpg, .jpeg, .png or .webp), e.g. {first}",
                packed.left_out.len()
            ));
        }
        for (key, why) in packed.kept_as_is.iter().take(if output.quiet { 0 } else { SHOWN }) {
            say(&format!("not re-encoded: {key}: {why}"));
        }
        let manifest = &packed.manifest;
        let bytes: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
        let object = json!({
            "out": self.out, "manifest": self.out.join("manifest.json"), "shards": manifest.shards.len(), "samples": manifest.samples,
            "bytes": bytes, "classes": manifest.classes.len(), "digest": manifest.digest, "left_out": packed.left_out, "kept_as_is": packed.kept_as_is.len(),
        });
        output.result(&object, || {
            format!(
                "{} samples of {} classes in {} shards, {:.1} MB\nmanifest {}\ndigest   {}",
                manifest.samples,
                manifest.classes.len(),
                manifest.shards.len(),
                bytes as f64 / 1e6,
                self.out.join("manifest.json").display(),
                manifest.digest
            )
        })?;
        Ok(ExitStatus::Success)
    }
}
