//! `pack`: images in folders, tars or lists → shards and a manifest.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use simclr_data::manifest::Manifest;
use simclr_data::pack::{PackOptions, Resize, abandon, check, pack_listing};
use simclr_ground::error::{Error, Result};

use super::Run;
use super::args::ReadingArgs;
use crate::config::Config;
use crate::open;
use crate::open::cores;
use crate::output::{ExitStatus, Output};
use crate::signals::Stop;
use crate::telemetry::logging::say;
use crate::telemetry::progress::Progress;

/// Pack images into shards and a manifest: a folder in any shape, a tar, ILSVRC2012's tars, a list, or other shards.
#[derive(Args)]
pub struct PackArgs {
    /// A folder of images (class folders give labels, any other shape none); a tar of images, or of class tars
    /// (ILSVRC2012_img_train.tar); a list (.txt, .csv) with a path, and perhaps a class, on each line; or a manifest or
    /// shards (a folder, pattern or URL), to pack them anew.
    pub source: PathBuf,
    /// Output directory to create, as --out.
    #[arg(value_name = "OUT")]
    pub out_word: Option<PathBuf>,
    /// Output directory to create.
    #[arg(long, value_name = "DIR", required_unless_present = "out_word", conflicts_with = "out_word")]
    pub out: Option<PathBuf>,
    /// Maximum shard size, e.g. 256MiB.
    #[arg(long, visible_alias = "shard-size", value_name = "BYTES", default_value = "256MiB", value_parser = bytes)]
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
    /// Take classes from this file: a name and a class on each line (CSV, tabs or blanks); for a tar of images also one
    /// class per line in filename order.
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    #[command(flatten)]
    pub reading: ReadingArgs,
    /// Number the classes as in this file (a name on each line) or this manifest; classes without images are allowed.
    #[arg(long, value_name = "FILE|MANIFEST")]
    pub classes: Option<PathBuf>,
    /// Random seed for the sample order.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// A number of bytes, with a unit if it has one: `256MiB`, `1GB`, `60000`.
fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || "expected a number of bytes, such as 256MiB, 1GB or 60000".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    digits.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

/// How many images that could not be re-encoded are listed.
const SHOWN: usize = 10;

/// The default JPEG quality, which the field packs with.
const QUALITY: u8 = 90;

/// The class names in a file: one on each line, or those of a manifest.
fn class_list(path: &Path) -> Result<Vec<String>> {
    if path.extension().is_some_and(|extension| extension == "json") {
        return Ok(Manifest::read(path)?.classes);
    }
    let text = simclr_ground::files::read_named_text(path)
        .map_err(|error| Error::input(format!("{}: cannot read class names: {error}", path.display())))?;
    let names: Vec<String> = text.trim_start_matches('\u{feff}').lines().map(|line| line.trim().to_owned()).collect();
    let mut seen = BTreeSet::new();
    for (i, name) in names.iter().enumerate() {
        let wrong = |why: &str| Error::input(format!("{}: line {}: {why}", path.display(), i + 1));
        if name.is_empty() {
            return Err(wrong("blank; expected a class name on each line"));
        }
        if !seen.insert(name) {
            return Err(wrong(&format!("class {name:?} is listed twice")));
        }
    }
    Ok(names)
}

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
            threads: cores(),
            progress: &|done, total| progress.set(done, total, || "images".into()),
        };
        let out = self.out.as_deref().or(self.out_word.as_deref()).expect("clap asks for one of them");
        let abandoned = out.to_owned();
        Stop::before_leaving(move || abandon(&abandoned))?;
        check(out, &options)?;
        let classes = self.classes.as_deref().map(class_list).transpose()?;
        let runtime = open::runtime()?;
        let reading = self.reading.reading(self.labels.as_ref());
        let machine = Config::load(None, &[])?.machine;
        let listing = open::listing(&self.source, classes, reading, &machine, runtime.handle())?;
        let packed = pack_listing(listing, out, &options)?;
        progress.finish();
        for line in packed.left_out.told().iter().chain(&packed.notes).filter(|_| !output.quiet) {
            say(line);
        }
        for (key, why) in packed.kept_as_is.iter().take(if output.quiet { 0 } else { SHOWN }) {
            say(&format!("kept as it is, since it cannot be decoded: {key}: {why}"));
        }
        let manifest = &packed.manifest;
        let bytes: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
        let object = json!({
            "out": out, "manifest": out.join("manifest.json"), "shards": manifest.shards.len(), "samples": manifest.samples,
            "bytes": bytes, "classes": manifest.num_classes(), "digest": manifest.digest, "left_out": packed.left_out.others, "left_out_nobodys": packed.left_out.nobodys, "notes": packed.notes, "kept_as_is": packed.kept_as_is.len(),
        });
        output.result(&object, || {
            format!(
                "{} samples of {} classes in {} shards, {:.1} MB\nmanifest {}\ndigest   {}",
                manifest.samples,
                manifest.num_classes(),
                manifest.shards.len(),
                bytes as f64 / 1e6,
                out.join("manifest.json").display(),
                manifest.digest
            )
        })?;
        Ok(ExitStatus::Success)
    }
}
