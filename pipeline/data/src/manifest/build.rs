//! Makes a manifest by reading shards from end to end.

use std::collections::{BTreeMap, BTreeSet};

use simclr_ground::location::Location;
use simclr_ground::sample::split_name;

use super::problem::Problem;
use super::scan::scan_all;
use super::{Manifest, ManifestError, NamedShard, Shard};
use crate::shard::{self, Extras, ScannedSample, ShardScan};

/// How to build a manifest.
pub struct BuildOptions<'a> {
    /// The folder the manifest will be in; shards below it are written as relative locations.
    pub base: Location,
    /// What the manifest says of its origin.
    pub source: String,
    /// The names of the classes; empty if they have none.
    pub classes: Vec<String>,
    /// Image entries to leave out, such as those that a run has put into quarantine.
    pub exclude: BTreeSet<String>,
    /// Whether to go through every JPEG and note where its data may be entered.
    pub rows: bool,
    /// How many shards are read at the same time.
    pub threads: usize,
    /// Called with each shard's size when it has been read.
    pub progress: &'a (dyn Fn(u64) + Sync),
}

/// Reads every shard and returns the manifest of them.
///
/// # Errors
/// If a file can't be read or anything in the shards is not as it should be; all problems are listed.
pub fn build(all: &[NamedShard], options: BuildOptions<'_>) -> Result<Manifest, ManifestError> {
    let scans = scan_all(all, options.threads, options.progress, |named| {
        shard::scan(&named.place, Extras { md5: named.md5.is_some(), rows: options.rows })
    })?;
    let mut problems = Vec::new();
    let mut shards = Vec::with_capacity(scans.len());
    let mut keys: BTreeMap<String, usize> = BTreeMap::new();
    let labelled = scans.iter().flat_map(|scan| &scan.samples).any(|sample| sample.label.is_some());
    for (i, (named, scan)) in all.iter().zip(&scans).enumerate() {
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
        if labelled && !scan.samples.is_empty() && scan.samples.iter().all(|sample| sample.label.is_none()) {
            problem(None, 0, "no sample has a label, but samples of other shards do".into());
        }
        for sample in &scan.samples {
            if let Some(first) = keys.insert(split_name(&sample.entry).0.to_owned(), i)
                && first != i
            {
                let what = format!("its key is also in shard {}", all[first].place);
                problem(Some(sample.entry.clone()), sample.offset, what);
            }
            if let Some(label) = sample.label
                && !options.classes.is_empty()
                && label as usize >= options.classes.len()
            {
                let what = format!("class {label}, but only {} class names were given", options.classes.len());
                problem(Some(sample.entry.clone()), sample.offset, what);
            }
        }
        shards.push(shard_of(location.clone(), scan, labelled, &options));
    }
    if problems.is_empty() && shards.iter().all(|shard: &Shard| shard.num_samples() == 0) {
        let what = format!("none of the {} shards contains a sample", all.len());
        problems.push(Problem { shard: shards[0].location.clone(), entry: None, offset: 0, what });
    }
    if !problems.is_empty() {
        return Err(ManifestError::Unsound { problems });
    }
    Ok(Manifest::new(options.source, options.classes, shards, options.base))
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

fn shard_of(location: String, scan: &ShardScan, labelled: bool, options: &BuildOptions<'_>) -> Shard {
    let is_left_out = |sample: &&ScannedSample| options.exclude.contains(&sample.entry);
    let (left_out, samples): (Vec<_>, Vec<_>) = scan.samples.iter().partition(is_left_out);
    Shard {
        location,
        bytes: scan.bytes,
        blake3: scan.blake3.clone(),
        tar_bytes: scan.tar_bytes,
        tar_blake3: scan.tar_blake3.clone(),
        entries: samples.iter().map(|sample| sample.entry.clone()).collect(),
        labels: labelled.then(|| samples.iter().filter_map(|sample| sample.label).collect()),
        offsets: samples.iter().map(|sample| sample.offset).collect(),
        sizes: samples.iter().map(|sample| sample.size).collect(),
        checks: samples.iter().map(|sample| sample.check).collect(),
        rows: options.rows.then(|| samples.iter().map(|sample| sample.rows.clone()).collect()),
        frames: scan.frames.clone(),
        excluded: left_out.iter().map(|sample| sample.entry.clone()).collect(),
    }
}
