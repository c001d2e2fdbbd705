//! Makes a manifest by reading shards from end to end.

use std::collections::BTreeSet;

use simclr_ground::location::Location;

use super::problem::Problem;
use super::scan::scan_all;
use super::{Manifest, ManifestError, NamedShard, Shard};
use crate::compression::Compression;
use crate::shard::{self, Extras, PassedOver, ScannedSample, ShardScan};

/// How to build a manifest.
pub struct BuildOptions<'a> {
    /// The folder the manifest will be in; shards below it are written as relative locations.
    pub base: Location,
    /// What the manifest says of its origin.
    pub source: String,
    /// The names of the classes; empty if they have none.
    pub classes: Vec<String>,
    /// The field of samples' `.json` entries that is their class index, where there is no `.cls`.
    pub label_field: Option<String>,
    /// Images to leave out, such as those that a run has put into quarantine: the name of the shard's file, and the entry.
    pub exclude: BTreeSet<(String, String)>,
    /// Whether to go through every JPEG and note where its data may be entered.
    pub rows: bool,
    /// How many shards are read at the same time.
    pub threads: usize,
    /// Called with each shard's size when it has been read.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// Reads every shard and returns the manifest of them, and what they hold beside samples.
///
/// Samples may lack a label. A key need be unique in its shard only.
///
/// # Errors
/// If a file can't be read or anything in the shards is not as it should be; all problems are listed.
pub fn build(all: &[NamedShard], options: BuildOptions<'_>) -> Result<(Manifest, PassedOver), ManifestError> {
    let scans = scan_all(all, options.threads, options.progress, |named| {
        let label_field = options.label_field.as_deref();
        shard::scan(&named.place, Extras { md5: named.md5.is_some(), rows: options.rows, label_field })
    })?;
    let mut passed_over = PassedOver::default();
    let mut problems = Vec::new();
    let mut shards = Vec::with_capacity(scans.len());
    for (named, scan) in all.iter().zip(&scans) {
        passed_over.add(&scan.passed_over);
        let location = named.place.relative_to(&options.base);
        let mut problem = |entry: Option<String>, offset: u64, what: String| {
            problems.push(Problem { shard: location.clone(), entry, offset, what });
        };
        for found in &scan.problems {
            problem(found.entry.clone(), found.offset, found.what.clone());
        }
        for what in contradictions(named, scan) {
            problem(None, 0, what);
        }
        for sample in &scan.samples {
            if let Some(label) = sample.label
                && !options.classes.is_empty()
                && label as usize >= options.classes.len()
            {
                let what = format!("class {label}, but only {} class names were given", options.classes.len());
                problem(Some(sample.entry.clone()), sample.offset, what);
            }
        }
        let named_as = Compression::by_name(&named.place);
        shards.push(shard_of(location.clone(), scan, named_as, &options));
    }
    if problems.is_empty() && shards.iter().all(|shard: &Shard| shard.num_samples() == 0) {
        let held = passed_over.told().join("; ");
        let held = if held.is_empty() { held } else { format!(" ({held})") };
        let what = format!("none of the {} shards contains a sample{held}", all.len());
        problems.push(Problem { shard: shards[0].location.clone(), entry: None, offset: 0, what });
    }
    if !problems.is_empty() {
        return Err(ManifestError::Unsound { problems });
    }
    Ok((Manifest::new(options.source, options.classes, shards, options.base), passed_over))
}

/// What an index says of a shard and is not so.
fn contradictions(named: &NamedShard, scan: &ShardScan) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, said: Option<String>, is: Option<String>| {
        if let (Some(said), Some(is)) = (said, is)
            && said != is
        {
            found.push(format!("the index lists {what} {said}, but the shard has {is}"));
        }
    };
    compare("samples:", named.samples.map(|n| n.to_string()), Some(scan.samples.len().to_string()));
    compare("bytes:", named.bytes.map(|n| n.to_string()), Some(scan.bytes.to_string()));
    compare("MD5", named.md5.as_ref().map(|md5| md5.to_lowercase()), scan.md5.clone());
    found
}

/// The name of a shard's file, which it keeps wherever it is moved to.
pub fn shard_name(location: &str) -> &str {
    location.rsplit('/').next().unwrap_or(location)
}

fn shard_of(location: String, scan: &ShardScan, named_as: Compression, options: &BuildOptions<'_>) -> Shard {
    let name = shard_name(&location).to_owned();
    let is_left_out = |sample: &&ScannedSample| options.exclude.contains(&(name.clone(), sample.entry.clone()));
    let (left_out, samples): (Vec<_>, Vec<_>) = scan.samples.iter().partition(is_left_out);
    Shard {
        location,
        bytes: scan.bytes,
        blake3: scan.blake3.clone(),
        tar_bytes: scan.tar_bytes,
        tar_blake3: scan.tar_blake3.clone(),
        entries: samples.iter().map(|sample| sample.entry.clone()).collect(),
        labels: samples
            .iter()
            .any(|sample| sample.label.is_some())
            .then(|| samples.iter().map(|sample| sample.label).collect()),
        offsets: samples.iter().map(|sample| sample.offset).collect(),
        sizes: samples.iter().map(|sample| sample.size).collect(),
        checks: samples.iter().map(|sample| sample.check).collect(),
        rows: options.rows.then(|| samples.iter().map(|sample| sample.rows.clone()).collect()),
        compression: scan.compression.filter(|&compression| compression != named_as),
        loose: false,
        frames: scan.frames.clone(),
        excluded: left_out.iter().map(|sample| sample.entry.clone()).collect(),
    }
}
