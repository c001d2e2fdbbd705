//! `pack`: class folders → shards and a manifest.

use pipeline::pack::{PackOptions, pack_folders};
use serde_json::json;

use super::Voice;
use crate::Ending;
use crate::cli::PackArgs;
use crate::progress::Progress;
use crate::stream::cores;

pub fn run(args: &PackArgs, voice: Voice) -> anyhow::Result<Ending> {
    let progress = Progress::new("packing", 0, 1, voice.quiet);
    let options = PackOptions {
        shard_bytes: args.shard_bytes,
        zstd: args.zstd,
        seed: args.seed,
        threads: cores(),
        progress: &|done, total| progress.set(done, total, || "images".into()),
    };
    let packed = pack_folders(&args.source, &args.out, &options)?;
    progress.finish();
    if !packed.left_out.is_empty() && !voice.quiet {
        let first = packed.left_out[0].display();
        eprintln!("left out {} files that are no .jpg, .jpeg, .png or .webp, such as {first}", packed.left_out.len());
    }
    let manifest = &packed.manifest;
    let bytes: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
    let object = json!({
        "out": args.out, "manifest": args.out.join("manifest.json"), "shards": manifest.shards.len(), "samples": manifest.samples,
        "bytes": bytes, "classes": manifest.classes.len(), "digest": manifest.digest, "left_out": packed.left_out,
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
