//! `manifest build|verify|show|convert`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use clap::{Args, Subcommand};
use serde_json::json;
use simclr_data::dataset;
use simclr_data::loader::{Loader, LoaderOptions};
use simclr_data::manifest::{BuildOptions, Manifest, NamedShard, build, expand, verify, wids};
use simclr_data::quarantine::QuarantineEntry;
use simclr_data::source::DamagePolicy;
use simclr_ground::error::{Error, Result};
use simclr_ground::location::Location;
use simclr_ground::position::Share;
use simclr_plan::{Plan, ShuffleQuality};

use super::Run;
use super::args::ReadingArgs;
use crate::config::Config;
use crate::open;
use crate::open::cores;
use crate::output::{ExitStatus, Output, check_replaceable};
use crate::telemetry::logging::say;
use crate::telemetry::progress::Progress;
use crate::terminal::row;

/// Build, verify, show or convert the manifest of existing shards.
#[derive(Subcommand)]
pub enum ManifestCommand {
    /// Scan shards and write a manifest.
    Build(BuildArgs),
    /// Verify all shards or files against the manifest and report every mismatch.
    Verify(VerifyArgs),
    /// Show what a data set holds.
    Show(ShowArgs),
    /// Convert a manifest to a wids index (webdataset).
    Convert(ConvertArgs),
}

impl Run for ManifestCommand {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        match self {
            Self::Build(args) => args.run(output),
            Self::Verify(args) => args.run(output),
            Self::Show(args) => args.run(output),
            Self::Convert(args) => args.run(output),
        }
    }
}

#[derive(Args)]
pub struct BuildArgs {
    /// Paths, URLs (s3, gs, az, https), globs or brace ranges (name-{000..012}.tar), plain or .zst; another tool's index: a
    /// wids .json, or a dataset's _info.json#split; or a folder or list of images, which stay where they are.
    #[arg(required = true)]
    pub shards: Vec<String>,
    /// Manifest file to write.
    #[arg(long)]
    pub out: PathBuf,
    /// Class names, one per line, in label order [default: classes.txt next to the first shard, if present].
    #[arg(long)]
    pub classes: Option<PathBuf>,
    /// Exclude samples listed in a run's quarantine.jsonl.
    #[arg(long, value_name = "FILE")]
    pub exclude: Option<PathBuf>,
    /// Do not index JPEG entry points: smaller manifest, faster to build, slightly slower crops.
    #[arg(long)]
    pub no_row_index: bool,
    #[command(flatten)]
    pub reading: ReadingArgs,
}

impl Run for BuildArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let Self { shards, out, classes, exclude, no_row_index, reading } = self;
        check_replaceable("--out", out, "a manifest", |file| file.contains("\"simclr-pipeline-manifest\""))?;
        if let [one] = &shards[..]
            && dataset::is_images(Path::new(one))?
        {
            return self.files_in_place(Path::new(one), output);
        }
        let named = expand(shards)?;
        let classes = classes_of(classes.as_deref(), &named)?;
        let base = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let base = Location::File(base.to_owned());
        let source = format!("built from {}", shards.join(" "));
        let exclude = exclude.as_deref().map(quarantined).transpose()?.unwrap_or_default();
        let asked = exclude.len();
        let (manifest, passed_over) = with_progress("reading", named.len(), output, |progress| {
            build(
                &named,
                BuildOptions {
                    base,
                    source,
                    classes,
                    reading: reading.reading(None),
                    folder_classes: true,
                    exclude,
                    rows: !no_row_index,
                    threads: cores(),
                    progress,
                },
            )
        })?;
        for line in passed_over.told().iter().filter(|_| !output.quiet) {
            say(line);
        }
        if passed_over.unused.contains_key("json") && manifest.num_labeled() == 0 && !output.quiet {
            say("hint: --label-field NAME takes labels from a field of .json");
        }
        let excluded: usize = manifest.shards.iter().map(|shard| shard.excluded.len()).sum();
        if excluded < asked {
            let none = asked - excluded;
            tracing::warn!("{none} of {asked} samples to exclude were not found in the shards");
        }
        manifest.write(out)?;
        report(&manifest, out, output)?;
        Ok(ExitStatus::Success)
    }
}

impl BuildArgs {
    /// Writes the manifest of images that are files of their own.
    fn files_in_place(&self, what: &Path, output: Output) -> Result<ExitStatus> {
        for (flag, is_set) in [("--classes", self.classes.is_some()), ("--no-row-index", self.no_row_index)] {
            if is_set {
                return Err(Error::input(format!("{flag} applies to shards; {} are image files", what.display())));
            }
        }
        let excluded = self.exclude.as_deref().map(quarantined_files).transpose()?.unwrap_or_default();
        let asked = excluded.len() as u64;
        // All of it first, so that all of it is remembered.
        let all = open::manifest(what, self.reading.reading(None))?.samples;
        let manifest = open::manifest_without(what, self.reading.reading(None), excluded)?;
        let found = all - manifest.samples;
        if found < asked {
            tracing::warn!("{} of {asked} images to exclude were not found in {}", asked - found, what.display());
        }
        manifest.write(&self.out)?;
        report(&manifest, &self.out, output)?;
        Ok(ExitStatus::Success)
    }
}

#[derive(Args)]
pub struct VerifyArgs {
    /// A manifest, or whatever else --data takes.
    pub manifest: PathBuf,
    #[command(flatten)]
    pub reading: ReadingArgs,
    /// Decode every image as well.
    #[arg(long)]
    pub decode: bool,
    /// Write images that cannot be decoded to this file, as a run's quarantine.jsonl has them (with --decode).
    #[arg(long, value_name = "FILE", requires = "decode")]
    pub quarantine: Option<PathBuf>,
}

impl Run for VerifyArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let Self { manifest: path, reading, decode, quarantine } = self;
        let manifest = open::manifest(path, reading.reading(None))?;
        // Lines are added to a ledger; to anything else they would be nonsense.
        if let Some(ledger) = quarantine.as_deref().filter(|ledger| ledger.exists()) {
            if !ledger.is_file() {
                return Err(Error::input(format!("--quarantine {}: not a regular file", ledger.display())));
            }
            ledger_entries(ledger)?;
        }
        let problems =
            with_progress("verifying", manifest.shards.len(), output, |progress| verify(&manifest, cores(), progress))?;
        let (samples, shards, digest) = (manifest.samples, manifest.shards.len(), manifest.digest.clone());
        let damaged = match *decode && problems.is_empty() {
            true => decode_all(path, manifest, quarantine.as_deref(), output)?,
            false => Vec::new(),
        };
        let object = json!({
            "samples": samples, "shards": shards, "digest": digest, "problems": problems, "damaged": damaged,
        });
        output.result(&object, || match problems.len() {
            0 if !damaged.is_empty() => {
                let line = |one: &QuarantineEntry| {
                    row(&format!("{} in {}: {}: {}", one.entry, one.shard, one.reason, one.detail))
                };
                let lines: Vec<String> = damaged.iter().take(SHOWN).map(line).collect();
                let more = if damaged.len() > SHOWN { "\n…" } else { "" };
                format!("{}{more}\n{} of {samples} images cannot be decoded", lines.join("\n"), damaged.len())
            }
            0 if *decode => {
                format!("{samples} samples in {shards} shards match the manifest and can be decoded")
            }
            0 => format!("{samples} samples in {shards} shards match the manifest"),
            n => {
                let lines: Vec<String> = problems.iter().map(|problem| row(&problem.to_string())).collect();
                format!("{}\n{n} problems", lines.join("\n"))
            }
        })?;
        let sound = problems.is_empty() && damaged.is_empty();
        Ok(if sound { ExitStatus::Success } else { ExitStatus::ProblemsFound })
    }
}

#[derive(Args)]
pub struct ShowArgs {
    /// A manifest, or whatever else --data takes.
    pub manifest: PathBuf,
    #[command(flatten)]
    pub reading: ReadingArgs,
    /// Take classes from this file: a name and a class on each line.
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Measure shuffle quality and read amplification across ranks.
    #[arg(long)]
    pub shuffle: bool,
    /// Config that provides batch size, order and seed (with --shuffle).
    #[arg(long, value_name = "FILE|PRESET", requires = "shuffle")]
    pub config: Option<String>,
    /// Override a value of that config (with --shuffle, repeatable).
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE", requires = "shuffle")]
    pub settings: Vec<String>,
}

impl Run for ShowArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let Self { manifest: path, reading, labels, shuffle, config, settings } = self;
        if !shuffle {
            report(&open::manifest(path, reading.reading(labels.as_ref()))?, path, output)?;
            return Ok(ExitStatus::Success);
        }
        let mut config = Config::load(config.as_deref(), settings)?;
        let manifest = open::manifest(path, reading.reading(labels.as_ref()))?;
        config.fit(manifest.samples);
        let plan = Plan::new(&manifest, config.stream())?;
        let quality = ShuffleQuality::measure(&plan, &manifest);
        let object = serde_json::to_value(&quality).expect("numbers are plain data");
        output.result(&object, || describe(&quality))?;
        Ok(ExitStatus::Success)
    }
}

#[derive(Args)]
pub struct ConvertArgs {
    /// The manifest.
    pub manifest: PathBuf,
    /// Index file to write.
    #[arg(long)]
    pub wids: PathBuf,
}

impl Run for ConvertArgs {
    fn run(&self, output: Output) -> Result<ExitStatus> {
        let Self { manifest: path, wids: out } = self;
        if std::fs::canonicalize(path).ok().is_some_and(|path| std::fs::canonicalize(out).ok() == Some(path)) {
            return Err(Error::input(format!("--wids {}: is the manifest itself", out.display())));
        }
        check_replaceable("--wids", out, "an index", |file| file.contains("\"__kind__\""))?;
        let manifest = Manifest::read(path)?;
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let index = with_progress("reading", manifest.shards.len(), output, |progress| {
            wids(&manifest, &name, cores(), progress)
        })?;
        let text = serde_json::to_vec_pretty(&index).expect("an index is plain data");
        simclr_ground::files::write_whole(out, &text)
            .map_err(|error| Error::input(format!("cannot write {}: {error}", out.display())))?;
        let object = json!({ "out": out, "samples": manifest.samples, "shards": manifest.shards.len() });
        output.result(&object, || out.display().to_string())?;
        Ok(ExitStatus::Success)
    }
}

/// How many names of classes are shown.
const SHOWN_CLASSES: usize = 10;

/// How many damaged images are listed.
const SHOWN: usize = 20;

/// Decodes every image of a data set, on all cores; those that can't be, which `ledger` gets as well.
fn decode_all(path: &Path, manifest: Manifest, ledger: Option<&Path>, output: Output) -> Result<Vec<QuarantineEntry>> {
    let config = Config::load(None, &[])?;
    let mut stream = config.evaluation_stream(path.to_owned(), [0.0, 1.0], 1);
    // What a view looks like does not matter here.
    stream.recipe.size = 32;
    let damage = ledger.map_or(DamagePolicy::Any, DamagePolicy::Ledger);
    let total = manifest.samples;
    let source = open::source_over(manifest, stream, &config.machine, damage)?;
    let runtime = open::runtime()?;
    let options = LoaderOptions { threads: cores(), from_batch: 0, to_batch: None, share: Share::ALL };
    let slabs = open::plain_slabs(&source.plan, &config.machine, Share::ALL)?;
    let mut loader = Loader::start(source.clone(), slabs, options, runtime.handle())?;
    let progress = Progress::new("decoding", 0, total, output.quiet);
    let mut done = 0;
    while let Some(batch) = loader.next_batch()? {
        done += batch.num_images as u64;
        progress.set(done, total, || "images".into());
    }
    progress.finish();
    Ok(source.quarantine.entries())
}

/// The image entries that a ledger of damaged samples names.
fn quarantined(ledger: &Path) -> Result<BTreeSet<(String, String)>> {
    let named = |entry: QuarantineEntry| (simclr_data::manifest::shard_name(&entry.shard).to_owned(), entry.entry);
    Ok(ledger_entries(ledger)?.into_iter().map(named).collect())
}

fn ledger_entries(ledger: &Path) -> Result<Vec<QuarantineEntry>> {
    let wrong = |why: String| Error::input(format!("{}: {why}", ledger.display()));
    let text = simclr_ground::files::read_named_text(ledger).map_err(|error| wrong(error.to_string()))?;
    let entry = |(number, line): (usize, &str)| {
        serde_json::from_str::<QuarantineEntry>(line)
            .map_err(|error| wrong(format!("line {}: not a quarantine.jsonl entry: {error}", number + 1)))
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(entry).collect()
}

/// The image files that a ledger of damaged samples names.
fn quarantined_files(ledger: &Path) -> Result<BTreeSet<PathBuf>> {
    Ok(ledger_entries(ledger)?.into_iter().map(|entry| Path::new(&entry.shard).join(entry.entry)).collect())
}

/// The text of `show --shuffle`.
fn describe(quality: &ShuffleQuality) -> String {
    let mut text = format!("epoch 0, {} samples                      this order   full shuffle\n", quality.samples);
    let mut line = |what: &str, found: Option<f64>, full: Option<f64>| {
        if let (Some(found), Some(full)) = (found, full) {
            text += &format!("{what:44} {found:10.4}   {full:10.4}\n");
        }
    };
    line(
        "mean displacement, fraction of the dataset",
        Some(quality.mean_distance),
        Some(quality.mean_distance_of_a_full_shuffle),
    );
    line("shards per batch", Some(quality.shards_per_batch), Some(quality.shards_per_batch_of_a_full_shuffle));
    line(
        "P(two samples of a batch share a class)",
        quality.same_class_in_batch,
        quality.same_class_in_batch_of_a_full_shuffle,
    );
    if let Some(same) = quality.same_class_neighbours_in_manifest {
        text += &format!("manifest neighbors of the same class           {same:.4}\n");
    }
    for (ranks, times) in &quality.read_amplification {
        text += &format!("read amplification with {ranks} ranks: {times:.3}x the dataset's bytes\n");
    }
    text.trim_end().to_owned()
}

fn with_progress<T>(
    what: &'static str,
    shards: usize,
    output: Output,
    work: impl FnOnce(&(dyn Fn(u64) + Sync)) -> T,
) -> T {
    let progress = Progress::new(what, 0, shards as u64, output.quiet);
    let (done, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let result = work(&|read| {
        let bytes = bytes.fetch_add(read, Ordering::Relaxed) + read;
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        progress.set(done, shards as u64, || format!("shards, {:.1} MB", bytes as f64 / 1e6));
    });
    progress.finish();
    result
}

/// Class names: from the file named, or from `classes.txt` beside the first local shard, or none.
fn classes_of(named: Option<&Path>, shards: &[NamedShard]) -> Result<Vec<String>> {
    let Some(path) = named.map(Path::to_owned).or_else(|| dataset::names_beside(shards)) else { return Ok(Vec::new()) };
    let text = simclr_ground::files::read_named_text(&path)
        .map_err(|error| Error::input(format!("{}: cannot read class names: {error}", path.display())))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn report(manifest: &Manifest, path: &Path, output: Output) -> Result<()> {
    let bytes: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
    let mut per_class = std::collections::BTreeMap::<u32, u64>::new();
    for label in manifest.shards.iter().filter_map(|shard| shard.labels.as_ref()).flatten().flatten() {
        *per_class.entry(*label).or_default() += 1;
    }
    let present = per_class.len();
    let object = json!({
        "manifest": path, "samples": manifest.samples, "shards": manifest.shards.len(), "bytes": bytes, "digest": manifest.digest,
        "classes": manifest.num_classes(), "classes_present": present, "class_names": manifest.classes, "labels_from": manifest.labels_from, "labelled": manifest.num_labeled() > 0, "labelled_samples": manifest.num_labeled(), "source": manifest.source, "problems": [],
    });
    output.result(&object, || {
        let mut text = format!(
            "{}\n{} samples in {} {}, {:.1} MB\ndigest  {}\nsource  {}\n",
            path.display(),
            manifest.samples,
            manifest.shards.len(),
            if manifest.shards.iter().all(|shard| shard.loose) { "blocks" } else { "shards" },
            bytes as f64 / 1e6,
            row(&manifest.digest),
            row(&manifest.source)
        );
        if manifest.num_labeled() > 0 {
            let (least, most) = (per_class.values().min().unwrap_or(&0), per_class.values().max().unwrap_or(&0));
            text +=
                &format!("classes {} ({present} present, {least} to {most} samples each)\n", manifest.num_classes());
            if !manifest.classes.is_empty() {
                let more = if manifest.classes.len() > SHOWN_CLASSES { ", …" } else { "" };
                let names: Vec<&str> = manifest.classes.iter().take(SHOWN_CLASSES).map(String::as_str).collect();
                text += &format!("        {}{more}\n", row(&names.join(", ")));
            }
            if manifest.num_labeled() < manifest.samples {
                text += &format!("labels  {} of {} samples have one\n", manifest.num_labeled(), manifest.samples);
            }
        } else {
            text += "no labels\n";
        }
        if manifest.shards.iter().all(|shard| shard.loose) {
            text += "files in place, in blocks that stand where shards do\n";
            return text.trim_end().to_owned();
        }
        for shard in manifest.shards.iter().take(20) {
            text += &format!(
                "  {}  {} samples, {:.1} MB\n",
                row(&shard.location),
                shard.num_samples(),
                shard.bytes as f64 / 1e6
            );
        }
        if manifest.shards.len() > 20 {
            text += &format!("  … and {} more shards\n", manifest.shards.len() - 20);
        }
        text.trim_end().to_owned()
    })
}
