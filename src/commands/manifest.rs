//! `manifest build|verify|show|convert`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use pipeline::manifest::{BuildOptions, Manifest, NamedShard, build, expand, verify, wids};
use pipeline::plan::{Plan, ShuffleQuality};
use pipeline::store::Location;
use serde_json::json;

use super::Voice;
use crate::cli::ManifestCommand;
use crate::config::Config;
use crate::progress::Progress;
use crate::stream::cores;
use crate::{Ending, WrongInput};

pub fn run(command: &ManifestCommand, voice: Voice) -> anyhow::Result<Ending> {
    match command {
        ManifestCommand::Build { shards, out, classes, exclude, no_row_index } => {
            let named = expand(shards)?;
            let classes = classes_of(classes.as_deref(), &named)?;
            let base = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let base = Location::File(base.to_owned());
            let source = format!("built from {}", shards.join(" "));
            let exclude = exclude.as_deref().map(quarantined).transpose()?.unwrap_or_default();
            let asked = exclude.len();
            let manifest = with_progress("reading", named.len(), voice, |progress| {
                let rows = !no_row_index;
                build(&named, BuildOptions { base, source, classes, exclude, rows, threads: cores(), progress })
            })?;
            let excluded: usize = manifest.shards.iter().map(|shard| shard.excluded.len()).sum();
            if excluded < asked {
                let none = asked - excluded;
                tracing::warn!("{none} of {asked} samples that were to be left out are in none of the shards");
            }
            manifest.write(out)?;
            report(&manifest, out, voice);
            Ok(Ending::Done)
        }
        ManifestCommand::Verify { manifest: path } => {
            let manifest = Manifest::read(path)?;
            let problems = with_progress("verifying", manifest.shards.len(), voice, |progress| {
                verify(&manifest, cores(), progress)
            })?;
            let (samples, shards) = (manifest.samples, manifest.shards.len());
            let object =
                json!({ "samples": samples, "shards": shards, "digest": manifest.digest, "problems": problems });
            voice.result(&object, || match problems.len() {
                0 => format!("{samples} samples in {shards} shards are as the manifest says"),
                n => {
                    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
                    format!("{}\n{n} problems", lines.join("\n"))
                }
            });
            Ok(if problems.is_empty() { Ending::Done } else { Ending::Unsound })
        }
        ManifestCommand::Show { manifest: path, shuffle: false, .. } => {
            report(&Manifest::read(path)?, path, voice);
            Ok(Ending::Done)
        }
        ManifestCommand::Show { manifest: path, config, settings, .. } => {
            let config = Config::load(config.as_deref(), settings)?;
            let manifest = Manifest::read(path)?;
            let plan = Plan::new(&manifest, config.stream())?;
            let quality = ShuffleQuality::measure(&plan, &manifest);
            let object = serde_json::to_value(&quality).expect("numbers are plain data");
            voice.result(&object, || describe(&quality));
            Ok(Ending::Done)
        }
        ManifestCommand::Convert { manifest: path, wids: out } => {
            let manifest = Manifest::read(path)?;
            let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
            let index = with_progress("reading", manifest.shards.len(), voice, |progress| {
                wids(&manifest, &name, cores(), progress)
            })?;
            let text = serde_json::to_vec_pretty(&index).expect("an index is plain data");
            pipeline::files::write_whole(out, &text)
                .map_err(|error| WrongInput(format!("{}: cannot be written: {error}", out.display())))?;
            let object = json!({ "out": out, "samples": manifest.samples, "shards": manifest.shards.len() });
            voice.result(&object, || out.display().to_string());
            Ok(Ending::Done)
        }
    }
}

/// The image entries that a ledger of damaged samples names.
fn quarantined(ledger: &Path) -> anyhow::Result<BTreeSet<String>> {
    let wrong = |why: String| WrongInput(format!("{}: {why}", ledger.display()));
    let text = std::fs::read_to_string(ledger).map_err(|error| wrong(error.to_string()))?;
    let entry = |(number, line): (usize, &str)| {
        let entry: Result<pipeline::quarantine::QuarantineEntry, _> = serde_json::from_str(line);
        entry
            .map(|entry| entry.entry)
            .map_err(|error| wrong(format!("line {}: no line of a quarantine.jsonl: {error}", number + 1)).into())
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(entry).collect()
}

/// What `show --shuffle` says to people.
fn describe(quality: &ShuffleQuality) -> String {
    let mut text = format!("epoch 0, {} samples                      this order   full shuffle\n", quality.samples);
    let mut line = |what: &str, found: Option<f64>, full: Option<f64>| {
        if let (Some(found), Some(full)) = (found, full) {
            text += &format!("{what:44} {found:10.4}   {full:10.4}\n");
        }
    };
    line(
        "distance moved, as a share of the set",
        Some(quality.mean_distance),
        Some(quality.mean_distance_of_a_full_shuffle),
    );
    line("shards in a batch", Some(quality.shards_per_batch), Some(quality.shards_per_batch_of_a_full_shuffle));
    line(
        "two samples of a batch have the same class",
        quality.same_class_in_batch,
        quality.same_class_in_batch_of_a_full_shuffle,
    );
    if let Some(same) = quality.same_class_neighbours_in_manifest {
        text += &format!("neighbours in the manifest of the same class   {same:.4}\n");
    }
    for (ranks, times) in &quality.read_amplification {
        text += &format!("read by {ranks} ranks: {times:.3} times the set's bytes\n");
    }
    text.trim_end().to_owned()
}

fn with_progress<T>(
    what: &'static str,
    shards: usize,
    voice: Voice,
    work: impl FnOnce(&(dyn Fn(u64) + Sync)) -> T,
) -> T {
    let progress = Progress::new(what, 0, shards as u64, voice.quiet);
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
fn classes_of(named: Option<&Path>, shards: &[NamedShard]) -> anyhow::Result<Vec<String>> {
    let beside = match &shards[0].place {
        Location::File(path) => Some(path.with_file_name("classes.txt")).filter(|path| path.is_file()),
        Location::Url(_) => None,
    };
    let Some(path) = named.map(Path::to_owned).or(beside) else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string(&path)
        .map_err(|error| WrongInput(format!("{}: cannot read class names: {error}", path.display())))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn report(manifest: &Manifest, path: &Path, voice: Voice) {
    let bytes: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
    let mut per_class = std::collections::BTreeMap::<u32, u64>::new();
    for label in manifest.shards.iter().filter_map(|shard| shard.labels.as_ref()).flatten() {
        *per_class.entry(*label).or_default() += 1;
    }
    let present = per_class.len();
    let object = json!({
        "manifest": path, "samples": manifest.samples, "shards": manifest.shards.len(), "bytes": bytes, "digest": manifest.digest,
        "classes": manifest.num_classes(), "classes_present": present, "labelled": manifest.is_labelled(), "source": manifest.source, "problems": [],
    });
    voice.result(&object, || {
        let mut text = format!(
            "{}\n{} samples in {} shards, {:.1} MB\ndigest  {}\nsource  {}\n",
            path.display(),
            manifest.samples,
            manifest.shards.len(),
            bytes as f64 / 1e6,
            manifest.digest,
            manifest.source
        );
        if manifest.is_labelled() {
            let (least, most) = (per_class.values().min().unwrap_or(&0), per_class.values().max().unwrap_or(&0));
            text +=
                &format!("classes {} ({present} present, {least} to {most} samples each)\n", manifest.num_classes());
        } else {
            text += "no labels\n";
        }
        for shard in manifest.shards.iter().take(20) {
            text +=
                &format!("  {}  {} samples, {:.1} MB\n", shard.location, shard.num_samples(), shard.bytes as f64 / 1e6);
        }
        if manifest.shards.len() > 20 {
            text += &format!("  … and {} more shards\n", manifest.shards.len() - 20);
        }
        text.trim_end().to_owned()
    });
}
