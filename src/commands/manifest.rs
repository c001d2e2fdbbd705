//! `manifest build|verify|show`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use pipeline::manifest::{BuildOptions, Manifest, build, expand, verify};
use serde_json::json;

use super::Voice;
use crate::cli::ManifestCommand;
use crate::progress::Progress;
use crate::stream::cores;
use crate::{Ending, WrongInput};

pub fn run(command: &ManifestCommand, voice: Voice) -> anyhow::Result<Ending> {
    match command {
        ManifestCommand::Build { shards, out, classes } => {
            let paths = expand(shards)?;
            let classes = classes_of(classes.as_deref(), &paths)?;
            let base = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let source = format!("built from {}", shards.join(" "));
            let manifest = with_progress("reading", paths.len(), voice, |progress| {
                build(&paths, BuildOptions { base, source, classes, threads: cores(), progress })
            })?;
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
        ManifestCommand::Show { manifest: path } => {
            report(&Manifest::read(path)?, path, voice);
            Ok(Ending::Done)
        }
    }
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

/// Class names: from the file named, or from `classes.txt` beside the first shard, or none.
fn classes_of(named: Option<&Path>, shards: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let beside = shards[0].with_file_name("classes.txt");
    let path = match named {
        Some(path) => path,
        None if beside.is_file() => &beside,
        None => return Ok(Vec::new()),
    };
    let text = std::fs::read_to_string(path)
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
