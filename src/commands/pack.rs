//! `pack`: images in folders, tars or lists → shards and a manifest.

use pipeline::pack::{PackOptions, Resize, pack};
use serde_json::json;

use super::Voice;
use crate::cli::PackArgs;
use crate::progress::Progress;
use crate::stream::cores;
use crate::{Ending, WrongInput};

/// How many images that could not be made smaller are named.
const SHOWN: usize = 10;

/// JPEG quality if none is said: what the field packs with.
const QUALITY: u8 = 90;

/// How pictures are made smaller, if that is asked for.
fn resize(args: &PackArgs) -> anyhow::Result<Option<Resize>> {
    if args.resize_short.is_none() && args.quality.is_none() {
        if args.subsample {
            return Err(WrongInput("--subsample goes with --resize-short or --quality".into()).into());
        }
        return Ok(None);
    }
    let quality = args.quality.unwrap_or(QUALITY);
    if !(1..=100).contains(&quality) {
        return Err(WrongInput(format!("--quality {quality}: between 1 and 100 is wanted")).into());
    }
    if args.resize_short == Some(0) {
        return Err(WrongInput("--resize-short 0: at least one pixel is wanted".into()).into());
    }
    Ok(Some(Resize { short_side: args.resize_short.unwrap_or(0), quality, subsample: args.subsample }))
}

pub fn run(args: &PackArgs, voice: Voice) -> anyhow::Result<Ending> {
    let progress = Progress::new("packing", 0, 1, voice.quiet);
    let options = PackOptions {
        shard_bytes: args.shard_bytes,
        zstd: args.zstd,
        seed: args.seed,
        resize: resize(args)?,
        labels: args.labels.clone(),
        threads: cores(),
        progress: &|done, total| progress.set(done, total, || "images".into()),
    };
    let packed = pack(&args.source, &args.out, &options)?;
    progress.finish();
    if !packed.left_out.is_empty() && !voice.quiet {
        let first = packed.left_out[0].display();
        eprintln!("left out {} files that are no .jpg, .jpeg, .png or .webp, such as {first}", packed.left_out.len());
    }
    for (key, why) in packed.kept_as_is.iter().take(if voice.quiet { 0 } else { SHOWN }) {
        eprintln!("kept as it is: {key}: {why}");
    }
    let manifest = &packed.manifest;
    let bytes: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
    let object = json!({
        "out": args.out, "manifest": args.out.join("manifest.json"), "shards": manifest.shards.len(), "samples": manifest.samples,
        "bytes": bytes, "classes": manifest.classes.len(), "digest": manifest.digest, "left_out": packed.left_out, "kept_as_is": packed.kept_as_is.len(),
    });
    voice.result(&object, || {
        format!(
            "{} samples of {} classes in {} shards, {:.1} MB\nmanifest {}\ndigest   {}",
            manifest.samples,
            manifest.classes.len(),
            manifest.shards.len(),
            bytes as f64 / 1e6,
            args.out.join("manifest.json").display(),
            manifest.digest
        )
    });
    Ok(Ending::Done)
}
