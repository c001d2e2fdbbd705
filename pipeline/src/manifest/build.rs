//! Makes a manifest by reading shards from end to end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};

use super::{Manifest, ManifestError, Problem, Shard};
use crate::sample::split_name;
use crate::shard::{self, ShardScan};

/// How to build a manifest.
pub struct BuildOptions<'a> {
    /// The folder the manifest will be in; shards below it are written as relative locations.
    pub base: &'a Path,
    /// What the manifest says of its origin.
    pub source: String,
    /// The names of the classes; empty if they have none.
    pub classes: Vec<String>,
    /// How many shards are read at the same time.
    pub threads: usize,
    /// Called with each shard's size when it has been read.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// Reads every shard and returns the manifest of them.
///
/// # Errors
/// If a file can't be read or anything in the shards is not as it should be; all problems are listed.
pub fn build(paths: &[PathBuf], options: BuildOptions<'_>) -> Result<Manifest, ManifestError> {
    let scans = scan_all(paths, options.threads, options.progress)?;
    let mut problems = Vec::new();
    let mut shards = Vec::with_capacity(scans.len());
    let mut keys: BTreeMap<String, usize> = BTreeMap::new();
    let labelled = scans.iter().flat_map(|scan| &scan.samples).any(|sample| sample.label.is_some());
    for (i, (path, scan)) in paths.iter().zip(&scans).enumerate() {
        let location = location(path, options.base);
        let mut problem = |entry: Option<String>, offset: u64, what: String| {
            problems.push(Problem { shard: location.clone(), entry, offset, what });
        };
        for found in &scan.problems {
            problem(found.entry.clone(), found.offset, found.what.clone());
        }
        if labelled && !scan.samples.is_empty() && scan.samples.iter().all(|sample| sample.label.is_none()) {
            problem(None, 0, "none of its samples has a label, while samples of other shards have one".into());
        }
        for sample in &scan.samples {
            if let Some(first) = keys.insert(split_name(&sample.entry).0.to_owned(), i)
                && first != i
            {
                let what = format!("its key is also in shard {}", paths[first].display());
                problem(Some(sample.entry.clone()), sample.offset, what);
            }
            if let Some(label) = sample.label
                && !options.classes.is_empty()
                && label as usize >= options.classes.len()
            {
                let what = format!("class {label}, but only {} classes have names", options.classes.len());
                problem(Some(sample.entry.clone()), sample.offset, what);
            }
        }
        shards.push(shard_of(location.clone(), scan, labelled));
    }
    if problems.is_empty() && scans.iter().all(|scan| scan.samples.is_empty()) {
        let what = format!("none of the {} shards holds a sample", paths.len());
        problems.push(Problem { shard: location(&paths[0], options.base), entry: None, offset: 0, what });
    }
    if !problems.is_empty() {
        return Err(ManifestError::Unsound { problems });
    }
    Ok(Manifest::new(options.source, options.classes, shards, options.base.to_owned()))
}

/// Reads the shards at `paths`, `threads` at a time.
pub(super) fn scan_all(
    paths: &[PathBuf],
    threads: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<ShardScan>, ManifestError> {
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    let sender = Mutex::new(sender);
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, paths.len().max(1)) {
            scope.spawn(|| {
                let sender = sender.lock().expect("no panic while sending").clone();
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(path) = paths.get(i) else { break };
                    let scan = shard::scan(path);
                    progress(scan.as_ref().map_or(0, |scan| scan.bytes));
                    if sender.send((i, scan)).is_err() {
                        break;
                    }
                }
            });
        }
    });
    drop(sender);
    let mut scans: Vec<Option<ShardScan>> = vec![None; paths.len()];
    for (i, scan) in receiver {
        let io = |source| ManifestError::Io { path: paths[i].clone(), what: "cannot read the shard".into(), source };
        scans[i] = Some(scan.map_err(io)?);
    }
    Ok(scans.into_iter().map(|scan| scan.expect("every shard was read")).collect())
}

fn shard_of(location: String, scan: &ShardScan, labelled: bool) -> Shard {
    Shard {
        location,
        bytes: scan.bytes,
        blake3: scan.blake3.clone(),
        tar_bytes: scan.tar_bytes,
        tar_blake3: scan.tar_blake3.clone(),
        entries: scan.samples.iter().map(|sample| sample.entry.clone()).collect(),
        labels: labelled.then(|| scan.samples.iter().filter_map(|sample| sample.label).collect()),
        offsets: scan.samples.iter().map(|sample| sample.offset).collect(),
        sizes: scan.samples.iter().map(|sample| sample.size).collect(),
        checks: scan.samples.iter().map(|sample| sample.check).collect(),
    }
}

/// The path as the manifest writes it: relative if it is below the manifest's folder, else absolute.
fn location(path: &Path, base: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let base = std::path::absolute(base).unwrap_or_else(|_| base.to_owned());
    absolute.strip_prefix(&base).unwrap_or(&absolute).display().to_string()
}
